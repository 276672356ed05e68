/** Heat over a picture: what covering each part of it changes, as colours and as words. */

const CARRIED = [255, 138, 28]; // orange and blue differ for every common kind of colour blindness
const AGAINST = [70, 160, 255];
const MAX_OPACITY = 0.9; // of the hottest cell
const MIN_SCALE = 0.1; // heat of full colour is at least this, so that a flat map is drawn flat
const FLAT = 0.05; // nats, or share of attention: parts that change less say nothing
const SPREAD_SHARE = 0.2; // of the heat in the hottest ninth, below which it is spread over the picture
const EXPORT_EDGE = 1280; // pixels of the longer edge of a saved picture, at least
const NINTHS = [
  ["in the upper left", "at the top", "in the upper right"],
  ["on the left", "in the middle", "on the right"],
  ["in the lower left", "at the bottom", "in the lower right"],
];

/** The maps of several words as one. @param {number[][][]} maps @returns {number[][]} */
export function addMaps(maps) {
  return maps[0].map((row, y) => row.map((_, x) => maps.reduce((sum, map) => sum + map[y][x], 0)));
}

/** How likely words are without the picture, as a share of how likely they are with it. @param {Object[]} words */
export function shareOfWords(words) {
  const lost = words.reduce((sum, word) => sum + word.log_probability_without_picture - word.log_probability, 0);
  return Math.exp(Math.min(0, lost));
}

/** The heat that is drawn in full colour for these maps. @param {number[][][]} maps */
export const scaleOf = (maps) => Math.max(MIN_SCALE, ...maps.flat(2).map(Math.abs));

/** Whether covering any one part changes next to nothing. @param {number[][]} map */
export const isFlat = (map) => Math.max(...map.flat()) < FLAT;

/**
 * Where a map is hottest, in words: "most in the upper left".
 * @param {number[][]} map rows of cells.
 * @returns {string}
 */
export function describeMap(map) {
  if (isFlat(map)) return "no single part decides";
  const heat = Math.max(...map.flat());
  const ninths = Array.from({ length: 9 }, () => 0);
  let hottest = 0;
  map.forEach((row, y) =>
    row.forEach((value, x) => {
      const index = 3 * Math.floor((3 * y) / map.length) + Math.floor((3 * x) / row.length);
      ninths[index] += Math.max(0, value);
      if (value === heat) hottest = index;
    }),
  );
  const share = ninths[hottest] / ninths.reduce((sum, value) => sum + value, 0);
  const place = NINTHS[Math.floor(hottest / 3)][hottest % 3];
  return share < SPREAD_SHARE ? `all over the picture, most ${place}` : `most ${place}`;
}

/** Strengths of a map, -1 to 1, row by row. @param {number[][]} map @param {number} scale heat of strength 1. */
export const strengthsOf = (map, scale) =>
  Float32Array.from(map.flat(), (value) => Math.max(-1, Math.min(1, value / scale)));

/**
 * Draws strengths over a whole canvas.
 * @param {CanvasRenderingContext2D} context
 * @param {Float32Array} strengths row by row.
 * @param {number} columns cells in a row.
 * @param {number} opacity 0 to 1.
 */
export function drawHeat(context, strengths, columns, opacity) {
  const rows = strengths.length / columns;
  const cells = new OffscreenCanvas(columns, rows);
  const pixels = new ImageData(columns, rows);
  strengths.forEach((strength, index) => {
    const alpha = Math.abs(strength) ** 0.8 * MAX_OPACITY * opacity;
    pixels.data.set([...(strength < 0 ? AGAINST : CARRIED), Math.round(255 * alpha)], 4 * index);
  });
  cells.getContext("2d").putImageData(pixels, 0, 0);
  context.imageSmoothingQuality = "high";
  context.drawImage(cells, 0, 0, context.canvas.width, context.canvas.height);
}

/**
 * A picture with its heat and a caption below, as PNG.
 * @param {Blob} picture
 * @param {{strengths: Float32Array, columns: number, opacity: number, caption: string, legend: string}} drawn
 * @returns {Promise<Blob>}
 */
export async function exportMap(picture, { strengths, columns, opacity, caption, legend }) {
  const image = await createImageBitmap(picture);
  const factor = Math.max(1, EXPORT_EDGE / Math.max(image.width, image.height));
  const [width, height] = [Math.round(image.width * factor), Math.round(image.height * factor)];
  const textSize = Math.round(Math.max(18, width / 45));
  const map = new OffscreenCanvas(width, height);
  drawHeat(map.getContext("2d"), strengths, columns, opacity);
  const canvas = new OffscreenCanvas(width, height + Math.round(3.6 * textSize));
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.filter = "grayscale(0.6) brightness(0.55)";
  context.drawImage(image, 0, 0, width, height);
  context.filter = "none";
  context.drawImage(map, 0, 0);
  context.fillStyle = "#191b22";
  context.font = `600 ${textSize}px system-ui, sans-serif`;
  context.fillText(caption, textSize / 2, height + 1.5 * textSize, width - textSize);
  context.fillStyle = "#565b67";
  context.font = `${Math.round(0.8 * textSize)}px system-ui, sans-serif`;
  context.fillText(legend, textSize / 2, height + 2.9 * textSize, width - textSize);
  image.close();
  return canvas.convertToBlob({ type: "image/png" });
}
