/** What the page holds: the conversation in hand, the task, drafts and settings. Views subscribe to topics. */

/**
 * @typedef {Object} StoredPicture A picture of a conversation; it can be stored in IndexedDB as it is.
 * @property {string} id
 * @property {string} name the name of its file, or its address.
 * @property {string} path its path in the folder that was given; "" if it came alone.
 * @property {Blob} blob what is sent.
 * @property {number} width in pixels.
 * @property {number} height in pixels.
 * @property {string} note what was done to it, such as "made smaller: 4,000 x 3,000"; "" for nothing.
 *
 * @typedef {Object} Turn What somebody asked, and the answer.
 * @property {string} id
 * @property {string} task name of a task, see TASKS.
 * @property {string} words the question, the beginning, the labels or the instruction.
 * @property {string[]} pictureIds pictures that it shows, in order; tasks but "chat" have one.
 * @property {Settings} settings those that it was asked with, its seed included.
 * @property {Shot[]} shots few-shot examples that it was asked with.
 * @property {"queued"|"waiting"|"writing"|"done"|"stopped"|"failed"} status
 * @property {Progress|null} progress what happens before the first word.
 * @property {string} text the answer so far.
 * @property {Label[]|null} labels the ranking of "classify".
 * @property {string} error why it failed; "" if it did not.
 * @property {Object|null} usage tokens, as in the API.
 * @property {string} finishReason "stop" or "length"; "" before the end.
 * @property {string[]} notes what was not read of the picture.
 * @property {number} startedAt milliseconds since 1970.
 * @property {number} firstSeconds until the first word; 0 before it.
 * @property {number} totalSeconds until the end; 0 before it.
 *
 * @typedef {{label: string, probability: number, logprob: number}} Label
 * @typedef {{id: string, picture: StoredPicture, question: string, answer: string}} Shot
 * @typedef {{stage: string, done: number, total: number}} Progress
 *
 * @typedef {Object} Settings names and values of the API; null: the model's default.
 * @property {"high"|"low"|"auto"} detail
 * @property {number|null} maxNewTokens
 * @property {"greedy"|"beams"|"sampling"} strategy
 * @property {number} numBeams
 * @property {number} temperature
 * @property {number} topP
 * @property {number} topK
 * @property {number} minP
 * @property {number} repetitionPenalty
 * @property {number|null} seed null: another one each time.
 * @property {boolean} calibrated
 * @property {boolean} lengthNormalized
 *
 * @typedef {Object} Conversation It can be stored in IndexedDB as it is.
 * @property {string} id
 * @property {string} title
 * @property {number} createdAt milliseconds since 1970.
 * @property {number} updatedAt milliseconds since 1970.
 * @property {StoredPicture[]} pictures
 * @property {string|null} activePictureId
 * @property {Turn[]} turns
 * @property {Shot[]} shots examples for the next questions.
 *
 * @typedef {"conversation"|"pictures"|"turns"|"turn"|"shots"|"task"|"draft"|"settings"|"model"} Topic
 */

/**
 * The tasks of the composer, by their names in the API. `words` is what the composer asks for; `maxNewTokens` the
 * longest answer that the API gives where nothing else is set.
 */
export const TASKS = [
  { name: "ask", label: "Ask", words: "Question", placeholder: "Ask about the picture", needsWords: true, maxNewTokens: 64 },
  { name: "caption", label: "Caption", words: "Caption", placeholder: "Nothing to type: press send", takesNoWords: true, maxNewTokens: 64 },
  { name: "complete", label: "Continue", words: "First words", placeholder: "This is an image of", needsWords: true, maxNewTokens: 64 },
  { name: "classify", label: "Classify", words: "Labels", placeholder: "Labels: cat, dog, bird", needsWords: true, maxNewTokens: 0 },
  { name: "write", label: "Write", words: "Instruction", placeholder: "Use the image to write a story.", maxNewTokens: 256 },
  { name: "read", label: "Read", words: "Instruction", placeholder: "Convert this page to docling.", maxNewTokens: 4096 },
  { name: "chat", label: "Chat", words: "Your turn", placeholder: "Talk about the pictures", needsWords: true, maxNewTokens: 256 },
];

/** @type {Settings} */
export const DEFAULT_SETTINGS = Object.freeze({
  detail: "high",
  maxNewTokens: null,
  strategy: "greedy",
  numBeams: 4,
  temperature: 0.8,
  topP: 0.95,
  topK: 0,
  minP: 0,
  repetitionPenalty: 1,
  seed: null,
  calibrated: true,
  lengthNormalized: false,
});

const SETTINGS_KEY = "idefics.settings";

/** The task of that name. */
export const taskByName = (name) => TASKS.find((task) => task.name === name);

/** A new identifier that no other window makes. */
export const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(9)), (byte) => (byte % 36).toString(36)).join("");

/** @returns {Conversation} */
export function emptyConversation() {
  const now = Date.now();
  return { id: newId(), title: "", createdAt: now, updatedAt: now, pictures: [], activePictureId: null, turns: [], shots: [] };
}

/** The state of the page. Change it through its methods only: they tell the subscribers. */
export class State {
  /** @type {Map<Topic, Set<function(*): void>>} */
  #listeners = new Map();
  #urls = new WeakMap();

  constructor() {
    /** @type {Conversation} */
    this.conversation = emptyConversation();
    this.task = "ask";
    /** @type {Object<string, string>} task -> what is typed for it. */
    this.drafts = {};
    /** @type {Settings} */
    this.settings = { ...DEFAULT_SETTINGS, ...readStored() };
    /** The served model, as `api.fetchModel` returns it; null before. */
    this.model = null;
  }

  /**
   * Calls a listener after each change of a topic.
   * @param {Topic} topic
   * @param {function(*): void} listener gets the turn (topic "turn"), else nothing.
   * @returns {function(): void} ends the subscription.
   */
  subscribe(topic, listener) {
    if (!this.#listeners.has(topic)) this.#listeners.set(topic, new Set());
    this.#listeners.get(topic).add(listener);
    return () => this.#listeners.get(topic).delete(listener);
  }

  #tell(topic, detail) {
    for (const listener of [...(this.#listeners.get(topic) ?? [])]) listener(detail);
  }

  #touch(...topics) {
    this.conversation.updatedAt = Date.now();
    for (const topic of topics) this.#tell(topic);
  }

  /** Replaces the conversation, as when another one is opened. @param {Conversation} conversation */
  openConversation(conversation) {
    this.conversation = conversation;
    for (const topic of ["conversation", "pictures", "turns", "shots"]) this.#tell(topic);
  }

  /** Names the conversation. @param {string} title */
  renameConversation(title) {
    this.conversation.title = title;
    this.#touch("conversation");
  }

  /** Adds pictures and shows the last one. @param {StoredPicture[]} pictures */
  addPictures(pictures) {
    if (!pictures.length) return;
    this.conversation.pictures.push(...pictures);
    this.conversation.activePictureId = pictures.at(-1).id;
    this.#touch("pictures");
  }

  /** Shows a picture on the stage. @param {string} id */
  selectPicture(id) {
    if (this.conversation.activePictureId === id) return;
    this.conversation.activePictureId = id;
    this.#touch("pictures");
  }

  /** Removes a picture from the strip; turns about it keep their words. Returns a function that undoes it. */
  removePicture(id) {
    const { pictures } = this.conversation;
    const index = pictures.findIndex((picture) => picture.id === id);
    const [removed] = pictures.splice(index, 1);
    this.conversation.activePictureId = (pictures[index] ?? pictures.at(-1))?.id ?? null;
    this.#touch("pictures");
    return () => {
      this.conversation.pictures.splice(index, 0, removed);
      this.conversation.activePictureId = id;
      this.#touch("pictures");
    };
  }

  /** The picture on the stage; null if there is none. @returns {StoredPicture|null} */
  get activePicture() {
    return this.picture(this.conversation.activePictureId);
  }

  /** The picture of an id; null if it was removed. @returns {StoredPicture|null} */
  picture(id) {
    return this.conversation.pictures.find((picture) => picture.id === id) ?? null;
  }

  /** An address of a picture for `img.src`, the same each time. @param {StoredPicture} picture */
  pictureUrl(picture) {
    if (!this.#urls.has(picture.blob)) this.#urls.set(picture.blob, URL.createObjectURL(picture.blob));
    return this.#urls.get(picture.blob);
  }

  /** Adds a turn at the end. @param {Turn} turn */
  addTurn(turn) {
    this.conversation.turns.push(turn);
    if (!this.conversation.title) this.conversation.title = turn.words || taskByName(turn.task).label;
    this.#touch("turns", "conversation");
  }

  /** Changes fields of a turn. @param {Turn} turn @param {Partial<Turn>} changes */
  updateTurn(turn, changes) {
    Object.assign(turn, changes);
    this.conversation.updatedAt = Date.now();
    this.#tell("turn", turn);
  }

  /** Removes a turn. Returns a function that undoes it. @param {Turn} turn */
  removeTurn(turn) {
    const { turns } = this.conversation;
    const index = turns.indexOf(turn);
    turns.splice(index, 1);
    this.#touch("turns");
    return () => {
      turns.splice(index, 0, turn);
      this.#touch("turns");
    };
  }

  /** Replaces the few-shot examples. @param {Shot[]} shots */
  setShots(shots) {
    this.conversation.shots = shots;
    this.#touch("shots");
  }

  /** Chooses a task. @param {string} name */
  setTask(name) {
    this.task = name;
    this.#tell("task");
  }

  /** Puts words into the composer for a task. @param {string} task @param {string} words */
  setDraft(task, words) {
    this.drafts[task] = words;
    this.#tell("draft");
  }

  /** Changes settings; they are kept in the browser. @param {Partial<Settings>} changes */
  setSettings(changes) {
    this.settings = { ...this.settings, ...changes };
    localStorage.setItem(SETTINGS_KEY, JSON.stringify(this.settings));
    this.#tell("settings");
  }

  /** Sets the served model. */
  setModel(model) {
    this.model = model;
    this.#tell("model");
  }
}

/** The settings that the browser keeps; nothing if they cannot be read. */
function readStored() {
  try {
    const stored = JSON.parse(localStorage.getItem(SETTINGS_KEY) ?? "{}");
    return Object.fromEntries(Object.entries(stored).filter(([name]) => name in DEFAULT_SETTINGS));
  } catch {
    return {};
  }
}
