/** The form of a new batch run: its pictures, and what to ask about each. */

import { BatchRun } from "./batch-run.js";
import { nameLeftOut, readSources, withOwnPath } from "./batch-sources.js";
import { button, count, element } from "./dom.js";
import { onlyPictures } from "./pictures.js";
import { parseLabels, settingFields, withSeed } from "./run.js";
import { TASKS, completeShots, taskByName } from "./state.js";

const PREVIEWS = 16; // pictures that are shown before a run begins

/** The pictures of the next run, by their paths; they stay while another view is shown. @type {Map<string, Source>} */
let chosenSources = new Map();
let numLeftOut = 0; // files that were with them and are no pictures

function choose(sources) {
  for (const source of sources) {
    const own = withOwnPath(source, chosenSources);
    chosenSources.set(own.path, own);
  }
}

let hasChosen = false; // a task, since the page was opened

/** What was typed for a task, or asked last. */
const wordsOf = ({ drafts, conversation }, name) =>
  drafts[name] || conversation.turns.findLast(({ task }) => task === name)?.words || "";

/** The task of the composer, where pictures can have it one by one; at first the one that needs no words. */
function taskOf(state) {
  const { task, model } = state;
  const isReady = task in model.tasks && (task !== "ask" || hasChosen || wordsOf(state, task));
  return taskByName(isReady ? task : "caption");
}

/**
 * The form of a new run.
 * @param {HTMLElement} root of the view.
 * @param {Object} app see app.js.
 * @param {AbortSignal} signal ends when the view is left.
 * @returns {HTMLElement[]}
 */
export function showStart(root, app, signal) {
  const problem = element("p.error", { role: "alert", hidden: true });
  const say = (message) => {
    problem.textContent = message;
    problem.hidden = !message;
  };
  const chosen = element("div.chosen");
  const take = async (files) => {
    const { sources, problems, ...rest } = await readSources(files);
    choose(sources);
    numLeftOut += rest.numLeftOut;
    say(problems.join(" "));
    showChosen(app, browse, chosen);
  };
  const { root: zone, browse } = dropZone(take);
  root.addEventListener(
    "idefics-files",
    (event) => {
      event.preventDefault();
      void take(event.detail);
    },
    { signal },
  );
  showChosen(app, browse, chosen);
  const title = element("h1", { text: "One question, many pictures" });
  return [title, zone, chosen, questionForm(app, { problem, say, browse, signal })];
}

/** A hidden field that gives the files that are chosen. @param {Object} attributes @param {function(File[])} take */
export function fileField(attributes, take) {
  const input = element("input", { type: "file", multiple: true, hidden: true, ...attributes });
  input.addEventListener("change", async () => {
    await take(input.webkitdirectory ? onlyPictures([...input.files]) : [...input.files]);
    input.value = "";
  });
  return input;
}

function dropZone(take) {
  const files = fileField({ id: "batch-files", accept: "image/*,.zip" }, take);
  const folder = fileField({ id: "batch-folder", webkitdirectory: true }, take);
  const choose = button("Choose files or a zip", () => files.click(), { class: "tool outlined" });
  const buttons = element(
    "div.drop-buttons",
    {},
    choose,
    button("Choose a folder", () => folder.click(), { class: "tool outlined" }),
  );
  const text = element("p.with-mouse", { text: "Drop pictures, a folder or a zip anywhere on this page" });
  return { root: element("div.drop-zone", {}, text, buttons, files, folder), browse: () => choose.focus() };
}

/** Shows which pictures are chosen; `browse` moves the focus to where they are chosen. */
function showChosen(app, browse, root) {
  const sources = [...chosenSources.values()];
  root.hidden = !sources.length;
  const bytes = sources.reduce((sum, { size }) => sum + size, 0);
  const leftOut = numLeftOut;
  const clear = button("Remove all", () => {
    chosenSources = new Map();
    numLeftOut = 0;
    showChosen(app, browse, root);
    browse();
    app.confirmUndo(`${count(sources.length, "picture")} removed.`, () => {
      const since = [...chosenSources.values()];
      chosenSources = new Map();
      choose([...sources, ...since]);
      numLeftOut += leftOut;
      showChosen(app, browse, document.querySelector(".chosen") ?? root);
    });
  });
  const summary = element("p", {
    role: "status",
    text: [`${count(sources.length, "picture")}, ${megabytes(bytes)}`, ...nameLeftOut(numLeftOut)].join(" · "),
  });
  const previews = sources.filter(({ file }) => file?.type.startsWith("image/")).slice(0, PREVIEWS);
  root.replaceChildren(
    element("div.chosen-bar", {}, summary, clear),
    element("div.previews", {}, ...previews.map(preview)),
  );
}

function preview({ file, path }) {
  const image = element("img", { alt: path, title: path, src: URL.createObjectURL(file) });
  for (const event of ["load", "error"]) image.addEventListener(event, () => URL.revokeObjectURL(image.src));
  image.addEventListener("error", () =>
    image.replaceWith(element("span.no-preview", { title: path, text: "no preview" })),
  );
  return image;
}

const megabytes = (bytes) =>
  bytes < 1e5
    ? `${Math.ceil(bytes / 1e3)} kB`
    : bytes < 1e9
      ? `${(bytes / 1e6).toFixed(1)} MB`
      : `${(bytes / 1e9).toFixed(1)} GB`;

/** What to ask about each picture: the task, words, settings and examples are those of the composer. */
function questionForm(app, { problem, say, browse, signal }) {
  const { state } = app;
  const words = element("textarea", { id: "batch-words", rows: 2, dir: "auto" });
  const label = element("label", { for: "batch-words" });
  const examples = button("", () => app.openDrawer("examples"));
  const { root: chips, choose: check } = taskChips(state, say);
  const show = () => {
    const { name, words: asked, placeholder, takesNoWords } = taskOf(state);
    check(name);
    label.textContent = asked;
    label.hidden = words.hidden = Boolean(takesNoWords);
    words.placeholder = placeholder;
    words.value = wordsOf(state, name);
    const number = completeShots(state.conversation.shots).length;
    examples.textContent = number ? `Examples: ${number}` : "Examples";
  };
  for (const topic of ["task", "draft", "shots", "conversation"])
    signal.addEventListener("abort", state.subscribe(topic, show));
  words.addEventListener("input", () => state.rememberTyped(words.value));
  const start = element("button.tool.primary", { type: "submit", text: "Start" });
  const settings = button("Settings", () => app.openDrawer("settings"));
  const buttons = element("div.drop-buttons", {}, start, settings, examples);
  const form = element("form.batch-form", {}, chips, label, words, problem, buttons);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const [message, focus] = missing(taskOf(state), words, browse);
    say(message);
    if (message) focus();
    else startRun(app, words.value.trim());
  });
  show();
  return form;
}

function taskChips(state, say) {
  const root = element(
    "fieldset.chips",
    {},
    element("legend.visually-hidden", { text: "What to do with each picture" }),
  );
  const inputs = new Map();
  for (const { name, label } of TASKS.filter((task) => task.name in state.model.tasks)) {
    const input = element("input.visually-hidden", { type: "radio", name: "batch-task", value: name });
    input.addEventListener("change", () => {
      say("");
      hasChosen = true;
      state.setTask(name);
    });
    inputs.set(name, input);
    root.append(element("label.chip", {}, input, element("span", { text: label })));
  }
  return { root, choose: (name) => (inputs.get(name).checked = true) };
}

/** What is missing, and what moves the focus there. */
function missing({ name, words: asked, needsWords }, words, browse) {
  const toWords = () => words.focus();
  if (!chosenSources.size) return ["There are no pictures yet: drop some here, or choose them.", browse];
  if (name === "classify" && parseLabels(words.value).length < 2)
    return ["Labels missing: type at least two, with commas between.", toWords];
  if (needsWords && !words.value.trim()) return [`${asked} missing: type it into the box.`, toWords];
  return ["", null];
}

function startRun(app, words) {
  const { state } = app;
  const { name: task, takesNoWords, maxNewTokens } = taskOf(state);
  const { detail } = state.settings;
  const fields = { detail, ...settingFields({ task, settings: withSeed(state.settings) }) };
  if (task !== "classify") fields.max_new_tokens ??= maxNewTokens; // so that what is saved says it
  const shots = completeShots(state.conversation.shots);
  const sources = [...chosenSources.values()];
  const run = BatchRun.start(app, { task, words: takesNoWords ? "" : words, fields }, shots, sources);
  app.announce(`${count(sources.length, "picture")} to send.`);
  chosenSources = new Map();
  numLeftOut = 0;
  location.hash = `#/batch/${run.record.id}`;
}
