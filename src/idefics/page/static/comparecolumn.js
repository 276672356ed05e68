/** One of the two answers of a comparison: its text or ranking, and what it cost. */

import { bar, describeProgress } from "./answers.js";
import { duration, element } from "./dom.js";
import { isBusy } from "./run.js";

/** An answer with its title. */
export class Column {
  constructor() {
    this.title = element("h3");
    this.progress = element("p.hint");
    this.text = element("p.answer-text", { dir: "auto" });
    this.bars = element("ol.bars");
    this.error = element("p.error", { role: "alert", hidden: true });
    this.facts = element("dl.facts");
    this.root = element("article.column", {}, this.title, this.progress, this.text, this.bars, this.error, this.facts);
  }

  /** Counts the seconds of an answer that has not begun. @param {Turn} turn */
  showProgress(turn) {
    this.progress.textContent = turn?.status === "waiting" ? describeProgress(turn) : "";
  }

  /** @param {Turn|null} turn @param {{word: string, differs: boolean}[]|null} [words] the text with its differences. */
  show(turn, words = null) {
    this.showProgress(turn);
    if (words)
      this.text.replaceChildren(
        ...words.map(({ word, differs }) => (differs ? element("mark", { text: word }) : word)),
      );
    else this.text.textContent = turn?.text ?? "";
    this.text.hidden = !turn?.text;
    this.bars.replaceChildren(...(turn?.labels ?? []).map(bar));
    this.error.textContent = turn?.error ?? "";
    this.error.hidden = !turn?.error;
    const facts = turn && !isBusy(turn) ? factsOf(turn) : [];
    this.facts.replaceChildren(
      ...facts.flatMap(([name, value]) => [element("dt", { text: name }), element("dd", { text: value })]),
    );
  }
}

/** What an answer cost, and how sure the model was. */
function factsOf({ totalSeconds, usage, labels, logprob, text }) {
  const probability =
    logprob === undefined
      ? []
      : [
          ["Probability", percent(Math.exp(logprob))],
          ["A token, on average", percent(Math.exp(logprob / usage.completion_tokens))],
        ];
  return [
    ...(totalSeconds ? [["Time", duration(totalSeconds)]] : []),
    ...(usage ? [["Tokens read", usage.prompt_tokens.toLocaleString("en")]] : []),
    ...(usage && !labels && text ? [["Tokens written", usage.completion_tokens.toLocaleString("en")]] : []),
    ...probability,
  ];
}

const percent = (share) => (share < 0.0005 ? "under 0.1 %" : `${(100 * share).toFixed(1)} %`);
