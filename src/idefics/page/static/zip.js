/** Reads and writes zip archives (APPNOTE.TXT 6.3.10 of PKWARE), with the browser's own decompression. */

const END_BYTES = 22; // of the end of the central directory, before its comment
const MAX_COMMENT_BYTES = 65_535;
const [LOCAL_MARK, CENTRAL_MARK, END_MARK] = [0x04034b50, 0x02014b50, 0x06054b50];
const STORED = 0;
const DEFLATED = 8;
const UTF8_FLAG = 0x800;
const ENCRYPTED_FLAG = 1;
const VERSION = 20;
const MAX_DIRECTORY_BYTES = 64 << 20; // of the names of 65,534 files
const MAX_ENTRY_BYTES = 256 << 20; // unpacked, of one file
const EARLIEST_DATE = 0x21; // 1 January 1980

const viewOf = async (blob) => new DataView(await blob.arrayBuffer());

/**
 * The entries of an archive; folders are left out.
 * @param {File} file
 * @returns {Promise<{path: string, bytes: number, checksum: number, read: function(): Promise<Blob>}[]>}
 * @throws {Error} it is no zip that can be read here.
 */
export async function listZip(file) {
  const tail = await viewOf(file.slice(-END_BYTES - MAX_COMMENT_BYTES));
  let end = tail.byteLength - END_BYTES;
  while (end >= 0 && tail.getUint32(end, true) !== END_MARK) end--;
  const refuse = () => {
    throw new Error(`${file.name} is not a zip that can be read: unpack it, and add the folder.`);
  };
  if (end < 0) refuse();
  const [count, size, start] = [
    tail.getUint16(end + 10, true),
    tail.getUint32(end + 12, true),
    tail.getUint32(end + 16, true),
  ];
  if (count === 0xffff || start === 0xffffffff) {
    throw new Error(`${file.name} is a zip of more than 4 GB or 65,534 files: unpack it, and add the folder.`);
  }
  if (size > MAX_DIRECTORY_BYTES) refuse();
  const directory = await viewOf(file.slice(start, start + size));
  const entries = [];
  let packedBytes = 0;
  for (let at = 0; at + 46 <= directory.byteLength && directory.getUint32(at, true) === CENTRAL_MARK;) {
    const entry = readEntry(directory, at);
    if (!entry.path.endsWith("/")) entries.push({ ...entry, read: () => readContent(file, entry) });
    packedBytes += entry.packedBytes;
    at += entry.length;
  }
  if (packedBytes > file.size) refuse(); // entries share their bytes
  return entries;
}

function readEntry(view, at) {
  const short = (offset) => view.getUint16(at + offset, true);
  const long = (offset) => view.getUint32(at + offset, true);
  const name = new Uint8Array(view.buffer, at + 46, short(28));
  return {
    path: new TextDecoder(short(8) & UTF8_FLAG ? "utf-8" : "windows-1252").decode(name),
    isEncrypted: Boolean(short(8) & ENCRYPTED_FLAG),
    method: short(10),
    checksum: long(16),
    packedBytes: long(20),
    bytes: long(24),
    start: long(42),
    length: 46 + short(28) + short(30) + short(32),
  };
}

/** Unpacks an entry: no more than the archive says, which has a limit. */
async function readContent(file, { path, isEncrypted, method, packedBytes, bytes, start }) {
  if (isEncrypted || ![STORED, DEFLATED].includes(method)) {
    throw new Error(`${path} is encrypted or packed in a way that the browser cannot read: unpack the zip first.`);
  }
  if (bytes > MAX_ENTRY_BYTES) {
    throw new Error(
      `${path} has ${Math.round(bytes / (1 << 20)).toLocaleString("en")} MB unpacked, and at most ${MAX_ENTRY_BYTES >> 20} MB are read from a zip.`,
    );
  }
  const header = await viewOf(file.slice(start, start + 30));
  const from = start + 30 + header.getUint16(26, true) + header.getUint16(28, true);
  const packed = file.slice(from, from + packedBytes);
  if (method === STORED && packed.size === bytes) return packed;
  const reader = packed.stream().pipeThrough(new DecompressionStream("deflate-raw")).getReader();
  const parts = [];
  for (let total = 0; ;) {
    const { value, done } = await reader.read().catch(() => ({ done: true }));
    total += value?.length ?? 0;
    if (total > bytes || (done && total < bytes)) {
      reader.cancel().catch(() => {});
      throw new Error(`${path} is damaged in the zip.`);
    }
    if (done) return new Blob(parts);
    parts.push(value);
  }
}

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value;
});

/** CRC-32 as ISO 3309 defines it. */
function checksum(bytes) {
  let value = -1;
  for (const byte of bytes) value = CRC_TABLE[(value ^ byte) & 255] ^ (value >>> 8);
  return ~value >>> 0;
}

/**
 * An archive of texts, which are not compressed.
 * @param {Map<string, string>} texts path -> content.
 * @returns {Blob}
 */
export function writeZip(texts) {
  const encoder = new TextEncoder();
  const local = [];
  const central = [];
  let start = 0;
  for (const [path, text] of texts) {
    const [name, content] = [encoder.encode(path), encoder.encode(text)];
    const common = [
      ...shorts(VERSION, UTF8_FLAG, STORED, 0, EARLIEST_DATE),
      ...longs(checksum(content), content.length, content.length),
      ...shorts(name.length, 0),
    ];
    const head = [...longs(LOCAL_MARK), ...common];
    local.push(new Uint8Array(head), name, content);
    central.push(
      new Uint8Array([...longs(CENTRAL_MARK), ...shorts(VERSION), ...common, ...shorts(0, 0, 0), ...longs(0, start)]),
      name,
    );
    start += head.length + name.length + content.length;
  }
  const size = central.reduce((sum, part) => sum + part.length, 0);
  const end = [...longs(END_MARK), ...shorts(0, 0, texts.size, texts.size), ...longs(size, start), ...shorts(0)];
  return new Blob([...local, ...central, new Uint8Array(end)], { type: "application/zip" });
}

const shorts = (...values) => values.flatMap((value) => [value & 255, value >>> 8]);
const longs = (...values) => values.flatMap((value) => shorts(value & 0xffff, value >>> 16));
