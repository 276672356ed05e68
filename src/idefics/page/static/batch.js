/** The view of batch runs: one question for many pictures, and the runs that the browser keeps. */

import { cancelBatch, deleteFile, fetchBatch } from "./batch-api.js";
import { BatchRun, openRuns } from "./batch-run.js";
import { deleteRun, listRuns, loadRows } from "./batch-store.js";
import { showRun } from "./batch-view.js";
import { button, count, element } from "./dom.js";
import { onlyPictures } from "./pictures.js";
import { parseLabels, settingFields } from "./run.js";
import { TASKS, taskByName } from "./state.js";
import { listZip } from "./zip.js";

const PREVIEWS = 16; // pictures that are shown before a run begins
const MAX_PATH = 512; // characters of a `custom_id`
const UNDO_MILLISECONDS = 15_000;
const TYPES = { jpg: "image/jpeg", jpeg: "image/jpeg", png: "image/png", webp: "image/webp", gif: "image/gif", bmp: "image/bmp", avif: "image/avif" };

/** What is chosen for the next run; it stays while another view is shown. */
const draft = { sources: new Map(), task: "caption", words: {} };

/**
 * Shows the runs, or the run that the fragment names: `#/batch/ID`.
 * @param {HTMLElement} root
 * @param {Object} app see app.js.
 * @returns {function(): void} to call when the view is left.
 */
export function open(root, app) {
  const closing = new AbortController();
  const id = location.hash.split("/")[2];
  const page = element("div.batch");
  root.append(page);
  const show = async () => {
    if (!app.state.model) return;
    page.replaceChildren();
    if (!app.state.model.batches) page.append(...explainMissing());
    else if (id) await openRun(page, app, id, closing.signal);
    else openStart(page, app, closing.signal);
  };
  const unsubscribe = app.state.subscribe("model", show);
  closing.signal.addEventListener("abort", unsubscribe);
  void show();
  return () => closing.abort();
}

function explainMissing() {
  return [
    element("h1", { text: "Batch" }),
    element("p.lead", { text: "This server keeps no batches. Start it with a folder for them, and open the page again:" }),
    element("pre", { tabindex: 0 }, element("code", { text: "idefics serve --ui --batches FOLDER" })),
    element("p", { text: "idefics ui has batches without more. On the command line, idefics run asks a whole folder." }),
  ];
}

async function openRun(page, app, id, signal) {
  const run = await BatchRun.open(app, id).catch(() => null);
  if (signal.aborted) return;
  if (run) showRun(page, app, run, { signal, readSources, deleteRun: () => hideRun(app, run) });
  else page.append(element("h1", { text: "Batch" }), element("p.lead", { text: "This browser has no such run." }), element("a", { href: "#/batch", text: "All runs" }));
}

/** Deletes a run unless it is brought back in time. */
async function hideRun(app, run) {
  void run.cancel();
  await run.setDeleted(true);
  location.hash = "#/batch";
  const timer = setTimeout(purgeRuns, UNDO_MILLISECONDS);
  app.confirmUndo(`The run of ${count(run.rows.length, "picture")} is deleted.`, async () => {
    clearTimeout(timer);
    await run.setDeleted(false);
    location.hash = `#/batch/${run.record.id}`;
  });
}

/** Deletes runs for good that were deleted and not brought back, on the server too. */
async function purgeRuns() {
  for (const { id } of (await listRuns()).filter((record) => record.isDeleted)) {
    const batches = new Set((await loadRows(id)).map((row) => row.batch).filter(Boolean));
    for (const batch of batches) await deleteFiles(batch).catch(() => {}); // the server deletes them by itself some day
    openRuns.delete(id);
    await deleteRun(id);
  }
}

async function deleteFiles(id) {
  await cancelBatch(id).catch(() => {}); // it has ended already
  const { input_file_id: input, output_file_id: output, error_file_id: errors } = await fetchBatch(id);
  for (const file of [input, output, errors]) if (file) await deleteFile(file);
}

/** The form of a new run, and the list of runs. */
function openStart(page, app, signal) {
  const problem = element("p.error", { role: "alert", hidden: true });
  const say = (message) => {
    problem.textContent = message;
    problem.hidden = !message;
  };
  const chosen = element("div.chosen");
  const take = async (files) => {
    const { sources, problems } = await readSources(files);
    for (const source of sources) draft.sources.set(freePath(source), source);
    say(problems.join(" "));
    showChosen(chosen);
  };
  const { root: zone, browse } = dropZone(take);
  page.append(element("h1", { text: "One question, many pictures" }), zone, chosen, questionForm(app, say, browse), problem, runList());
  page.parentElement.addEventListener("idefics-files", (event) => {
    event.preventDefault();
    void take(event.detail);
  }, { signal });
  showChosen(chosen);
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
  const buttons = element("div.drop-buttons", {}, choose, button("Choose a folder", () => folder.click(), { class: "tool outlined" }));
  const text = element("p", { text: "Drop pictures, a folder or a zip anywhere on this page" });
  return { root: element("div.drop-zone", {}, text, buttons, files, folder), browse: () => choose.focus() };
}

/**
 * Pictures of files; those in a zip are unpacked when they are sent.
 * @param {File[]} files
 * @returns {Promise<{sources: Source[], problems: string[]}>}
 */
export async function readSources(files) {
  const sources = [];
  const problems = [];
  for (const file of files) {
    try {
      if (/\.zip$/i.test(file.name)) sources.push(...(await sourcesOfZip(file)));
      else sources.push({ path: pathOf(file.path || file.webkitRelativePath || file.name), size: file.size, read: async () => file, file });
    } catch (error) {
      problems.push(error.message);
    }
  }
  return { sources, problems };
}

const pathOf = (path) => path.toWellFormed().slice(-MAX_PATH);

async function sourcesOfZip(zip) {
  const entries = (await listZip(zip)).map((entry) => ({ ...entry, name: entry.path.split("/").pop() }));
  const sources = onlyPictures(entries).map(({ path, name, bytes, read }) => {
    const type = TYPES[name.split(".").pop().toLowerCase()] ?? "";
    return { path: pathOf(path), size: bytes, read: async () => new File([await read()], name, { type }) };
  });
  if (!sources.length) throw new Error(`${zip.name} has no pictures.`);
  return sources;
}

/** The path of a picture; another file of the same path is called "1 (2).png". */
function freePath(source) {
  const original = source.path;
  for (let number = 2; draft.sources.has(source.path) && !isSame(draft.sources.get(source.path), source); number++) {
    source.path = original.replace(/(\.[^./]*)?$/, ` (${number})$1`);
  }
  return source.path;
}

const isSame = ({ file: first, size: firstSize }, { file, size }) => firstSize === size && first?.lastModified === file?.lastModified;

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
  root.replaceChildren(element("div.chosen-bar", {}, summary, clear), element("div.previews", {}, ...previews.map(preview)));
}

function preview({ file, path }) {
  const image = element("img", { alt: path, title: path, src: URL.createObjectURL(file) });
  for (const event of ["load", "error"]) image.addEventListener(event, () => URL.revokeObjectURL(image.src));
  return image;
}

const megabytes = (bytes) => (bytes < 1e5 ? `${Math.ceil(bytes / 1e3)} kB` : bytes < 1e9 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e9).toFixed(1)} GB`);

/** What to ask about each picture. */
function questionForm(app, say, browse) {
  const words = element("textarea", { id: "batch-words", rows: 2, dir: "auto" });
  const label = element("label", { for: "batch-words" });
  const chips = element("fieldset.chips", {}, element("legend.visually-hidden", { text: "What to do with each picture" }));
  const show = () => {
    const { words: name, placeholder, takesNoWords } = taskByName(draft.task);
    label.textContent = name;
    label.hidden = words.hidden = Boolean(takesNoWords);
    words.placeholder = placeholder;
    words.value = draft.words[draft.task] ?? "";
  };
  for (const { name, label: text } of TASKS.filter((task) => task.name in app.state.model.tasks)) {
    const input = element("input.visually-hidden", { type: "radio", name: "batch-task", value: name, checked: name === draft.task });
    input.addEventListener("change", () => {
      draft.task = name;
      say("");
      show();
    });
    chips.append(element("label.chip", {}, input, element("span", { text })));
  }
  words.addEventListener("input", () => (draft.words[draft.task] = words.value));
  const start = element("button.tool.primary", { type: "submit", text: "Start" });
  const form = element("form.batch-form", {}, chips, label, words, element("div.drop-buttons", {}, start, button("Settings", () => app.openDrawer("settings"))));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const [problem, field] = missing(words, browse);
    say(problem);
    if (problem) field();
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
  if (draft.task === "classify" && parseLabels(words.value).length < 2) return ["Labels missing: type at least two, with commas between.", toWords];
  if (needsWords && !words.value.trim()) return [`${name} missing: type it into the box.`, toWords];
  return ["", null];
}

function startRun(app, words) {
  const { task, sources } = draft;
  const fields = settingFields({ task, settings: app.state.settings });
  const run = BatchRun.start(app, { task, words: taskByName(task).takesNoWords ? "" : words, fields }, [...sources.values()]);
  draft.sources = new Map();
  location.hash = `#/batch/${run.record.id}`;
}

/** The runs that the browser has. */
function runList() {
  const list = element("ul.runs");
  const section = element("section", { "aria-label": "Runs", hidden: true }, element("h2", { text: "Runs" }), list);
  listRuns().then(
    (records) => {
      list.append(...records.filter((record) => !record.isDeleted).map(runItem));
      section.hidden = !list.children.length;
    },
    () => {}, // the browser stores nothing here
  );
  return section;
}

function runItem({ id, task, words, createdAt, counts: { done, failed, total } }) {
  const when = new Date(createdAt).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
  const facts = [done < total ? `${done} of ${count(total, "picture")}` : count(total, "picture"), failed ? `${failed} failed` : "", when];
  const title = [taskByName(task).label, words].filter(Boolean).join(": ");
  return element("li", {}, element("a", { href: `#/batch/${id}` }, element("b", { text: title, dir: "auto" }), element("span", { text: facts.filter(Boolean).join(" · ") })));
}
