/** Batch runs as the browser keeps them: IndexedDB has each run, and each row with its thumbnail and its answer. */

/**
 * @typedef {Object} Row A picture of a run.
 * @property {string} run id of its run.
 * @property {string} path its path in the folder or zip, unique in the run.
 * @property {number} index its place in the order in which pictures were added.
 * @property {Blob|null} thumbnail
 * @property {string} batch id of the batch that answers it; "" before it is sent.
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
 * @property {{id: string, file: string, hasEnded: boolean}[]} batches with the files of their requests.
 * @property {{done: number, failed: number, total: number}} counts
 * @property {boolean} isDeleted it is only still there to be brought back.
 */

let database = null;

function openDatabase() {
  database ??= new Promise((resolve, reject) => {
    const opening = indexedDB.open("idefics-batch", 1);
    opening.onupgradeneeded = () => {
      opening.result.createObjectStore("runs", { keyPath: "id" });
      opening.result.createObjectStore("rows", { keyPath: ["run", "path"] });
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

/** Keeps a run. @param {RunRecord} run */
export const saveRun = (run) => transact("runs", "readwrite", (store) => store.put(run));

/** The rows of a run, in their order. @param {string} run @returns {Promise<Row[]>} */
export async function loadRows(run) {
  const rows = await transact("rows", "readonly", (store) => store.getAll(rowsOf(run)));
  return rows.sort((first, second) => first.index - second.index);
}

/** Keeps new rows. @param {Row[]} rows */
export const saveRows = (rows) => transact("rows", "readwrite", (store) => void rows.forEach((row) => store.put(row)));

/** Changes fields of rows; what another window has changed meanwhile stays. @param {Row[]} rows @param {string[]} fields */
export const updateRows = (rows, fields) =>
  transact("rows", "readwrite", (store) => {
    for (const row of rows) {
      const reading = store.get([row.run, row.path]);
      reading.onsuccess = () => {
        if (!reading.result) return;
        for (const field of fields) reading.result[field] = row[field];
        store.put(reading.result);
      };
    }
  });

/** Deletes a run with its rows. @param {string} id */
export async function deleteRun(id) {
  await transact("rows", "readwrite", (store) => void store.delete(rowsOf(id)));
  await transact("runs", "readwrite", (store) => void store.delete(id));
}
