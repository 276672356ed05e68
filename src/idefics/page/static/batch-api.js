/** Files and batches of the public API (see "Batches" in the server's documentation), and the answers that come of them. */

import { postJson, request, toSentence } from "./api.js";
import { isOpen, setAnswer } from "./batch-rows.js";

const NOT_KEPT = "The server no longer has this picture: retry, or add it again.";
const NOT_ANSWERED = "The server ended before it answered this one.";
const [RATE_SECONDS, RATE_SAMPLES] = [30, 6]; // over which the speed is measured: the longer of the two

/** Whether a batch has ended. @param {{status: string}} batch */
export const hasEnded = ({ status }) => ["completed", "failed", "expired", "cancelled"].includes(status);

/** Sends a file of requests. @param {Blob} blob @param {AbortSignal} signal @returns {Promise<Object>} the file's object. */
export async function uploadFile(blob, signal) {
  const form = new FormData();
  form.append("purpose", "batch");
  form.append("file", blob, "requests.jsonl");
  return (await request("v1/files", { method: "POST", body: form, signal })).json();
}

/** Starts a batch over a file whose lines are for one endpoint. @returns {Promise<Object>} the batch's object. */
export async function createBatch(fileId, endpoint, metadata) {
  const body = { input_file_id: fileId, endpoint, completion_window: "24h", metadata };
  return (await postJson("v1/batches", body)).json();
}

/** A batch as it is now. @param {string} id @returns {Promise<Object>} */
export const fetchBatch = async (id) => (await request(`v1/batches/${id}`)).json();

/** Ids of the batches of a run. @param {string} run @returns {Promise<string[]>} */
export async function listBatchesOf(run) {
  const ids = [];
  for (let after = "", hasMore = true; hasMore;) {
    const page = await (await request(`v1/batches?limit=100${after && `&after=${after}`}`)).json();
    ids.push(...page.data.filter(({ metadata }) => metadata?.run === run).map(({ id }) => id));
    [after, hasMore] = [page.last_id, page.has_more];
  }
  return ids;
}

/** Ends a batch; answers that it has stay. @param {string} id */
export const cancelBatch = (id) => request(`v1/batches/${id}/cancel`, { method: "POST" });

/** Deletes a file. @param {string} id */
export const deleteFile = (id) => request(`v1/files/${id}`, { method: "DELETE" });

/**
 * What a batch has answered after a line, at most 1,000 lines; all of it once the batch has ended.
 * @param {string} id
 * @param {number} after number of the last line that is known.
 * @returns {Promise<{data: Object[], last: number, has_more: boolean, status: string, message?: string}>} `message`:
 *   why the whole batch failed.
 */
async function fetchResults(id, after) {
  const page = await (await request(`v1/batches/${id}/results?after=${after}&limit=1000`)).json();
  if (!hasEnded(page)) return page;
  const batch = await fetchBatch(id);
  const data = [];
  for (const file of [batch.output_file_id, batch.error_file_id]) {
    if (file) for await (const line of readLines(file)) data.push(JSON.parse(line));
  }
  return { ...page, data, has_more: false, message: batch.errors?.data[0].message };
}

/** The lines of a file. */
async function* readLines(id) {
  const response = await request(`v1/files/${id}/content`);
  let rest = [];
  for await (const text of chunks(response.body.pipeThrough(new TextDecoderStream()).getReader())) {
    const [first, ...others] = text.split("\n");
    rest.push(first);
    for (const other of others) {
      yield rest.join("");
      rest = [other];
    }
  }
}

/** Reads requests of rows that were sent before; each batch is read once. @param {Set<string>} paths of the rows. */
export function lineReader(paths) {
  const lines = new Map();
  return async ({ path, request: batch }) => {
    if (!lines.has(batch)) lines.set(batch, fetchRequests(batch, paths));
    const line = (await lines.get(batch)).get(path);
    if (!line) throw new Error(NOT_KEPT);
    return line;
  };
}

/** The requests of some rows that a batch has, each as a line. */
async function fetchRequests(batch, paths) {
  const found = new Map();
  try {
    for await (const line of readLines((await fetchBatch(batch)).input_file_id)) {
      const { custom_id: path } = line ? JSON.parse(line) : {};
      if (paths.has(path)) found.set(path, new Blob([line, "\n"]));
    }
  } catch (error) {
    if (error.status !== 404) throw error;
  }
  return found;
}

async function* chunks(reader) {
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    yield value;
  }
}

/**
 * The report of batches that have ended, as one page that needs no server.
 * @param {string[]} ids where a picture is in several, the last one counts.
 * @param {Object<string, string>} texts path -> what somebody wrote in place of the answer.
 * @returns {Promise<Blob>}
 */
export async function fetchReport([id, ...others], texts) {
  const query = new URLSearchParams([["format", "html"], ...others.map((other) => ["also", other])]);
  return (await postJson(`v1/batches/${id}/report?${query}`, { texts })).blob();
}

/** Reads answers; each is fetched once. */
export class AnswerReader {
  /** @type {Map<string, number>} batch -> number of the last line that is known. */
  #lastLines = new Map();

  /**
   * Sets the answers, or errors, of rows that a batch has answered since.
   * @param {string} batch
   * @param {Row[]} rows of the run.
   * @returns {Promise<Row[]>} those that changed.
   * @throws {ApiError} the server does not answer.
   */
  async read(batch, rows) {
    const page = await this.#fetchPage(batch);
    const open = rows.filter((row) => row.batch === batch && isOpen(row));
    const waiting = new Map(open.map((row) => [row.path, row]));
    const lines = page.data.filter((line) => waiting.has(line.custom_id));
    const changed = lines.map((line) => setAnswer(waiting.get(line.custom_id), line));
    if (!hasEnded(page)) return changed;
    const error = page.message ? toSentence(page.message) : NOT_ANSWERED;
    for (const row of waiting.values())
      if (isOpen(row)) changed.push(Object.assign(row, { error, errorType: "NotAnswered" }));
    return changed;
  }

  async #fetchPage(batch) {
    try {
      const page = await fetchResults(batch, this.#lastLines.get(batch) ?? 0);
      this.#lastLines.set(batch, page.last);
      return page;
    } catch (error) {
      if (error.status !== 404) throw error;
      return { data: [], status: "failed", message: NOT_KEPT };
    }
  }
}

/** Measures how fast pictures are done. */
export class Speed {
  /** @type {{at: number, done: number}[]} the first one, and each change. */
  #samples = [];

  /** Notes how many pictures are done now. @param {number} done */
  note(done) {
    const now = Date.now();
    if (this.#samples.at(-1)?.done !== done) this.#samples.push({ at: now, done });
    while (this.#samples.length > RATE_SAMPLES && this.#samples[0].at < now - RATE_SECONDS * 1000)
      this.#samples.shift();
  }

  /** Pictures a second; 0 before that is known. @param {number} done @returns {number} */
  rate(done) {
    const first = this.#samples[0];
    return done > first?.done ? (1000 * (done - first.done)) / (Date.now() - first.at) : 0;
  }

  /** Begins anew. */
  reset() {
    this.#samples = [];
  }
}
