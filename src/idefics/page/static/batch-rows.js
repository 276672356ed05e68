/** Rows of a batch run: the request of a picture, its thumbnail, the answer that comes back, and rows as files. */

import { toSentence } from "./api.js";
import { toPicture } from "./pictures.js";
import { fromDataUri, parseLabels, toDataUri } from "./run.js";
import { writeZip } from "./zip.js";

// Beginnings that spreadsheets take for a formula (OWASP, "CSV Injection"): the full-width forms too.
const FORMULA = /^'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]/;
const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$/;
const ALWAYS = ["text", "finish", "error_type", "error"]; // columns of every line, also where they are empty
const NOT_IN_CSV = ["notes"];
const THUMBNAIL_PIXELS = 320;

/** Fields of a row that an answer sets. */
export const ANSWER_FIELDS = ["text", "labels", "tokens", "finish", "notes", "error", "errorType"];

/** The answer of a row before there is one. */
export const noAnswer = () => ({
  text: null,
  labels: null,
  tokens: 0,
  finish: "",
  notes: [],
  error: "",
  errorType: "",
});

/** @param {string} run @param {Source} source @param {number} index @returns {Row} */
export const newRow = (run, { path, signature }, index) => ({
  run,
  path,
  index,
  signature,
  thumbnail: null,
  batch: "",
  request: "",
  edited: null,
  ...noAnswer(),
});

/** Whether a row still waits for an answer. @param {Row} row */
export const isOpen = (row) => row.text === null && !row.error;

/** The answer of a row as it is shown and exported: what somebody wrote, else the model's; null if there is none. */
export const answerOf = (row) => row.edited ?? row.text;

/** The probability of the answer of a row; null unless it is one of the labels. @param {Row} row */
export const probabilityOf = (row) => row.labels?.find(({ label }) => label === answerOf(row))?.probability ?? null;

/** The route that answers the rows of a run. @param {RunRecord} record */
export const endpointOf = ({ task }) => `/v1/images/tasks/${task}`;

/**
 * The request of a picture as a line of a file, and a thumbnail.
 * @param {RunRecord} record
 * @param {string} path identifies the picture in the batch.
 * @param {File} file
 * @param {Object[]} shots the few-shot examples, as the API has them.
 * @param {Object} [limits] `images` of the model, see `/v1/models`.
 * @returns {Promise<{line: Blob, thumbnail: Blob}>}
 * @throws {Error} it is no picture that the browser can show.
 */
export async function prepareRequest(record, path, file, shots, limits) {
  if (file.type.startsWith("video/")) throw new Error(`${file.name} is a video: add it under Pictures.`);
  const picture = await toPicture(file, limits);
  const { task, words, fields, model } = record;
  const asked = task === "classify" ? { labels: parseLabels(words) } : words && { words };
  const body = { model, image_url: await toDataUri(picture.blob), ...asked, ...fields, ...(shots.length && { shots }) };
  const request = { custom_id: path, method: "POST", url: endpointOf(record), body };
  return { line: new Blob([JSON.stringify(request), "\n"]), thumbnail: await drawThumbnail(picture) };
}

/** The picture of a request that was sent. @param {Blob} line @param {string} path @returns {Promise<File>} */
export async function pictureOf(line, path) {
  return fromDataUri(JSON.parse(await line.text()).body.image_url, path.split("/").pop());
}

/** Sets the answer of a row to that of a line of the output. @param {Row} row @param {Object} line @returns {Row} */
export function setAnswer(row, { response, error }) {
  const { body, status_code: status } = response ?? {};
  if (status !== 200) {
    const message = toSentence(error?.message ?? body.error.message);
    return Object.assign(row, { error: message, errorType: error?.code ?? `HTTP ${status}` });
  }
  const { labels = null, usage, notes = [], finish_reason: finish = "" } = body;
  const text = labels ? labels[0].label : body.text;
  return Object.assign(row, { text, labels, tokens: usage.completion_tokens, finish, notes });
}

async function drawThumbnail({ blob, width, height }) {
  const scale = Math.min(1, THUMBNAIL_PIXELS / Math.max(width, height));
  const [resizeWidth, resizeHeight] = [width, height].map((side) => Math.ceil(side * scale));
  const drawn = await createImageBitmap(blob, { resizeWidth, resizeHeight, resizeQuality: "medium" });
  const canvas = new OffscreenCanvas(resizeWidth, resizeHeight);
  canvas.getContext("2d").drawImage(drawn, 0, 0);
  drawn.close();
  return canvas.convertToBlob({ type: "image/webp", quality: 0.8 });
}

/** The columns of a row. `model_text` is the model's answer where somebody wrote another one. */
function toRecord({ task, words, model, revision, fields, numShots }, row) {
  const { path, labels, tokens, finish, notes, error, errorType, edited } = row;
  const settings = { ...(numShots && { shots: numShots }), ...fields };
  const probabilities = labels && Object.fromEntries(labels.map(({ label, probability }) => [label, probability]));
  return {
    ...{ id: path, path, task, prompt: task === "classify" ? "" : words, text: error ? "" : answerOf(row), finish },
    ...{ tokens: error ? "" : tokens, probabilities: probabilities ?? "", model, revision: revision ?? "", settings },
    ...{ seconds: "", error_type: errorType, error, notes, model_text: edited === null ? "" : row.text },
  };
}

const recordsOf = (run) => run.rows.filter((row) => !isOpen(row)).map((row) => toRecord(run.record, row));

/** A table for spreadsheets (RFC 4180); a text that one would run as a formula has an apostrophe in front. @returns {Blob} */
export function toCsv(run) {
  const columns = Object.keys(toRecord(run.record, run.rows[0])).filter((name) => !NOT_IN_CSV.includes(name));
  const lines = [columns, ...recordsOf(run).map((record) => columns.map((name) => toCell(record[name])))];
  return new Blob(
    lines.map((cells) => `${cells.join(",")}\r\n`),
    { type: "text/csv" },
  );
}

function toCell(value) {
  const text = typeof value === "object" ? JSON.stringify(value) : String(value);
  const safe = FORMULA.test(text) && !NUMBER.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

/** An object a line, without the fields that are empty. @returns {Blob} */
export function toJsonLines(run) {
  const isEmpty = (value) => value === "" || (typeof value === "object" && !Object.keys(value).length);
  const lines = recordsOf(run).map((record) =>
    Object.fromEntries(Object.entries(record).filter(([name, value]) => ALWAYS.includes(name) || !isEmpty(value))),
  );
  return new Blob(
    lines.map((line) => `${JSON.stringify(line)}\n`),
    { type: "application/jsonl" },
  );
}

/** A zip with a text for each answered picture: `a/1.txt` for `a/1.png`. @returns {Blob} */
export function toSidecars(run) {
  const texts = new Map();
  for (const row of run.rows.filter((one) => one.text !== null)) {
    const path = row.path.replace(/\.[^./]+$/, "") + ".txt";
    texts.set(texts.has(path) ? `${row.path}.txt` : path, `${answerOf(row)}\n`);
  }
  return writeZip(texts);
}
