/** Files and batches of the public API: see "Batches" in the server's documentation. */

import { postJson, request } from "./api.js";

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

/** Requests of a batch, each as a line. @param {string} id @param {Set<string>} wanted @returns {Promise<Map<string, Blob>>} */
export async function fetchRequests(id, wanted) {
  const found = new Map();
  for await (const line of readLines((await fetchBatch(id)).input_file_id)) {
    const { custom_id: path } = line ? JSON.parse(line) : {};
    if (wanted.has(path)) found.set(path, new Blob([line, "\n"]));
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
