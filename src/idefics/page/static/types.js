/** The types of the page's data, for JSDoc: no code, no module imports it. */

/**
 * @typedef {Object} StoredPicture A picture of a conversation; it can be stored in IndexedDB as it is.
 * @property {string} id
 * @property {string} name the name of its file, or its address.
 * @property {string} path its path in the folder that was given; "" if it came alone.
 * @property {Blob} blob what is sent.
 * @property {number} width in pixels.
 * @property {number} height in pixels.
 * @property {Blob[]} [frames] those of a video, which a chat sees; `blob` is the one in the middle.
 * @property {number} [fps] how many of them were taken of a second.
 * @property {string} note what was done to it, such as "made smaller: 4,000 x 3,000"; "" for nothing.
 *
 * @typedef {Object} Turn What somebody asked, and the answer.
 * @property {string} id
 * @property {string} task name of a task, see TASKS.
 * @property {string} words the question, the beginning, the labels or the instruction.
 * @property {string[]} pictureIds pictures that it shows, in order; tasks but "chat" have one.
 * @property {string|null} model the adapter that it was asked for; null: the served model itself.
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
 * @property {string|null} model the adapter for the next questions; null: the served model itself.
 *
 * @typedef {"conversation"|"pictures"|"turns"|"turn"|"shots"|"task"|"draft"|"settings"|"model"} Topic
 */

export {};
