/** The composer: what to do, the words for it, pictures to add, send and stop. */

import { button, element } from "./dom.js";
import { TASKS, completeShots, taskByName } from "./state.js";

const MAX_ROWS_HEIGHT = 180; // pixels of the text field before it scrolls

/**
 * Connects the composer of the page.
 * @param {HTMLFormElement} form
 * @param {Object} app see app.js.
 */
export function startComposer(form, app) {
  const { state } = app;
  const words = form.querySelector("#words");
  const note = form.querySelector("#composer-note");
  addChips(form.querySelector("#tasks"), state);
  addMenu(app, note);

  words.addEventListener("input", () => {
    note.textContent = "";
    state.rememberTyped(words.value);
    fitHeight(words);
  });
  words.addEventListener("keydown", (event) => {
    if (event.key === "Escape") void stopAll(app, words);
    if (event.key === "ArrowUp" && !words.value) void editLast(app, event);
    const isBreak = event.shiftKey || event.altKey || event.isComposing;
    if (event.key !== "Enter" || isBreak) return;
    event.preventDefault();
    form.requestSubmit();
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    void send(app, words, note);
  });
  form.querySelector("#stop").addEventListener("click", () => stopAll(app, words));
  state.subscribe("model", () => showTasksOfModel(form, state));
  state.subscribe("shots", () => showNumExamples(form, state));
  state.subscribe("task", () => showTask(form, state));
  state.subscribe("pictures", () => showPlaceholder(words, state));
  state.subscribe("draft", () => showTask(form, state));
  for (const topic of ["turn", "turns"]) state.subscribe(topic, () => showBusy(form, state));
  showTask(form, state);
}

function addChips(fieldset, state) {
  for (const { name, label } of TASKS) {
    const input = element("input.visually-hidden", { type: "radio", name: "task", value: name });
    input.addEventListener("change", () => state.setTask(name));
    fieldset.append(element("label.chip", {}, input, element("span", { text: label })));
  }
}

/** Hides what the model cannot do: a base checkpoint has no chat, and few read pages. */
function showTasksOfModel(form, state) {
  const { kind, tasks } = state.model;
  const isPossible = ({ name }) => (name === "chat" ? kind === "chat" : name in tasks);
  for (const task of TASKS) form.querySelector(`input[value="${task.name}"]`).parentElement.hidden = !isPossible(task);
  if (!isPossible(taskByName(state.task))) state.setTask(TASKS.find(isPossible).name);
}

/** Shows what the task asks for. The words of another task are kept for it. */
function showTask(form, state) {
  const task = taskByName(state.task);
  const words = form.querySelector("#words");
  const chosen = form.querySelector(`input[value="${task.name}"]`);
  chosen.checked = true;
  chosen.parentElement.scrollIntoView({ block: "nearest", inline: "center" });
  form.querySelector("#words-label").textContent = task.words;
  form.querySelector("#composer-note").textContent = "";
  showPlaceholder(words, state);
  words.readOnly = Boolean(task.takesNoWords);
  words.value = task.takesNoWords ? "" : (state.drafts[task.name] ?? "");
  fitHeight(words);
}

/** What the task asks for, and about which of several pictures. */
function showPlaceholder(words, { task, maxPictures, conversation: { pictures, activePictureId } }) {
  const index = pictures.findIndex(({ id }) => id === activePictureId);
  const which = task === "chat" ? `the last ${maxPictures}` : `picture ${index + 1}`;
  const isNeeded = pictures.length > (task === "chat" ? maxPictures : 1);
  words.placeholder = taskByName(task).placeholder + (isNeeded ? ` (${which} of ${pictures.length})` : "");
}

/** How many examples come before the question. */
function showNumExamples(form, state) {
  const badge = form.querySelector("#num-examples");
  badge.textContent = completeShots(state.conversation.shots).length;
  badge.hidden = badge.textContent === "0";
}

function fitHeight(words) {
  words.style.height = "auto";
  // Nothing is known of a field that is hidden, as it is behind another view.
  if (words.scrollHeight) words.style.height = `${Math.min(words.scrollHeight, MAX_ROWS_HEIGHT)}px`;
}

function showBusy(form, state) {
  const isBusy = state.conversation.turns.some((turn) => ["queued", "waiting", "writing"].includes(turn.status));
  form.querySelector("#stop").hidden = !isBusy;
}

async function stopAll(app, words) {
  words.focus();
  const { isBusy, stop } = await import("./run.js");
  for (const turn of app.state.conversation.turns.filter(isBusy).reverse()) stop(app.state, turn);
}

/** Brings the last question back. */
async function editLast(app, event) {
  const turn = app.state.conversation.turns.at(-1);
  if (!turn?.words) return;
  event.preventDefault();
  (await import("./actions.js")).editTurn(app, turn);
}

/** Sends what is typed, or says what is missing. A question that is sent while another is answered waits for it. */
async function send(app, words, note) {
  const { state } = app;
  const task = taskByName(state.task);
  const text = words.value.trim();
  note.textContent = missing(state, task, text);
  if (note.textContent) {
    words.focus();
    return;
  }
  state.setDraft(task.name, "");
  words.focus();
  app.closePanel();
  const { ask } = await import("./run.js");
  ask(state, { task: task.name, words: text });
}

function missing(state, task, text) {
  if (!state.activePicture && task.name !== "chat") {
    return "There is no picture yet: drop one here, paste one, or press +.";
  }
  if (task.name === "classify" && !/[,،\n]/.test(text)) {
    return `${text ? "One label is no choice" : "Labels missing"}: type at least two, with commas between.`;
  }
  return task.needsWords && !text ? `${task.words} missing: type it into the box.` : "";
}

/** A field that adds the files that are chosen in it. */
function fileInput(app, attributes) {
  const input = element("input", { type: "file", multiple: true, hidden: true, ...attributes });
  input.addEventListener("change", async () => {
    const { onlyPictures } = await import("./pictures.js");
    await app.addFiles(input.webkitdirectory ? onlyPictures([...input.files]) : [...input.files]);
    input.value = "";
  });
  return input;
}

/** Fills the menu of "+": files, a folder, the camera, an address, the clipboard. */
function addMenu(app, note) {
  const menu = document.getElementById("add-menu");
  const opener = document.getElementById("add");
  const files = fileInput(app, { id: "file-input", accept: "image/*,video/*" });
  const folder = fileInput(app, { id: "folder-input", webkitdirectory: true });
  const browse = (input) => () => {
    menu.hidePopover();
    input.click();
  };
  const choose = async (name) => {
    menu.hidePopover();
    note.textContent = "";
    try {
      await (await import("./sources.js"))[name](app);
    } catch (error) {
      note.textContent = error.message;
    }
  };
  const address = button("From an address", () => choose("askForAddress"), { hidden: true });
  app.state.subscribe("model", () => (address.hidden = !app.state.model.images.remote));
  menu.append(
    files,
    folder,
    button("Upload pictures", browse(files)),
    button("Upload a folder", browse(folder)),
    button("Take a photo", () => choose("takePhoto")),
    button("Paste", () => choose("pasteFromClipboard")),
    address,
  );
  menu.addEventListener("keydown", (event) => {
    const items = [...menu.querySelectorAll("button:not([hidden])")];
    const index = items.indexOf(document.activeElement);
    const next = { ArrowDown: index + 1, ArrowUp: index - 1, Home: 0, End: -1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    items.at(next % items.length).focus();
  });
  menu.addEventListener("toggle", (event) => {
    if (event.newState !== "open") return;
    const box = opener.getBoundingClientRect();
    menu.style.bottom = `${innerHeight - box.top + 8}px`;
    menu.style.insetInlineStart = `${document.dir === "rtl" ? innerWidth - box.right : box.left}px`;
    menu.querySelector("button").focus();
  });
}
