/** What the page holds: the conversation in hand, the task, drafts and settings. Views subscribe to its topics. */

/**
 * The tasks of the composer, by their names in the API. `words` is what the composer asks for; `maxNewTokens` the
 * longest answer that the API gives where nothing else is set.
 */
export const TASKS = [
  {
    name: "ask",
    label: "Ask",
    words: "Question",
    placeholder: "Ask about the picture",
    needsWords: true,
    maxNewTokens: 64,
  },
  {
    name: "caption",
    label: "Caption",
    words: "Caption",
    placeholder: "Nothing to type: press send",
    takesNoWords: true,
    maxNewTokens: 64,
  },
  {
    name: "complete",
    label: "Continue",
    words: "First words",
    placeholder: "This is an image of",
    needsWords: true,
    maxNewTokens: 64,
  },
  {
    name: "classify",
    label: "Classify",
    words: "Labels",
    placeholder: "Labels: cat, dog, bird",
    needsWords: true,
    maxNewTokens: 0,
  },
  {
    name: "write",
    label: "Write",
    words: "Instruction",
    placeholder: "Use the image to write a story.",
    maxNewTokens: 256,
  },
  {
    name: "read",
    label: "Read",
    words: "Instruction",
    placeholder: "Convert this page to docling.",
    maxNewTokens: 4096,
  },
  {
    name: "chat",
    label: "Chat",
    words: "Your turn",
    placeholder: "Talk about the pictures",
    needsWords: true,
    maxNewTokens: 256,
  },
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

const SETTINGS_KEY = "idefics.settings"; // in localStorage, for all windows
const DRAFTS_KEY = "idefics.drafts"; // in sessionStorage: a window's own, kept over a reload

/** The task of that name. */
export const taskByName = (name) => TASKS.find((task) => task.name === name);

/** A new identifier that no other window makes. */
export const newId = () =>
  Array.from(crypto.getRandomValues(new Uint8Array(9)), (byte) => (byte % 36).toString(36)).join("");

/** Examples that have an answer: others are not sent. @param {Shot[]} shots @returns {Shot[]} */
export const completeShots = (shots) => shots.filter(({ answer }) => answer.trim());

/** @returns {Conversation} */
export function emptyConversation() {
  const now = Date.now();
  return {
    id: newId(),
    title: "",
    createdAt: now,
    updatedAt: now,
    pictures: [],
    activePictureId: null,
    turns: [],
    shots: [],
  };
}

/** The state of the page. Change it through its methods only: they tell the subscribers. */
export class State {
  /** @type {Map<Topic, Set<function(*): void>>} */
  #listeners = new Map();
  /** @type {Map<Blob, string>} */
  #urls = new Map();

  constructor() {
    /** @type {Conversation} */
    this.conversation = emptyConversation();
    const { task = "ask", drafts = {} } = readKept("sessionStorage", DRAFTS_KEY);
    this.task = taskByName(task) ? task : "ask";
    /** @type {Object<string, string>} task -> what is typed for it. */
    this.drafts = drafts;
    /** @type {Settings} */
    this.settings = { ...DEFAULT_SETTINGS, ...readSettings() };
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
    for (const url of this.#urls.values()) URL.revokeObjectURL(url);
    this.#urls.clear();
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
    this.conversation.title ||= turn.words || `${taskByName(turn.task).label}: ${this.activePicture?.name}`;
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
    this.#keepDrafts();
    this.#tell("task");
  }

  /** Puts words into the composer for a task. @param {string} task @param {string} words */
  setDraft(task, words) {
    this.drafts[task] = words;
    this.#keepDrafts();
    this.#tell("draft");
  }

  /** Remembers what is being typed for the task; the composer shows it already. @param {string} words */
  rememberTyped(words) {
    this.drafts[this.task] = words;
    this.#keepDrafts();
  }

  #keepDrafts() {
    keep("sessionStorage", DRAFTS_KEY, { task: this.task, drafts: this.drafts });
  }

  /** Changes settings; they are kept in the browser. @param {Partial<Settings>} changes */
  setSettings(changes) {
    this.settings = { ...this.settings, ...changes };
    keep("localStorage", SETTINGS_KEY, this.settings);
    this.#tell("settings");
  }

  /** Sets the served model. */
  setModel(model) {
    this.model = model;
    this.#tell("model");
  }
}

/** Keeps a value in the browser; where it forbids that, the value lasts as long as the page. */
function keep(area, key, value) {
  try {
    window[area].setItem(key, JSON.stringify(value));
  } catch {
    // Blocked or full: nothing depends on it.
  }
}

/** What was kept; nothing if it cannot be read. */
function readKept(area, key) {
  try {
    return JSON.parse(window[area].getItem(key)) ?? {};
  } catch {
    return {};
  }
}

const readSettings = () =>
  Object.fromEntries(
    Object.entries(readKept("localStorage", SETTINGS_KEY)).filter(([name]) => name in DEFAULT_SETTINGS),
  );
