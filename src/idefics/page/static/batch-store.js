/**
 * Batch runs as the browser keeps them: IndexedDB has each run, and each row with its thumbnail and its answer. Windows tell
 * each other what they have stored.
 */

import { Database } from "./database.js";

/**
 * @typedef {Object} Row A picture of a run.
 * @property {string} run id of its run.
 * @property {string} path its path in the folder or zip, unique in the run.
 * @property {number} index its place in the order in which pictures were added.
 * @property {string} signature tells files of one path apart.
 * @property {Blob|null} thumbnail
 * @property {string} batch id of the batch that answers it; "" before it is sent.
 * @property {string} request id of the last batch that has its request; "" before it is sent for the first time.
 * @property {string|null} text the answer, or the most likely label; null before.
 * @property {Label[]|null} labels the ranking of "classify".
 * @property {number} tokens number of generated tokens.
 * @property {string} finish why the answer ended; "" of a ranking.
 * @property {string[]} notes what was not read of the picture.
 * @property {string|null} edited what somebody wrote in place of the answer.
 * @property {string} error why there is no answer; "" if nothing went wrong.
 * @property {string} errorType the kind of error, for programs; "" as `error`.
 *
 * @typedef {Object} RunRecord
 * @property {string} id
 * @property {string} task
 * @property {string} words
 * @property {Object} fields further fields of each request, such as `detail`.
 * @property {string} model
 * @property {string|null} revision of the model; null if it has none.
 * @property {number} createdAt milliseconds since 1970.
 * @property {number} numShots few-shot examples that come before each question.
 * @property {{done: number, failed: number, total: number}} counts
 * @property {number} deletedAt milliseconds since 1970; 0: it is not deleted.
 */

const database = new Database("idefics-batch", { runs: "id", rows: ["run", "path"], shots: null }, 2);
const transact = database.transact.bind(database);
// Pictures that are not sent yet: a database of its own, since they are large and nothing is to wait for them.
const unsent = new Database("idefics-batch-unsent", { files: null });
const MAX_KEPT_BYTES = 1e9; // of a run

const rowsOf = (run) => IDBKeyRange.bound([run], [run, []]);

/** Runs, the newest first. @returns {Promise<RunRecord[]>} */
export async function listRuns() {
  const found = await transact("readonly", (runs) => runs.getAll());
  return found.sort((first, second) => second.createdAt - first.createdAt);
}

/** A run; undefined if there is none. @param {string} id @returns {Promise<RunRecord|undefined>} */
export const loadRun = (id) => transact("readonly", (runs) => runs.get(id));

/** Keeps a run, new or brought back. @param {RunRecord} run */
export const saveRun = (run) => transact("readwrite", (runs) => runs.put(run));

/** Changes fields of a run, unless it is deleted for good. @param {string} id @param {Partial<RunRecord>} changes */
export const updateRun = (id, changes) =>
  transact("readwrite", (runs) => {
    runs.get(id).onsuccess = ({ target: { result } }) => result && runs.put({ ...result, ...changes });
  });

/** Keeps the few-shot examples of a run. @param {string} id of the run. @param {Shot[]} examples */
export const saveShots = (id, examples) => transact("readwrite", (runs, rows, shots) => shots.put(examples, id));

/** The few-shot examples of a run. @param {string} id of the run. @returns {Promise<Shot[]>} */
export const loadShots = async (id) => (await transact("readonly", (runs, rows, shots) => shots.get(id))) ?? [];

/** The rows of a run, in their order. @param {string} id of the run. @returns {Promise<Row[]>} */
export async function loadRows(id) {
  const found = await transact("readonly", (runs, rows) => rows.getAll(rowsOf(id)));
  return found.sort((first, second) => first.index - second.index);
}

/** Some rows of a run. @param {string} id of the run. @param {string[]} paths @returns {Promise<Row[]>} those that there are. */
export async function loadSomeRows(id, paths) {
  const found = [];
  await transact("readonly", (runs, rows) => {
    for (const path of paths) rows.get([id, path]).onsuccess = ({ target: { result } }) => result && found.push(result);
  });
  return found;
}

/** Keeps new rows. @param {Row[]} added */
export const saveRows = (added) => transact("readwrite", (runs, rows) => added.forEach((row) => rows.put(row)));

/**
 * Changes fields of rows; what another window has changed meanwhile stays.
 * @param {Row[]} changed
 * @param {string[]} fields
 * @param {function(Row, Row): boolean} [isCurrent] whether the stored row is still the one that is to be changed.
 */
export const updateRows = (changed, fields, isCurrent = () => true) =>
  transact("readwrite", (runs, rows) => {
    for (const row of changed)
      rows.get([row.run, row.path]).onsuccess = ({ target: { result: stored } }) => {
        if (!stored || !isCurrent(stored, row)) return;
        for (const field of fields) stored[field] = row[field];
        rows.put(stored);
      };
  });

/** Deletes a run with its rows. @param {string} id */
export const deleteRun = (id) =>
  transact("readwrite", (runs, rows, shots) => {
    runs.delete(id);
    rows.delete(rowsOf(id));
    shots.delete(id);
  });

/**
 * Keeps pictures while they are to be sent, so that a run goes on after a reload: as many as there is space for.
 * @param {string} id of the run.
 * @param {Source[]} sources
 * @param {function(): boolean} isSending
 */
export async function keepUnsent(id, sources, isSending) {
  let bytes = 0;
  for (const { path, file, size } of sources) {
    bytes += size;
    if (!isSending() || bytes > MAX_KEPT_BYTES) break;
    if (file) await unsent.transact("readwrite", (files) => files.put(file, [id, path]));
  }
  if (!isSending()) await dropUnsent(id);
}

/** Paths of the kept pictures of a run. @param {string} id of the run. @returns {Promise<Set<string>>} */
export async function listUnsent(id) {
  const keys = await unsent.transact("readonly", (files) => files.getAllKeys(rowsOf(id)));
  return new Set(keys.map(([, path]) => path));
}

/** A kept picture. @param {string} id of the run. @param {string} path @returns {Promise<File>} */
export const loadUnsent = (id, path) => unsent.transact("readonly", (files) => files.get([id, path]));

/** Deletes the kept pictures of a run. @param {string} id of the run. */
export const dropUnsent = (id) => unsent.transact("readwrite", (files) => files.delete(rowsOf(id)));

/** Runs that were opened, by their ids: they go on while another view is shown. @type {Map<string, BatchRun>} */
export const openRuns = new Map();

const channel = new BroadcastChannel("idefics.batches");
channel.onmessage = ({ data }) => openRuns.get(data.run)?.hear(data);

/**
 * Tells other windows something about a run.
 * @param {string} run its id.
 * @param {Object} message `paths` of rows that were stored; `asks` whether a window sends rows, `sends` as the answer;
 *   `cancels`; `deletedAt`.
 */
export const tellWindows = (run, message) => channel.postMessage({ run, ...message });
