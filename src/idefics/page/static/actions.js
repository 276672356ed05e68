/** The buttons under a complete answer. */

import { earlierTurns, isBusy, retry, shownPictureIds } from "./run.js";

/**
 * Each in its place: {label, isFor(turn, app), run(app, turn, item, pressed)}.
 * @type {{label: string, isFor: function(Turn, Object): boolean, run: function(Object, Turn, Item, HTMLElement): *}[]}
 */
export const ACTIONS = [
  { label: "Copy", isFor: hasAnswer, run: copy },
  {
    label: "Show where",
    isFor: (turn, app) => hasAnswer(turn) && isAboutOnePicture(turn, app),
    run: showWhere,
  },
  {
    label: "Compare",
    isFor: (turn) => hasAnswer(turn) && turn.task !== "chat",
    run: compare,
  },
  { label: "Try again", isFor: (turn) => !isBusy(turn), run: ({ state }, turn) => retry(state, turn) },
  { label: "Edit", isFor: ({ status, words }) => words && ["failed", "stopped"].includes(status), run: editTurn },
  { label: "Code", isFor: () => true, run: (app, turn) => app.openDrawer("code", turn) },
  { label: "Delete", isFor: (turn) => !isBusy(turn), run: remove },
];

function hasAnswer(turn) {
  return Boolean(turn.text || turn.labels);
}

/** Whether the answer is based on one picture; that of a chat stands in its first turn. */
function isAboutOnePicture(turn, { state }) {
  const [id, ...more] = shownPictureIds(state.conversation, turn);
  if (!id || more.length) return false;
  const [first = turn] = earlierTurns(state.conversation, turn);
  return turn.task !== "chat" || (first.pictureIds.includes(id) && !state.picture(id)?.frames);
}

async function showWhere(app, turn, item, pressed) {
  (await import("./where.js")).open(item.extra, app, { turn, item, pressed });
}

async function compare(app, turn) {
  (await import("./where.js")).closeMap(); // both answers are about the picture as it is
  await app.openPanel("compare", turn);
}

/** An answer as text, as it is copied and exported. @param {Turn} turn @returns {string} */
export function answerText(turn) {
  if (!turn.labels) return turn.text;
  return turn.labels
    .map(({ label, probability }) => `${(100 * probability).toFixed(1)} % ${label}`)
    .join("\n");
}

async function copy(app, turn, item, pressed) {
  try {
    await navigator.clipboard.writeText(answerText(turn));
    pressed.textContent = "Copied";
    app.announce("Copied.");
  } catch {
    getSelection().selectAllChildren(item.turn.labels ? item.bars : item.text);
    pressed.textContent = "Selected: press Ctrl+C";
  }
  setTimeout(() => (pressed.textContent = "Copy"), 2000);
}

/** Puts the words of a question back into the composer, to be changed. */
export function editTurn({ state }, { task, words }) {
  state.setTask(task);
  state.setDraft(task, words);
  document.getElementById("words").focus();
}

function remove(app, turn) {
  const undo = app.state.removeTurn(turn);
  app.confirmUndo("The question and its answer are deleted.", undo, app.state.conversation);
  document.getElementById("words").focus();
}
