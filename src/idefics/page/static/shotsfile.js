/** shots.jsonl: few-shot examples as a file, one a line, as the command line and Python read them. */

import { fromDataUri, toDataUri } from "./run.js";
import { newId } from "./state.js";

const EXAMPLE = '{"image": "photo.jpg", "answer": "A puppy."}';

/** Examples as the text of a shots.jsonl that needs no other file. @param {Shot[]} shots @returns {Promise<string>} */
export async function toJsonLines(shots) {
  const lines = shots.map(async ({ picture, question, answer }) =>
    JSON.stringify({ image: await toDataUri(picture.blob), answer, ...(question && { question }) }),
  );
  return (await Promise.all(lines)).map((line) => `${line}\n`).join("");
}

/**
 * The examples of a shots.jsonl.
 * @param {File[]} files the file, and the pictures that it names.
 * @param {function(File): Promise<StoredPicture>} toPicture see pictures.js.
 * @param {function(string): Promise<Blob>} fetchPicture see api.js.
 * @returns {Promise<Shot[]>}
 * @throws {Error} names the line that cannot be read.
 */
export async function readShots(files, toPicture, fetchPicture) {
  const file = files.find(({ name }) => /\.(jsonl|ndjson|json|txt)$/i.test(name));
  if (!file)
    throw new Error(
      "There is no .jsonl file among those: choose shots.jsonl, and the pictures that it names.",
    );
  const lines = (await file.text()).replace(/^\ufeff/, "").split("\n");
  const shots = [];
  for (const [index, line] of lines.entries()) {
    if (!line.trim()) continue;
    const place = `${file.name}, line ${index + 1}`;
    const { image, answer, question = "" } = parseLine(line, place);
    const picture = await toPicture(await openImage(image, { place, files, fetchPicture }));
    shots.push({ id: newId(), picture, question, answer });
  }
  if (!shots.length) throw new Error(`${file.name} holds no examples: write one a line, such as ${EXAMPLE}`);
  return shots;
}

function parseLine(line, place) {
  let row;
  try {
    row = JSON.parse(line);
  } catch {
    throw new Error(`${place} is not JSON: write ${EXAMPLE}`);
  }
  if (typeof row?.image !== "string" || typeof row.answer !== "string") {
    throw new Error(`${place} needs an "image" and an "answer": write ${EXAMPLE}`);
  }
  return row;
}

/** The picture of a line as a file: in the line itself, one of the files, or at an address. */
async function openImage(image, { place, files, fetchPicture }) {
  if (image.startsWith("data:")) return fileOfDataUri(image, place);
  if (/^https?:/.test(image)) {
    const blob = await fetchPicture(image);
    return new File([blob], image.split("/").pop(), { type: blob.type });
  }
  const name = image.split(/[/\\]/).pop();
  const found = files.find((file) => file.name === name);
  if (!found) throw new Error(`${place} names ${image}: choose that picture together with the file.`);
  return found;
}

function fileOfDataUri(uri, place) {
  try {
    return fromDataUri(uri, "example");
  } catch {
    throw new Error(`${place}: the picture is not a base64 data URI that can be read.`);
  }
}
