/** Where the pictures of a batch run come from: files, those of folders, and zips. */

import { count } from "./dom.js";
import { onlyPictures } from "./pictures.js";
import { listZip } from "./zip.js";

const MAX_PATH = 500; // characters of a `custom_id`, which may have 512, before a number
const TYPES = {
  jpg: "image/jpeg",
  jpeg: "image/jpeg",
  png: "image/png",
  webp: "image/webp",
  gif: "image/gif",
  bmp: "image/bmp",
  avif: "image/avif",
};

/**
 * @typedef {Object} Source A picture that is read when it is sent.
 * @property {string} path
 * @property {number} size in bytes.
 * @property {string} signature tells files of one path apart.
 * @property {function(): Promise<File>} read
 * @property {File} [file] unless it is in a zip.
 */

/**
 * Pictures of files; those in a zip are unpacked when they are sent.
 * @param {File[]} files
 * @returns {Promise<{sources: Source[], problems: string[], numLeftOut: number}>} `numLeftOut`: files in folders and zips
 *   that are no pictures.
 */
export async function readSources(files) {
  const sources = [];
  const problems = [];
  let { numLeftOut = 0 } = files;
  for (const file of files) {
    try {
      if (/\.zip$/i.test(file.name)) {
        const found = await sourcesOfZip(file);
        sources.push(...found.sources);
        numLeftOut += found.numLeftOut;
      } else
        sources.push({
          path: pathOf(file.path || file.webkitRelativePath || file.name),
          size: file.size,
          signature: `${file.size} ${file.lastModified}`,
          read: async () => file,
          file,
        });
    } catch (error) {
      problems.push(error.message);
    }
  }
  if (!files.length) problems.push("There are no pictures among those files.");
  return { sources, problems, numLeftOut };
}

/** What is said about other files: nothing if there are none. @param {number} number @returns {string[]} */
export const nameLeftOut = (number) => (number ? [`${count(number, "other file")} left out`] : []);

const pathOf = (path) => path.toWellFormed().slice(-MAX_PATH);

async function sourcesOfZip(zip) {
  const entries = (await listZip(zip)).map((entry) => ({ ...entry, name: entry.path.split("/").pop() }));
  const pictures = onlyPictures(entries);
  const sources = pictures.map(({ path, name, bytes, checksum, read }) => {
    const type = TYPES[name.split(".").pop().toLowerCase()] ?? "";
    const unpack = async () => new File([await read()], name, { type });
    return { path: pathOf(path), size: bytes, signature: `${bytes} ${checksum}`, read: unpack };
  });
  if (!sources.length) throw new Error(`${zip.name} has no pictures.`);
  return { sources, numLeftOut: pictures.numLeftOut };
}

/**
 * A picture with a path of its own: another file of a path that is taken is called "1 (2).png".
 * @param {Source} source
 * @param {Map<string, {signature: string, error?: string}>} known by their paths; one that failed is replaced.
 * @returns {Source}
 */
export function withOwnPath(source, known) {
  const isOther = ({ error, signature }) => !error && signature !== source.signature;
  let { path } = source;
  for (let number = 2; known.has(path) && isOther(known.get(path)); number++)
    path = source.path.replace(/(\.[^./]*)?$/, ` (${number})$1`);
  return { ...source, path };
}
