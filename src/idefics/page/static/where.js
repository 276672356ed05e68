/** "Show where": which parts of the picture an answer is based on, as heat over the picture and as words. */

import { AnswerWords } from "./answerwords.js";
import { button, element, saveFile } from "./dom.js";
import { addMaps, describeMap, drawHeat, exportMap, isFlat, scaleOf, shareOfWords, strengthsOf } from "./heat.js";
import { explanationFields, shownPictureIds } from "./run.js";
import { MapProgress } from "./whereprogress.js";

const CANVAS_EDGE = 640; // pixels of the longer edge
const BLEND_MILLISECONDS = 220; // from one map to the next
const PALE_SHARE = 0.3; // of the hottest word's heat, below which a word's own map gets paler
const MARGIN = 12; // pixels around what is scrolled to
const MAX_WORDS_HEIGHT = 90; // pixels of the answer that stay in view above its panel
const EXACT = "Orange: covering this changes the answer most. Blue: without it the answer would be likelier.";
const FAST = "Approximation: what was read for the words, which is not always what changed them.";
const CHOOSE = matchMedia("(hover: none)").matches
  ? "Tap a word for its own map."
  : "Point at a word for its own map, or go back to it with Shift Tab.";
const METHODS = [
  ["occlusion", "Thorough", "covers each part"],
  ["fast", "Fast", "an approximation"],
];

let current = null;
let method = METHODS[0][0];
let opacity = 1;

/**
 * Shows the map of an answer, or hides it if it is the one that is shown.
 * @param {HTMLElement} root where its controls are put.
 * @param {Object} app see app.js.
 * @param {{turn: Turn, item: Object, pressed: HTMLElement}} answer item: see answers.js.
 */
export function open(root, app, answer) {
  const shown = current;
  shown?.close();
  if (shown?.turn !== answer.turn) current = new AnswerMap(root, app, answer);
}

/** Hides the map that is shown, if one is. */
export const closeMap = () => current?.close();

class AnswerMap {
  /** The explanation so far, as the API gives it. */
  #explanation = null;
  #abort = null;
  /** @type {AnswerWords|null} */
  #words = null;
  #strengths = new Float32Array();
  #frame = 0;
  #endings = [];

  constructor(root, app, { turn, item, pressed }) {
    Object.assign(this, { root, app, turn, item, pressed });
    this.picture = app.state.picture(shownPictureIds(app.state.conversation, turn)[0]);
    this.build();
    pressed.setAttribute("aria-expanded", "true");
    const { state } = app;
    this.#endings = [
      state.subscribe("pictures", () => this.draw()),
      state.subscribe("turns", () => state.conversation.turns.includes(turn) || this.close()),
      state.subscribe("turn", (changed) => changed === turn && turn.status === "queued" && this.close()),
    ];
    const onKey = ({ key }) => key === "Escape" && this.hide();
    item.answer.addEventListener("keydown", onKey);
    this.#endings.push(() => item.answer.removeEventListener("keydown", onKey));
    if (this.picture) state.selectPicture(this.picture.id);
    this.reveal();
    void this.run();
  }

  build() {
    this.progress = new MapProgress(
      () => this.#abort.abort(),
      () => this.run(),
    );
    this.place = element("p.where-place", { dir: "auto" });
    this.share = element("div.where-share", { hidden: true });
    this.error = element("p.error", { role: "alert", hidden: true });
    this.what = element("p.hint");
    this.panel = element(
      "section.where",
      { "aria-label": "Where the answer comes from" },
      this.progress.root,
      this.place,
      this.share,
      this.what,
      this.error,
      this.controls(),
    );
    this.root.replaceChildren(this.panel);
  }

  controls() {
    const strength = element("input", { type: "range", min: 0.2, max: 1, step: 0.05, value: opacity });
    strength.addEventListener("input", () => {
      opacity = Number(strength.value);
      this.paint();
    });
    this.save = button("Save as PNG", () => this.export(), { disabled: true });
    return element(
      "div.where-controls",
      {},
      element("label.where-opacity", {}, element("span", { text: "Opacity" }), strength),
      this.methods(),
      this.save,
      button("Hide", () => this.hide()),
    );
  }

  /** A choice of methods, where the model has more than one. */
  methods() {
    const possible = METHODS.filter(([name]) => this.app.state.model?.explain.includes(name));
    if (!possible.some(([name]) => name === method)) method = METHODS[0][0]; // that of another model
    if (possible.length < 2) return null;
    const options = possible.map(([name, label, hint]) =>
      element("option", { value: name, text: `${label}: ${hint}`, selected: name === method }),
    );
    const select = element("select.select", { "aria-label": "Method" }, ...options);
    select.addEventListener("change", () => {
      method = select.value;
      void this.run();
    });
    return select;
  }

  /** Asks for the map; each event shows it finer. */
  async run() {
    this.#abort?.abort();
    const abort = (this.#abort = new AbortController());
    this.clear();
    this.what.textContent = `${CHOOSE} ${method === "fast" ? FAST : EXACT}`;
    this.error.hidden = true;
    this.progress.start();
    try {
      const fields = await explanationFields(this.app.state.conversation, this.turn, method);
      for await (const event of this.app.api.streamExplanation(fields, abort.signal)) {
        if (this.#abort !== abort) return; // another method was chosen
        if (event.progress) this.progress.show(event.progress);
        if (event.words) this.showExplanation(event);
      }
      this.app.announce(`Complete. ${this.place.textContent}.`);
    } catch (error) {
      if (error.name !== "AbortError" && this.#abort === abort) this.showError(error.message);
    }
    if (this.#abort === abort) this.progress.end(abort.signal.aborted && !this.#explanation);
  }

  /** Hides what another method found. */
  clear() {
    cancelAnimationFrame(this.#frame);
    this.#words?.remove();
    this.#words = this.#explanation = null;
    this.#strengths = new Float32Array();
    this.canvas?.remove();
    this.place.textContent = "";
    this.share.hidden = this.what.hidden = this.save.disabled = true;
  }

  showError(message) {
    this.error.textContent = message;
    this.error.hidden = false;
  }

  showExplanation(explanation) {
    const isFirst = !this.#explanation;
    this.#explanation = explanation;
    this.#words ??= new AnswerWords(this.item, this.turn, explanation, () => this.draw());
    this.save.disabled = this.what.hidden = false;
    this.draw();
    if (isFirst) this.reveal();
  }

  /** Scrolls to the whole panel, or as far as words above it stay in view that can be chosen. */
  reveal() {
    const scroller = this.item.root.closest("section");
    const top = (node) => node.getBoundingClientRect().top - scroller.getBoundingClientRect().top;
    const below = top(this.panel) + this.panel.offsetHeight + MARGIN - scroller.clientHeight;
    const words = this.turn.labels ? this.item.bars : this.item.text;
    const lastWords = top(words) + Math.max(0, words.offsetHeight - MAX_WORDS_HEIGHT) - MARGIN;
    scroller.scrollTop += Math.min(below, lastWords);
  }

  /** The map of a word; of null the whole answer's. */
  mapOf(index) {
    const { words } = this.#explanation;
    return index === null ? addMaps(words.map((word) => word.heat[0])) : words[index].heat[0];
  }

  /** How likely the word is without the picture, as a share of how likely it is with it. */
  wordsShareOf(index) {
    const { words } = this.#explanation;
    return index === null ? shareOfWords(words) : words[index].words_share;
  }

  /** Strengths for drawing. A word that hardly depends on the picture is drawn pale compared with the others. */
  strengthsOf(index) {
    const map = this.mapOf(index);
    const hottest = scaleOf(this.#explanation.words.map((word) => word.heat[0]));
    return strengthsOf(map, isFlat(map) ? hottest : Math.max(scaleOf([map]), PALE_SHARE * hottest));
  }

  /** Shows the map, the place in words and the share of the word that is chosen. */
  draw() {
    if (!this.#explanation) return;
    const index = this.#words.chosen;
    const map = this.mapOf(index);
    const name = index === null ? "the whole answer" : `“${this.#explanation.words[index].text}”`;
    this.place.textContent = `Map of ${name}: ${describeMap(map)}`;
    this.showShare(this.wordsShareOf(index));
    this.#words.show((at) => `${this.#explanation.words[at].text}: ${describeMap(this.mapOf(at))}`);
    const { stage, state } = this.app;
    const isOnStage = this.picture && state.activePicture === this.picture;
    if (!isOnStage) return;
    if (!this.canvas?.isConnected) this.addCanvas(stage);
    this.canvas.setAttribute("aria-label", this.place.textContent);
    this.blendTo(this.strengthsOf(index), map[0].length);
  }

  addCanvas(stage) {
    const { width, height } = this.picture;
    const factor = CANVAS_EDGE / Math.max(width, height);
    this.canvas = element("canvas.where-map", {
      width: Math.max(1, Math.round(width * factor)),
      height: Math.max(1, Math.round(height * factor)),
      role: "img",
    });
    stage.overlay.append(this.canvas);
    stage.dim(true);
  }

  showShare(words) {
    const percent = Math.round(100 * words);
    const fill = element("span.fill");
    fill.style.inlineSize = `${100 - percent}%`;
    const text = `From the picture ${100 - percent} % · from the words alone ${percent} %`;
    this.share.replaceChildren(element("span", { text }), element("span.track", { "aria-hidden": "true" }, fill));
    this.share.hidden = false;
  }

  /** Moves from the map that is drawn to another one, at once where motion is not wanted. */
  blendTo(target, columns) {
    const start = this.#strengths.length === target.length ? this.#strengths : new Float32Array(target.length);
    const began = performance.now();
    const isStill = matchMedia("(prefers-reduced-motion: reduce)").matches;
    cancelAnimationFrame(this.#frame);
    const step = (now) => {
      const share = isStill ? 1 : Math.max(0, Math.min(1, (now - began) / BLEND_MILLISECONDS));
      this.#strengths = target.map((value, index) => start[index] + share * (value - start[index]));
      this.columns = columns;
      this.paint();
      if (share < 1) this.#frame = requestAnimationFrame(step);
    };
    this.#frame = requestAnimationFrame(step);
  }

  paint() {
    if (!this.canvas || !this.columns) return;
    const context = this.canvas.getContext("2d");
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    drawHeat(context, this.#strengths, this.columns, opacity);
  }

  async export() {
    const index = this.#words.chosen;
    const blob = await exportMap(this.picture.blob, {
      strengths: this.strengthsOf(index),
      columns: this.mapOf(index)[0].length,
      opacity,
      caption: this.place.textContent,
      legend: `${this.turn.words || this.turn.task} → ${this.#explanation.answer}`,
    });
    saveFile(blob, `where-${this.picture.name.replace(/\.\w+$/, "")}.png`);
  }

  /** Hides the map; the focus goes back to what opened it. */
  hide() {
    this.close();
    this.pressed.focus();
  }

  /** Hides the map and leaves the answer as it was. */
  close() {
    this.#abort?.abort();
    this.progress.end(false);
    for (const end of this.#endings) end();
    if (current === this) current = null;
    if (this.canvas?.isConnected) this.app.stage.dim(false);
    this.clear();
    this.panel.remove();
    this.pressed.setAttribute("aria-expanded", "false");
  }
}
