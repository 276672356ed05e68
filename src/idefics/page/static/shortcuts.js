/** The keyboard: the keys and what they do; and the drawer that explains the page and lists them. */

import { element } from "./dom.js";

export const TITLE = "Help";

const HELP = [
  ["Pictures", "Press + below (files, a folder, the camera, an address), paste, or drop them anywhere."],
  ["What to do", "The row above the text field: ask, caption, continue a text, classify by labels, write, or chat."],
  ["Under an answer", "“Show where” shows what it is based on; “Compare” changes one thing; “Code” does the same in a program."],
  ["Examples", "Pictures with the answers that you want: the model follows them. They are above the text field."],
  ["Conversations", "They are kept in this browser, and only here. The logo leads back to the start."],
];

const SINGLE_KEYS = "idefics.singleKeys"; // in localStorage: "off" where somebody turned them off
const MODIFIER = /Mac|iP/.test(navigator.platform) ? "⌘" : "Ctrl";

/** Keys of the text field and of the browser, which others handle. */
const GIVEN = [
  ["Enter", "Send; what is sent while an answer comes is asked next"],
  ["Shift Enter", "A new line"],
  ["↑", "In an empty field: the last question, to change it"],
  ["Esc", "Stop the answer, or close what is open"],
  ["Tab", "To the next button or field; arrows within the tasks and the strip of pictures"],
  [`${MODIFIER} V`, "Add the picture in the clipboard"],
];

/**
 * Keys that work everywhere; `isSingle` ones only outside of text fields.
 * @type {{keys: string, does: string, isSingle?: boolean, fits: function(KeyboardEvent): boolean, run: function(Object): *}[]}
 */
const SHORTCUTS = [
  { keys: "Alt ↓", does: "Next task", fits: isAlt("ArrowDown"), run: () => stepTask(1) },
  { keys: "Alt ↑", does: "Task before", fits: isAlt("ArrowUp"), run: () => stepTask(-1) },
  { keys: "Alt Page Down", does: "Next picture", fits: isAlt("PageDown"), run: (app) => stepPicture(app, 1) },
  { keys: "Alt Page Up", does: "Picture before", fits: isAlt("PageUp"), run: (app) => stepPicture(app, -1) },
  {
    keys: `${MODIFIER} K`,
    does: "Conversations",
    fits: isModified("k"),
    run: (app) => app.openDrawer("history"),
  },
  {
    keys: `${MODIFIER} /`,
    does: "This list",
    fits: isModified("/"),
    run: (app) => app.openDrawer("shortcuts"),
  },
  { keys: "?", does: "This list", isSingle: true, run: (app) => app.openDrawer("shortcuts") },
  { keys: "/", does: "To the text field", isSingle: true, run: () => byId("words").focus() },
  { keys: "+", does: "Add a picture", isSingle: true, run: () => byId("add").click() },
  { keys: "n", does: "New conversation", isSingle: true, run: (app) => app.newConversation() },
  { keys: "s", does: "Settings", isSingle: true, run: (app) => app.openDrawer("settings") },
  { keys: "c", does: "Code of the last answer", isSingle: true, run: (app) => app.openDrawer("code") },
];

const byId = (id) => document.getElementById(id);

function isAlt(key) {
  return (event) => event.altKey && !event.ctrlKey && !event.metaKey && event.key === key;
}

function isModified(key) {
  return (event) => (event.ctrlKey || event.metaKey) && !event.altKey && !event.shiftKey && event.key === key;
}

/**
 * Does what a key is for.
 * @param {KeyboardEvent} event
 * @param {Object} app see app.js.
 */
export function handleKey(event, app) {
  if (
    event.defaultPrevented ||
    event.isComposing ||
    document.querySelector("dialog[open], [popover]:popover-open")
  )
    return;
  const shortcut = SHORTCUTS.find(({ keys, fits, isSingle }) =>
    isSingle ? isSingleKey(event, keys) : fits(event),
  );
  if (!shortcut) return;
  event.preventDefault();
  shortcut.run(app);
}

function isSingleKey(event, key) {
  if (event.key !== key || event.ctrlKey || event.metaKey || event.altKey || !areSingleKeysOn()) return false;
  const { target } = event;
  return !target.closest("textarea, select, input:not([type=radio], [type=checkbox], [type=range])");
}

function stepTask(step) {
  if (byId("composer").hidden) return;
  const inputs = [...document.querySelectorAll("#tasks label:not([hidden]) input")];
  const index = inputs.findIndex((input) => input.checked);
  inputs[(index + step + inputs.length) % inputs.length].click();
  byId("words").focus();
}

function stepPicture({ state }, step) {
  const { pictures, activePictureId } = state.conversation;
  if (byId("workspace").hidden || !pictures.length) return;
  const index = pictures.findIndex(({ id }) => id === activePictureId);
  state.selectPicture(pictures[(index + step + pictures.length) % pictures.length].id);
}

function areSingleKeysOn() {
  try {
    return localStorage.getItem(SINGLE_KEYS) !== "off";
  } catch {
    return true;
  }
}

/** Fills the drawer. @param {HTMLElement} root */
export function open(root) {
  const rows = (list) =>
    list.flatMap(([keys, does]) => [element("dt", {}, ...keyCaps(keys)), element("dd", { text: does })]);
  const listed = (isSingle) =>
    SHORTCUTS.filter((one) => Boolean(one.isSingle) === isSingle).map(({ keys, does }) => [keys, does]);
  const input = element("input", { type: "checkbox", checked: areSingleKeysOn() });
  input.addEventListener("change", () => {
    try {
      localStorage.setItem(SINGLE_KEYS, input.checked ? "on" : "off");
    } catch {
      input.checked = true; // the browser keeps nothing
    }
  });
  root.append(
    ...HELP.map(([title, text]) => element("section.group", {}, element("h3", { text: title }), element("p", { text }))),
    element("h3", { text: "Keyboard" }),
    element("dl.keys", {}, ...rows(GIVEN), ...rows(listed(false))),
    element("h3", { text: "Outside of text fields" }),
    element("dl.keys", {}, ...rows(listed(true))),
    element(
      "label.choice",
      {},
      input,
      element("span", { text: "Single keys" }),
      element("small", { text: "off: only those above" }),
    ),
  );
}

const keyCaps = (keys) => keys.split(/ (?!Down|Up)/).map((key) => element("kbd", { text: key }));
