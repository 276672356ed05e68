/**
 * Decodes TIFF files, which few browsers show: the first page, of 1 to 16 bits a sample, grey, RGB or with a palette,
 * in strips or tiles, plain or compressed by PackBits, LZW or Deflate. Formats: TIFF 6.0; Technical Note 2 (Deflate).
 */

const MAX_PIXELS = 200_000_000; // held as 4 bytes each
const NAMES = {
  2: "CCITT",
  3: "CCITT (fax)",
  4: "CCITT (fax)",
  6: "JPEG",
  7: "JPEG",
  34712: "JPEG 2000",
  50001: "WebP",
};
const BYTES_OF_TYPE = [0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8];

/**
 * @param {ArrayBuffer} buffer the file.
 * @param {string} name of the file, for messages.
 * @returns {Promise<ImageBitmap>} upright, and whether there are more: `hasMorePages`.
 * @throws {Error} it is broken, or of a kind that is not read.
 */
export async function decodeTiff(buffer, name) {
  try {
    const view = new DataView(buffer);
    const tags = readTags(view);
    const bitmap = await createImageBitmap(await toImageData(view, tags));
    return Object.assign(bitmap, { hasMorePages: tags.hasMorePages });
  } catch (error) {
    const reason = error instanceof UnreadTiff ? error.message : "is broken";
    throw new Error(`${name} ${reason}: save it as PNG or JPEG and add that.`);
  }
}

class UnreadTiff extends Error {}

/** @param {DataView} view the file. @param {Object} image its tags. @returns {Promise<ImageData>} */
async function toImageData(view, image) {
  const { width, height, bits, samples, compression, photometric } = image;
  if (NAMES[compression]) throw new UnreadTiff(`is a TIFF compressed as ${NAMES[compression]}, which is not read here`);
  if (image.isPreview) throw new UnreadTiff("is a TIFF that begins with a preview, as camera RAW files do");
  const isRead = photometric <= 3 && [1, 2, 4, 8, 16].includes(bits) && image.isWhole && !image.isFloat;
  if (!isRead || (image.planar === 2 && samples > 1)) throw new UnreadTiff("is a TIFF of an unusual kind");
  if (width * height > MAX_PIXELS) throw new UnreadTiff("has too many pixels");
  const isTurned = image.orientation >= 5;
  const drawn = new ImageData(isTurned ? height : width, isTurned ? width : height);
  const across = Math.ceil(width / image.blockWidth);
  for (const [index, offset] of image.offsets.entries()) {
    const bytes = new Uint8Array(view.buffer, offset, image.counts[index]);
    const left = (index % across) * image.blockWidth;
    const top = Math.floor(index / across) * image.blockHeight;
    const numRows = image.isTiled ? image.blockHeight : Math.min(image.blockHeight, height - top);
    const rowBytes = Math.ceil((image.blockWidth * samples * bits) / 8);
    const block = await unpack(bytes, compression, rowBytes * numRows);
    for (let row = 0; row < numRows && top + row < height; row++) {
      const values = readRow(block.subarray(row * rowBytes, (row + 1) * rowBytes), image);
      drawRow(drawn, values, left, top + row, image);
    }
  }
  return drawn;
}

/** The tags of the first page that say how it is stored. */
function readTags(view) {
  const isLittle = view.getUint16(0) === 0x4949;
  const start = view.getUint32(4, isLittle);
  const numTags = view.getUint16(start, isLittle);
  const tags = new Map();
  for (let index = 0; index < numTags; index++) {
    const at = start + 2 + 12 * index;
    const [type, count] = [view.getUint16(at + 2, isLittle), view.getUint32(at + 4, isLittle)];
    const size = BYTES_OF_TYPE[type] ?? 1;
    const from = size * count > 4 ? view.getUint32(at + 8, isLittle) : at + 8;
    const read = { 2: (place) => view.getUint16(place, isLittle), 4: (place) => view.getUint32(place, isLittle) };
    const readOne = read[size] ?? ((place) => view.getUint8(place));
    const values = () => Array.from({ length: count }, (_, number) => readOne(from + size * number));
    tags.set(view.getUint16(at, isLittle), values);
  }
  const list = (tag, missing) => tags.get(tag)?.() ?? missing;
  const one = (tag, missing) => list(tag, [missing])[0];
  const [width, height, bits] = [one(256), one(257), list(258, [1])];
  const isTiled = tags.has(322);
  return {
    ...{ width, height, isLittle, isTiled, bits: bits[0], samples: one(277, 1), compression: one(259, 1) },
    ...{ photometric: one(262), orientation: one(274, 1), planar: one(284, 1), predictor: one(317, 1) },
    blockWidth: isTiled ? one(322) : width,
    blockHeight: isTiled ? one(323) : Math.min(one(278, height), height),
    offsets: list(isTiled ? 324 : 273),
    counts: list(isTiled ? 325 : 279),
    palette: list(320, []),
    isWhole: bits.every((number) => number === bits[0]),
    isFloat: list(339, [1]).some((kind) => kind !== 1),
    hasMorePages: view.getUint32(start + 2 + 12 * numTags, isLittle) > 0,
    isPreview: Boolean(one(254, 0) & 1) || tags.has(50706),
  };
}

async function unpack(bytes, compression, size) {
  if (compression === 1) return bytes;
  if (compression === 5) return unpackLzw(bytes, size);
  if (compression === 32773) return unpackBits(bytes, size);
  if (compression !== 8 && compression !== 32946) throw new UnreadTiff("is a TIFF of an unusual compression");
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** PackBits (TIFF 6.0, section 9). */
function unpackBits(bytes, size) {
  const out = new Uint8Array(size);
  for (let from = 0, to = 0; from < bytes.length && to < size;) {
    const head = (bytes[from++] << 24) >> 24;
    if (head >= 0) out.set(bytes.subarray(from, (from += head + 1)), to);
    else if (head !== -128) out.fill(bytes[from++], to, to + 1 - head);
    if (head !== -128) to += Math.abs(head) + 1;
  }
  return out;
}

/** LZW (TIFF 6.0, section 13). A text of the table is a part of the output: where it stands, and its length. */
function unpackLzw(bytes, size) {
  const out = new Uint8Array(size + 4096);
  const [starts, lengths] = [new Uint32Array(4097), new Uint16Array(4097)];
  let [width, next, held, numHeld, to, last, length] = [9, 258, 0, 0, 0, 0, 0];
  for (const byte of bytes) {
    held = (held << 8) | byte;
    numHeld += 8;
    if (numHeld < width) continue;
    numHeld -= width;
    const code = held >> numHeld;
    held &= (1 << numHeld) - 1;
    if (code === 257 || to >= size) break;
    if (code === 256) {
      [width, next, length] = [9, 258, 0];
      continue;
    }
    if (length && next < 4096) {
      [starts[next], lengths[next]] = [last, length + 1];
      next += 1;
      if (next + 1 >= 1 << width && width < 12) width += 1;
    }
    last = to;
    length = code < 256 ? 1 : lengths[code];
    if (code < 256) out[to++] = code;
    else for (let from = starts[code], end = from + length; from < end;) out[to++] = out[from++];
  }
  return out;
}

/** The samples of a row, 0 to 255 but for numbers of a palette, with the predictor (TIFF 6.0, section 14) undone. */
function readRow(bytes, { bits, samples, predictor, isLittle, photometric, blockWidth }) {
  const values = new Uint16Array(blockWidth * samples);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const mask = (1 << bits) - 1;
  for (let index = 0; index < values.length; index++) {
    if (bits === 16) values[index] = view.getUint16(2 * index, isLittle);
    else values[index] = (bytes[(index * bits) >> 3] >> (8 - bits - ((index * bits) & 7))) & mask;
    if (predictor === 2 && index >= samples) values[index] = (values[index] + values[index - samples]) & mask;
  }
  return photometric === 3 ? values : values.map((value) => (bits === 16 ? value >> 8 : (255 * value) / mask));
}

function drawRow({ data, width: pitch }, values, left, y, image) {
  const { width, height, blockWidth, samples, photometric, orientation, palette } = image;
  const numColours = palette.length / 3;
  for (let column = 0; column < blockWidth && left + column < width; column++) {
    const x = left + column;
    const across = [2, 3, 7, 8].includes(orientation) ? width - 1 - x : x;
    const down = [3, 4, 6, 7].includes(orientation) ? height - 1 - y : y;
    const at = 4 * (orientation >= 5 ? across * pitch + down : down * pitch + across);
    for (let channel = 0; channel < 3; channel++) {
      const value = values[column * samples + (photometric === 2 ? channel : 0)];
      if (photometric === 3) data[at + channel] = palette[channel * numColours + value] >> 8;
      else data[at + channel] = photometric === 0 ? 255 - value : value;
    }
    data[at + 3] = 255;
  }
}
