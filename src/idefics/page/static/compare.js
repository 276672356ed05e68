/** A comparison: one answer stays, one thing is changed, and the other answer stands next to it. */

import { Column } from "./comparecolumn.js";
import { diffWords } from "./diff.js";
import { button, count, element } from "./dom.js";
import { emptyAnswer, isBusy, taskFields, withSeed } from "./run.js";
import { completeShots, newId, taskByName } from "./state.js";

export const TITLE = "Compare";
const TYPING_MILLISECONDS = 500; // without a change of the examples before they are used
const TICK_MILLISECONDS = 200; // between two updates of the running time
/** @type {Map<string, {root: string, key: string}>} other servers by address; keys last as long as the page. */
const servers = new Map();
const DETAILS = { high: "as closely as it can", auto: "by the picture's size", low: "at a glance" };
const STRATEGIES = { greedy: "always the likeliest word", beams: "weigh several texts", sampling: "vary" };
const ASPECTS = {
  examples: "Examples",
  detail: "How closely it looks",
  strategy: "How it chooses words",
  model: "Model",
};

/**
 * Shows a turn next to the answer that one change gives.
 * @param {HTMLElement} root
 * @param {Object} app see app.js.
 * @param {Turn} turn the answer that stays.
 * @returns {function(): void} to call when it is closed.
 */
export function open(root, app, turn) {
  const comparison = new Comparison(root, app, turn);
  return () => comparison.close();
}

class Comparison {
  #abort = null;
  /** @type {{id: string, server: Object|null, label: string}[]} other models, here and on other servers. */
  #models = [];

  constructor(root, app, turn) {
    Object.assign(this, { app, state: app.state, turn });
    this.pinned = { ...turn, logprob: undefined };
    this.select = element("select.select", { id: "compare-change" });
    this.select.addEventListener("change", () => this.change());
    this.stop = button("Stop", () => this.#abort.abort(), { hidden: true });
    this.keep = button("Keep the new answer", () => this.keepOther(), { hidden: true });
    this.hint = element(
      "p.hint",
      {},
      element("span", { text: "There are no examples yet. " }),
      button("Choose examples", () => app.openDrawer("examples")),
    );
    this.problems = element("div.compare-problems");
    this.columns = [new Column(), new Column()];
    root.replaceChildren(this.view());
    root.firstChild.addEventListener("keydown", ({ key }) => key === "Escape" && this.leave());
    this.endings = [
      this.state.subscribe("shots", () => this.useNewShots()),
      this.state.subscribe("model", () => this.loadModels()),
      this.state.subscribe("turns", () => this.state.conversation.turns.includes(turn) || this.leave()),
    ];
    this.ticker = setInterval(() => this.columns[1].showProgress(this.other), TICK_MILLISECONDS);
    this.showChanges();
    this.columns[0].show(this.pinned);
    this.select.focus();
    if (this.state.picture(turn.pictureIds[0])) this.state.selectPicture(turn.pictureIds[0]);
    void this.loadModels();
    this.change();
  }

  view() {
    return element(
      "div.compare",
      {},
      element(
        "header",
        {},
        element("h2", { text: TITLE }),
        button("Close", () => this.leave()),
      ),
      element("p", { dir: "auto", text: this.turn.words || taskByName(this.turn.task).label }),
      element(
        "div.compare-change",
        {},
        element("label", { for: "compare-change", text: "Change one thing:" }),
        this.select,
        this.stop,
        this.keep,
      ),
      this.hint,
      this.problems,
      element("div.columns", {}, ...this.columns.map(({ root }) => root)),
    );
  }

  leave() {
    this.app.closePanel();
    document.getElementById("words").focus();
  }

  /** Lists the other models of this server, and those of the servers that the operator named. */
  async loadModels() {
    const { models, model } = this.state;
    const own = this.turn.model ?? models[0]?.id;
    const here = models.map(({ id }) => ({ id, server: null, label: id })).filter(({ id }) => id !== own);
    const found = await Promise.all((model?.compare_with ?? []).map((root) => this.loadModelsOf(root)));
    this.#models = [...here, ...found.flatMap((one) => one.models)];
    this.problems.replaceChildren(...found.map((one) => one.problem).filter(Boolean));
    this.showChanges();
  }

  async loadModelsOf(root) {
    if (!servers.has(root)) servers.set(root, { root, key: "" });
    const server = servers.get(root);
    try {
      const models = await this.app.api.listModels(server);
      return { models: models.map(({ id }) => ({ id, server, label: `${id} at ${new URL(root).host}` })) };
    } catch ({ status, message }) {
      return { models: [], problem: status === 401 ? this.keyForm(server) : element("p.error", { text: message }) };
    }
  }

  /** Asks for the key of another server. */
  keyForm(server) {
    const label = `API key of ${new URL(server.root).host}, which asks for one`;
    const input = element("input.text-field", {
      type: "password",
      required: true,
      placeholder: label,
      "aria-label": label,
    });
    const use = element("button.tool", { type: "submit", text: "Use" });
    const form = element("form.keep-form", { autocomplete: "off" }, input, use);
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      server.key = input.value.trim();
      await this.loadModels();
      const index = this.changes().findIndex(({ fields }) => fields.server === server);
      if (index < 0) return this.problems.querySelector("input")?.focus();
      this.select.value = index;
      this.select.focus();
      this.change();
    });
    return form;
  }

  /** What can be changed: each is one aspect with another value. */
  changes() {
    const { settings, shots, task } = this.turn;
    const ready = completeShots(this.state.conversation.shots);
    const examples = (list) => (list.length ? `with ${count(list.length, "example")}` : "without examples");
    const change = (aspect, from, to, fields) => ({ aspect, from, to, fields });
    const others = (names, field) =>
      Object.keys(names)
        .filter((name) => name !== settings[field])
        .map((name) =>
          change(field, names[settings[field]], names[name], {
            settings: withSeed({ ...settings, seed: null, [field]: name }),
          }),
        );
    return [
      shots.length
        ? change("examples", examples(shots), examples([]), { shots: [] })
        : change("examples", examples([]), ready.length ? examples(ready) : "with examples", {
            shots: ready,
          }),
      ...others(DETAILS, "detail"),
      ...(task === "classify" ? [] : others(STRATEGIES, "strategy")),
      ...this.#models.map(({ id, server, label }) =>
        change("model", this.turn.model ?? this.state.models[0].id, label, { model: id, server }),
      ),
    ];
  }

  /** Fills the choice of changes; what was chosen stays chosen. */
  showChanges() {
    const before = this.select.selectedIndex;
    const list = this.changes();
    const groups = Object.entries(ASPECTS).map(([aspect, label]) => {
      const options = list.flatMap((one, index) =>
        one.aspect === aspect ? [element("option", { value: index, text: one.to })] : [],
      );
      return options.length ? element("optgroup", { label }, ...options) : null;
    });
    this.select.replaceChildren(...groups.filter(Boolean));
    const first = this.turn.shots.length || list[0].fields.shots.length ? 0 : 1; // one that can be asked at once
    this.select.selectedIndex = before < 0 ? first : before;
  }

  /** Asks with the examples that were changed, once nobody types in them. */
  useNewShots() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      this.showChanges();
      if (this.chosen.aspect === "examples" && !this.turn.shots.length) this.change();
    }, TYPING_MILLISECONDS);
  }

  get chosen() {
    return this.changes()[Number(this.select.value)];
  }

  needsShots() {
    const { aspect, fields } = this.chosen;
    return aspect === "examples" && !this.turn.shots.length && !fields.shots.length;
  }

  /** Asks again with the change that is chosen. */
  change() {
    this.#abort?.abort();
    const { aspect, from, to, fields } = this.chosen;
    const titles = aspect === "model" ? [from, to] : [sentence(from), sentence(to)];
    titles.forEach((title, index) => (this.columns[index].title.textContent = title));
    const hadFocus = this.hint.contains(document.activeElement);
    this.hint.hidden = !this.needsShots();
    if (hadFocus && this.hint.hidden) this.select.focus();
    this.keep.hidden = true;
    this.other = this.needsShots() ? null : { ...this.turn, ...emptyAnswer(), ...fields, id: newId() };
    this.columns[1].show(this.other);
    if (this.other) void this.run(this.other);
  }

  async run(other) {
    const abort = (this.#abort = new AbortController());
    this.stop.hidden = false;
    await this.answer(other, abort.signal);
    if (this.#abort !== abort) return;
    this.keep.hidden = other.status === "failed" || Boolean(other.server);
    if (other.status === "done") {
      this.app.announce(`${sentence(this.chosen.to)}: ${other.text || other.labels[0].label}`);
      await this.measurePinned(abort.signal);
    }
    if (this.#abort === abort) this.stop.hidden = true;
  }

  /** Asks a copy of a turn, which is not part of the conversation, and shows what comes. */
  async answer(turn, signal) {
    const show = (fields) => {
      Object.assign(turn, fields);
      if (turn === this.other) this.showColumns();
    };
    show({ status: "waiting", startedAt: Date.now() });
    const seconds = () => (Date.now() - turn.startedAt) / 1000;
    try {
      const { api, state } = this.app;
      const fields = await taskFields(state.conversation, turn);
      if (turn.task === "classify") show(await api.classify(fields, signal, turn.server));
      else
        for await (const { text, progress, end } of api.streamTask(
          turn.task,
          { ...fields, logprobs: true },
          signal,
          turn.server,
        )) {
          if (progress) show({ progress });
          if (text) show({ status: "writing", text: turn.text + text });
          if (end) show(end);
        }
      show({ status: "done", totalSeconds: seconds() });
    } catch (error) {
      if (error.name === "AbortError") show({ status: "stopped", totalSeconds: seconds() });
      else show({ status: "failed", error: error.message });
    }
  }

  /** The probability of the answer that stays: it was asked without, so it is asked again. */
  async measurePinned(signal) {
    if (this.turn.labels || this.pinned.logprob !== undefined) return;
    const again = { ...this.turn, ...emptyAnswer() };
    await this.answer(again, signal);
    if (again.status !== "done" || again.text !== this.turn.text) return;
    this.pinned.logprob = again.logprob;
    this.showColumns();
  }

  showColumns() {
    const { pinned, other } = this;
    const isComplete = other?.text && !isBusy(other);
    const [left, right] = isComplete && !pinned.labels ? diffWords(pinned.text, other.text) : [null, null];
    this.columns[0].show(pinned, left);
    this.columns[1].show(other, right);
  }

  keepOther() {
    const { server, logprob, ...turn } = this.other;
    if (turn.model === this.state.models[0]?.id) turn.model = null;
    this.state.addTurn(turn);
    this.leave();
  }

  close() {
    this.#abort?.abort();
    clearTimeout(this.timer);
    clearInterval(this.ticker);
    for (const end of this.endings) end();
  }
}

const sentence = (text) => text[0].toUpperCase() + text.slice(1);
