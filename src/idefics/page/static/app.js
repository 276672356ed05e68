/** Starts the page: the header, routing by fragment, drawers, messages, and pictures that are dropped or pasted. */

import * as api from "./api.js";
import { startComposer } from "./composer.js";
import { button, element } from "./dom.js";
import { State, emptyConversation } from "./state.js";

const UNDO_SECONDS = 12;
const byId = (id) => document.getElementById(id);
const state = new State();

/** What every module gets: see its methods. */
export const app = {
  api,
  state,
  /** The stage, once there is a picture; null before. See stage.js. */
  stage: null,
  notify,
  confirmUndo,
  announce,
  showProblem,
  openDrawer: async (name, argument) => (await loadDrawers()).openDrawer(app, name, argument),
  openPanel: async (name, argument) => (await loadDrawers()).openPanel(app, name, argument),
  closePanel: () => drawers?.closePanel(),
  addFiles: async (files) => (await import("./pictures.js")).addFiles(app, files),
  newConversation: () => {
    showStart();
    byId("words").focus();
  },
};

let drawers = null;
const loadDrawers = async () => (drawers ??= await import("./drawers.js"));

function showStart() {
  state.openConversation(emptyConversation());
  location.hash = "#/";
}

/** Shows a message that belongs to no place of the page. @param {string} message */
function notify(message) {
  const toast = element("div.toast", {}, element("p", { text: message }));
  toast.append(button("Close", () => toast.remove()));
  byId("toasts").append(toast);
  return toast;
}

/**
 * Says what was done, with a button that undoes it.
 * @param {string} message
 * @param {function(): void} undo
 * @param {Conversation} [conversation] where it was done: the button goes when another one is opened.
 */
function confirmUndo(message, undo, conversation) {
  const toast = notify(message);
  toast.toggleAttribute("data-of-conversation", Boolean(conversation));
  const undoButton = button("Undo", () => {
    undo();
    toast.remove();
    if (document.activeElement === document.body) byId("words").focus();
  });
  toast.insertBefore(undoButton, toast.lastChild);
  setTimeout(() => toast.matches(":hover, :focus-within") || toast.remove(), UNDO_SECONDS * 1000);
}

/** Says something to screen readers. @param {string} message */
function announce(message) {
  byId("announcer").textContent = message;
}

/** Shows below the composer what is wrong with what was typed or added; "" hides it. @param {string} message */
function showProblem(message) {
  byId("composer-note").textContent = message;
}

let inHand = state.conversation;

/** What is about a conversation goes when another one is opened: a panel, and buttons that undo something. */
function leaveConversation() {
  if (state.conversation === inHand) return;
  inHand = state.conversation;
  app.closePanel();
  for (const toast of document.querySelectorAll("[data-of-conversation]")) toast.remove();
}

let closeView = null;
let numRoutes = 0;

/** Shows what the fragment names: "#/batch" and "#/live" are views of their own, all else is the stage. */
async function route() {
  const [name, id] = location.hash.slice(2).split("/");
  const link = document.querySelector(`.views a[data-view="${CSS.escape(name)}"]`);
  const isView = Boolean(name && link);
  const number = ++numRoutes;
  closeView?.();
  closeView = null;
  byId("view").replaceChildren();
  byId("view").hidden = !isView;
  byId("workspace").hidden = byId("composer").hidden = isView;
  for (const one of document.querySelectorAll(".views a")) one.removeAttribute("aria-current");
  (isView ? link : document.querySelector('.views a[data-view=""]')).setAttribute("aria-current", "page");
  if (isView) {
    const { open } = await import(`./${name}.js`);
    if (number === numRoutes) closeView = open(byId("view"), app) ?? null; // else another view was chosen meanwhile
  } else if (name === "c") await (await import("./saving.js")).openById(app, id);
}

/** Shows the cards or the stage, and loads what the stage needs. */
async function showWorkspace() {
  const { pictures, turns } = state.conversation;
  const isEmpty = !pictures.length && !turns.length;
  byId("workspace").toggleAttribute("data-empty", isEmpty);
  byId("welcome").hidden = !isEmpty;
  byId("stage").hidden = isEmpty;
  byId("conversation").hidden = isEmpty || !byId("panel").hidden;
  byId("new-conversation").hidden = isEmpty;
  if (isEmpty || app.stage) return;
  const [stage, answers, saving] = await Promise.all([
    import("./stage.js"),
    import("./answers.js"),
    import("./saving.js"),
  ]);
  if (app.stage) return;
  app.stage = stage.openStage(byId("stage"), app);
  answers.openAnswers(byId("turns"), app);
  saving.startSaving(app);
}

/** Says each change of a turn's status, also of a turn that is complete before the conversation is shown. */
function announceTurns() {
  const statuses = new WeakMap();
  state.subscribe("turn", async (turn) => {
    if (statuses.get(turn) === turn.status) return;
    statuses.set(turn, turn.status);
    if (turn.status === "waiting") void refreshModels(); // the server may have been started again with another model
    if (!state.conversation.turns.includes(turn)) return;
    const { announcement } = await import("./answers.js");
    const said = announcement(turn);
    if (said) announce(said);
  });
}

const withoutStart = (models) => JSON.stringify(models.map((model) => ({ ...model, created: 0 })));

async function refreshModels() {
  const models = await api.listModels().catch(() => state.models); // the answer will say what is wrong
  if (withoutStart(models) !== withoutStart(state.models)) state.setModels(models);
}

async function loadModels() {
  try {
    state.setModels(await api.listModels());
  } catch (error) {
    byId("model").textContent = "no model";
    notify(error.message).append(
      button("Try again", (event) => {
        event.target.closest(".toast").remove();
        void loadModels();
      }),
    );
  }
}

const choice = element("select.select", { "aria-label": "Model", change: () => state.chooseModel(choice.value) });

/** Which model answers, how large it is, and what to expect of the demo; a choice where there are adapters. */
function showModel() {
  const { id, num_parameters: size, is_demo: isDemo } = state.model;
  const hadFocus = choice === document.activeElement;
  choice.replaceChildren(...state.models.map((one) => element("option", { text: one.id, selected: one.id === id })));
  byId("model").replaceChildren(
    state.models.length > 1 ? choice : element("b", { text: id }),
    element("span", { text: `${parameters(size)} parameters` }),
    isDemo ? element("span.model-note", { text: "knows only its picture book" }) : "",
  );
  if (hadFocus) choice.focus();
  document.title = `${id}: ask your pictures`;
}

/** A number of parameters as models are named by: "3.5M", "8B". */
function parameters(count) {
  const [unit, letter] = count < 1e9 ? [1e6, "M"] : [1e9, "B"];
  return `${(count / unit).toFixed(count / unit < 10 ? 1 : 0)}${letter}`;
}

async function runCard(card) {
  const { task, picture, words } = card.dataset;
  state.setTask(task);
  try {
    const blob = await api.fetchBundledPicture(picture);
    await app.addFiles([new File([blob], picture, { type: blob.type })]);
    (await import("./run.js")).ask(state, { task, words });
  } catch (error) {
    notify(error.message);
  }
  byId("words").focus();
}

const carriesFiles = (transfer) => [...(transfer?.types ?? [])].includes("Files");

/** Takes pictures that are dropped or pasted anywhere; the browser never leaves the page for them. */
function watchFiles() {
  const hint = byId("drop-hint");
  addEventListener("dragover", (event) => {
    if (!carriesFiles(event.dataTransfer)) return;
    event.preventDefault();
    hint.hidden = false;
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) hint.hidden = true;
  });
  addEventListener("drop", async (event) => {
    if (!carriesFiles(event.dataTransfer)) return;
    event.preventDefault();
    hint.hidden = true;
    const { filesOfDrop } = await import("./pictures.js");
    const files = await filesOfDrop(event.dataTransfer);
    await giveFiles(files);
  });
  addEventListener("paste", async (event) => {
    if (!event.clipboardData.files.length) return;
    event.preventDefault();
    await giveFiles([...event.clipboardData.files]);
  });
}

/** Gives files to the drawer or the view that is open, or adds them to the conversation. @param {File[]} files */
async function giveFiles(files) {
  for (const place of [document.querySelector(".drawer-body"), byId("view")]) {
    const given = new CustomEvent("idefics-files", { detail: files, cancelable: true });
    if (place?.dispatchEvent(given) === false) return;
  }
  await app.addFiles(files);
}

/** Loads what keys do with the first sign that somebody is there: the first view needs it not. */
function watchKeys() {
  const load = async () => ({ handleKey } = await import("./shortcuts.js"));
  let handleKey = (...given) =>
    load().then(
      () => handleKey(...given),
      () => {}, // what the next pointer or focus does says that the server does not answer
    );
  for (const type of ["pointermove", "focusin"]) addEventListener(type, load, { once: true });
  addEventListener("keydown", (event) => handleKey(event, app));
}

/** Says so when a part of the page, which is loaded when it is used, cannot be loaded. */
function watchParts() {
  addEventListener("unhandledrejection", (event) => {
    if (!(event.reason instanceof TypeError && event.reason.message.includes("module"))) return;
    event.preventDefault();
    notify("The server does not answer, so this part of the page cannot be loaded. Try again when it is there.");
  });
}

function start() {
  startComposer(byId("composer"), app);
  state.subscribe("conversation", leaveConversation);
  state.subscribe("model", showModel);
  for (const topic of ["pictures", "turns", "conversation"]) state.subscribe(topic, showWorkspace);
  for (const one of document.querySelectorAll("[data-drawer]")) {
    one.addEventListener("click", () => app.openDrawer(one.dataset.drawer));
  }
  for (const card of document.querySelectorAll(".card")) card.addEventListener("click", () => runCard(card));
  byId("new-conversation").addEventListener("click", app.newConversation);
  document.querySelector(".brand").addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return; // a window of its own
    event.preventDefault();
    showStart();
  });
  addEventListener("hashchange", route);
  addEventListener("focus", refreshModels);
  watchFiles();
  watchKeys();
  watchParts();
  announceTurns();
  void loadModels();
  void route();
}

start();
