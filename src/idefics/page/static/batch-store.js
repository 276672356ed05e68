/** Batch runs as the browser keeps them: IndexedDB has each run, and each row with its thumbnail and its answer. */

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
 *
 * @typedef {Object} RunRecord
 * @property {string} id
 * @property {string} task
 * @property {string} words
 * @property {Object} fields further fields of each request, such as `detail`.
 * @property {string} model
 * @property {number} createdAt milliseconds since 1970.
 * @property {number} numShots few-shot examples that come before each question.
 * @property {{done: number, failed: number, total: number}} counts
 * @property {number} deletedAt milliseconds since 1970; 0: it is not deleted.
 */

let database = null;

function openDatabase() {
  database ??= new Promise((resolve, reject) => {
    const opening = indexedDB.open("idefics-batch", 2);
    opening.onupgradeneeded = ({ oldVersion }) => {
      if (oldVersion < 1) {
        opening.result.createObjectStore("runs", { keyPath: "id" });
        opening.result.createObjectStore("rows", { keyPath: ["run", "path"] });
      }
      opening.result.createObjectStore("shots"); // key: the run's id
    };
    opening.onsuccess = () => resolve(opening.result);
    opening.onerror = () => reject(opening.error);
  });
  return database;
}

async function transact(store, mode, work) {
  const transaction = (await openDatabase()).transaction(store, mode);
  const request = work(transaction.objectStore(store));
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve(request?.result);
    transaction.onabort = transaction.onerror = () => reject(transaction.error);
  });
}

const rowsOf = (run) => IDBKeyRange.bound([run], [run, []]);

/** Runs, the newest first. @returns {Promise<RunRecord[]>} */
export async function listRuns() {
  const runs = await transact("runs", "readonly", (store) => store.getAll());
  return runs.sort((first, second) => second.createdAt - first.createdAt);
}

/** A run; undefined if there is none. @param {string} id @returns {Promise<RunRecord|undefined>} */
export const loadRun = (id) => transact("runs", "readonly", (store) => store.get(id));

/** Keeps a run, new or brought back. @param {RunRecord} run */
export const saveRun = (run) => transact("runs", "readwrite", (store) => store.put(run));

/** Changes fields of a run, unless it is deleted for good. @param {string} id @param {Partial<RunRecord>} changes */
export const updateRun = (id, changes) =>
  transact("runs", "readwrite", (store) => {
    store.get(id).onsuccess = ({ target: { result } }) => result && store.put({ ...result, ...changes });
  });

/** Keeps the few-shot examples of a run. @param {string} run @param {Shot[]} shots */
export const saveShots = (run, shots) => transact("shots", "readwrite", (store) => store.put(shots, run));

/** The few-shot examples of a run. @param {string} run @returns {Promise<Shot[]>} */
export const loadShots = async (run) => (await transact("shots", "readonly", (store) => store.get(run))) ?? [];

/** The rows of a run, in their order. @param {string} run @returns {Promise<Row[]>} */
export async function loadRows(run) {
  const rows = await transact("rows", "readonly", (store) => store.getAll(rowsOf(run)));
  return rows.sort((first, second) => first.index - second.index);
}

/** Keeps new rows. @param {Row[]} rows */
export const saveRows = (rows) => transact("rows", "readwrite", (store) => void rows.forEach((row) => store.put(row)));

/** Some rows of a run. @param {string} run @param {string[]} paths @returns {Promise<Row[]>} those that there are. */
export async function loadSomeRows(run, paths) {
  const rows = [];
  await transact("rows", "readonly", (store) => {
    for (const path of paths)
      store.get([run, path]).onsuccess = ({ target: { result } }) => result && rows.push(result);
  });
  return rows;
}

/**
 * Changes fields of rows; what another window has changed meanwhile stays.
 * @param {Row[]} rows
 * @param {string[]} fields
 * @param {function(Row, Row): boolean} [isCurrent] whether the stored row is still the one that is to be changed.
 */
export const updateRows = (rows, fields, isCurrent = () => true) =>
  transact("rows", "readwrite", (store) => {
    for (const row of rows)
      store.get([row.run, row.path]).onsuccess = ({ target: { result: stored } }) => {
        if (!stored || !isCurrent(stored, row)) return;
        for (const field of fields) stored[field] = row[field];
        store.put(stored);
      };
  });

/** Deletes a run with its rows. @param {string} id */
export async function deleteRun(id) {
  await transact("rows", "readwrite", (store) => void store.delete(rowsOf(id)));
  await transact("shots", "readwrite", (store) => void store.delete(id));
  await transact("runs", "readwrite", (store) => void store.delete(id));
}
