/** The conversation: what was asked, what is happening, and what was answered. All of it is text, never HTML. */

import { ACTIONS } from "./actions.js";
import { button, count, duration, element } from "./dom.js";
import { ask, isBusy, stop } from "./run.js";
import { taskByName } from "./state.js";

const MAX_BARS = 20; // labels that are shown before "show all"
const TICK_MILLISECONDS = 200; // between two updates of the running time
const NEAR_END_PIXELS = 60; // scrolled so near to the end, the conversation follows what comes
const FASTEST_SECONDS = 0.2; // shorter answers say nothing about the speed

/**
 * Shows the turns of the conversation and keeps them as they are.
 * @param {HTMLOListElement} list
 * @param {Object} app see app.js.
 */
export function openAnswers(list, app) {
  const { state } = app;
  /** @type {Map<Turn, Item>} */
  const items = new Map();
  const suggestions = suggest(app);
  const showAll = () => {
    const { turns } = state.conversation;
    for (const turn of turns) if (!items.has(turn)) items.set(turn, new Item(turn, app));
    for (const turn of items.keys()) if (!turns.includes(turn)) items.delete(turn);
    const wanted = turns.length ? turns.map((turn) => items.get(turn).root) : [suggestions];
    if (wanted.some((root, index) => list.children[index] !== root) || list.children.length !== wanted.length) {
      list.replaceChildren(...wanted);
      list.parentElement.scrollTop = list.parentElement.scrollHeight;
    }
  };
  state.subscribe("turns", showAll);
  state.subscribe("turn", (turn) => items.get(turn)?.show());
  state.subscribe("pictures", () => {
    for (const item of items.values()) item.showThumbnails();
    showAll();
  });
  keepAtEnd(list.parentElement);
  setInterval(() => {
    for (const [turn, item] of items) if (turn.status === "waiting") item.showProgress();
  }, TICK_MILLISECONDS);
  showAll();
}

/** Keeps the end of a scrolling element in view while its size changes, unless somebody scrolled up. */
function keepAtEnd(scroller) {
  let isAtEnd = true;
  scroller.addEventListener("scroll", () => (isAtEnd = distanceToEnd(scroller) < NEAR_END_PIXELS));
  new ResizeObserver(() => isAtEnd && scroller.scrollTo(0, scroller.scrollHeight)).observe(scroller);
}

const distanceToEnd = ({ scrollHeight, scrollTop, clientHeight }) => scrollHeight - scrollTop - clientHeight;

/** Questions for a picture about which nothing was asked yet. */
function suggest({ state }) {
  const run = (task, words) => () => {
    state.setTask(task);
    ask(state, { task, words });
    document.getElementById("words").focus();
  };
  return element(
    "li.suggestions",
    {},
    element("p", { text: "What would you like to know?" }),
    button("What is in this image?", run("ask", "What is in this image?")),
    button("Describe it", run("caption", "")),
    button("Write a story", run("write", "Use the image to write a story.")),
  );
}

/** A turn in the list. Its parts are made once and changed in place, so that focus and selection stay. */
class Item {
  constructor(turn, app) {
    this.turn = turn;
    this.app = app;
    this.status = "";
    this.answer = element("div.answer");
    this.text = element("p.answer-text", { dir: "auto" });
    this.progress = element("div.progress", {}, element("span.pulse"), element("span.progress-text"));
    this.meter = element("progress", { "aria-label": "Progress" });
    this.progress.append(this.meter);
    this.bars = element("ol.bars");
    this.error = element("p.error", { role: "alert" });
    this.meta = element("p.meta");
    this.actions = element("div.actions");
    /** Where "Show where" and others put what they show about this answer. */
    this.extra = element("div.extra");
    this.answer.append(this.progress, this.text, this.bars, this.error, this.meta, this.actions, this.extra);
    this.root = element("li.turn", { "data-turn": turn.id }, this.question(), this.answer);
    this.show();
  }

  question() {
    const { turn, app } = this;
    const { label, takesNoWords, placeholder } = taskByName(turn.task);
    const words = turn.words || (takesNoWords ? "Describe this picture." : placeholder);
    const asked = element("div.question", {}, element("span.task-name", { text: label }));
    asked.append(element("p", { dir: "auto", text: words }));
    this.thumbnails = element("span.thumbnails");
    asked.append(this.thumbnails);
    this.showThumbnails();
    if (turn.shots.length)
      asked.append(element("span.shots", { text: `after ${count(turn.shots.length, "example")}` }));
    return asked;
  }

  /** Which pictures it is about; not where the conversation has only one. */
  showThumbnails() {
    const { state } = this.app;
    const pictures = this.turn.pictureIds.map((id) => state.picture(id)).filter(Boolean);
    this.thumbnails.hidden = state.conversation.pictures.length < 2 || !pictures.length;
    this.thumbnails.replaceChildren(...pictures.map((picture) => this.thumbnail(picture)));
  }

  thumbnail(picture) {
    const { state } = this.app;
    const name = picture.path || picture.name;
    const show = element("button.thumbnail", { type: "button", "aria-label": `Show ${name}`, title: name });
    show.append(element("img", { src: state.pictureUrl(picture), alt: "" }));
    show.addEventListener("click", () => state.selectPicture(picture.id));
    return show;
  }

  show() {
    const { turn } = this;
    const scroller = this.root.closest("section");
    const wasAtEnd = scroller && distanceToEnd(scroller) < NEAR_END_PIXELS;
    this.root.dataset.status = turn.status;
    this.answer.setAttribute("aria-busy", String(isBusy(turn)));
    if (this.text.textContent !== turn.text) this.text.textContent = turn.text;
    this.text.hidden = !turn.text;
    this.showProgress();
    this.showBars();
    if (this.error.textContent !== turn.error) this.error.textContent = turn.error;
    this.error.hidden = !turn.error;
    this.meta.textContent = isBusy(turn) ? "" : describeCost(turn);
    this.meta.hidden = !this.meta.textContent;
    if (this.status !== turn.status) this.showStatus();
    if (wasAtEnd) scroller.scrollTop = scroller.scrollHeight;
  }

  showStatus() {
    const { turn, app } = this;
    const hadFocus = this.actions.contains(document.activeElement);
    this.status = turn.status;
    const actions = isBusy(turn)
      ? [button(turn.status === "queued" ? "Do not ask" : "Stop", () => stop(app.state, turn))]
      : ACTIONS.filter((action) => action.isFor(turn, app)).map((action) =>
          button(action.label, (event) => action.run(app, turn, this, event.currentTarget)),
        );
    this.actions.replaceChildren(...actions);
    if (turn.status === "queued" || turn.status === "waiting") this.extra.replaceChildren();
    if (hadFocus) document.getElementById("words").focus();
  }

  showProgress() {
    const { turn } = this;
    this.progress.hidden = !(turn.status === "waiting" || turn.status === "queued");
    if (this.progress.hidden) return;
    this.progress.querySelector(".progress-text").textContent = describeProgress(turn);
    const total = turn.progress?.total ?? 0;
    this.meter.hidden = total < 2;
    if (total) [this.meter.max, this.meter.value] = [total, turn.progress.done];
  }

  showBars() {
    const { labels } = this.turn;
    this.bars.hidden = !labels;
    if (!labels || this.bars.children.length) {
      if (!labels) this.bars.replaceChildren();
      return;
    }
    const rows = labels.map((label, index) => bar(label, index));
    this.bars.append(...rows);
    if (rows.length <= MAX_BARS) return;
    for (const row of rows.slice(MAX_BARS)) row.hidden = true;
    const more = button(`Show all ${rows.length}`, () => {
      for (const row of rows) row.hidden = false;
      more.parentElement.remove();
    });
    this.bars.append(element("li", {}, more));
  }
}

/** A label of a ranking with its bar. @param {Label} label @param {number} index @returns {HTMLLIElement} */
export function bar({ label, probability }, index) {
  const fill = element("span.fill");
  fill.style.inlineSize = `${100 * probability}%`;
  const percent = probability >= 0.0995 ? `${Math.round(100 * probability)} %` : `${(100 * probability).toFixed(1)} %`;
  return element(
    "li.bar",
    { "data-label": label, "data-index": index },
    element("span.bar-label", { dir: "auto", text: label }),
    element("span.bar-value", { text: percent }),
    element("span.track", { "aria-hidden": "true" }, fill),
  );
}

/** What happens before the first word, for people. @param {Turn} turn @returns {string} */
export function describeProgress(turn) {
  if (turn.status === "queued") return "Waits until the answer before is complete.";
  const seconds = Math.floor((Date.now() - turn.startedAt) / 1000);
  return describeStage(turn) + (seconds ? ` · ${seconds} s` : "");
}

function describeStage({ progress, pictureIds }) {
  const { stage, done, total } = progress ?? { stage: "pictures", done: 0, total: 1 };
  const looking = `Looking at the picture${pictureIds.length > 1 ? "s" : ""}…`;
  switch (stage) {
    case "queued":
      return total ? `Waiting: ${count(total, "question")} before this one…` : "Next in line…";
    case "tiles":
      return total > 1 ? `${looking} part ${done} of ${total}` : looking;
    case "prompt":
      return "Thinking about the question…";
    default:
      return pictureIds.length ? looking : "Reading…";
  }
}

/** One line below an answer: why it ended early, time, tokens, notes. @param {Turn} turn @returns {string} */
export function describeCost(turn) {
  const { usage, totalSeconds, firstSeconds } = turn;
  const parts = [];
  if (turn.status === "stopped") parts.push("stopped");
  if (turn.finishReason === "length") parts.push("cut off: allow a longer answer in the settings");
  if (totalSeconds && usage) parts.push(duration(totalSeconds));
  if (usage) {
    parts.push(`${count(usage.prompt_tokens, "token")} read`);
    if (!turn.labels) parts.push(`${usage.completion_tokens.toLocaleString("en")} written`);
    const writing = totalSeconds - firstSeconds;
    if (firstSeconds && writing >= FASTEST_SECONDS && usage.completion_tokens > 1) {
      parts.push(`${Math.round(usage.completion_tokens / writing).toLocaleString("en")} tokens a second`);
    }
  }
  if (turn.settings.seed !== null) parts.push(`seed ${turn.settings.seed}`);
  if (turn.model) parts.push(turn.model);
  return [...parts, ...turn.notes].join(" · ");
}

/** What screen readers say when a turn's status changes; "" for nothing. @param {Turn} turn @returns {string} */
export function announcement(turn) {
  if (turn.status === "waiting") return "Looking at the picture.";
  if (turn.status === "stopped") return `Stopped. ${turn.text}`;
  if (turn.status !== "done") return "";
  if (turn.labels)
    return `Most likely: ${turn.labels[0].label}, ${Math.round(100 * turn.labels[0].probability)} percent.`;
  return turn.text || "The answer is empty.";
}
