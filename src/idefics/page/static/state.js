/** What the page holds: the conversation in hand, the task, drafts and settings. Views subscribe to its topics. */

const task = (name, label, words, placeholder, maxNewTokens, more) => ({
  name,
  label,
  words,
  placeholder,
  maxNewTokens,
  ...more,
});
const needsWords = true;

/**
 * The tasks of the composer, by their names in the API. `words` is what the composer asks for; `maxNewTokens` the
 * longest answer that the API gives where nothing else is set.
 */
export const TASKS = [
  task("ask", "Ask", "Question", "Ask about the picture", 64, { needsWords }),
  task("caption", "Caption", "Caption", "Nothing to type: press send", 64, { takesNoWords: true }),
  task("complete", "Continue", "First words", "This is an image of", 64, { needsWords }),
  task("classify", "Classify", "Labels", "Labels: cat, dog, bird", 0, { needsWords }),
  task("write", "Write", "Instruction", "Use the image to write a story.", 256),
  task("read", "Read", "Instruction", "Convert this page to docling.", 4096),
  task("chat", "Chat", "Your turn", "Talk about the pictures", 256, { needsWords }),
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
export const taskByName = (name) => TASKS.find((one) => one.name === name);

/** A new identifier that no other window makes. */
export const newId = () =>
  Array.from(crypto.getRandomValues(new Uint8Array(9)), (byte) => (byte % 36).toString(36)).join("");

/** Examples that have an answer: others are not sent. @param {Shot[]} shots @returns {Shot[]} */
export const completeShots = (shots) => shots.filter(({ answer }) => answer.trim());

/** A picture of a conversation; null if it was removed. @returns {StoredPicture|null} */
export const pictureOf = ({ pictures }, id) => pictures.find((picture) => picture.id === id) ?? null;

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
    model: null,
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
    /** The served models, as `api.listModels` returns them; empty before. */
    this.models = [];
    addEventListener("storage", ({ key }) => {
      if (key !== SETTINGS_KEY) return; // another window changed them
      this.settings = { ...DEFAULT_SETTINGS, ...readSettings() };
      this.#tell("settings", true);
    });
  }

  /**
   * Calls a listener after each change of a topic.
   * @param {Topic} topic
   * @param {function(*): void} listener gets the turn (topic "turn"), whether another window did it ("settings"), or the
   *   conversation that changed, which may be one that was left ("conversation", "pictures", "turns", "shots").
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

  #touch(conversation, ...topics) {
    conversation.updatedAt = Date.now();
    for (const topic of topics) this.#tell(topic, conversation);
  }

  /** Replaces the conversation, as when another one is opened. @param {Conversation} conversation */
  openConversation(conversation) {
    if (conversation !== this.conversation) {
      for (const url of this.#urls.values()) URL.revokeObjectURL(url);
      this.#urls.clear();
    }
    this.conversation = conversation;
    for (const topic of ["conversation", "pictures", "turns", "shots"]) this.#tell(topic, conversation);
    if (this.models.length > 1) this.#tell("model");
  }

  /** Names the conversation. @param {string} title */
  renameConversation(title) {
    this.conversation.title = title;
    this.#touch(this.conversation, "conversation");
  }

  /** Adds pictures and shows the last one. @param {StoredPicture[]} pictures @param {Conversation} [conversation] */
  addPictures(pictures, conversation = this.conversation) {
    if (!pictures.length) return;
    conversation.pictures.push(...pictures);
    conversation.activePictureId = pictures.at(-1).id;
    this.#touch(conversation, "pictures");
  }

  /** Shows a picture on the stage. @param {string} id */
  selectPicture(id) {
    if (this.conversation.activePictureId === id) return;
    this.conversation.activePictureId = id;
    this.#touch(this.conversation, "pictures");
  }

  /** Removes a picture from the strip; turns about it keep their words. Returns a function that undoes it. */
  removePicture(id) {
    const { conversation } = this;
    const { pictures } = conversation;
    const index = pictures.findIndex((picture) => picture.id === id);
    const [removed] = pictures.splice(index, 1);
    conversation.activePictureId = (pictures[index] ?? pictures.at(-1))?.id ?? null;
    this.#touch(conversation, "pictures");
    return () => {
      conversation.pictures.splice(index, 0, removed);
      conversation.activePictureId = id;
      this.#touch(conversation, "pictures");
    };
  }

  /** The picture on the stage; null if there is none. @returns {StoredPicture|null} */
  get activePicture() {
    return this.picture(this.conversation.activePictureId);
  }

  /** The picture of an id; null if it was removed. @returns {StoredPicture|null} */
  picture(id) {
    return pictureOf(this.conversation, id);
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
    this.#touch(this.conversation, "turns", "conversation");
  }

  /** Changes fields of a turn. @param {Turn} turn @param {Partial<Turn>} changes */
  updateTurn(turn, changes) {
    Object.assign(turn, changes);
    this.#tell("turn", turn);
  }

  /** Removes a turn. Returns a function that undoes it. @param {Turn} turn */
  removeTurn(turn) {
    const { conversation } = this;
    const index = conversation.turns.indexOf(turn);
    conversation.turns.splice(index, 1);
    this.#touch(conversation, "turns");
    return () => {
      conversation.turns.splice(index, 0, turn);
      this.#touch(conversation, "turns");
    };
  }

  /** Replaces the few-shot examples. @param {Shot[]} shots */
  setShots(shots) {
    this.conversation.shots = shots;
    this.#touch(this.conversation, "shots");
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

  /** Changes settings; they are kept in the browser, with what other windows changed. @param {Partial<Settings>} changes */
  setSettings(changes) {
    this.settings = { ...this.settings, ...readSettings(), ...changes };
    keep("localStorage", SETTINGS_KEY, this.settings);
    this.#tell("settings", false);
  }

  /** The model that the conversation asks: the one that was chosen for it, else the first; null before it is known. */
  get model() {
    return this.models.find(({ id }) => id === this.conversation.model) ?? this.models[0] ?? null;
  }

  /** How many pictures a request may have. */
  get maxPictures() {
    return this.model?.images.max_images ?? Infinity;
  }

  /** Sets the served models. */
  setModels(models) {
    this.models = models;
    this.#tell("model");
  }

  /** Chooses the model that the next questions of the conversation are for. @param {string} id */
  chooseModel(id) {
    this.conversation.model = id === this.models[0].id ? null : id;
    this.#touch(this.conversation, "conversation", "model");
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
