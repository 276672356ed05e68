/** The form of a new batch run: its pictures, and what to ask about each. */

import { BatchRun } from "./batch-run.js";
import { freePath, readSources } from "./batch-sources.js";
import { button, count, element } from "./dom.js";
import { onlyPictures } from "./pictures.js";
import { parseLabels, settingFields } from "./run.js";
import { TASKS, taskByName } from "./state.js";

const PREVIEWS = 16; // pictures that are shown before a run begins

/** What is chosen for the next run; it stays while another view is shown. */
const draft = { sources: new Map(), task: "caption", words: {} };

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
    const { sources, problems } = await readSources(files);
    for (const source of sources) draft.sources.set(freePath(source, draft.sources), source);
    say(problems.join(" "));
    showChosen(chosen);
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
  showChosen(chosen);
  const title = element("h1", { text: "One question, many pictures" });
  return [title, zone, chosen, questionForm(app, problem, say, browse)];
}

function dropZone(take) {
  const field = (attributes) => {
    const input = element("input", { type: "file", multiple: true, hidden: true, ...attributes });
    input.addEventListener("change", async () => {
      await take(input.webkitdirectory ? onlyPictures([...input.files]) : [...input.files]);
      input.value = "";
    });
    return input;
  };
  const files = field({ id: "batch-files", accept: "image/*,.zip" });
  const folder = field({ id: "batch-folder", webkitdirectory: true });
  const choose = button("Choose files or a zip", () => files.click(), { class: "tool outlined" });
  const buttons = element(
    "div.drop-buttons",
    {},
    choose,
    button("Choose a folder", () => folder.click(), { class: "tool outlined" }),
  );
  const text = element("p", { text: "Drop pictures, a folder or a zip anywhere on this page" });
  return { root: element("div.drop-zone", {}, text, buttons, files, folder), browse: () => choose.focus() };
}

function showChosen(root) {
  const sources = [...draft.sources.values()];
  root.hidden = !sources.length;
  const bytes = sources.reduce((sum, { size }) => sum + size, 0);
  const clear = button("Remove all", () => {
    draft.sources.clear();
    showChosen(root);
  });
  const summary = element("p", { role: "status", text: `${count(sources.length, "picture")}, ${megabytes(bytes)}` });
  const previews = sources.filter(({ file }) => file?.type.startsWith("image/")).slice(0, PREVIEWS);
  root.replaceChildren(
    element("div.chosen-bar", {}, summary, clear),
    element("div.previews", {}, ...previews.map(preview)),
  );
}

function preview({ file, path }) {
  const image = element("img", { alt: path, title: path, src: URL.createObjectURL(file) });
  for (const event of ["load", "error"]) image.addEventListener(event, () => URL.revokeObjectURL(image.src));
  return image;
}

const megabytes = (bytes) =>
  bytes < 1e5
    ? `${Math.ceil(bytes / 1e3)} kB`
    : bytes < 1e9
      ? `${(bytes / 1e6).toFixed(1)} MB`
      : `${(bytes / 1e9).toFixed(1)} GB`;

/** What to ask about each picture. */
function questionForm(app, problem, say, browse) {
  const words = element("textarea", { id: "batch-words", rows: 2, dir: "auto" });
  const label = element("label", { for: "batch-words" });
  const chips = element(
    "fieldset.chips",
    {},
    element("legend.visually-hidden", { text: "What to do with each picture" }),
  );
  const show = () => {
    const { words: name, placeholder, takesNoWords } = taskByName(draft.task);
    label.textContent = name;
    label.hidden = words.hidden = Boolean(takesNoWords);
    words.placeholder = placeholder;
    words.value = draft.words[draft.task] ?? "";
  };
  for (const { name, label: text } of TASKS.filter((task) => task.name in app.state.model.tasks)) {
    const input = element("input.visually-hidden", {
      type: "radio",
      name: "batch-task",
      value: name,
      checked: name === draft.task,
    });
    input.addEventListener("change", () => {
      draft.task = name;
      say("");
      show();
    });
    chips.append(element("label.chip", {}, input, element("span", { text })));
  }
  words.addEventListener("input", () => (draft.words[draft.task] = words.value));
  const start = element("button.tool.primary", { type: "submit", text: "Start" });
  const form = element(
    "form.batch-form",
    {},
    chips,
    label,
    words,
    problem,
    element(
      "div.drop-buttons",
      {},
      start,
      button("Settings", () => app.openDrawer("settings")),
    ),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const [message, field] = missing(words, browse);
    say(message);
    if (message) field();
    else startRun(app, words.value.trim());
  });
  show();
  return form;
}

/** What is missing, and what moves the focus there. */
function missing(words, browse) {
  const { words: name, needsWords } = taskByName(draft.task);
  const toWords = () => words.focus();
  if (!draft.sources.size) return ["There are no pictures yet: drop some here, or choose them.", browse];
  if (draft.task === "classify" && parseLabels(words.value).length < 2)
    return ["Labels missing: type at least two, with commas between.", toWords];
  if (needsWords && !words.value.trim()) return [`${name} missing: type it into the box.`, toWords];
  return ["", null];
}

function startRun(app, words) {
  const { task, sources } = draft;
  const fields = settingFields({ task, settings: app.state.settings });
  const run = BatchRun.start(app, { task, words: taskByName(task).takesNoWords ? "" : words, fields }, [
    ...sources.values(),
  ]);
  app.announce(`${count(sources.size, "picture")} to send.`);
  draft.sources = new Map();
  location.hash = `#/batch/${run.record.id}`;
}
