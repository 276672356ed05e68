/** Files and batches of the public API: see "Batches" in the server's documentation. */

import { postJson, request } from "./api.js";

export const NOT_KEPT = "The server no longer has this picture: add it again.";

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
export async function fetchResults(id, after) {
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
 * @returns {Promise<Blob>}
 */
export async function fetchReport([id, ...others]) {
  const query = new URLSearchParams([["format", "html"], ...others.map((other) => ["also", other])]);
  return (await request(`v1/batches/${id}/report?${query}`, { method: "POST" })).blob();
}
