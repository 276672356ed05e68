/** Merges what two windows did to one conversation, by what each of them knew of it before. */

import { isBusy } from "./run.js";
import { toRecord } from "./store.js";

/** @param {{id: string}[]} list @returns {Set<string>} */
export const idsOf = (list) => new Set(list.map(({ id }) => id));

/** The ids that both windows know. @param {Conversation} conversation */
export const baseOf = ({ turns, pictures }) => ({ turns: idsOf(turns), pictures: idsOf(pictures) });

/**
 * Ours that no other window removed, then those that another added.
 * @param {Set<string>|undefined} base ids that both knew.
 * @param {{id: string}[]} ours
 * @param {{id: string}[]} theirs
 */
export function mergeLists(base, ours, theirs) {
  const [mine, known] = [idsOf(ours), idsOf(theirs)];
  return [
    ...ours.filter(({ id }) => known.has(id) || !base?.has(id)),
    ...theirs.filter(({ id }) => !mine.has(id) && !base?.has(id)),
  ];
}

/**
 * The record to store: ours where this window changed it, else theirs.
 * @param {{conversation: Conversation, base: Object|null}} entry ours.
 * @param {Object|undefined} stored theirs; undefined if it was never stored.
 * @param {Set<string>} changed see saving.js.
 */
export function mergeRecord({ conversation, base }, stored, changed) {
  const ours = toRecord(conversation);
  if (!stored) return ours;
  const theirs = new Map(stored.turns.map((turn) => [turn.id, turn]));
  const newer = (turn) => (changed.has(turn.id) ? turn : (theirs.get(turn.id) ?? turn));
  return {
    ...ours,
    ...(!changed.has("title") && { title: stored.title, model: stored.model ?? null }),
    shots: changed.has("shots") ? ours.shots : stored.shots,
    pictures: mergeLists(base?.pictures, ours.pictures, stored.pictures),
    turns: mergeLists(base?.turns, ours.turns, stored.turns).map(newer),
  };
}

/** A stored turn whose answer this window is not writing. @param {Turn} turn @param {string} note why it is incomplete. */
export function settle(turn, note) {
  return isBusy(turn) ? { ...turn, status: "stopped", progress: null, notes: [...turn.notes, note] } : turn;
}
