/** The answers of a batch run as files, with the columns of `idefics run`: see "Output" in its documentation. */

import { answerOf, isOpen } from "./batch-rows.js";
import { writeZip } from "./zip.js";

// Beginnings that spreadsheets take for a formula (OWASP, "CSV Injection"): the full-width forms too.
const FORMULA = /^'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]/;
const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$/;
const ALWAYS = ["text", "finish", "error_type", "error"]; // columns of every line, also where they are empty
const NOT_IN_CSV = ["notes"];

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
