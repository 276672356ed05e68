/** The drawer of code: Python, a command line and curl that give exactly one answer of the page. */

import { button, element } from "./dom.js";
import { parseLabels, settingFields } from "./run.js";
import { taskByName } from "./state.js";

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
    ["curl", call.task === "chat" ? chatCurl(call) : taskCurl(call)],
  ];
  const needed = call.shots.length ? "The examples are in shots.jsonl: save it from the examples." : "";
  root.append(...kinds.map(([label, code]) => snippet(label, code)), element("p.hint", { text: needed }));
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
  const { task, drafts, settings, conversation } = state;
  const pictureIds = conversation.activePictureId ? [conversation.activePictureId] : [];
  return { task, words: drafts[task] ?? "", settings, shots: conversation.shots, pictureIds };
}

/** What the code needs: names instead of pictures, the API's fields, and earlier turns of a chat. */
function toCall(state, turn) {
  const names = (one) => one.pictureIds.map((id) => fileName(state.picture(id)));
  const { turns } = state.conversation;
  const end = turns.includes(turn) ? turns.indexOf(turn) : turns.length;
  const earlier = turns.slice(0, end).filter((one) => one.task === "chat" && one.text);
  return {
    task: turn.task,
    words: turn.words,
    pictures: names(turn),
    options: settingFields(turn),
    shots: turn.shots.map(({ picture, question, answer }) => ({ name: fileName(picture), question, answer })),
    earlier: earlier.map((one) => ({ pictures: names(one), words: one.words, text: one.text })),
    model: state.model?.id ?? "demo",
    server: new URL("../", import.meta.url).href.replace(/\/$/, ""),
  };
}

const fileName = (picture) => picture?.path || picture?.name || "photo.jpg";

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

const keywords = (options) => Object.entries(options).map(([name, value]) => `${name}=${python(value)}`);

const flags = (options) =>
  Object.entries(options).map(([name, value]) => {
    const flag = `--${name.replaceAll("_", "-")}`;
    return value === true ? flag : `${flag} ${shell(String(value))}`;
  });

function taskPython({ task, words, pictures, options, shots, model }) {
  const given = task === "classify" ? [python(parseLabels(words))] : words ? [python(words)] : [];
  const call = `vlm.${task}(${[python(pictures[0] ?? "photo.jpg"), ...given, ...keywords(options)].join(", ")})`;
  const lines = ["import idefics", "", `vlm = idefics.load(${python(model)})`];
  if (shots.length) lines.push('vlm = vlm.with_shots(idefics.read_shots("shots.jsonl"))');
  if (task === "classify")
    lines.push(`for label, probability, _ in ${call}:`, '    print(f"{probability:6.1%} {label}")');
  else lines.push(`print(${call})`);
  return `${lines.join("\n")}\n`;
}

function taskShell({ task, words, pictures, options, shots, model }) {
  const path = pictures[0] ?? "photo.jpg";
  const parts = ["idefics", task, shell(path.startsWith("-") ? `./${path}` : path)];
  if (task === "classify") parts.push(...labelFlags(parseLabels(words)));
  else if (words) parts.push(FLAG_LIKE.test(words) ? `--prompt=${shell(words)}` : shell(words));
  if (shots.length) parts.push("--shots shots.jsonl");
  return `${[...parts, ...flags(options), `--model ${shell(model)}`].join(" ")}\n`;
}

const labelFlags = (labels) =>
  labels.some((label) => label.includes(","))
    ? labels.map((label) => `--label=${shell(label)}`)
    : [`--labels=${shell(labels.join(","))}`];

function taskCurl(call) {
  const { task, words, pictures, options, shots, server } = call;
  const url = `${server}/v1/images/tasks/${task}`;
  const fields =
    task === "classify" ? parseLabels(words).map((label) => ["labels", label]) : words ? [["words", words]] : [];
  fields.push(...Object.entries(options));
  if (shots.length) {
    const files = [];
    const body = { image_url: dataUri(pictures[0], files), ...Object.fromEntries(fields) };
    if (task === "classify") body.labels = parseLabels(words);
    body.shots = shots.map(({ name, question, answer }) => ({ image_url: dataUri(name, files), question, answer }));
    return jsonPost(url, body, files);
  }
  const lines = [`curl ${url}`, `-F ${shell(`image=@${pictures[0] ?? "photo.jpg"}`)}`];
  lines.push(...fields.map(([name, value]) => `--form-string ${shell(`${name}=${value}`)}`));
  return `${lines.join(" \\\n  ")}\n`;
}

const marker = (index) => `\ue000${index}\ue000`; // for private use: no text has it

function dataUri(name, files) {
  files.push(name);
  return `data:;base64,${marker(files.length - 1)}`;
}

function jsonPost(url, body, files) {
  let json = JSON.stringify(body, null, 2).replaceAll("'", "\\u0027");
  files.forEach((name, index) => {
    json = json.replace(marker(index), () => `'"$(base64 < ${shell(name)} | tr -d '\\n')"'`);
  });
  const lines = [`curl ${url}`, "-H 'Content-Type: application/json'", "--data-binary @-"];
  return `printf '%s' '${json}' |\n  ${lines.join(" \\\n    ")}\n`;
}

function chatPython({ words, pictures, options, earlier, model }) {
  const turns = [...earlier, { pictures, words, text: null }];
  const names = [turns.some((turn) => turn.pictures.length) && "Picture", earlier.length && "assistant", "user"].filter(
    Boolean,
  );
  const lines = turns.flatMap((turn) => [
    `    user(${[...turn.pictures.map((name) => `Picture(${python(name)})`), python(turn.words)].join(", ")}),`,
    ...(turn.text === null ? [] : [`    assistant(${python(turn.text)}),`]),
  ]);
  const call = ["messages", ...keywords(options)].join(", ");
  return [
    "import idefics",
    `from idefics import ${names.join(", ")}`,
    "",
    `vlm = idefics.load(${python(model)})`,
    "messages = [",
    ...lines,
    "]",
    `print(vlm.chat(${call}))`,
    "",
  ].join("\n");
}

function chatShell({ words, pictures, options, earlier, model }) {
  const lines = [...earlier, { pictures, words }].flatMap((turn) => [
    ...turn.pictures.map((name) => `/image ${shell(name)}`),
    turn.words.replaceAll("\n", " "),
  ]);
  const printf = ["printf '%s\\n'", ...lines.map((line) => `\\\n  ${shell(line)}`)].join(" ");
  return `${printf} |\n  ${["idefics chat", ...flags(options), `--model ${shell(model)}`].join(" ")}\n`;
}

function chatCurl({ words, pictures, options, earlier, model, server }) {
  const files = [];
  const { detail, max_new_tokens: length, ...fields } = options;
  const content = (turn) => [
    ...turn.pictures.map((name) => ({
      type: "image_url",
      image_url: { url: dataUri(name, files), ...(detail && { detail }) },
    })),
    { type: "text", text: turn.words },
  ];
  const messages = earlier.flatMap((turn) => [
    { role: "user", content: content(turn) },
    { role: "assistant", content: turn.text },
  ]);
  messages.push({ role: "user", content: content({ pictures, words }) });
  const limit = length ?? taskByName("chat").maxNewTokens;
  return jsonPost(`${server}/v1/chat/completions`, { model, messages, max_completion_tokens: limit, ...fields }, files);
}
