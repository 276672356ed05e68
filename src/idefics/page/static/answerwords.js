/** The words of an answer, or the labels of a ranking, of which one can be chosen by pointer, touch or keyboard. */

import { element } from "./dom.js";

/** Marks the words of one answer on the page, and says which one is chosen. */
export class AnswerWords {
  #hovered = null;
  #focused = null;
  #pinned = null;
  #listening = new AbortController();

  /**
   * @param {Object} item the answer on the page, see answers.js.
   * @param {Turn} turn
   * @param {{answer: string, words: {text: string}[]}} explanation as the API gives it.
   * @param {function(): void} changed called after another word is chosen.
   */
  constructor(item, turn, explanation, changed) {
    Object.assign(this, { item, turn, changed });
    this.whole = item.text.textContent;
    const { words } = explanation;
    /** @type {(HTMLElement|null)[]} where each word stands; null for one that is not found. */
    this.targets = turn.labels ? this.labelTargets(words) : this.wordTargets(words, explanation.answer);
    this.targets.forEach((target, index) => {
      target?.classList.add("where-word");
      target?.setAttribute("role", "button");
      target?.setAttribute("tabindex", index ? -1 : 0);
    });
    for (const [type, listener] of Object.entries(this.listeners())) {
      item.answer.addEventListener(type, listener, { signal: this.#listening.signal });
    }
  }

  /** The index of the word that is chosen, the best label of a ranking; null for the whole answer. */
  get chosen() {
    return this.#hovered ?? this.#focused ?? this.#pinned ?? (this.turn.labels ? 0 : null);
  }

  labelTargets(words) {
    const labels = [...this.item.bars.querySelectorAll(".bar-label")];
    return words.map(({ text }) => labels.find((label) => label.textContent === text) ?? null);
  }

  wordTargets(words, answer) {
    const parts = [];
    let end = 0;
    let searched = Math.max(0, this.whole.indexOf(answer)); // what was typed to be continued comes before it
    const spans = words.map(({ text }) => {
      const start = this.whole.indexOf(text, searched);
      if (!text || start < 0) return null;
      const span = element("span", { text });
      parts.push(this.whole.slice(end, start), span);
      searched = end = start + text.length;
      return span;
    });
    this.item.text.replaceChildren(...parts, this.whole.slice(end));
    return spans;
  }

  listeners() {
    const indexOf = ({ target }) => {
      const word = target.closest(".where-word") ?? target.closest(".bar")?.querySelector(".where-word");
      const index = word ? this.targets.indexOf(word) : -1;
      return index < 0 ? null : index;
    };
    const change = (setWord) => {
      const before = this.chosen;
      const pinned = this.#pinned;
      setWord();
      if (this.chosen !== before || this.#pinned !== pinned) this.changed();
    };
    return {
      pointerover: (event) => event.pointerType === "mouse" && change(() => (this.#hovered = indexOf(event))),
      pointerleave: () => change(() => (this.#hovered = null)),
      focusin: (event) =>
        change(() => (this.#focused = event.target.matches(":focus-visible") ? indexOf(event) : null)),
      focusout: () => change(() => (this.#focused = null)),
      click: (event) => {
        const index = indexOf(event);
        if (index !== null) change(() => (this.#pinned = this.#pinned === index ? null : index));
      },
      keydown: (event) => this.onKey(event, indexOf(event)),
    };
  }

  onKey(event, index) {
    if (index === null) return;
    const forward = getComputedStyle(event.target).direction === "rtl" ? -1 : 1;
    const step = { ArrowRight: forward, ArrowLeft: -forward, ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) this.focusFrom(index, step);
    else if (event.key === "Enter" || event.key === " ") event.target.click();
    else return;
    event.preventDefault();
  }

  /** Moves the focus to the next word in a direction. */
  focusFrom(index, step) {
    let next = index + step;
    while (this.targets[next] === null) next += step;
    if (!this.targets[next]) return;
    this.targets[index].tabIndex = -1;
    this.targets[next].tabIndex = 0;
    this.targets[next].focus({ focusVisible: true });
  }

  /** Shows which word is chosen, and names each for screen readers. @param {function(number): string} nameOf */
  show(nameOf) {
    this.targets.forEach((target, index) => {
      target?.setAttribute("aria-pressed", String(index === this.#pinned));
      target?.toggleAttribute("data-shown", index === this.chosen);
      target?.setAttribute("aria-label", nameOf(index));
    });
  }

  /** Leaves the answer as it was. */
  remove() {
    this.#listening.abort();
    if (!this.turn.labels) {
      if (this.item.text.textContent === this.whole) this.item.text.textContent = this.whole;
      return;
    }
    for (const target of this.targets) {
      target?.classList.remove("where-word");
      for (const name of ["role", "tabindex", "aria-label", "aria-pressed", "data-shown"])
        target?.removeAttribute(name);
    }
  }
}
