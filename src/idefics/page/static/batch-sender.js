/** Sends the rows of a batch run: in files of bounded size, a batch each. */

import { createBatch, uploadFile } from "./batch-api.js";
import { endpointOf } from "./batch-rows.js";
import { delay } from "./dom.js";

const [FIRST_FILE_BYTES, MAX_FILE_BYTES] = [1 << 20, 32 << 20]; // each file may be twice as large as the one before
const [POLL_MILLISECONDS, RETRY_MILLISECONDS] = [700, 3000]; // until there may be another batch; if the server is away
const CANCELLED = "Cancelled before it was sent.";

/**
 * @typedef {{row: Row, read: function(): Promise<Blob>}} Item A row that is to be sent; `read` gives its request.
 *
 * @typedef {Object} SenderEvents
 * @property {function(): boolean} mayBegin whether one more batch may begin.
 * @property {function(Row[], string): Promise<void>} sent called with the id of the batch that has the rows.
 * @property {function(Row[], string, string=): void} failed called with rows that were not sent, why, and the error's type.
 * @property {function(): void} ended called when all rows are sent or failed.
 * @property {function(): void} changed called when `problem` has changed.
 */

/** Sends rows, one file after the other. */
export class Sender {
  /** @type {Item[]} */
  #queue = [];
  #sending = null;
  #abort = new AbortController();
  #fileBytes = FIRST_FILE_BYTES;
  /** @type {Set<Row>} those that are to be sent. */
  #rows = new Set();

  /** @param {RunRecord} record @param {SenderEvents} events */
  constructor(record, events) {
    this.record = record;
    this.events = events;
    /** Why nothing is sent for now, for people. */
    this.problem = "";
  }

  get isSending() {
    return this.#sending !== null;
  }

  /** Whether a row is still to be sent. @param {Row} row */
  has(row) {
    return this.#rows.has(row);
  }

  /** Sends rows after those that wait. @param {Item[]} items */
  enqueue(items) {
    if (!items.length) return;
    for (const { row } of items) this.#rows.add(row);
    this.#queue.push(...items);
    this.#sending ??= this.#send();
  }

  /** Ends the sending. */
  async cancel() {
    this.#abort.abort();
    await this.#sending;
    this.#abort = new AbortController();
  }

  async #send() {
    while (this.#queue.length) {
      const part = [];
      try {
        while (!this.events.mayBegin()) await delay(POLL_MILLISECONDS, this.#abort.signal);
        await this.#fill(part);
        if (part.length) await this.#sendPart(part);
      } catch (error) {
        const rest = [...part, ...this.#queue.splice(0)].map(({ row }) => row);
        this.#fail(rest, error.name === "AbortError" ? CANCELLED : error.message);
      }
      this.problem = "";
    }
    this.#sending = null;
    this.events.ended();
  }

  /** Prepares the next rows, as many as a file may hold. */
  async #fill(part) {
    for (let bytes = 0; this.#queue.length && bytes < this.#fileBytes;) {
      this.#abort.signal.throwIfAborted();
      const { row, read } = this.#queue[0];
      try {
        const line = await read();
        part.push({ row, line });
        bytes += line.size;
      } catch (error) {
        this.#fail([row], error.message, "BadPicture");
      }
      this.#queue.shift();
    }
  }

  async #sendPart(part) {
    const lines = new Blob(part.map(({ line }) => line));
    const file = await this.#insist(() => uploadFile(lines, this.#abort.signal));
    const { id } = await this.#insist(() => createBatch(file.id, endpointOf(this.record), { run: this.record.id }));
    this.#fileBytes = Math.min(2 * this.#fileBytes, MAX_FILE_BYTES);
    const rows = part.splice(0).map(({ row }) => row);
    for (const row of rows) this.#rows.delete(row);
    await this.events.sent(rows, id);
  }

  /** Repeats a request while the server is away or busy; the browser aborts it by itself as the page is left. */
  async #insist(send) {
    for (;;) {
      try {
        return await send();
      } catch (error) {
        this.#abort.signal.throwIfAborted();
        if (!error.isPassing && error.name !== "AbortError") throw error;
        this.problem = error.message;
        this.events.changed();
        await delay(RETRY_MILLISECONDS, this.#abort.signal);
        this.problem = "";
      }
    }
  }

  #fail(rows, error, type) {
    for (const row of rows) this.#rows.delete(row);
    this.events.failed(rows, error, type);
  }
}
