/** The view of the camera: an instruction, and an answer about what it sees every moment that it can. */

import { streamTask } from "./api.js";
import { button, count, duration, element } from "./dom.js";
import { snapshot } from "./pictures.js";

const INTERVALS = [
  [0, "as fast as it can"],
  [1, "every second"],
  [2, "every 2 seconds"],
  [5, "every 5 seconds"],
  [15, "every 15 seconds"],
];
const LENGTHS = [8, 16, 32, 64, 128];
const MAX_EARLIER = 30; // answers that are listed
const RETRY_SECONDS = 2; // after an answer that the server did not give
const CAMERA = { video: { width: { ideal: 640 }, facingMode: "environment" } };

/**
 * Fills the view.
 * @param {HTMLElement} root
 * @param {Object} app see app.js.
 * @returns {function(): void} to call when it is left.
 */
export function open(root, app) {
  const live = new Live(app);
  root.append(live.root);
  return () => live.close();
}

class Live {
  #abort = null;
  #stream = null;

  constructor(app) {
    this.app = app;
    this.video = element("video", {
      autoplay: true,
      playsinline: true,
      "aria-label": "What the camera sees",
    });
    this.video.muted = this.video.hidden = true;
    this.hint = element("p.stage-empty", { text: "The camera is off: press Start." });
    this.answer = element("p.live-answer", { dir: "auto", "aria-live": "polite" });
    this.problem = element("p.error", { role: "alert", hidden: true });
    this.speed = element("p.meta");
    this.earlier = element("ol.live-earlier", { "aria-label": "Earlier answers" });
    this.words = element("textarea.field", {
      id: "live-words",
      rows: 2,
      dir: "auto",
      text: "What is in this image?",
    });
    this.interval = select("live-interval", INTERVALS, 0);
    this.length = select(
      "live-length",
      LENGTHS.map((length) => [length, count(length, "token")]),
      32,
    );
    this.start = button("Start", () => this.toggle(), { class: "tool primary" });
    this.keep = button("Ask more about this moment", () => this.keepMoment(), { hidden: true });
    this.root = this.#layout();
    this.watchVisibility = () => document.hidden && this.stop();
    document.addEventListener("visibilitychange", this.watchVisibility);
  }

  #layout() {
    const field = (label, input) => element("label.live-field", {}, element("span", { text: label }), input);
    const choices = element(
      "div.live-choices",
      {},
      field("Answers", this.interval),
      field("Longest answer", this.length),
    );
    const buttons = element("div.live-buttons", {}, this.start, this.keep);
    const said = element("div.live-said", {}, this.answer, this.speed, this.problem, this.earlier);
    return element(
      "div.live",
      {},
      element("div.live-picture", {}, this.hint, this.video),
      element(
        "div.live-side",
        {},
        element("h1", { text: "Ask the camera" }),
        field("Question or instruction", this.words),
        choices,
        buttons,
        said,
      ),
    );
  }

  async toggle() {
    if (this.#abort) this.stop();
    else await this.run();
  }

  /** Answers about the newest picture, one after the other, until it is stopped: no picture ever waits. */
  async run() {
    const abort = new AbortController();
    this.#abort = abort;
    this.start.textContent = "Stop";
    this.problem.hidden = true;
    try {
      await this.#openCamera();
      while (!abort.signal.aborted) {
        const startedAt = performance.now();
        const pause = (await this.#answerOnce(abort.signal)) ? Number(this.interval.value) : RETRY_SECONDS;
        await delay(startedAt + 1000 * pause - performance.now(), abort.signal);
      }
    } catch (error) {
      if (error.name !== "AbortError") this.#say(error.message);
    }
    if (this.#abort === abort) this.stop();
  }

  /** Ends the answers; the camera is off. */
  stop() {
    this.#abort?.abort();
    this.#abort = null;
    this.start.textContent = "Start";
    this.keep.hidden = true;
    this.video.pause(); // its last picture stays
    for (const track of this.#stream?.getTracks() ?? []) track.stop();
    this.#stream = null;
  }

  close() {
    document.removeEventListener("visibilitychange", this.watchVisibility);
    this.stop();
  }

  async #openCamera() {
    if (!navigator.mediaDevices) {
      throw new Error(
        "The browser gives the camera only to pages at https:// or on this machine (localhost).",
      );
    }
    try {
      this.#stream = await navigator.mediaDevices.getUserMedia(CAMERA);
    } catch (error) {
      throw new Error(describeRefusal(error));
    }
    this.video.srcObject = this.#stream;
    this.video.hidden = false;
    this.hint.hidden = true;
    await this.video.play();
    if (!this.#abort) this.stop(); // it was stopped while the browser asked for leave
    this.keep.hidden = false;
  }

  /** Whether the server answered about what the camera sees now. */
  async #answerOnce(signal) {
    const startedAt = performance.now();
    const image = await snapshot(this.video);
    const words = this.words.value.trim() || "What is in this image?";
    const fields = { image, words, max_new_tokens: Number(this.length.value) };
    let text = "";
    try {
      for await (const event of streamTask("ask", fields, signal)) {
        text += event.text;
        if (this.earlier.childElementCount === 0) this.answer.textContent = text; // the first one as it is written
      }
    } catch (error) {
      if (error.name === "AbortError" || !isPassing(error)) throw error;
      this.#say(`${error.message} Trying again…`);
      return false;
    }
    this.problem.hidden = true;
    this.#show(text, (performance.now() - startedAt) / 1000);
    return true;
  }

  #show(text, seconds) {
    if (this.answer.textContent !== text) this.answer.textContent = text;
    this.speed.textContent = `answered in ${duration(seconds)}`;
    const time = new Date().toLocaleTimeString("en", { hour12: false });
    const last = this.earlier.firstChild;
    if (last?.dataset.text === text) {
      last.firstChild.textContent = time;
      return;
    }
    const line = element(
      "li",
      { "data-text": text },
      element("time", { text: time }),
      element("span", { dir: "auto", text }),
    );
    this.earlier.prepend(line);
    if (this.earlier.childElementCount > MAX_EARLIER) this.earlier.lastChild.remove();
  }

  #say(message) {
    this.problem.textContent = message;
    this.problem.hidden = false;
  }

  /** Takes what the camera sees into the conversation. */
  async keepMoment() {
    const blob = await snapshot(this.video);
    location.hash = "#/";
    await this.app.addFiles([new File([blob], "camera.jpg", { type: blob.type })]);
  }
}

function select(id, options, chosen) {
  const nodes = options.map(([value, text]) =>
    element("option", { value, text, selected: value === chosen }),
  );
  return element("select.field", { id }, ...nodes);
}

/** Whether the same request may be answered later: the server was not reached, or is busy. @param {ApiError} error */
const isPassing = ({ status, code }) =>
  code ? ["rate_limit_exceeded", "shutting_down"].includes(code) : [0, 502, 503].includes(status);

function describeRefusal({ name }) {
  if (name === "NotAllowedError")
    return "The browser did not allow the camera: allow it in the address bar, then press Start.";
  if (name === "NotFoundError") return "No camera was found: connect one, then press Start.";
  return "The camera cannot be used: another program may have it. Close that, then press Start.";
}

/** Waits, or throws an AbortError. */
function delay(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, Math.max(0, milliseconds));
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}
