/** The drawer of settings: how closely the model looks, how long it writes, and how it chooses words. */

import { button, element } from "./dom.js";
import { DEFAULT_SETTINGS } from "./state.js";

export const TITLE = "Settings";

const DETAILS = [
  ["high", "As closely as it can", "reads small text and details"],
  ["auto", "By the picture's size", "small pictures cost less"],
  ["low", "At a glance", "the quickest: one small view of the whole picture"],
];
const STRATEGIES = [
  ["greedy", "Always the likeliest word", "the same answer each time"],
  ["beams", "Weigh several texts", "slower; not in a chat"],
  ["sampling", "Vary", "another answer each time"],
];
const NUMBERS = [
  { name: "numBeams", field: "num_beams", label: "Texts to weigh", low: 2, high: 16, step: 1, strategy: "beams" },
  {
    name: "temperature",
    field: "temperature",
    label: "Variety",
    hint: "low: close to the likeliest words",
    low: 0.05,
    high: 2,
    step: 0.05,
    strategy: "sampling",
  },
  {
    name: "topP",
    field: "top_p",
    label: "Leave out unlikely words",
    hint: "keeps the likeliest that add up to this share",
    low: 0.05,
    high: 1,
    step: 0.05,
    strategy: "sampling",
  },
  {
    name: "topK",
    field: "top_k",
    label: "Keep this many words",
    hint: "0: no limit",
    low: 0,
    high: 200,
    step: 1,
    strategy: "sampling",
  },
  {
    name: "minP",
    field: "min_p",
    label: "Drop words below",
    hint: "as a share of the likeliest word's probability",
    low: 0,
    high: 1,
    step: 0.01,
    strategy: "sampling",
  },
  {
    name: "repetitionPenalty",
    field: "repetition_penalty",
    label: "Avoid repetition",
    hint: "1: not at all",
    low: 0.5,
    high: 2,
    step: 0.05,
  },
];

const LENGTH = {
  name: "maxNewTokens",
  label: "Longest answer, in tokens",
  min: 1,
  max: 8192,
  placeholder: "as the task needs",
};
const SEED = {
  name: "seed",
  label: "Number of the variation",
  field: "seed",
  min: 0,
  placeholder: "another one each time",
};

/**
 * Fills the drawer.
 * @param {HTMLElement} root
 * @param {Object} app see app.js.
 * @returns {function(): void} to call when it is closed.
 */
export function open(root, app) {
  const { state } = app;
  const show = () => {
    const focused = root.contains(document.activeElement)
      ? document.activeElement.name || document.activeElement.id
      : "";
    root.replaceChildren(...sections(state));
    if (focused)
      root.querySelector(`[name="${focused}"]:checked, [name="${focused}"]:not([type=radio]), #${focused}`)?.focus();
  };
  show();
  return state.subscribe("settings", (isForeign) => (needsRebuild(root, state) || isForeign) && show());
}

/** Whether another set of fields belongs to the strategy, or all were reset. */
function needsRebuild(root, state) {
  const marked = root.dataset.strategy !== state.settings.strategy || root.dataset.reset === "true";
  root.dataset.strategy = state.settings.strategy;
  root.dataset.reset = "false";
  return marked;
}

function sections(state) {
  const { settings } = state;
  const numbers = NUMBERS.filter(({ strategy }) => !strategy || strategy === settings.strategy);
  return [
    group("How closely it looks", "detail", choices(state, "detail", DETAILS)),
    group("How much it writes", "max_new_tokens", [optionalField(state, LENGTH, "a token is a word or a piece of one")]),
    group("How it chooses words", "strategy", [
      ...choices(state, "strategy", STRATEGIES),
      ...numbers.map((number) => numberField(state, number)),
      ...(settings.strategy === "sampling" ? [optionalField(state, SEED, "the same number gives the same answer")] : []),
    ]),
    group("Classify", "", [
      checkbox(
        state,
        "calibrated",
        "Fair to all labels",
        "calibrated",
        "subtracts what each label gets for a plain grey picture",
      ),
      checkbox(
        state,
        "lengthNormalized",
        "Fair to long labels",
        "length_normalized",
        "divides by the number of tokens",
      ),
    ]),
    button(
      "Reset all",
      (event) => {
        event.target.closest(".drawer-body").dataset.reset = "true";
        state.setSettings({ ...DEFAULT_SETTINGS });
      },
      { id: "reset-settings" },
    ),
  ];
}

function group(title, field, children) {
  const legend = element("legend", { text: title });
  if (field) legend.append(element("code", { text: field }));
  return element("fieldset.group", {}, legend, ...children);
}

function choices(state, name, options) {
  return options.map(([value, label, hint]) => {
    const input = element("input", { type: "radio", name, value, checked: state.settings[name] === value });
    input.addEventListener("change", () => state.setSettings({ [name]: value }));
    return element("label.choice", {}, input, element("span", { text: label }), element("small", { text: hint }));
  });
}

function checkbox(state, name, label, field, hint) {
  const input = element("input", { type: "checkbox", name, checked: state.settings[name] });
  input.addEventListener("change", () => state.setSettings({ [name]: input.checked }));
  const title = element("span", { text: label });
  title.append(element("code", { text: field }));
  return element("label.choice", {}, input, title, element("small", { text: hint }));
}

function numberField(state, { name, field, label, hint = "", low, high, step }) {
  const value = element("output", { text: state.settings[name] });
  const input = element("input", { type: "range", name, min: low, max: high, step, value: state.settings[name] });
  input.addEventListener("input", () => {
    value.textContent = input.value;
    state.setSettings({ [name]: Number(input.value) });
  });
  const title = element("span", { text: label });
  title.append(element("code", { text: field }), value);
  return element("label.number", {}, title, input, element("small", { text: hint }));
}

function optionalField(state, { name, label, field, ...attributes }, hint) {
  const input = element("input", { type: "number", name, value: state.settings[name] ?? "", ...attributes });
  input.addEventListener("input", () => {
    state.setSettings({ [name]: input.value && input.validity.valid ? Number(input.value) : null });
  });
  const title = element("span", { text: label });
  if (field) title.append(element("code", { text: field }));
  return element("label.number", {}, title, input, element("small", { text: hint }));
}
