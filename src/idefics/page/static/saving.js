/** Saves conversations in the browser as they happen, opens them again, and merges what other windows change. */

import { button } from "./dom.js";
import { baseOf, idsOf, mergeLists, mergeRecord, settle } from "./merge.js";
import { isBusy, stop } from "./run.js";
import { emptyConversation, newId, pictureOf } from "./state.js";
import { deleteStored, describeFailure, keepUnsaved, loadConversation, toRecord, updateStored } from "./store.js";

const SAVE_MILLISECONDS = 300; // between two savings of an answer that is being written
const INTERRUPTED = "not complete: the page was closed or reloaded";
const WRITTEN_ELSEWHERE = "another window is writing this answer";

/**
 * What is known about a conversation that this window has opened.
 * @typedef {Object} Entry
 * @property {Conversation} conversation
 * @property {{turns: Set<string>, pictures: Set<string>}|null} base ids at the last saving; null if it never was saved.
 * @property {Set<string>} storedPictures ids of pictures whose bytes are stored.
 * @property {Set<string>} changed ids of turns that were changed here since; "title" (and model), "shots", "lists".
 * @property {string} revision that of the record at the last saving.
 * @property {boolean} isShared whether another window has it open.
 * @property {boolean} isSaving whether a saving is under way.
 * @property {number} numHeard savings of other windows that are not taken over yet.
 * @property {Promise<void>} queue savings, one after the other.
 */

/** @type {Map<string, Entry>} */
const entries = new Map();
/** @type {WeakMap<Turn, Entry>} */
const owners = new WeakMap();
/** @type {WeakSet<Conversation>} deleted here: what still comes for them is not kept. */
const removed = new WeakSet();
const channel = new BroadcastChannel("idefics.conversations");
let app = null;
let isAdopting = false; // what changes now comes from the store
let hasFailed = false; // said once, until a saving succeeds

function track(conversation, base) {
  const entry = {
    conversation,
    base,
    storedPictures: new Set(),
    changed: new Set(),
    revision: conversation.revision ?? "",
    isShared: false,
    isSaving: false,
    numHeard: 0,
    timer: 0,
    queue: Promise.resolve(),
  };
  entries.set(conversation.id, entry);
  own(entry);
  return entry;
}

function own(entry) {
  for (const turn of entry.conversation.turns) owners.set(turn, entry);
}

/** Saves every conversation of this window from now on. @param {Object} application see app.js. */
export function startSaving(application) {
  if (app) return;
  app = application;
  const { state } = app;
  for (const topic of ["conversation", "pictures", "turns", "shots"])
    state.subscribe(topic, (conversation) => noteChange(topic, conversation));
  state.subscribe("turn", (turn) => {
    const entry = owners.get(turn);
    if (isAdopting || !entry) return;
    entry.changed.add(turn.id);
    entry.conversation.updatedAt = Date.now();
    if (!isBusy(turn)) save(entry);
    else entry.timer ||= setTimeout(() => save(entry), SAVE_MILLISECONDS);
  });
  channel.addEventListener("message", ({ data }) => hear(data));
  addEventListener("pagehide", saveAtOnce);
  addEventListener("hashchange", showAddress);
  noteChange("pictures", state.conversation);
}

/** Whether a conversation was deleted here. @param {Conversation} conversation */
export const isRemoved = (conversation) => removed.has(conversation);

function noteChange(topic, conversation) {
  const isEmpty = !conversation.pictures.length && !conversation.turns.length;
  if (isAdopting || removed.has(conversation) || (isEmpty && !entries.has(conversation.id))) return;
  const entry = entries.get(conversation.id) ?? track(conversation, null);
  own(entry);
  entry.changed.add({ conversation: "title", shots: "shots" }[topic] ?? "lists");
  save(entry);
}

/** Saves what changed, after the saving that is under way. @param {Entry} entry */
function save(entry) {
  clearTimeout(entry.timer);
  entry.timer = 0;
  entry.queue = entry.queue.then(() => saveNow(entry)).catch(sayFailure);
  return entry.queue;
}

async function saveNow(entry) {
  const { conversation } = entry;
  if (!entry.changed.size || entries.get(conversation.id) !== entry) return;
  const changed = entry.changed;
  let [isForeign, base] = [false, null];
  entry.changed = new Set();
  entry.isSaving = true;
  try {
    await updateStored(conversation, entry.storedPictures, (stored) => {
      isForeign = Boolean(stored) && stored.revision !== entry.revision;
      const record = { ...mergeRecord(entry, stored, changed), revision: newId() };
      entry.revision = record.revision;
      base = baseOf(record); // what is added while it is written is no part of it
      return record;
    });
  } catch (error) {
    for (const one of changed) entry.changed.add(one);
    throw error;
  } finally {
    entry.isSaving = false;
  }
  hasFailed = false;
  if (isForeign) await adopt(entry);
  else entry.base = base;
  channel.postMessage({ saved: conversation.id });
  showAddress();
}

/** Takes over what another window stored. @param {Entry} entry */
async function adopt(entry) {
  const { conversation, base, changed } = entry;
  const stored = await loadConversation(conversation.id);
  if (!stored || entries.get(conversation.id) !== entry) return;
  const { state } = app;
  const theirs = new Map(stored.turns.map((turn) => [turn.id, settle(turn, WRITTEN_ELSEWHERE)]));
  isAdopting = true;
  for (const turn of conversation.turns) {
    const other = theirs.get(turn.id);
    if (other && !changed.has(turn.id) && !isBusy(turn)) state.updateTurn(turn, other);
  }
  conversation.turns = mergeLists(base?.turns, conversation.turns, [...theirs.values()]);
  conversation.pictures = mergeLists(base?.pictures, conversation.pictures, stored.pictures);
  if (!pictureOf(conversation, conversation.activePictureId))
    conversation.activePictureId = conversation.pictures.at(-1)?.id ?? null;
  if (!changed.has("title")) ({ title: conversation.title, model: conversation.model = null } = stored);
  if (!changed.has("shots")) conversation.shots = stored.shots;
  for (const { id } of stored.pictures) entry.storedPictures.add(id);
  entry.base = baseOf(stored);
  entry.revision = stored.revision;
  own(entry);
  if (state.conversation === conversation) state.openConversation(conversation);
  isAdopting = false;
}

function hear({ saved, opened, shared, deleted }) {
  const entry = entries.get(saved ?? opened ?? shared ?? deleted);
  if (!entry) return;
  const isInHand = app.state.conversation === entry.conversation;
  if (saved) {
    entry.numHeard += 1;
    entry.queue = entry.queue
      .then(() => adopt(entry))
      .catch(sayFailure)
      .finally(() => (entry.numHeard -= 1));
  }
  if (opened && isInHand) {
    entry.isShared = true;
    channel.postMessage({ shared: opened });
  }
  if (shared && isInHand && !entry.isShared) {
    entry.isShared = true;
    app.notify("This conversation is also open in another window. What one adds appears in both.");
  }
  if (!deleted) return;
  entry.base = null;
  if (isInHand)
    app.notify("This conversation was deleted in another window. With your next question it is kept again.");
  else entries.delete(deleted);
}

function saveAtOnce() {
  for (const { conversation, changed, base, isSaving, numHeard } of entries.values()) {
    if (!(changed.size || isSaving) || !base || numHeard) continue;
    keepUnsaved({ ...toRecord(conversation), revision: newId() });
    channel.postMessage({ saved: conversation.id });
  }
}

/** Puts the conversation into the page's address, so that a reload or a bookmark opens it. */
function showAddress() {
  const { id } = app.state.conversation;
  if (entries.get(id)?.base && ["", "#/"].includes(location.hash)) history.replaceState(null, "", `#/c/${id}`);
}

function sayFailure(error) {
  if (hasFailed) return;
  hasFailed = true;
  const toast = app.notify(describeFailure(error));
  const open = button("Conversations", () => {
    toast.remove();
    void app.openDrawer("history");
  });
  if (error.name === "QuotaExceededError") toast.insertBefore(open, toast.lastChild);
}

/**
 * Opens a conversation of this browser.
 * @param {Object} application see app.js.
 * @param {string} id
 */
export async function openById(application, id) {
  startSaving(application);
  const { state } = app;
  if (state.conversation.id === id) return;
  let entry = entries.get(id);
  try {
    entry ??= await read(id);
  } catch (error) {
    sayFailure(error);
  }
  if (!entry) {
    if (!hasFailed)
      app.notify("There is no such conversation in this browser: it was deleted, or belongs to another browser.");
    history.replaceState(null, "", "#/");
    return;
  }
  show(entry);
  channel.postMessage({ opened: id });
}

async function read(id) {
  const stored = await loadConversation(id);
  if (!stored) return null;
  stored.turns = stored.turns.map((turn) => settle(turn, INTERRUPTED));
  const entry = track(stored, baseOf(stored));
  entry.storedPictures = idsOf(stored.pictures);
  return entry;
}

function show(entry) {
  isAdopting = true;
  app.state.openConversation(entry.conversation);
  isAdopting = false;
  showAddress();
}

/** All conversations that this window had open, which are all there are where the browser keeps none. */
export const openedConversations = () => [...entries.values()].map(({ conversation }) => conversation).reverse();

/** Completes all savings. */
export const saveAll = () => Promise.all([...entries.values()].map(save));

/** Keeps a conversation that comes from elsewhere, such as a file. @param {Conversation} conversation */
export async function keepConversation(conversation) {
  const entry = track(conversation, null);
  entry.changed.add("title").add("shots").add("lists");
  await saveNow(entry);
}

/** Names a conversation. @param {string} id @param {string} title */
export async function renameConversation(id, title) {
  const entry = entries.get(id) ?? (await read(id));
  if (!entry) return;
  if (app.state.conversation.id === id) {
    app.state.renameConversation(title);
  } else {
    entry.conversation.title = title;
    entry.changed.add("title");
  }
  await save(entry);
}

/**
 * Deletes a conversation.
 * @param {string} id
 * @returns {Promise<function(): Promise<void>>} brings it back.
 */
export async function removeConversation(id) {
  const { state } = app;
  const { conversation } = entries.get(id) ?? (await read(id));
  const wasInHand = state.conversation === conversation;
  for (const turn of conversation.turns.filter(isBusy).reverse()) stop(state, turn);
  entries.delete(id);
  removed.add(conversation);
  if (wasInHand) {
    state.openConversation(emptyConversation());
    history.replaceState(null, "", "#/");
  }
  await deleteStored(id).catch(sayFailure);
  channel.postMessage({ deleted: id });
  return async () => {
    removed.delete(conversation);
    await keepConversation(conversation);
    if (wasInHand && !state.conversation.turns.length && !state.conversation.pictures.length) show(entries.get(id));
  };
}
