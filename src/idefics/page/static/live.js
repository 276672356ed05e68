/** The view of the camera: an instruction, and an answer about what it sees every moment that it can. */

import { streamTask } from "./api.js";
import { button, count, delay, duration, element } from "./dom.js";
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
const QUESTION = "What is in this image?"; // where nothing else is typed

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
      text: app.state.drafts.live ?? QUESTION,
      input: () => app.state.setDraft("live", this.words.value),
    });
    this.interval = select("live-interval", INTERVALS, 0);
    this.length = select(
      "live-length",
      LENGTHS.map((length) => [length, count(length, "token")]),
      32,
    );
    this.camera = select("live-camera", [["", "the usual one"]], "");
    this.camera.addEventListener("change", () => {
      if (!this.#abort) return;
      this.stop();
      void this.run();
    });
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
      field("Camera", this.camera),
    );
    this.camera.parentElement.hidden = true;
    const buttons = element("div.live-buttons", {}, this.start, this.keep);
    const said = element("div.live-said", {}, this.answer, this.speed, this.problem);
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
        this.earlier,
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
    const { signal } = abort;
    this.#abort = abort;
    this.start.textContent = "Stop";
    this.problem.hidden = true;
    try {
      await this.#openCamera(signal);
      while (!signal.aborted) {
        const startedAt = performance.now();
        const pause = (await this.#answerOnce(signal)) ? Number(this.interval.value) : RETRY_SECONDS;
        await delay(startedAt + 1000 * pause - performance.now(), signal);
      }
    } catch (error) {
      if (!signal.aborted) this.#say(error.message);
    }
    abort.abort();
    if (this.#abort === abort) this.stop();
  }

  /** Ends the answers; the camera is off. */
  stop() {
    this.#abort?.abort();
    this.#abort = null;
    this.start.textContent = "Start";
    this.keep.hidden = true;
    this.video.pause(); // its last picture stays
  }

  close() {
    document.removeEventListener("visibilitychange", this.watchVisibility);
    this.stop();
    this.video.srcObject = null;
  }

  /** Shows what the camera sees until the signal is aborted. @throws {Error} there is no camera, in words. */
  async #openCamera(signal) {
    const stream = await openStream(this.camera.value);
    const turnOff = () => stream.getTracks().forEach((track) => track.stop());
    signal.addEventListener("abort", turnOff);
    if (signal.aborted) turnOff(); // it was stopped while the browser asked for leave
    signal.throwIfAborted();
    stream.getTracks()[0].addEventListener("ended", () => {
      this.stop();
      this.#say("The camera is gone: connect it again, then press Start.");
    });
    this.video.srcObject = stream;
    this.video.hidden = false;
    this.hint.hidden = true;
    await this.video.play();
    signal.throwIfAborted();
    this.keep.hidden = false;
    await this.#listCameras();
  }

  /** Lets people choose, where there are several cameras. */
  async #listCameras() {
    const devices = await navigator.mediaDevices.enumerateDevices();
    const cameras = devices.filter(({ kind, deviceId }) => kind === "videoinput" && deviceId);
    const field = this.camera.parentElement;
    if (cameras.length < 2 || !field.hidden) return;
    field.hidden = false;
    this.camera.append(
      ...cameras.map(({ deviceId, label }, index) =>
        element("option", { value: deviceId, text: label || `camera ${index + 1}` }),
      ),
    );
  }

  /** Whether the server answered about what the camera sees now. */
  async #answerOnce(signal) {
    const startedAt = performance.now();
    const secondsSince = () => (performance.now() - startedAt) / 1000;
    const image = await snapshot(this.video);
    const ticking = setInterval(() => (this.speed.textContent = `looking… ${secondsSince().toFixed(0)} s`), 1000);
    const words = this.words.value.trim() || QUESTION;
    const fields = { image, words, max_new_tokens: Number(this.length.value) };
    let text = "";
    try {
      for await (const event of streamTask("ask", fields, signal)) {
        text += event.text;
        if (this.earlier.childElementCount === 0) this.answer.textContent = text; // the first one as it is written
      }
    } catch (error) {
      if (!error.isPassing) throw error;
      this.#say(`${error.message} Trying again…`);
      return false;
    } finally {
      clearInterval(ticking);
    }
    this.problem.hidden = true;
    this.#show(text, secondsSince());
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

/** What a camera sees. @param {string} id of the camera; "": the one that looks away from the person. */
async function openStream(id) {
  const { mediaDevices } = navigator;
  if (!mediaDevices)
    throw new Error("The browser gives the camera only to pages at https:// or on this machine (localhost).");
  const chosen = id ? { deviceId: { exact: id } } : { facingMode: "environment" };
  try {
    return await mediaDevices.getUserMedia({ video: { width: { ideal: 640 }, ...chosen } });
  } catch (error) {
    throw new Error(describeRefusal(error));
  }
}

function describeRefusal({ name }) {
  if (name === "NotAllowedError")
    return "The browser did not allow the camera: allow it in the address bar, then press Start.";
  if (name === "NotFoundError") return "No camera was found: connect one, then press Start.";
  return "The camera cannot be used: another program may have it. Close that, then press Start.";
}
