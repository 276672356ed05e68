/** Conversations as files: Markdown to read, JSON with all pictures to import again. */

import { answerText } from "./actions.js";
import { describeCost } from "./answers.js";
import { fromDataUri, toDataUri } from "./run.js";
import { DEFAULT_SETTINGS, TASKS, emptyConversation, newId, taskByName } from "./state.js";
import { allPictures } from "./store.js";

const FORMAT = "idefics.conversation";
const PICTURE = /^data:(image\/(?:jpeg|png|webp|gif|bmp|avif));base64,/;
const STATUSES = ["done", "stopped", "failed"];

/** A title as the name of a file, without what file systems refuse. @param {string} title @param {string} ending */
export const fileName = (title, ending) =>
  `${
    title
      .replace(/[^\p{L}\p{N}]+/gu, " ")
      .trim()
      .slice(0, 60)
      .replaceAll(" ", "-") || "conversation"
  }.${ending}`;

const escapeMarkdown = (text) => text.replace(/[\\`*_[\]<>#|~]/g, "\\$&");
const quote = (text) =>
  text
    .split("\n")
    .map((line) => `> ${line}`)
    .join("\n");

/** @param {Conversation} conversation @returns {string} */
export function toMarkdown(conversation) {
  const names = new Map(conversation.pictures.map(({ id, path, name }) => [id, path || name]));
  const parts = [`# ${escapeMarkdown(conversation.title.replaceAll("\n", " "))}`];
  for (const turn of conversation.turns) {
    const shown = turn.pictureIds.map((id) => names.get(id)).filter(Boolean);
    parts.push(
      `## ${taskByName(turn.task).label}${turn.words ? `: ${escapeMarkdown(turn.words.replaceAll("\n", " "))}` : ""}`,
    );
    if (shown.length) parts.push(`Picture: ${shown.map(escapeMarkdown).join(", ")}`);
    parts.push(quote(escapeMarkdown(answerText(turn) || turn.error)));
    const cost = describeCost(turn);
    if (cost) parts.push(escapeMarkdown(cost));
  }
  return `${parts.join("\n\n")}\n`;
}

/** @param {Conversation} conversation with its pictures. @returns {Promise<string>} */
export async function toJson(conversation) {
  const uris = new Map();
  for (const blob of allPictures(conversation).flatMap((picture) => [picture.blob, ...(picture.frames ?? [])]))
    if (!uris.has(blob)) uris.set(blob, await toDataUri(blob));
  const replace = (_, value) => (value instanceof Blob ? uris.get(value) : value);
  return JSON.stringify({ format: FORMAT, version: 1, conversation }, replace, 1);
}

/**
 * A conversation from the text of an exported file, with an id of its own.
 * @param {string} text
 * @returns {Conversation}
 * @throws {Error} it is no such file.
 */
export function fromJson(text) {
  const { format, version, conversation } = JSON.parse(text);
  if (format !== FORMAT || version !== 1) throw new Error("another format");
  const pictures = conversation.pictures.map(readPicture);
  const turns = conversation.turns.map(readTurn);
  return {
    ...emptyConversation(),
    title: String(conversation.title),
    pictures,
    turns,
    shots: conversation.shots.map(readShot),
    model: conversation.model ? String(conversation.model) : null,
    activePictureId: pictures.at(-1)?.id ?? null,
  };
}

/** @throws {TypeError} it is no picture. */
const readBlob = (uri) => fromDataUri(PICTURE.exec(uri).input, "");

function readPicture({ id, name, path, note, width, height, blob, frames, fps }) {
  const size = { width: toNumber(width), height: toNumber(height) };
  return {
    id: String(id),
    name: String(name),
    path: String(path),
    note: String(note),
    ...size,
    blob: readBlob(blob),
    ...(frames && { frames: frames.map(readBlob), fps: toNumber(fps) }),
  };
}

const readShot = ({ picture, question, answer }) => ({
  id: newId(),
  picture: readPicture(picture),
  question: String(question),
  answer: String(answer),
});

function readTurn(turn) {
  const { task, labels, usage } = turn;
  if (!TASKS.some(({ name }) => name === task)) throw new Error(`no task ${task}`);
  return {
    id: newId(),
    task,
    words: String(turn.words),
    pictureIds: turn.pictureIds.map(String),
    model: turn.model ? String(turn.model) : null,
    settings: { ...DEFAULT_SETTINGS, ...turn.settings },
    shots: turn.shots.map(readShot),
    status: STATUSES.includes(turn.status) ? turn.status : "stopped",
    progress: null,
    text: String(turn.text),
    labels:
      labels &&
      labels.map(({ label, ...rest }) => ({
        label: String(label),
        probability: toNumber(rest.probability),
        logprob: Number(rest.logprob),
      })),
    error: String(turn.error),
    usage: usage && {
      prompt_tokens: toNumber(usage.prompt_tokens),
      completion_tokens: toNumber(usage.completion_tokens),
    },
    finishReason: String(turn.finishReason),
    notes: turn.notes.map(String),
    startedAt: toNumber(turn.startedAt),
    firstSeconds: toNumber(turn.firstSeconds),
    totalSeconds: toNumber(turn.totalSeconds),
  };
}

function toNumber(value) {
  if (!Number.isFinite(value)) throw new Error(`${value} is no number`);
  return value;
}
