/** The drawer of conversations: open, search, rename, export, import, delete. */

import { button, count, element, icon, saveFile } from "./dom.js";
import {
  keepConversation,
  openedConversations,
  removeConversation,
  renameConversation,
  saveAll,
  startSaving,
} from "./saving.js";
import { describeFailure, listConversations, loadConversation, loadPicture } from "./store.js";

export const TITLE = "Conversations";

const MAX_SHOWN = 100; // before "show all"
const DATE = new Intl.DateTimeFormat("en", { dateStyle: "medium", timeStyle: "short" });

/**
 * Fills the drawer.
 * @param {HTMLElement} root
 * @param {Object} app see app.js.
 * @returns {function(): void} to call when it is closed.
 */
export function open(root, app) {
  startSaving(app);
  const drawer = { app, root, records: [], urls: [] };
  const input = element("input", {
    type: "file",
    accept: ".json,application/json",
    multiple: true,
    hidden: true,
  });
  input.addEventListener("change", () => importFiles(drawer, input));
  drawer.search = element("input.field", {
    type: "search",
    placeholder: "Search",
    "aria-label": "Search questions, answers and pictures",
    input: () => showList(drawer),
  });
  drawer.note = element("p.hint", { role: "status" });
  drawer.list = element("ul.saved-list");
  const tools = element(
    "div.saved-bar",
    {},
    drawer.search,
    button("Import", () => input.click()),
    input,
  );
  root.append(tools, drawer.note, drawer.list);
  void refresh(drawer);
  return () => drawer.urls.forEach((url) => URL.revokeObjectURL(url));
}

async function refresh(drawer) {
  try {
    await saveAll();
    drawer.records = await listConversations();
  } catch (error) {
    drawer.records = openedConversations();
    drawer.failure = describeFailure(error);
  }
  showList(drawer);
}

function searchText({ title, turns, pictures }) {
  const said = turns.flatMap(({ words, text, labels }) => [words, text, ...(labels ?? []).map(({ label }) => label)]);
  return [title, ...said, ...pictures.flatMap(({ name, path }) => [name, path])].join("\n").toLocaleLowerCase();
}

function showList(drawer, limit = MAX_SHOWN) {
  const terms = drawer.search.value.toLocaleLowerCase().split(/\s+/).filter(Boolean);
  const found = drawer.records.filter((record) => {
    const text = searchText(record);
    return terms.every((term) => text.includes(term));
  });
  drawer.list.replaceChildren(...found.slice(0, limit).map((record) => item(drawer, record)));
  if (found.length > limit) {
    drawer.list.append(
      element(
        "li",
        {},
        button(`Show all ${found.length}`, () => showList(drawer, Infinity)),
      ),
    );
  }
  if (drawer.failure) drawer.note.textContent = drawer.failure;
  else if (!drawer.records.length)
    drawer.note.textContent = "Nothing here yet: what you ask is kept in this browser, and only here.";
  else
    drawer.note.textContent = terms.length
      ? `${count(found.length, "conversation")} found.`
      : "Kept in this browser, and only here.";
}

function item(drawer, record) {
  const { app } = drawer;
  const isOpen = app.state.conversation.id === record.id;
  const title = element("span.saved-title", {
    dir: "auto",
    text: record.title || record.pictures[0]?.name || "No question yet",
  });
  const about = `${count(record.turns.length, "question")} · ${DATE.format(record.updatedAt)}`;
  const choose = element(
    "button.saved-open",
    {
      type: "button",
      "aria-current": isOpen ? "true" : null,
      click: () => openConversation(drawer, record.id),
    },
    thumbnail(drawer, record),
    element("span", {}, title, element("small", { text: about })),
  );
  const node = element("li.saved", { "data-conversation": record.id });
  const tools = element(
    "div.saved-tools",
    { hidden: true },
    button("Rename", () => rename(drawer, record, node)),
    button("Markdown", () => exportAs(drawer, record, "md")),
    button("JSON with pictures", () => exportAs(drawer, record, "json")),
    button("Delete", () => remove(drawer, record, node)),
  );
  const more = element("button.icon", {
    type: "button",
    "aria-label": `Rename, export or delete ${title.textContent}`,
    "aria-expanded": "false",
    click: () => {
      tools.hidden = !tools.hidden;
      more.setAttribute("aria-expanded", String(!tools.hidden));
    },
  });
  more.append(icon("M5 12h.01M12 12h.01M19 12h.01"));
  node.append(choose, more, tools);
  return node;
}

function thumbnail(drawer, record) {
  const image = element("img", { alt: "", loading: "lazy" });
  const [picture] = record.pictures;
  if (!picture) return element("span.saved-picture");
  const loaded = picture.blob ?? loadPicture(record.id, picture.id);
  void Promise.resolve(loaded).then((blob) => {
    if (!blob) return;
    image.src = URL.createObjectURL(blob);
    drawer.urls.push(image.src);
  });
  return element("span.saved-picture", {}, image);
}

function openConversation({ root }, id) {
  root.closest("dialog").close();
  document.getElementById("words").focus();
  location.replace(`#/c/${id}`); // in the place of the drawer's entry of the browser's history
}

function rename(drawer, record, node) {
  const input = element("input.field", {
    value: record.title,
    "aria-label": "New name",
    maxlength: 200,
    required: true,
  });
  const form = element("form.saved-name", {}, input, element("button.tool.primary", { type: "submit", text: "Save" }));
  const done = () => {
    const fresh = item(drawer, record);
    node.replaceWith(fresh);
    fresh.querySelector("button").focus();
  };
  input.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    event.preventDefault(); // the drawer stays open
    done();
  });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    record.title = input.value.trim() || record.title;
    await renameConversation(record.id, record.title);
    done();
  });
  node.replaceChildren(form);
  input.select();
}

async function exportAs(drawer, record, ending) {
  const { fileName, toJson, toMarkdown } = await import("./exports.js");
  const conversation = openedConversations().find(({ id }) => id === record.id) ?? (await loadConversation(record.id));
  if (!conversation) return void refresh(drawer); // deleted in another window
  const isJson = ending === "json";
  const text = isJson ? await toJson(conversation) : toMarkdown(conversation);
  saveFile(new Blob([text], { type: isJson ? "application/json" : "text/markdown" }), fileName(record.title, ending));
}

async function remove(drawer, record, node) {
  const undo = await removeConversation(record.id);
  drawer.records = drawer.records.filter((one) => one !== record);
  const back = button("Undo", async () => {
    await undo();
    await refresh(drawer);
    drawer.list.querySelector(`[data-conversation="${record.id}"] button`)?.focus();
  });
  node.replaceChildren(
    element("p.hint", { dir: "auto", text: `${record.title || "The conversation"} is deleted.` }),
    back,
  );
  node.classList.add("deleted");
  back.focus();
}

async function importFiles(drawer, input) {
  const { fromJson } = await import("./exports.js");
  const [kept, refused] = [[], []];
  for (const file of input.files) {
    try {
      const conversation = fromJson(await file.text());
      await keepConversation(conversation);
      kept.push(conversation);
    } catch {
      refused.push(`${file.name} is not a conversation that was exported from this page.`);
    }
  }
  input.value = "";
  drawer.search.value = "";
  await refresh(drawer);
  if (kept.length) refused.unshift(`${count(kept.length, "conversation")} imported.`);
  drawer.note.textContent = refused.join(" ");
}
