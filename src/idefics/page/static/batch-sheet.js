/** The contact sheet of a batch run: its rows with their answers, a chart of the answers, sorting and filters. */

import { answerOf, isOpen, probabilityOf } from "./batch-rows.js";
import { button, count, element } from "./dom.js";

const MAX_BARS = 12;
const MAX_BAR_CHARACTERS = 40; // longer answers are no labels
const LABELS_ID = "batch-labels";

const byPath = (first, second) => first.path.localeCompare(second.path, "en", { numeric: true });
const ORDERS = {
  "As added": (first, second) => first.index - second.index,
  Path: byPath,
  Answer: (first, second) =>
    (answerOf(first) ?? "\uffff").localeCompare(answerOf(second) ?? "\uffff") || byPath(first, second),
  "Least sure first": (first, second) => (probabilityOf(first) ?? 2) - (probabilityOf(second) ?? 2),
};
const STATES = {
  "All pictures": () => true,
  Answered: (row) => row.text !== null,
  Failed: (row) => Boolean(row.error),
  Edited: (row) => row.edited !== null,
  Waiting: isOpen,
};

/** The sheet of a run; `root` is its element. */
export class Sheet {
  /** @type {Map<Row, Card>} */
  #cards = new Map();
  #bars = new Map();
  #filter = { text: "", state: "All pictures", answer: null };
  #order = "As added";

  /** @param {BatchRun} run @param {Object} app see app.js. */
  constructor(run, app) {
    this.run = run;
    this.app = app;
    const { task } = run.record;
    this.chart = element("div.chart", { role: "group", "aria-label": "Answers: press one to see its pictures" });
    this.list = element("ul.sheet", { "aria-label": "Pictures and answers" });
    this.list.addEventListener("keydown", (event) => moveOn(event));
    this.shown = element("p.hint", { role: "status" });
    const orders = Object.keys(ORDERS).filter((name) => task === "classify" || name !== "Least sure first");
    const search = element("input", {
      type: "search",
      placeholder: "Find in paths and answers",
      "aria-label": "Find in paths and answers",
    });
    search.addEventListener("input", () => this.#setFilter({ text: search.value.toLowerCase() }));
    const tools = element(
      "div.sheet-tools",
      {},
      search,
      select("Show", Object.keys(STATES), (state) => this.#setFilter({ state })),
      select("Order", orders, (order) => this.#sort(order)),
      this.shown,
    );
    this.labels = element("datalist", { id: LABELS_ID });
    this.root = element("div", {}, this.chart, tools, this.list, this.labels);
    this.update(run.rows);
  }

  /** Shows rows as they are now. @param {Row[]} rows new or changed. */
  update(rows) {
    const added = [];
    for (const row of rows) {
      if (!this.#cards.has(row)) {
        this.#cards.set(row, new Card(row, this));
        added.push(row);
      }
      const card = this.#cards.get(row);
      card.show();
      if (!card.root.contains(document.activeElement)) card.root.hidden = !this.#matches(row);
    }
    if (added.length) this.list.append(...added.map((row) => this.#cards.get(row).root));
    if (rows.some((row) => answerOf(row) !== null)) this.#showChart();
    if (rows.length) this.#showCount();
  }

  #matches(row) {
    const { text, state, answer } = this.#filter;
    const isFound = !text || `${row.path}\n${answerOf(row) ?? ""}`.toLowerCase().includes(text);
    return isFound && STATES[state](row) && (answer === null || answerOf(row) === answer);
  }

  #setFilter(changes) {
    Object.assign(this.#filter, changes);
    for (const [row, { root }] of this.#cards) root.hidden = !this.#matches(row);
    this.#showChart();
    this.#showCount();
  }

  #sort(order) {
    this.#order = order;
    const rows = [...this.#cards.keys()].sort(ORDERS[this.#order]);
    this.list.replaceChildren(...rows.map((row) => this.#cards.get(row).root));
  }

  #showCount() {
    const cards = [...this.#cards.values()];
    const shown = cards.filter(({ root }) => !root.hidden).length;
    this.shown.textContent = shown === cards.length ? "" : `${shown} of ${count(cards.length, "picture")} shown`;
  }

  /** How often each answer was given, where answers are short and come again. */
  #showChart() {
    const counts = new Map();
    for (const row of this.run.rows) {
      const answer = answerOf(row);
      if (answer !== null && answer.length <= MAX_BAR_CHARACTERS) counts.set(answer, (counts.get(answer) ?? 0) + 1);
    }
    const isRanking = this.run.record.task === "classify";
    const top = [...counts].sort((first, second) => second[1] - first[1]).slice(0, MAX_BARS);
    const largest = top[0]?.[1] ?? 0;
    this.chart.hidden = isRanking ? !largest : largest < 2;
    for (const [answer, number] of top) this.#showBar(answer, number, number / largest);
    const kept = new Set(top.map(([answer]) => answer));
    for (const [answer, bar] of this.#bars)
      if (!kept.has(answer) && answer !== this.#filter.answer) this.#removeBar(answer, bar);
    if (!this.chart.contains(document.activeElement))
      this.chart.append(...top.map(([answer]) => this.#bars.get(answer)));
  }

  #removeBar(answer, bar) {
    bar.remove();
    this.#bars.delete(answer);
  }

  #showBar(answer, number, share) {
    if (!this.#bars.has(answer)) {
      const toggle = () => this.#setFilter({ answer: this.#filter.answer === answer ? null : answer });
      const made = element("button.chart-bar", { type: "button", click: toggle });
      made.append(
        element("span", { dir: "auto", text: answer || "(empty)" }),
        element("b"),
        element("span.track", {}, element("span.fill")),
      );
      this.#bars.set(answer, made);
      this.chart.append(made);
    }
    const bar = this.#bars.get(answer);
    bar.querySelector("b").textContent = number.toLocaleString("en");
    bar.querySelector(".fill").style.inlineSize = `${100 * share}%`;
    bar.setAttribute("aria-pressed", String(this.#filter.answer === answer));
  }
}

/** One picture of the sheet; its parts are made once and changed in place, so that focus stays. */
class Card {
  constructor(row, { run, app, labels }) {
    this.row = row;
    this.run = run;
    this.app = app;
    this.labels = labels;
    this.image = element("img", { alt: "", loading: "lazy", hidden: true });
    this.field = this.#field();
    this.waiting = element("p.hint", { text: "Waiting" });
    this.bar = element("div.sure", {}, element("span.track", {}, element("span.fill")), element("span.bar-value"));
    this.note = element("p.meta");
    this.error = element(
      "div.failed",
      {},
      element("p"),
      button("Retry", () => this.#retry(), { "aria-label": `Retry ${row.path}` }),
    );
    this.undo = button("Undo", () => this.#restore(), { "aria-label": `Undo the change of ${row.path}` });
    this.edited = element("div.edited", {}, element("span", { text: "edited" }), this.undo);
    const path = element("p.row-path", { text: row.path, title: row.path });
    const body = element(
      "div.row-body",
      {},
      path,
      this.field,
      this.waiting,
      this.bar,
      this.note,
      this.edited,
      this.error,
    );
    const name = `Open ${row.path} in Pictures`;
    const open = { type: "button", "aria-label": name, title: name, click: () => this.#open() };
    this.root = element("li", { tabindex: -1 }, element("button.row-picture", open, this.image), body);
  }

  #field() {
    const isRanking = this.run.record.task === "classify";
    const attributes = { "aria-label": `Answer for ${this.row.path}`, dir: "auto", spellcheck: "false" };
    const field = isRanking
      ? element("input.row-answer", { list: LABELS_ID, ...attributes })
      : element("textarea.row-answer", { rows: 1, ...attributes });
    field.addEventListener("change", () => this.run.edit(this.row, field.value));
    field.addEventListener("keydown", (event) => event.key === "Escape" && this.#restore());
    return field;
  }

  #restore() {
    this.field.value = this.row.text;
    this.run.edit(this.row, this.row.text);
    this.field.focus();
  }

  /** Takes the picture into the conversation, where it is large and can be asked about. */
  async #open() {
    try {
      const file = await this.run.readPicture(this.row);
      location.hash = "#/";
      await this.app.addFiles([file]);
    } catch (error) {
      this.app.notify(error.message);
    }
  }

  #retry() {
    this.root.focus();
    void this.run.retry([this.row]);
  }

  show() {
    const { row } = this;
    const answer = answerOf(row);
    if (row.thumbnail && this.image.hidden) {
      this.image.src = this.app.state.pictureUrl({ blob: row.thumbnail });
      this.image.hidden = false;
    }
    this.field.hidden = answer === null;
    if (answer !== null && document.activeElement !== this.field) this.field.value = answer;
    if (row.labels && !this.labels.children.length)
      this.labels.append(...row.labels.map(({ label }) => element("option", { value: label })));
    this.waiting.hidden = !isOpen(row);
    this.waiting.textContent = row.batch ? "Waiting for its answer" : "Not sent yet";
    const probability = probabilityOf(row);
    this.bar.hidden = probability === null;
    this.bar.querySelector(".fill").style.inlineSize = `${100 * (probability ?? 0)}%`;
    this.bar.querySelector(".bar-value").textContent = `${(100 * (probability ?? 0)).toFixed(0)} %`;
    this.note.textContent = [
      row.finish === "length" ? "cut off: allow a longer answer in the settings" : "",
      ...row.notes,
    ]
      .filter(Boolean)
      .join(" · ");
    this.note.hidden = !this.note.textContent;
    this.edited.hidden = row.edited === null;
    this.error.hidden = !row.error;
    this.error.querySelector("p").textContent = row.error;
    this.error.querySelector("button").hidden = !this.run.canRetry(row);
  }
}

/** Enter in an answer goes to the next one; Shift+Enter begins a line. */
function moveOn(event) {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || !event.target.matches(".row-answer")) return;
  event.preventDefault();
  let next = event.target.closest("li").nextElementSibling;
  while (next && (next.hidden || next.querySelector(".row-answer").hidden)) next = next.nextElementSibling;
  if (next) next.querySelector(".row-answer").focus();
  else event.target.blur();
}

function select(label, names, choose) {
  const made = element("select", {}, ...names.map((name) => element("option", { text: name })));
  made.addEventListener("change", () => choose(made.value));
  return element("label.picker", {}, element("span", { text: label }), made);
}
