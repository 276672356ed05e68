/** The public API of `idefics serve`: the only module that calls `fetch`. */

const ROOT = new URL("../", import.meta.url);
const UNREACHABLE = "The server does not answer. If it was stopped, start it again; what is on this page stays.";

/** An error of the API, with a sentence for people as its message. */
export class ApiError extends Error {
  /**
   * @param {string} message what is wrong and what to do.
   * @param {number} status of HTTP; 0 if the server was not reached.
   * @param {string|null} code of the API, such as "rate_limit_exceeded".
   */
  constructor(message, status, code = null) {
    super(message);
    this.name = "ApiError";
    this.status = status;
    this.code = code;
  }

  /** Whether the same request may be answered later: the server was not reached, or is busy. */
  get isPassing() {
    const { code, status } = this;
    return code ? ["rate_limit_exceeded", "shutting_down"].includes(code) : [0, 502, 503].includes(status);
  }
}

/**
 * Sends a request; all others of this module go through it.
 * @param {string} path below the server's root, such as "v1/models".
 * @param {RequestInit} [options]
 * @param {{root: string, key: string}|null} [server] another server, at an address that this server's operator named.
 * @returns {Promise<Response>} with a status of success.
 * @throws {ApiError} also where the server cannot be reached; an `AbortError` where `options.signal` aborted it.
 */
export async function request(path, options = {}, server = null) {
  const { root, key } = server ?? { root: ROOT };
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(new URL(path, root), { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    const hint = `${root} does not answer this page. If it runs, start it with --allowed-origins ${location.origin}.`;
    throw new ApiError(server ? hint : UNREACHABLE, 0);
  }
  if (!response.ok) throw await toError(response);
  return response;
}

async function toError(response) {
  let body = {};
  try {
    body = await response.json();
  } catch {
    // An answer of a proxy in between: its status is all there is.
  }
  return bodyToError(body, response.status);
}

function bodyToError(body, status) {
  const message = body.error?.message ?? `the server answered with status ${status}`;
  return new ApiError(toSentence(message), status, body.error?.code ?? null);
}

/** An error message of the API as a sentence; a file's name at its beginning keeps its case. */
export function toSentence(message) {
  const first = message.split(" ", 1)[0];
  const text = /^[a-z]+$/.test(first) ? message[0].toUpperCase() + message.slice(1) : message;
  return /[.!?]$/.test(text) ? text : `${text}.`;
}

/**
 * The events of a stream: the parsed data of each, until `[DONE]` or the end.
 * @param {Response} response
 * @returns {AsyncGenerator<Object>}
 * @throws {ApiError} the stream ends with an error, or breaks off.
 */
export async function* readEvents(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  let isComplete = false;
  try {
    for (;;) {
      const { value, done } = await reader.read();
      isComplete = done;
      if (done) return;
      buffer += value;
      const events = buffer.split("\n\n");
      buffer = events.pop();
      for (const event of events) {
        const data = eventData(event);
        if (data && data !== "[DONE]") yield checkedEvent(JSON.parse(data));
      }
    }
  } catch (error) {
    if (error instanceof ApiError || error.name === "AbortError") throw error;
    throw new ApiError("The connection to the server broke off before the answer was complete.", 0);
  } finally {
    if (!isComplete) reader.cancel().catch(() => {}); // ends the request, also where the server still writes
  }
}

function eventData(event) {
  const lines = event.split("\n").filter((line) => line.startsWith("data:"));
  return lines.map((line) => line.slice(5).trimStart()).join("\n");
}

function checkedEvent(data) {
  if (data.error) throw bodyToError(data, 0);
  return data;
}

/** Fields as a form; lists are repeated, objects are JSON, null is left out. */
function toForm(fields) {
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) {
    if (value === null || value === undefined) continue;
    if (value instanceof Blob) form.append(name, value, "picture");
    else if (Array.isArray(value) && typeof value[0] !== "object") for (const one of value) form.append(name, one);
    else form.append(name, typeof value === "object" ? JSON.stringify(value) : value);
  }
  return form;
}

const postForm = (path, fields, signal, server) =>
  request(path, { method: "POST", body: toForm(fields), signal }, server);

/** Posts JSON. @returns {Promise<Response>} */
export const postJson = (path, body, signal) =>
  request(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });

/** The served models: the model itself first, then its adapters. @returns {Promise<Object[]>} */
export const listModels = async (server) => (await (await request("v1/models", {}, server)).json()).data;

/**
 * What a picture costs before it is sent.
 * @param {number} width in pixels.
 * @param {number} height in pixels.
 * @param {string} detail "high", "low" or "auto".
 * @returns {Promise<{tiles: number, tokens: number}>}
 */
export async function fetchCost(width, height, detail) {
  return (await postJson("v1/images/cost", { width, height, detail })).json();
}

/** A picture at an http(s) address, which the server fetches by its policy. @param {string} address */
export async function fetchPicture(address) {
  return (await postJson("v1/images/fetch", { image_url: address })).blob();
}

/** A picture of the package. @param {string} name @returns {Promise<Blob>} */
export async function fetchBundledPicture(name) {
  return (await request(`ui/pictures/${name}`)).blob();
}

/**
 * @typedef {Object} AnswerEvent What a stream adds to an answer.
 * @property {string} text
 * @property {{stage: string, done: number, total: number}|null} progress
 * @property {{finishReason: string, usage: Object, notes: string[]}|null} end
 */

/**
 * Runs a task about a picture, streamed.
 * @param {string} task name of the route: "ask", "caption", "complete" or "write".
 * @param {Object} fields those of the route; `image` is a Blob.
 * @param {AbortSignal} signal
 * @param {Object} [server] see `request`.
 * @returns {AsyncGenerator<AnswerEvent>}
 */
export async function* streamTask(task, fields, signal, server) {
  const options = { stream: true, stream_options: { include_progress: true } };
  const response = await postForm(`v1/images/tasks/${task}`, { ...fields, ...options }, signal, server);
  for await (const data of readEvents(response)) {
    const end = data.finish_reason
      ? { finishReason: data.finish_reason, usage: data.usage, notes: data.notes ?? [], logprob: data.logprob }
      : null;
    yield { text: data.text ?? "", progress: data.progress ?? null, end };
  }
}

/**
 * Ranks labels for a picture.
 * @param {Object} fields those of the route; `image` is a Blob.
 * @param {AbortSignal} signal
 * @param {Object} [server] see `request`.
 * @returns {Promise<{labels: Array, usage: Object, notes: string[]|undefined}>}
 */
export async function classify(fields, signal, server) {
  return (await postForm("v1/images/tasks/classify", fields, signal, server)).json();
}

/**
 * The next message of a conversation, streamed.
 * @param {Object} body of `/v1/chat/completions`, without `stream`.
 * @param {AbortSignal} signal
 * @returns {AsyncGenerator<AnswerEvent>}
 */
export async function* streamChat(body, signal) {
  const options = { stream: true, stream_options: { include_usage: true, include_progress: true } };
  const response = await postJson("v1/chat/completions", { ...body, ...options }, signal);
  let finishReason = "";
  let notes = [];
  for await (const data of readEvents(response)) {
    const choice = data.choices?.[0];
    finishReason = choice?.finish_reason ?? finishReason;
    notes = data.notes ?? notes;
    const end = data.usage ? { finishReason, usage: data.usage, notes } : null;
    yield { text: choice?.delta?.content ?? "", progress: data.progress ?? null, end };
  }
}

/**
 * Explanations of an answer that get finer, each with all that is known, and `{progress}` between them.
 * @param {Object} fields those of `/v1/images/tasks/explain`; `image` is a Blob.
 * @param {AbortSignal} signal
 * @returns {AsyncGenerator<Object>}
 */
export async function* streamExplanation(fields, signal) {
  const options = { stream: true, stream_options: { include_progress: true } };
  yield* readEvents(await postForm("v1/images/tasks/explain", { ...fields, ...options }, signal));
}
