/** A batch run on the page: how far it is, its contact sheet, and the files that come of it. */

import { fetchReport } from "./batch-api.js";
import { toCsv, toJsonLines, toSidecars } from "./batch-rows.js";
import { Sheet } from "./batch-sheet.js";
import { fileField } from "./batch-start.js";
import { nameLeftOut, readSources } from "./batch-sources.js";
import { button, count, element, saveFile } from "./dom.js";
import { taskByName } from "./state.js";

/**
 * Shows a run until the view is left.
 * @param {HTMLElement} page
 * @param {Object} app see app.js.
 * @param {BatchRun} run
 * @param {{signal: AbortSignal, deleteRun: function()}} view
 */
export function showRun(page, app, run, { signal, deleteRun }) {
  const { task, words, numShots } = run.record;
  const note = element("p.error", { role: "alert", hidden: true });
  const say = (message) => {
    note.textContent = message;
    note.hidden = !message;
  };
  const add = async (files) => {
    const { sources, problems, numLeftOut } = await readSources(files);
    const known = run.add(sources);
    if (known) problems.push(`${count(known, "picture")} ${known === 1 ? "is" : "are"} in this run already.`);
    say([...problems, ...nameLeftOut(numLeftOut)].join(" "));
  };
  const parts = {
    text: element("p.run-progress"),
    meter: element("progress", { "aria-label": "Progress of the run" }),
    problem: element("p.error", { role: "alert", hidden: true }),
    cancel: button("Cancel", () => run.cancel(), { class: "tool outlined" }),
    retry: button("", () => run.retry(run.rows.filter((row) => row.error)), { class: "tool outlined" }),
    report: button("Report", (event) => saveReport(run, event.currentTarget, say), { class: "tool outlined" }),
  };
  const sheet = new Sheet(run, app);
  const shots = numShots ? element("p.hint", { text: `after ${count(numShots, "example")}` }) : null;
  const title = element("h1", { dir: "auto", text: [taskByName(task).label, words].filter(Boolean).join(": ") });
  const tools = element(
    "div.run-tools",
    {},
    parts.cancel,
    parts.retry,
    addButtons(add),
    button("Delete", deleteRun),
    saveButtons(run, parts.report),
  );
  page.append(
    element("a.back", { href: "#/batch", text: "All runs" }),
    title,
    ...(shots ? [shots] : []),
    parts.text,
    parts.meter,
    parts.problem,
    tools,
    note,
    sheet.root,
  );
  const { title: pageTitle } = document;
  const show = (rows) => {
    sheet.update(rows);
    showProgress(run, parts);
    const { done, total } = run.progress;
    document.title = run.isRunning ? `${done} of ${total} · ${pageTitle}` : pageTitle;
  };
  signal.addEventListener("abort", () => (document.title = pageTitle));
  let wasRunning = run.isRunning;
  const unsubscribe = run.subscribe((rows) => {
    show(rows);
    if (wasRunning && !run.isRunning) app.announce(describeEnd(run));
    wasRunning = run.isRunning;
  });
  signal.addEventListener("abort", unsubscribe);
  page.parentElement.addEventListener(
    "idefics-files",
    (event) => {
      event.preventDefault();
      void add(event.detail);
    },
    { signal },
  );
  addEventListener("beforeunload", (event) => run.isSending && event.preventDefault(), { signal });
  show([]);
}

function addButtons(add) {
  const files = fileField({ id: "batch-more", accept: "image/*,.zip" }, add);
  const folder = fileField({ id: "batch-more-folder", webkitdirectory: true }, add);
  const buttons = [button("Add pictures", () => files.click()), button("Add a folder", () => folder.click())];
  return element("span", {}, files, folder, ...buttons);
}

function saveButtons(run, report) {
  const name = (suffix) =>
    `${taskByName(run.record.task).label.toLowerCase()}-${new Date(run.record.createdAt).toISOString().slice(0, 10)}${suffix}`;
  const save = (label, toBlob, suffix, title) =>
    button(label, () => saveFile(toBlob(run), name(suffix)), { class: "tool outlined", title });
  return element(
    "div.save-tools",
    { role: "group", "aria-label": "Save the answers" },
    element("span", { text: "Save", "aria-hidden": "true" }),
    save("CSV", toCsv, ".csv", "A table for spreadsheets"),
    save("JSONL", toJsonLines, ".jsonl", "An object a line, for programs"),
    save("Texts", toSidecars, "-texts.zip", "A zip with a .txt for each picture"),
    report,
  );
}

async function saveReport(run, pressed, say) {
  say("");
  pressed.disabled = true;
  pressed.textContent = "Making it…";
  try {
    const edited = run.rows.filter((row) => row.edited !== null).map((row) => [row.path, row.edited]);
    const answered = new Set(run.rows.filter((row) => row.text !== null).map((row) => row.batch));
    saveFile(await fetchReport([...answered], Object.fromEntries(edited)), `${run.record.task}-report.html`);
  } catch (error) {
    say(
      error.status === 404 ? "The server no longer has these pictures; CSV and JSONL have all answers." : error.message,
    );
  }
  pressed.textContent = "Report";
  pressed.disabled = false;
}

function showProgress(run, { text, meter, problem, cancel, retry, report }) {
  const { isRunning } = run;
  const { done, failed, total } = run.progress;
  text.textContent = isRunning ? describeProgress(run.progress) : describeEnd(run);
  meter.hidden = !isRunning;
  [meter.max, meter.value] = [Math.max(1, total), done];
  problem.textContent = run.problem;
  problem.hidden = !run.problem;
  cancel.hidden = !isRunning;
  const again = run.rows.filter((row) => run.canRetry(row)).length;
  retry.hidden = isRunning || !again;
  retry.textContent = `Retry ${count(again, "picture")}`;
  report.disabled = isRunning || done === failed;
  report.title = report.disabled ? "Once the run has ended with answers" : "One page with thumbnails and charts";
}

function describeProgress({ done, unsent, total, rate }) {
  const parts = [`${done.toLocaleString("en")} of ${total.toLocaleString("en")}`];
  if (unsent) parts.push(`${unsent.toLocaleString("en")} to send`);
  if (rate)
    parts.push(
      rate >= 0.95
        ? `${rate.toFixed(1)} pictures a second`
        : `${(60 * rate).toFixed(rate * 60 < 10 ? 1 : 0)} pictures a minute`,
    );
  if (rate) parts.push(`${timeLeft((total - done) / rate)} left`);
  return parts.join(" · ");
}

function timeLeft(seconds) {
  if (seconds < 90) return count(Math.max(1, Math.round(seconds)), "second");
  return seconds < 5400 ? count(Math.round(seconds / 60), "minute") : `${(seconds / 3600).toFixed(1)} hours`;
}

function describeEnd(run) {
  const { done, failed } = run.progress;
  return [count(done - failed, "answer"), failed ? `${failed.toLocaleString("en")} failed` : ""]
    .filter(Boolean)
    .join(" · ");
}
