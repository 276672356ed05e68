/** Batch runs: pictures are sent in files of bounded size, a batch each; answers are fetched while the batches run. */

import { toSentence } from "./api.js";
import { cancelBatch, createBatch, fetchRequests, fetchResults, hasEnded, uploadFile } from "./batch-api.js";
import { ANSWER_FIELDS, endpointOf, isOpen, newRow, noAnswer, prepareRequest, setAnswer } from "./batch-rows.js";
import { loadRows, loadRun, saveRows, saveRun, updateRows } from "./batch-store.js";
import { newId } from "./state.js";

const [FIRST_FILE_BYTES, MAX_FILE_BYTES] = [1 << 20, 32 << 20]; // each file may be twice as large as the one before
const MAX_UNFINISHED = 16; // batches of a run; further pictures are sent when one has ended
const [POLL_MILLISECONDS, RETRY_MILLISECONDS] = [700, 3000]; // between two requests for the batches; if the server is away
const RATE_SECONDS = 30; // over which the speed is measured
const NOT_SENT = "The page was left before this picture was sent: add it again.";
const NOT_KEPT = "The server no longer has this picture: add it again.";
const CANCELLED = "Cancelled before it was sent.";

/** Runs that were opened, by their ids: they go on while another view is shown. @type {Map<string, BatchRun>} */
export const openRuns = new Map();

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** A batch run: its rows, and what is being done for them. */
export class BatchRun {
  /** @type {Set<function(Row[]): void>} */
  #listeners = new Set();
  /** @type {Map<string, Source>} by the paths of rows. */
  #sources = new Map();
  /** @type {{row: Row, line: Blob|null}[]} rows to send; `line` if it was sent before. */
  #queue = [];
  #sending = null;
  #isWatching = false;
  #abort = new AbortController();
  /** @type {Map<string, number>} batch -> number of the last line that is known. */
  #lastLines = new Map();
  #samples = [];
  #fileBytes = FIRST_FILE_BYTES;

  /** @param {RunRecord} record @param {Row[]} rows @param {Object} app see app.js. */
  constructor(record, rows, app) {
    this.record = record;
    this.rows = rows;
    this.app = app;
    /** What keeps the run from going on, for people. */
    this.problem = "";
    openRuns.set(record.id, this);
  }

  /** Starts a run. @param {Object} app @param {{task, words, fields}} asked @param {Source[]} sources */
  static start(app, asked, sources) {
    const counts = { done: 0, failed: 0, total: 0 };
    const record = {
      id: newId(),
      ...asked,
      model: app.state.model.id,
      createdAt: Date.now(),
      counts,
      isDeleted: false,
    };
    const run = new BatchRun(record, [], app);
    void run.add(sources);
    return run;
  }

  /** The run of an id; null if the browser has none. @returns {Promise<BatchRun|null>} */
  static async open(app, id) {
    if (openRuns.has(id)) return openRuns.get(id);
    const record = await loadRun(id);
    if (!record || record.isDeleted) return null;
    const run = new BatchRun(record, await loadRows(id), app);
    for (const row of run.rows) if (isOpen(row) && !row.batch) row.error = NOT_SENT;
    void run.#watch();
    return run;
  }

  /** Calls a listener with the rows that changed. Returns a function that ends it. */
  subscribe(listener) {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  get isSending() {
    return this.#sending !== null;
  }

  get isRunning() {
    return this.isSending || this.rows.some((row) => isOpen(row));
  }

  /** Pictures that are answered or failed, of all, and how fast it goes; `rate` is per second, 0 before it is known. */
  get progress() {
    const failed = this.rows.filter((row) => row.error).length;
    const done = failed + this.rows.filter((row) => row.text !== null).length;
    const [first, last] = [this.#samples[0], this.#samples.at(-1)];
    const rate = last?.at > first?.at ? Math.max(0, last.done - first.done) / ((last.at - first.at) / 1000) : 0;
    return { done, failed, total: this.rows.length, rate };
  }

  /** Batches that have rows of this run. @returns {string[]} */
  get batches() {
    return [...new Set(this.rows.map((row) => row.batch).filter(Boolean))];
  }

  /** Adds pictures; those that failed are sent again. Returns how many were in the run already. @param {Source[]} sources */
  async add(sources) {
    const rowByPath = new Map(this.rows.map((row) => [row.path, row]));
    const unknown = sources.filter(({ path }) => !rowByPath.has(path));
    const added = unknown.map(({ path }, index) => newRow(this.record.id, path, this.rows.length + index));
    const failed = sources.map(({ path }) => rowByPath.get(path)).filter((row) => row?.error);
    const rows = [...failed, ...added];
    const paths = new Set(rows.map((row) => row.path));
    for (const source of sources) if (paths.has(source.path)) this.#sources.set(source.path, source);
    this.rows.push(...added);
    const storing = Promise.all([saveRun(this.record), saveRows(added)]);
    this.#enqueue(rows.map((row) => ({ row, line: null })));
    await this.#keep(storing);
    return sources.length - rows.length;
  }

  /** Whether a row that failed can be sent again as it is. @param {Row} row */
  canRetry(row) {
    return Boolean(row.error && (row.batch || this.#sources.has(row.path)));
  }

  /** Sends rows again that failed. @param {Row[]} rows */
  async retry(rows) {
    const again = rows.filter((row) => this.canRetry(row));
    const isHere = (row) => this.#sources.has(row.path);
    this.#enqueue(again.filter(isHere).map((row) => ({ row, line: null })));
    const sent = Map.groupBy(
      again.filter((row) => !isHere(row)),
      (row) => row.batch,
    );
    for (const [batch, wanted] of sent) {
      try {
        const lines = await fetchRequests(batch, new Set(wanted.map((row) => row.path)));
        this.#enqueue(wanted.map((row) => ({ row, line: lines.get(row.path) })));
      } catch (error) {
        this.#fail(wanted, error.status === 404 ? NOT_KEPT : error.message);
      }
    }
  }

  /** Ends the run; answers stay. */
  async cancel() {
    this.#abort.abort();
    await this.#sending;
    this.#abort = new AbortController();
    await Promise.allSettled(this.#unfinished().map(cancelBatch));
  }

  /** Keeps what somebody wrote in place of an answer. @param {Row} row @param {string} text */
  edit(row, text) {
    row.edited = text === row.text ? null : text;
    void this.#keep(updateRows([row], ["edited"]));
    this.#tell([row]);
  }

  #enqueue(items) {
    for (const { row } of items) Object.assign(row, { batch: "", ...noAnswer() });
    this.#queue.push(...items);
    this.#tell(items.map(({ row }) => row));
    if (items.length) this.#sending ??= this.#send();
    void this.#watch();
  }

  async #send() {
    while (this.#queue.length) {
      const part = [];
      try {
        await this.#hasTurn();
        await this.#fill(part);
        if (part.length) await this.#sendPart(part);
      } catch (error) {
        const rest = [...part, ...this.#queue.splice(0)]
          .map(({ row }) => row)
          .filter((row) => isOpen(row) && !row.batch);
        this.#fail(rest, error.name === "AbortError" ? CANCELLED : error.message);
      }
    }
    this.#sending = null;
  }

  /** Waits until one more batch may begin. @throws {DOMException} the run is cancelled. */
  async #hasTurn() {
    while (this.#unfinished().length >= MAX_UNFINISHED && !this.#abort.signal.aborted) await pause(POLL_MILLISECONDS);
    this.#abort.signal.throwIfAborted();
  }

  /** Prepares the next pictures, as many as a file may hold. */
  async #fill(part) {
    for (let bytes = 0; this.#queue.length && bytes < this.#fileBytes;) {
      this.#abort.signal.throwIfAborted();
      const item = this.#queue[0];
      try {
        item.line ??= await this.#prepare(item.row);
        part.push(item);
        bytes += item.line.size;
      } catch (error) {
        this.#fail([item.row], error.message);
      }
      this.#queue.shift();
    }
  }

  async #sendPart(part) {
    const file = await uploadFile(new Blob(part.map(({ line }) => line)), this.#abort.signal);
    const batch = await createBatch(file.id, endpointOf(this.record), { run: this.record.id });
    const rows = part.map(({ row }) => row);
    for (const row of rows) row.batch = batch.id;
    this.#fileBytes = Math.min(2 * this.#fileBytes, MAX_FILE_BYTES);
    await this.#keep(updateRows(rows, ["batch", ...ANSWER_FIELDS]));
    this.#tell(rows);
  }

  async #prepare(row) {
    const file = await this.#sources.get(row.path).read();
    const { line, thumbnail } = await prepareRequest(this.record, row.path, file, this.app.state.model?.images);
    row.thumbnail = thumbnail;
    void this.#keep(updateRows([row], ["thumbnail"]));
    this.#tell([row]);
    return line;
  }

  #fail(rows, error) {
    for (const row of rows) row.error = error;
    void this.#keep(updateRows(rows, ["error"]));
    this.#tell(rows);
  }

  #unfinished() {
    return [...new Set(this.rows.filter((row) => isOpen(row) && row.batch).map((row) => row.batch))];
  }

  /** Fetches answers until all rows have one or an error. */
  async #watch() {
    if (this.#isWatching) return;
    this.#isWatching = true;
    while (this.isRunning) {
      await pause(this.problem ? RETRY_MILLISECONDS : POLL_MILLISECONDS);
      const problems = [];
      for (const batch of this.#unfinished()) await this.#poll(batch).catch((error) => problems.push(error.message));
      this.problem = problems[0] ?? "";
      this.#measure();
      this.#tell([]);
    }
    this.#isWatching = false;
    this.#samples = [];
    this.#tell([]);
  }

  async #poll(batch) {
    const rowByPath = new Map(
      this.rows.filter((row) => row.batch === batch && isOpen(row)).map((row) => [row.path, row]),
    );
    try {
      const page = await fetchResults(batch, this.#lastLines.get(batch) ?? 0);
      this.#lastLines.set(batch, page.last);
      const changed = page.data
        .filter((line) => rowByPath.has(line.custom_id))
        .map((line) => setAnswer(rowByPath.get(line.custom_id), line));
      await this.#keep(updateRows(changed, ANSWER_FIELDS));
      this.#tell(changed);
      const why = page.message ? toSentence(page.message) : "The server ended before it answered this one.";
      if (hasEnded(page))
        this.#fail(
          [...rowByPath.values()].filter((row) => isOpen(row)),
          why,
        );
    } catch (error) {
      if (error.status !== 404) throw error;
      this.#fail([...rowByPath.values()], NOT_KEPT);
    }
  }

  #measure() {
    const now = Date.now();
    const { done, failed, total } = this.progress;
    this.#samples = [...this.#samples.filter(({ at }) => at > now - RATE_SECONDS * 1000), { at: now, done }];
    this.record.counts = { done, failed, total };
    void this.#keep(saveRun(this.record));
  }

  /** Waits for what the browser stores; says it once where it does not. */
  async #keep(storing) {
    try {
      await storing;
    } catch {
      this.isKept ??= this.app.notify("The browser cannot store this run: save the answers before you leave the page.");
    }
  }

  #tell(rows) {
    for (const listener of [...this.#listeners]) listener(rows);
  }
}
