/** The drawer of code: Python, a command line and curl that give exactly one answer of the page. */

import { button, element, saveFile } from "./dom.js";
import { earlierTurns, parseLabels, picturesOf, settingFields } from "./run.js";
import { toJsonLines } from "./shotsfile.js";
import { completeShots, taskByName } from "./state.js";

export const TITLE = "Code of this answer";

// The command line takes such words for a flag or a picture.
const FLAG_LIKE = /^(-|\S*\.\w{2,5}$|https?:\/\/\S+$|data:)/;

/**
 * Shows the code of a turn, or of what the composer holds.
 * @param {HTMLElement} root
 * @param {Object} app see app.js.
 * @param {Turn} [turn] without it the last turn, else the composer.
 */
export function open(root, app, turn) {
  const shown = turn ?? app.state.conversation.turns.at(-1) ?? draftTurn(app.state);
  const call = toCall(app.state, shown);
  const kinds = [
    ["Python", call.task === "chat" ? chatPython(call) : taskPython(call)],
    ["Command line", call.task === "chat" ? chatShell(call) : taskShell(call)],
    ...(call.videos.size ? [] : [["curl", call.task === "chat" ? chatCurl(call) : taskCurl(call)]]),
  ];
  root.append(...kinds.map(([label, code]) => snippet(label, code)), ...files(call));
}

/** What the code reads, to be saved as it was sent. */
function files({ files, shots, needsKey, videos }) {
  const saved = [...files.entries()].map(([name, blob]) => button(`Save ${name}`, () => saveFile(blob, name)));
  if (shots.length)
    saved.push(button("Save shots.jsonl", async () => saveFile(new Blob([await toJsonLines(shots)]), "shots.jsonl")));
  const key = "curl takes one of the server's keys from the variable IDEFICS_API_KEY.";
  const frames = "The page took the frames of the video itself; Python takes its own, so that the answer may differ.";
  return [
    element("p.hint", { text: videos.size ? frames : needsKey ? key : "" }),
    element("section.snippet", { hidden: !saved.length }, element("h3", { text: "Files that it reads" }), ...saved),
  ];
}

function snippet(label, code) {
  const text = element("pre", { tabindex: "0", "aria-label": label }, element("code", { text: code }));
  const copy = button("Copy", async () => {
    await navigator.clipboard.writeText(code);
    copy.textContent = "Copied";
  });
  return element("section.snippet", {}, element("header", {}, element("h3", { text: label }), copy), text);
}

function draftTurn(state) {
  const { task, drafts, settings, conversation, model } = state;
  const shots = task === "chat" ? [] : completeShots(conversation.shots);
  const pictureIds = picturesOf(state, task);
  return { task, words: drafts[task] ?? "", settings, shots, pictureIds, model: model?.parent ? model.id : null };
}

/** What the code needs: names instead of pictures, the API's fields, and earlier turns of a chat. */
function toCall(state, turn) {
  /** @type {Map<string, Blob>} */
  const files = new Map();
  const videos = new Set(); // their names
  const names = (one) =>
    one.pictureIds.map((id) => {
      const picture = state.picture(id);
      if (one.task === "chat" && picture?.frames) videos.add(picture.name);
      return videos.has(picture?.name) ? picture.name : picture ? nameIn(files, picture) : "photo.jpg";
    });
  const earlier = earlierTurns(state.conversation, turn);
  const served = state.models.find(({ id }) => id === turn.model) ?? state.models[0];
  return {
    task: turn.task,
    words: turn.words,
    options: settingFields(turn),
    shots: turn.shots,
    earlier: earlier.map((one) => ({ pictures: names(one), words: one.words, text: one.text })),
    pictures: names(turn),
    files,
    videos,
    load: served?.load ?? { model: "demo" },
    model: served?.id ?? "demo",
    isAdapter: Boolean(turn.model),
    needsKey: Boolean(served?.needs_key),
    server: new URL("../", import.meta.url).href.replace(/\/$/, ""),
  };
}

/** The name of a picture's file: its own, unless another picture has it, or what is sent is of another format. */
function nameIn(files, { path, name, note, blob }) {
  const [, stem, ending] = /^(.*?)(\.\w+)?$/s.exec(path || name);
  const suffix = note || !ending ? `.${blob.type.split("/")[1].replace("jpeg", "jpg")}` : ending;
  let found = stem + suffix;
  for (let number = 2; (files.get(found) ?? blob) !== blob; number++) found = `${stem}-${number}${suffix}`;
  files.set(found, blob);
  return found;
}

/** A value as Python writes it. */
export function python(value) {
  if (value === true) return "True";
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (typeof value !== "string") return String(value);
  const quote = value.includes("'") && !value.includes('"') ? '"' : "'";
  const escaped = value.replaceAll("\\", "\\\\").replaceAll(quote, `\\${quote}`).replaceAll("\n", "\\n");
  return quote + escaped + quote;
}

/** A text as one word of a shell. */
export const shell = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\"'\"'")}'`);

/** How the model of the server is loaded: keyword arguments that have a value. */
const loading = (load) => Object.fromEntries(Object.entries(load).filter(([, value]) => value !== null));

function loadPython({ model, ...more }) {
  return `vlm = idefics.load(${[python(model), ...keywords(loading(more))].join(", ")})`;
}

const keywords = (options) => Object.entries(options).map(([name, value]) => `${name}=${python(value)}`);

const flags = (options) =>
  Object.entries(options).map(([name, value]) => {
    const flag = `--${name.replaceAll("_", "-")}`;
    return value === true ? flag : `${flag} ${shell(String(value))}`;
  });

function taskPython({ task, words, pictures, options, shots, load }) {
  const given = task === "classify" ? [python(parseLabels(words))] : words ? [python(words)] : [];
  const call = `vlm.${task}(${[python(pictures[0] ?? "photo.jpg"), ...given, ...keywords(options)].join(", ")})`;
  const lines = ["import idefics", "", loadPython(load)];
  if (shots.length) lines.push('vlm = vlm.with_shots(idefics.read_shots("shots.jsonl"))');
  if (task === "classify")
    lines.push(`for label, probability, _ in ${call}:`, '    print(f"{probability:6.1%} {label}")');
  else lines.push(`print(${call})`);
  return `${lines.join("\n")}\n`;
}

function taskShell({ task, words, pictures, options, shots, load }) {
  const path = pictures[0] ?? "photo.jpg";
  const parts = ["idefics", task, shell(path.startsWith("-") ? `./${path}` : path)];
  if (task === "classify") parts.push(...labelFlags(parseLabels(words)));
  else if (words) parts.push(FLAG_LIKE.test(words) ? `--prompt=${shell(words)}` : shell(words));
  if (shots.length) parts.push("--shots shots.jsonl");
  return `${[...parts, ...flags(options), ...flags(loading(load))].join(" ")}\n`;
}

const labelFlags = (labels) =>
  labels.some((label) => label.includes(","))
    ? labels.map((label) => `--label=${shell(label)}`)
    : [`--labels=${shell(labels.join(","))}`];

function taskCurl(call) {
  const { task, words, pictures, options, shots } = call;
  const url = `/v1/images/tasks/${task}`;
  const fields =
    task === "classify" ? parseLabels(words).map((label) => ["labels", label]) : words ? [["words", words]] : [];
  fields.push(...Object.entries(options));
  if (call.isAdapter) fields.push(["model", call.model]);
  if (shots.length) {
    const parts = [];
    const body = { image_url: dataUri(pictures[0] ?? "photo.jpg", parts), ...Object.fromEntries(fields) };
    if (task === "classify") body.labels = parseLabels(words);
    const lines = `sed 's/^{"image":/{"image_url":/' shots.jsonl | paste -sd, -`;
    body.shots = [marker(parts.push(lines) - 1)];
    return jsonPost(call, url, body, parts);
  }
  const name = pictures[0] ?? "photo.jpg";
  const quoted = /[,;"]/.test(name) ? `"${name.replaceAll('"', '\\"')}"` : name;
  const lines = [...curlHead(call, url), `-F ${shell(`image=@${quoted}`)}`];
  lines.push(...fields.map(([name, value]) => `--form-string ${shell(`${name}=${value}`)}`));
  return `${lines.join(" \\\n  ")}\n`;
}

const curlHead = ({ server, needsKey }, url) => [
  `curl ${server}${url}`,
  ...(needsKey ? ['-H "Authorization: Bearer $IDEFICS_API_KEY"'] : []),
];

const marker = (index) => `\ue000${index}\ue000`; // for private use: no text has it

/** A data URI with the output of a command in it; the commands of a body are its `parts`. */
function dataUri(name, parts) {
  return `data:;base64,${marker(parts.push(`base64 < ${shell(name)} | tr -d '\\n'`) - 1)}`;
}

function jsonPost(call, url, body, parts) {
  let json = JSON.stringify(body, null, 2).replaceAll("'", "\\u0027");
  parts.forEach((part, index) => {
    const output = () => `'"$(${part})"'`;
    json = json.replace(`"${marker(index)}"`, output).replace(marker(index), output); // a list, or within a text
  });
  const lines = [...curlHead(call, url), "-H 'Content-Type: application/json'", "--data-binary @-"];
  return `printf '%s' '${json}' |\n  ${lines.join(" \\\n    ")}\n`;
}

function chatPython({ words, pictures, options, earlier, load, videos }) {
  const turns = [...earlier, { pictures, words, text: null }];
  const shown = turns.flatMap((turn) => turn.pictures);
  const kindOf = (name) => (videos.has(name) ? "Video" : "Picture");
  const names = [...new Set(shown.map(kindOf)), ...(earlier.length ? ["assistant"] : []), "user"].sort();
  const lines = turns.flatMap((turn) => [
    `    user(${[...turn.pictures.map((name) => `${kindOf(name)}(${python(name)})`), python(turn.words)].join(", ")}),`,
    ...(turn.text === null ? [] : [`    assistant(${python(turn.text)}),`]),
  ]);
  const call = ["messages", ...keywords(options)].join(", ");
  return [
    "import idefics",
    `from idefics import ${names.join(", ")}`,
    "",
    loadPython(load),
    "messages = [",
    ...lines,
    "]",
    `print(vlm.chat(${call}))`,
    "",
  ].join("\n");
}

function chatShell({ words, pictures, options, earlier, load }) {
  const lines = [...earlier, { pictures, words }].flatMap((turn) => [
    ...turn.pictures.map((name) => `/image ${shell(name)}`),
    turn.words.replaceAll("\n", " "),
  ]);
  const printf = ["printf '%s\\n'", ...lines.map((line) => `\\\n  ${shell(line)}`)].join(" ");
  return `${printf} |\n  ${["idefics chat", ...flags(options), ...flags(loading(load))].join(" ")}\n`;
}

function chatCurl(call) {
  const { words, pictures, options, earlier, model } = call;
  const parts = [];
  const { detail, max_new_tokens: length, ...fields } = options;
  const content = (turn) => [
    ...turn.pictures.map((name) => ({
      type: "image_url",
      image_url: { url: dataUri(name, parts), ...(detail && { detail }) },
    })),
    { type: "text", text: turn.words },
  ];
  const messages = earlier.flatMap((turn) => [
    { role: "user", content: content(turn) },
    { role: "assistant", content: turn.text },
  ]);
  messages.push({ role: "user", content: content({ pictures, words }) });
  const limit = length ?? taskByName("chat").maxNewTokens;
  const body = { model, messages, max_completion_tokens: limit, ...fields };
  return jsonPost(call, "/v1/chat/completions", body, parts);
}
