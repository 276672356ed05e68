/** The answers of batches while they run, and how fast they come. */

import { toSentence } from "./api.js";
import { NOT_KEPT, fetchResults, hasEnded } from "./batch-api.js";
import { isOpen, setAnswer } from "./batch-rows.js";

const NOT_ANSWERED = "The server ended before it answered this one.";
const [RATE_SECONDS, RATE_SAMPLES] = [30, 6]; // over which the speed is measured: the longer of the two

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
    for (const row of waiting.values()) if (isOpen(row)) changed.push(Object.assign(row, { error }));
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
