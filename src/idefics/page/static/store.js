/** The conversations that the browser keeps in IndexedDB: their texts in one store, their pictures in another. */

import { Database } from "./database.js";

// Keys: the id; [the conversation's id, the picture's id].
const database = new Database("idefics", { conversations: "id", pictures: null });
const transact = database.transact.bind(database);

const UNSAVED = "idefics.unsaved."; // and the id, in localStorage
const picturesOf = (id) => IDBKeyRange.bound([id], [id, []]);
const withoutBlob = ({ blob, frames, ...rest }) => rest;
const blobsOf = ({ blob, frames }) => (frames ? [blob, ...frames] : blob); // as they are stored
const shotWithoutBlob = (shot) => ({ ...shot, picture: withoutBlob(shot.picture) });

/** A conversation without the bytes of its pictures, as it is stored. @param {Conversation} conversation */
export function toRecord(conversation) {
  return {
    ...conversation,
    pictures: conversation.pictures.map(withoutBlob),
    shots: conversation.shots.map(shotWithoutBlob),
    turns: conversation.turns.map((turn) => ({ ...turn, shots: turn.shots.map(shotWithoutBlob) })),
  };
}

/** All pictures of a conversation, those of its examples included. @returns {StoredPicture[]} */
export function allPictures({ pictures, shots, turns }) {
  return [...pictures, ...[...shots, ...turns.flatMap((turn) => turn.shots)].map((shot) => shot.picture)];
}

/**
 * Stores what `merge` makes of the stored conversation, in one transaction: no other window writes in between.
 * @param {Conversation} conversation with the blobs of its pictures.
 * @param {Set<string>} storedPictures ids of pictures whose bytes are stored already; those that are written are added.
 * @param {function(Object|undefined): Object|null} merge the stored record -> the new one; null: nothing to store.
 */
export async function updateStored(conversation, storedPictures, merge) {
  const { id } = conversation;
  const written = [];
  await transact("readwrite", (conversations, pictures) => {
    const request = conversations.get(id);
    request.onsuccess = () => {
      const record = merge(request.result);
      if (!record) return;
      conversations.put(record);
      for (const picture of allPictures(conversation)) {
        if (request.result && storedPictures.has(picture.id)) continue;
        pictures.put(blobsOf(picture), [id, picture.id]);
        written.push(picture.id);
      }
    };
  });
  for (const one of written) storedPictures.add(one);
}

/**
 * Keeps texts as the page is left, when the database takes no more; they are stored before conversations are read.
 * Whether another window changed them is not seen. @param {Object} record
 */
export function keepUnsaved(record) {
  localStorage.setItem(UNSAVED + record.id, JSON.stringify(record));
}

async function storeUnsaved() {
  for (const key of Object.keys(localStorage).filter((one) => one.startsWith(UNSAVED))) {
    const record = JSON.parse(localStorage.getItem(key));
    await transact("readwrite", (conversations) => conversations.put(record));
    localStorage.removeItem(key);
  }
}

/** A stored conversation with its pictures; null if there is none. @param {string} id @returns {Promise<Conversation|null>} */
export async function loadConversation(id) {
  await storeUnsaved();
  const blobs = new Map();
  const record = await transact("readonly", (conversations, pictures) => {
    pictures.openCursor(picturesOf(id)).onsuccess = ({ target: { result: cursor } }) => {
      if (!cursor) return;
      blobs.set(cursor.key[1], cursor.value);
      cursor.continue();
    };
    return conversations.get(id);
  });
  if (!record) return null;
  for (const picture of allPictures(record)) {
    const [blob, ...frames] = [blobs.get(picture.id)].flat();
    Object.assign(picture, { blob }, frames.length && { frames });
  }
  const isWhole = ({ picture }) => picture.blob;
  record.pictures = record.pictures.filter((picture) => picture.blob);
  record.shots = record.shots.filter(isWhole);
  for (const turn of record.turns) turn.shots = turn.shots.filter(isWhole);
  return record;
}

/** The bytes of one picture. @returns {Promise<Blob|undefined>} */
export const loadPicture = async (id, pictureId) =>
  [await transact("readonly", (_, pictures) => pictures.get([id, pictureId]))].flat()[0];

/** All conversations without the bytes of their pictures, the last changed first. @returns {Promise<Object[]>} */
export async function listConversations() {
  await storeUnsaved();
  const records = await transact("readonly", (conversations) => conversations.getAll());
  return records.sort((first, second) => second.updatedAt - first.updatedAt);
}

/** Deletes a conversation and its pictures. @param {string} id */
export async function deleteStored(id) {
  await transact("readwrite", (conversations, pictures) => {
    conversations.delete(id);
    pictures.delete(picturesOf(id));
  });
}

/** What to say where conversations cannot be kept. @param {Error} error @returns {string} */
export function describeFailure(error) {
  return error.name === "QuotaExceededError"
    ? "The browser has no space left, so this conversation is not kept: delete others, or export them."
    : "The browser does not let this page keep conversations, as in some private windows: they end with the page.";
}
