/** Batch runs: their rows, and what is done for them. Windows that have the same run open tell each other about it. */

import { AnswerReader, Speed, cancelBatch, lineReader } from "./batch-api.js";
import { ANSWER_FIELDS, isOpen, newRow, noAnswer, pictureOf, prepareRequest } from "./batch-rows.js";
import { Sender } from "./batch-sender.js";
import { withOwnPath } from "./batch-sources.js";
import * as store from "./batch-store.js";
import { openRuns } from "./batch-store.js";
import { shotFields } from "./run.js";
import { newId } from "./state.js";

const MAX_UNFINISHED = 16; // batches of a run; further pictures are sent when one has ended
const [POLL_MILLISECONDS, RETRY_MILLISECONDS] = [700, 3000]; // between two requests for the batches; if the server is away
const MAX_ASKED = 2; // times that other windows are asked whether one of them sends
const NOT_SENT = "The page was left before this picture was sent: add it again.";
const SENT_FIELDS = ["batch", "request", ...ANSWER_FIELDS];

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
const fileKey = ({ path, signature }) => `${path.split("/").pop()} ${signature}`; // of a file that moved
const hasSameBatch = (stored, row) => stored.batch === row.batch;

/** A batch run: its rows, and what is being done for them. */
export class BatchRun {
  /** @type {Set<function(Row[]): void>} */
  #listeners = new Set();
  /** @type {Map<string, Source>} by the paths of rows. */
  #sources = new Map();
  #sender;
  #isWatching = false;
  #pollProblem = "";
  #reader = new AnswerReader();
  #speed = new Speed();
  #shots = null;
  #numAsked = 0;

  /** @param {RunRecord} record @param {Row[]} rows @param {Object} app see app.js. */
  constructor(record, rows, app) {
    this.record = record;
    this.rows = rows;
    this.app = app;
    this.#sender = new Sender(record, {
      mayBegin: () => this.#unfinished().length < MAX_UNFINISHED,
      sent: (sent, batch) => this.#noteSent(sent, batch),
      failed: (failed, error, type) => this.#fail(failed, error, type),
      changed: () => this.#tell([]),
      ended: () => store.dropUnsent(record.id).catch(() => {}), // the browser stores nothing
    });
    openRuns.set(record.id, this);
  }

  /** Starts a run. @param {Object} app @param {{task, words, fields}} asked @param {Shot[]} shots @param {Source[]} sources */
  static start(app, asked, shots, sources) {
    const counts = { done: 0, failed: 0, total: sources.length };
    const { id: model, revision } = app.state.model;
    const known = { model, revision, createdAt: Date.now(), numShots: shots.length, counts, deletedAt: 0 };
    const run = new BatchRun({ id: newId(), ...asked, ...known }, [], app);
    run.#shots = shotFields(shots);
    void run.#keep(Promise.all([store.saveRun(run.record), store.saveShots(run.record.id, shots)]));
    run.add(sources);
    return run;
  }

  /** The run of an id; null if the browser has none. @returns {Promise<BatchRun|null>} */
  static async open(app, id) {
    if (openRuns.has(id)) return openRuns.get(id);
    const record = await store.loadRun(id);
    if (!record || record.deletedAt) return null;
    const rows = await store.loadRows(id);
    const run = openRuns.get(id) ?? new BatchRun(record, rows, app);
    void run.#watch();
    return run;
  }

  /** Calls a listener with the rows that changed. Returns a function that ends it. */
  subscribe(listener) {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  get isSending() {
    return this.#sender.isSending;
  }

  /** What keeps the run from going on, for people. */
  get problem() {
    return this.#sender.problem || this.#pollProblem;
  }

  get isRunning() {
    return this.isSending || this.rows.some(isOpen);
  }

  /** Pictures that are answered or failed, those not sent yet, of all; `rate` is per second, 0 before it is known. */
  get progress() {
    const failed = this.rows.filter((row) => row.error).length;
    const unsent = this.rows.filter((row) => isOpen(row) && !row.batch).length;
    const done = this.rows.length - this.rows.filter(isOpen).length;
    return { done, failed, unsent, total: this.rows.length, rate: this.problem ? 0 : this.#speed.rate(done) };
  }

  /**
   * Adds pictures; those that failed are sent again, and another picture of a path that is taken gets another path.
   * Returns how many were in the run already. @param {Source[]} sources
   */
  add(sources) {
    const known = new Map(this.rows.map((row) => [row.path, row]));
    const lost = new Map(this.rows.filter(({ error }) => error).map((row) => [fileKey(row), row.path]));
    const [added, again] = [[], []];
    for (const source of sources) {
      const path = known.has(source.path) ? source.path : (lost.get(fileKey(source)) ?? source.path);
      const own = withOwnPath({ ...source, path }, known);
      const row = known.get(own.path);
      if (row && !row.error) continue;
      if (row) again.push(Object.assign(row, { signature: own.signature }));
      else added.push(newRow(this.record.id, own, this.rows.length + added.length));
      known.set(own.path, own);
      this.#sources.set(own.path, own);
    }
    this.rows.push(...added);
    void this.#keep(store.saveRows(added), added);
    this.#enqueue([...again, ...added].map((row) => ({ row, read: () => this.#prepare(row) })));
    const unsent = [...again, ...added].map(({ path }) => this.#sources.get(path));
    store.keepUnsent(this.record.id, unsent, () => this.isSending).catch(() => {}); // there is no more space
    return sources.length - unsent.length;
  }

  /** Whether a row that failed can be sent again as it is. @param {Row} row */
  canRetry(row) {
    return Boolean(row.error && (row.request || this.#sources.has(row.path)));
  }

  /** Sends rows again that failed: from here, else what the server has. @param {Row[]} rows */
  retry(rows) {
    const again = rows.filter((row) => this.canRetry(row));
    const fetchLine = lineReader(new Set(again.map(({ path }) => path)));
    const read = (row) => (this.#sources.has(row.path) ? this.#prepare(row) : fetchLine(row));
    this.#enqueue(again.map((row) => ({ row, read: () => read(row) })));
  }

  /** The picture of a row: from here, else what the server has. @param {Row} row @returns {Promise<File>} */
  async readPicture(row) {
    const source = this.#sources.get(row.path);
    return source ? source.read() : pictureOf(await lineReader(new Set([row.path]))(row), row.path);
  }

  /** Ends the run; answers stay. */
  async cancel() {
    this.#post({ cancels: true });
    await this.#sender.cancel();
    await Promise.allSettled(this.#unfinished().map(cancelBatch));
  }

  /** Takes in what another window says about the run. @param {Object} message */
  async hear({ paths, asks, sends, cancels, deletedAt }) {
    const { id } = this.record;
    if (asks && this.isSending) this.#post({ sends: true });
    if (sends) this.#numAsked = 0;
    if (cancels) await this.#sender.cancel();
    if (paths) this.#adopt(await store.loadSomeRows(id, paths));
    if (!deletedAt) return;
    openRuns.delete(id);
    if (location.hash !== `#/batch/${id}`) return;
    location.hash = "#/batch";
    this.app.notify("The run was deleted in another window.");
  }

  /** Shows rows as another window has stored them, but for those that this one is about to send. */
  #adopt(stored) {
    const rowByPath = new Map(this.rows.map((row) => [row.path, row]));
    const changed = [];
    for (const one of stored) {
      const row = rowByPath.get(one.path);
      if (row && this.#sender.has(row)) continue;
      if (!row) this.rows.push(one);
      changed.push(row ? Object.assign(row, one, { thumbnail: row.thumbnail ?? one.thumbnail }) : one);
    }
    this.#tell(changed);
    void this.#watch();
  }

  /** Keeps what somebody wrote in place of an answer. @param {Row} row @param {string} text */
  edit(row, text) {
    row.edited = text === row.text ? null : text;
    void this.#keep(store.updateRows([row], ["edited"]), [row]);
    this.#tell([row]);
  }

  #enqueue(items) {
    const rows = items.map(({ row }) => Object.assign(row, { batch: "", ...noAnswer() }));
    this.#speed.reset();
    void this.#keep(store.updateRows(rows, [...SENT_FIELDS, "signature"]), rows);
    this.#sender.enqueue(items);
    this.#tell(rows);
    void this.#watch();
  }

  async #noteSent(rows, batch) {
    for (const row of rows) row.batch = row.request = batch;
    await this.#keep(store.updateRows(rows, SENT_FIELDS), rows);
    this.#tell(rows);
  }

  async #prepare(row, given) {
    const file = given ?? (await this.#sources.get(row.path).read());
    this.#shots ??= store.loadShots(this.record.id).then(shotFields);
    const images = this.app.state.model?.images;
    const { line, thumbnail } = await prepareRequest(this.record, row.path, file, await this.#shots, images);
    row.thumbnail = thumbnail;
    void this.#keep(store.updateRows([row], ["thumbnail"]), [row]);
    this.#tell([row]);
    return line;
  }

  #fail(rows, error, errorType = "NotSent") {
    for (const row of rows) Object.assign(row, { error, errorType });
    void this.#keep(store.updateRows(rows, ["error", "errorType"], hasSameBatch), rows);
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
      this.#pollProblem = problems[0] ?? "";
      await this.#takeOver();
      this.#noteProgress();
      this.#tell([]);
    }
    this.#isWatching = false;
    this.#speed.reset();
    this.#tell([]);
  }

  /** Rows that no window sends, since the one that was to send them was left: those that the browser keeps are sent. */
  async #takeOver() {
    const { id } = this.record;
    const unsent = this.rows.filter((row) => isOpen(row) && !row.batch && !this.#sender.has(row));
    if (!unsent.length) this.#numAsked = 0;
    else if (this.#numAsked++ < MAX_ASKED) this.#post({ asks: true });
    else {
      const kept = await store.listUnsent(id).catch(() => new Set());
      const read = async (row) => this.#prepare(row, await store.loadUnsent(id, row.path));
      const here = unsent.filter(({ path }) => kept.has(path));
      this.#enqueue(here.map((row) => ({ row, read: () => read(row) })));
      this.#fail(
        unsent.filter(({ path }) => !kept.has(path)),
        NOT_SENT,
      );
    }
  }

  async #poll(batch) {
    const changed = await this.#reader.read(batch, this.rows);
    await this.#keep(store.updateRows(changed, ANSWER_FIELDS, hasSameBatch), changed);
    this.#tell(changed);
  }

  #noteProgress() {
    const { done, failed, total } = this.progress;
    this.#speed.note(done);
    this.record.counts = { done, failed, total };
    void this.#keep(store.updateRun(this.record.id, { counts: this.record.counts }));
  }

  /** Waits for what the browser stores, and tells other windows which rows; says it once where it does not. */
  async #keep(storing, rows = []) {
    try {
      await storing;
      if (rows.length) this.#post({ paths: rows.map(({ path }) => path) });
    } catch {
      this.isKept ??= this.app.notify("The browser cannot store this run: save the answers before you leave the page.");
    }
  }

  #post(message) {
    store.tellWindows(this.record.id, message);
  }

  #tell(rows) {
    for (const listener of [...this.#listeners]) listener(rows);
  }
}
