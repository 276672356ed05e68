/** Where the pictures of a batch run come from: files, those of folders, and zips. */

import { onlyPictures } from "./pictures.js";
import { listZip } from "./zip.js";

const MAX_PATH = 512; // characters of a `custom_id`
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
 * @property {function(): Promise<File>} read
 * @property {File} [file] unless it is in a zip.
 */

/**
 * Pictures of files; those in a zip are unpacked when they are sent.
 * @param {File[]} files
 * @returns {Promise<{sources: Source[], problems: string[]}>}
 */
export async function readSources(files) {
  const sources = [];
  const problems = [];
  for (const file of files) {
    try {
      if (/\.zip$/i.test(file.name)) sources.push(...(await sourcesOfZip(file)));
      else
        sources.push({
          path: pathOf(file.path || file.webkitRelativePath || file.name),
          size: file.size,
          read: async () => file,
          file,
        });
    } catch (error) {
      problems.push(error.message);
    }
  }
  return { sources, problems };
}

const pathOf = (path) => path.toWellFormed().slice(-MAX_PATH);

async function sourcesOfZip(zip) {
  const entries = (await listZip(zip)).map((entry) => ({ ...entry, name: entry.path.split("/").pop() }));
  const sources = onlyPictures(entries).map(({ path, name, bytes, read }) => {
    const type = TYPES[name.split(".").pop().toLowerCase()] ?? "";
    return { path: pathOf(path), size: bytes, read: async () => new File([await read()], name, { type }) };
  });
  if (!sources.length) throw new Error(`${zip.name} has no pictures.`);
  return sources;
}

/**
 * The path of a picture; another file of the same path is called "1 (2).png".
 * @param {Source} source
 * @param {Map<string, Source>} known by their paths.
 * @returns {string}
 */
export function freePath(source, known) {
  const original = source.path;
  for (let number = 2; known.has(source.path) && !isSame(known.get(source.path), source); number++) {
    source.path = original.replace(/(\.[^./]*)?$/, ` (${number})$1`);
  }
  return source.path;
}

const isSame = ({ file: first, size: firstSize }, { file, size }) =>
  firstSize === size && first?.lastModified === file?.lastModified;
