/** Asks the server what a turn asks, one turn after the other, and records what comes. */

import { classify, streamChat, streamTask } from "./api.js";
import { completeShots, newId, pictureOf, taskByName } from "./state.js";

const SEED_LIMIT = 2 ** 31;
const running = { turn: null, abort: null };
/** @type {{turn: Turn, conversation: Conversation}[]} what waits, also of conversations that were left. */
const queue = [];

/**
 * Adds a turn about the picture on the stage and asks it, after those that wait already.
 * @param {State} state
 * @param {{task: string, words: string, settings?: Object, shots?: Shot[]}} asked
 * @returns {Turn}
 */
export function ask(state, { task, words, settings = state.settings, shots = state.conversation.shots }) {
  const turn = {
    id: newId(),
    task,
    words,
    pictureIds: picturesOf(state, task),
    model: state.model?.parent ? state.model.id : null,
    settings: withSeed(settings),
    shots: task === "chat" ? [] : completeShots(shots),
    ...emptyAnswer(),
  };
  state.addTurn(turn);
  enqueue(state, turn);
  return turn;
}

function enqueue(state, turn) {
  queue.push({ turn, conversation: state.conversation });
  void runNext(state);
}

/** Asks a turn again. With sampling it has another seed. @param {State} state @param {Turn} turn */
export function retry(state, turn) {
  const settings = withSeed({ ...turn.settings, seed: state.settings.seed });
  state.updateTurn(turn, { ...emptyAnswer(), settings });
  enqueue(state, turn);
}

/** Stops a turn, whether it waits or runs; what it has stays. */
export function stop(state, turn) {
  if (running.turn === turn) running.abort.abort();
  else if (turn.status === "queued") state.updateTurn(turn, { status: "stopped" });
}

/** Whether a turn waits or runs. @param {Turn} turn */
export const isBusy = (turn) => ["queued", "waiting", "writing"].includes(turn.status);

/** The fields of a turn that was not answered yet. */
export function emptyAnswer() {
  return {
    status: "queued",
    progress: null,
    text: "",
    labels: null,
    error: "",
    usage: null,
    finishReason: "",
    notes: [],
    startedAt: 0,
    firstSeconds: 0,
    totalSeconds: 0,
  };
}

/** Whether later turns of a chat have a turn before them. @param {Turn} turn */
const isSent = (turn) => turn.task === "chat" && ["done", "stopped"].includes(turn.status) && turn.text !== "";

/** Whether a turn of a chat is being answered, or will be. */
const isPending = (turn) => turn.task === "chat" && !["done", "stopped", "failed"].includes(turn.status);

/**
 * In a chat the pictures that no earlier turn showed, the last ones where a request takes no more; else the one on the
 * stage. @returns {string[]} their ids.
 */
export function picturesOf({ conversation: { pictures, turns, activePictureId }, maxPictures }, task) {
  if (task !== "chat") return activePictureId ? [activePictureId] : [];
  const shown = new Set(turns.filter((turn) => isSent(turn) || isPending(turn)).flatMap((turn) => turn.pictureIds));
  const others = pictures.map((picture) => picture.id).filter((id) => !shown.has(id));
  return others.slice(Math.max(0, others.length - Math.max(0, maxPictures - shown.size)));
}

/** Settings with a seed of their own where they need one. @param {Settings} settings @returns {Settings} */
export function withSeed(settings) {
  const seed = settings.seed ?? Math.floor(Math.random() * SEED_LIMIT);
  return { ...settings, seed: settings.strategy === "sampling" ? seed : null };
}

async function runNext(state) {
  if (running.turn || !queue.length) return;
  const { turn, conversation } = queue.shift();
  if (turn.status !== "queued") return void runNext(state); // stopped while it waited
  running.turn = turn;
  running.abort = new AbortController();
  state.updateTurn(turn, { status: "waiting", startedAt: Date.now() });
  try {
    await run(state, turn, conversation, running.abort.signal);
    state.updateTurn(turn, { status: "done" });
  } catch (error) {
    if (error.name === "AbortError") state.updateTurn(turn, { status: "stopped" });
    else state.updateTurn(turn, { status: "failed", error: error.message });
  } finally {
    state.updateTurn(turn, { totalSeconds: secondsSince(turn), progress: null });
    running.turn = null;
  }
  void runNext(state);
}

const secondsSince = (turn) => (Date.now() - turn.startedAt) / 1000;

async function run(state, turn, conversation, signal) {
  if (turn.task === "classify") {
    const { labels, usage, notes = [] } = await classify(await taskFields(conversation, turn), signal);
    state.updateTurn(turn, { labels, usage, notes: named(notes, conversation, turn) });
    return;
  }
  const events =
    turn.task === "chat"
      ? streamChat(await chatBody(state, conversation, turn), signal)
      : streamTask(turn.task, await taskFields(conversation, turn), signal);
  for await (const event of events) {
    if (event.progress) state.updateTurn(turn, { progress: event.progress });
    if (event.text) addText(state, turn, event.text);
    if (event.end) state.updateTurn(turn, { ...event.end, notes: named(event.end.notes, conversation, turn) });
  }
}

/** Notes of the server with the name of the picture, which it was not told. */
function named(notes, conversation, turn) {
  const [name = "the picture", ...more] = shownPictureIds(conversation, turn).map((id) => pictureOf(conversation, id)?.name);
  return notes.map((note) => note.replace(/^(a picture of [\d,]+ bytes|a data URI)/, more.length ? "a picture" : name));
}

function addText(state, turn, text) {
  const firstSeconds = turn.firstSeconds || secondsSince(turn);
  state.updateTurn(turn, { status: "writing", text: turn.text + text, firstSeconds });
}

/**
 * The settings of a turn as fields of the API; what the task ignores or what is the default is left out.
 * @param {Turn} turn
 * @returns {Object<string, *>}
 */
export function settingFields(turn) {
  const { settings, task } = turn;
  const detail = settings.detail === "high" ? {} : { detail: settings.detail };
  if (task === "classify") {
    return {
      ...detail,
      ...(settings.calibrated && { calibrated: true }),
      ...(settings.lengthNormalized && { length_normalized: true }),
    };
  }
  const length = settings.maxNewTokens ?? 0;
  const isOtherLength = length && length !== taskByName(task).maxNewTokens;
  return {
    ...(isOtherLength && { max_new_tokens: length }),
    ...strategyFields(settings, task),
    ...(settings.repetitionPenalty !== 1 && { repetition_penalty: settings.repetitionPenalty }),
    ...detail,
  };
}

function strategyFields(settings, task) {
  if (settings.strategy === "beams" && task !== "chat") return { num_beams: settings.numBeams };
  if (settings.strategy !== "sampling") return {};
  return {
    temperature: settings.temperature,
    ...(settings.topP !== 1 && { top_p: settings.topP }),
    ...(settings.topK && { top_k: settings.topK }),
    ...(settings.minP && { min_p: settings.minP }),
    ...(settings.seed !== null && { seed: settings.seed }),
  };
}

/** The labels of a text, each once: one on each line, or separated by commas. @param {string} words @returns {string[]} */
export function parseLabels(words) {
  const lines = words.split("\n").filter((line) => line.trim());
  const labels = (lines.length > 1 ? lines : words.split(/[,،]/)).map((label) => label.trim()).filter(Boolean);
  return [...new Set(labels)];
}

/** Few-shot examples as the API has them. @param {Shot[]} shots */
export const shotFields = (shots) =>
  Promise.all(
    shots.map(async ({ picture, question, answer }) => ({ image_url: await toDataUri(picture.blob), question, answer })),
  );

/** The fields of a task's request for a turn. @param {Conversation} conversation @param {Turn} turn */
export async function taskFields(conversation, turn) {
  const picture = pictureOf(conversation, turn.pictureIds[0]);
  if (!picture) throw new Error("The picture of this question was removed. Undo that, or ask about another one.");
  const shots = await shotFields(turn.shots);
  return {
    image: picture.blob,
    ...(turn.task === "classify" ? { labels: parseLabels(turn.words) } : turn.words && { words: turn.words }),
    ...settingFields(turn),
    ...(shots.length && { shots }),
    ...(turn.model && { model: turn.model }),
  };
}

/** The turns of a chat that a turn of it has before it. @param {Conversation} conversation @param {Turn} turn */
export function earlierTurns({ turns }, turn) {
  const end = turns.includes(turn) ? turns.indexOf(turn) : turns.length;
  return turn.task === "chat" ? turns.slice(0, end).filter(isSent) : [];
}

/** The pictures that the answer of a turn is based on. @returns {string[]} their ids. */
export const shownPictureIds = (conversation, turn) =>
  [...earlierTurns(conversation, turn), turn].flatMap((one) => one.pictureIds);

/** The fields of the request that explains a turn's answer by a method. */
export async function explanationFields(conversation, turn, method) {
  const shown = { ...turn, pictureIds: shownPictureIds(conversation, turn) };
  const { image, detail, shots, model } = await taskFields(conversation, shown);
  const fields = { image, detail, shots, method, model };
  if (turn.labels) return { ...fields, labels: parseLabels(turn.words) };
  const task = turn.task === "chat" ? "ask" : turn.task;
  const answer = task === "complete" ? turn.text.slice(turn.words.length) : turn.text;
  const earlier = earlierTurns(conversation, turn).map(({ words, text }) => ({ question: words, answer: text }));
  return { ...fields, task, answer: answer.trim(), ...(turn.words && { words: turn.words }), earlier };
}

/** The body of a chat completion for a turn: it has all earlier turns of the chat. */
async function chatBody(state, conversation, turn) {
  const earlier = earlierTurns(conversation, turn);
  const messages = [];
  for (const one of earlier) {
    messages.push(await userMessage(conversation, one, turn), { role: "assistant", content: one.text });
  }
  messages.push(await userMessage(conversation, turn, turn));
  const { detail, max_new_tokens: length, ...fields } = settingFields(turn);
  return {
    model: turn.model ?? state.models[0]?.id,
    messages,
    max_completion_tokens: length ?? taskByName("chat").maxNewTokens,
    ...fields,
  };
}

async function userMessage(conversation, turn, asked) {
  const pictures = turn.pictureIds.map((id) => pictureOf(conversation, id)).filter(Boolean);
  const { detail } = asked.settings;
  const parts = await Promise.all(
    pictures.map(async ({ blob, frames, fps }) =>
      frames
        ? { type: "video", video: await Promise.all(frames.map(toDataUri)), fps }
        : { type: "image_url", image_url: { url: await toDataUri(blob), ...(detail !== "high" && { detail }) } },
    ),
  );
  return { role: "user", content: [...parts, { type: "text", text: turn.words }] };
}

/** A file as a data URI. @param {Blob} blob @returns {Promise<string>} */
export function toDataUri(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error("The picture cannot be read any more: add it again."));
    reader.readAsDataURL(blob);
  });
}

/** A file of a data URI in base64. @param {string} uri @param {string} name @throws {Error} it is no such URI. */
export function fromDataUri(uri, name) {
  const [, type, base64] = /^data:([\w/+.-]*)[^,]*;base64,(.*)$/s.exec(uri);
  return new File([Uint8Array.from(atob(base64), (char) => char.charCodeAt(0))], name, { type });
}
