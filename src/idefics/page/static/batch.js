/** The view of batch runs: one question for many pictures, and the runs that the browser keeps. */

import { cancelBatch, deleteFile, fetchBatch, hasEnded, listBatchesOf } from "./batch-api.js";
import { BatchRun } from "./batch-run.js";
import { showStart } from "./batch-start.js";
import { deleteRun, dropUnsent, listRuns, openRuns, saveRows, saveRun, tellWindows, updateRun } from "./batch-store.js";
import { showRun } from "./batch-view.js";
import { count, element } from "./dom.js";
import { taskByName } from "./state.js";

const UNDO_MILLISECONDS = 15_000;

/**
 * Shows the runs, or the run that the fragment names: `#/batch/ID`.
 * @param {HTMLElement} root
 * @param {Object} app see app.js.
 * @returns {function(): void} to call when the view is left.
 */
export function open(root, app) {
  const closing = new AbortController();
  const id = location.hash.split("/")[2];
  const page = element("div.batch");
  root.append(page);
  const show = async () => {
    if (!app.state.model) return;
    page.replaceChildren();
    if (!app.state.model.batches) page.append(...explainMissing());
    else if (id) await openRun(page, app, id, closing.signal);
    else page.append(...showStart(page.parentElement, app, closing.signal), runList());
    if (document.activeElement === document.body) focusTitle(page);
  };
  const unsubscribe = app.state.subscribe("model", show);
  closing.signal.addEventListener("abort", unsubscribe);
  void show();
  purgeRuns().catch(() => {}); // the browser stores nothing here
  return () => closing.abort();
}

/** Moves the focus to the title, where it was lost with what was shown before. */
function focusTitle(page) {
  const title = page.querySelector("h1");
  title?.setAttribute("tabindex", "-1");
  title?.focus({ preventScroll: true });
}

function explainMissing() {
  return [
    element("h1", { text: "Batch" }),
    element("p.lead", {
      text: "This server keeps no batches. Start it with a folder for them, and open the page again:",
    }),
    element("pre", { tabindex: 0 }, element("code", { text: "idefics serve --ui --batches FOLDER" })),
    element("p", {
      text: "idefics ui has batches without more. On the command line, idefics run asks a whole folder.",
    }),
  ];
}

async function openRun(page, app, id, signal) {
  const run = await BatchRun.open(app, id).catch(() => null);
  if (signal.aborted) return;
  if (run) showRun(page, app, run, { signal, deleteRun: () => hideRun(app, run) });
  else
    page.append(
      element("h1", { text: "Batch" }),
      element("p.lead", { text: "This browser has no such run." }),
      element("a", { href: "#/batch", text: "All runs" }),
    );
}

/** Deletes a run unless it is brought back in time. */
async function hideRun(app, run) {
  const { record, rows } = run;
  void run.cancel();
  openRuns.delete(record.id);
  record.deletedAt = Date.now();
  await updateRun(record.id, { deletedAt: record.deletedAt });
  tellWindows(record.id, { deletedAt: record.deletedAt });
  location.hash = "#/batch";
  const timer = setTimeout(purgeRuns, UNDO_MILLISECONDS + 1000);
  app.confirmUndo(`The run of ${count(rows.length, "picture")} is deleted.`, async () => {
    clearTimeout(timer);
    openRuns.set(record.id, run);
    record.deletedAt = 0;
    await Promise.all([saveRun(record), saveRows(rows)]);
    location.hash = `#/batch/${record.id}`;
  });
}

/** Deletes runs for good that cannot be brought back any more, on the server too. */
async function purgeRuns() {
  for (const { id, deletedAt } of await listRuns()) {
    if (!deletedAt || deletedAt > Date.now() - UNDO_MILLISECONDS) continue;
    // What cannot be deleted now, the server deletes by itself some day.
    for (const batch of await listBatchesOf(id).catch(() => [])) await deleteFiles(batch).catch(() => {});
    await Promise.all([deleteRun(id), dropUnsent(id)]);
  }
}

async function deleteFiles(id) {
  const batch = await fetchBatch(id);
  if (!hasEnded(batch)) return cancelBatch(id);
  const { input_file_id: input, output_file_id: output, error_file_id: errors } = batch;
  for (const file of [input, output, errors]) if (file) await deleteFile(file);
}

/** The runs that the browser has. */
function runList() {
  const list = element("ul.runs");
  const section = element("section", { "aria-label": "Runs", hidden: true }, element("h2", { text: "Runs" }), list);
  listRuns().then(
    (records) => {
      list.append(...records.filter((record) => !record.deletedAt).map(runItem));
      section.hidden = !list.children.length;
    },
    () => {}, // the browser stores nothing here
  );
  return section;
}

function runItem({ id, task, words, createdAt, counts }) {
  const { done, failed, total } = openRuns.get(id)?.progress ?? counts;
  const when = new Date(createdAt).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
  const facts = [
    done < total ? `${done} of ${count(total, "picture")}` : count(total, "picture"),
    failed ? `${failed} failed` : "",
    when,
  ];
  const title = [taskByName(task).label, words].filter(Boolean).join(": ");
  return element(
    "li",
    {},
    element(
      "a",
      { href: `#/batch/${id}` },
      element("b", { text: title, dir: "auto" }),
      element("span", { text: facts.filter(Boolean).join(" · ") }),
    ),
  );
}
