"use strict";
(() => {
  const PAGE_ROWS = 100;
  const LONG_TEXT = 400;
  const element = (id) => document.getElementById(id);
  const readJson = (id) => JSON.parse(element(id).textContent);
  const collator = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });
  const number = (value, digits) =>
    value === null ? "" : value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  const percent = (share) => `${number(100 * share, 1)} %`;

  let lastPrompt = "";
  const rows = readJson("rows").map((row, index) => {
    const [
      path, id, prompt, text, finish, tokens, seconds, probabilities, errorType, error, notes, thumbnail, score = null,
      references = [],
    ] = row;
    lastPrompt = prompt ?? lastPrompt;
    return {
      index, path, id, prompt: lastPrompt, text, finish, tokens, seconds, probabilities, errorType, error, notes,
      thumbnail, score, references,
    };
  });
  const labels = readJson("labels");
  const hasScores = rows.some((row) => row.score !== null);

  // What is shown is text: every string reaches the page through textContent.
  function create(name, text, className) {
    const created = document.createElement(name);
    if (text !== undefined) created.textContent = text;
    if (className) created.className = className;
    return created;
  }

  function createText(text, className) {
    const block = create("p", text, className);
    block.dir = "auto";
    if (text.length <= LONG_TEXT) return [block];
    block.textContent = `${text.slice(0, LONG_TEXT)}\u2026`;
    const button = create("button", "Show all", "more");
    button.type = "button";
    button.addEventListener("click", () => {
      block.textContent = text;
      button.remove();
    });
    return [block, button];
  }

  function createBar(share) {
    const [picture, bar] = ["svg", "rect"].map((name) => document.createElementNS("http://www.w3.org/2000/svg", name));
    picture.setAttribute("class", "share");
    picture.setAttribute("aria-hidden", "true");
    bar.setAttribute("width", `${100 * share}%`);
    bar.setAttribute("height", "100%");
    picture.append(bar);
    return picture;
  }

  function createThumbnail(row) {
    if (!row.thumbnail) return [];
    const image = create("img");
    image.alt = "";
    image.src = `data:image/jpeg;base64,${row.thumbnail}`;
    return [image];
  }

  function createPath(row) {
    const parts = [create("p", row.path, "path")];
    if (row.id) parts.push(create("p", row.id, "muted"));
    return parts;
  }

  function createAnswer(row) {
    if (row.errorType) return createText(`${row.errorType}: ${row.error}`, "error");
    const parts = row.text === "" ? [create("p", "(empty)", "muted")] : createText(row.text ?? "", "answer");
    if (row.probabilities.length) {
      const list = create("ul", undefined, "probabilities");
      for (const [label, probability] of row.probabilities) {
        const item = create("li");
        item.append(createBar(probability), create("span", percent(probability)), create("span", label));
        list.append(item);
      }
      parts.push(list);
    }
    if (row.finish) parts.push(create("p", `ended by: ${row.finish}`, "muted"));
    return parts.concat(row.notes.map((note) => create("p", note, "muted")));
  }

  function createReferences(row) {
    return [...new Set(row.references)].flatMap((reference) => createText(reference, "answer"));
  }

  const COLUMNS = [
    { title: "", create: createThumbnail, className: "thumbnail", isShown: rows.some((row) => row.thumbnail) },
    { title: "Picture", create: createPath, key: (row) => row.path, isShown: true },
    {
      title: "Prompt", create: (row) => createText(row.prompt, "prompt"), key: (row) => row.prompt,
      isShown: rows.some((row) => row.prompt !== rows[0].prompt),
    },
    {
      title: "Answer", create: createAnswer, className: "wide",
      key: (row) => row.errorType ? `${row.errorType}: ${row.error}` : row.text, isShown: true,
    },
    {
      title: "Right", create: createReferences, className: "wide", key: (row) => row.references.join("\n"),
      isShown: hasScores,
    },
    {
      title: "Score", create: (row) => row.score === null ? [] : [number(row.score, 2)], key: (row) => row.score,
      className: "number", isShown: hasScores,
    },
    {
      title: "Probability", create: (row) => row.probabilities.length ? [percent(row.probabilities[0][1])] : [],
      key: (row) => row.probabilities.length ? row.probabilities[0][1] : null, className: "number",
      isShown: rows.some((row) => row.probabilities.length),
    },
    {
      title: "Tokens", create: (row) => [number(row.tokens, 0)], key: (row) => row.tokens, className: "number",
      isShown: rows.some((row) => row.tokens),
    },
    {
      title: "Seconds", create: (row) => [number(row.seconds, 2)], key: (row) => row.seconds, className: "number",
      isShown: rows.some((row) => row.seconds !== null),
    },
  ].filter((column) => column.isShown);

  const state = { column: null, direction: 1, page: 0, shown: rows };

  function searchText(row) {
    row.searchText ??= [
      row.path, row.id, row.prompt, row.text ?? "", row.errorType, row.error, ...row.notes,
      ...row.probabilities.map(([label]) => label), ...row.references,
    ].join("\n").toLowerCase();
    return row.searchText;
  }

  function selectRows() {
    const words = element("search").value.toLowerCase().trim();
    const filter = element("filter").value;
    const label = labels[Number(filter)];
    return rows.filter((row) => {
      if (filter === "failed" && !row.errorType) return false;
      if (filter === "answered" && row.errorType) return false;
      if (filter === "wrong" && !(row.score === 0)) return false;
      if (filter === "not right" && !(row.score < 1)) return false;
      if (label !== undefined && (row.errorType || row.text !== label)) return false;
      return !words || searchText(row).includes(words);
    });
  }

  function compare(first, second) {
    const [one, other] = [state.column.key(first), state.column.key(second)];
    if (one === null || other === null) return (one === null) - (other === null) || first.index - second.index;
    const order = typeof one === "string" ? collator.compare(one, other) : one - other;
    return order * state.direction || first.index - second.index;
  }

  function update() {
    state.shown = selectRows();
    if (state.column) state.shown.sort(compare);
    state.page = 0;
    showPage();
  }

  function showPage() {
    const begin = state.page * PAGE_ROWS;
    const end = Math.min(begin + PAGE_ROWS, state.shown.length);
    element("body").replaceChildren(...state.shown.slice(begin, end).map(createRow));
    element("status").textContent = state.shown.length
      ? `${number(begin + 1, 0)} to ${number(end, 0)} of ${number(state.shown.length, 0)}`
      : "No row matches";
    const numPages = Math.max(1, Math.ceil(state.shown.length / PAGE_ROWS));
    element("page").textContent = `Page ${state.page + 1} of ${numPages}`;
    element("previous").disabled = state.page === 0;
    element("next").disabled = state.page + 1 === numPages;
    document.querySelector("nav").hidden = numPages === 1;
  }

  function createRow(row) {
    const line = create("tr", undefined, row.errorType ? "failed" : "");
    line.setAttribute("role", "row");
    for (const column of COLUMNS) {
      const cell = create("td", undefined, column.className);
      cell.setAttribute("role", "cell");
      cell.dataset.title = column.title;
      cell.append(...column.create(row));
      line.append(cell);
    }
    return line;
  }

  function createHead(column) {
    const head = create("th", undefined, column.className);
    head.scope = "col";
    head.setAttribute("role", "columnheader");
    if (!column.key) return head;
    const button = create("button", column.title);
    button.type = "button";
    button.addEventListener("click", () => {
      const isNew = state.column !== column;
      state.column = isNew || state.direction === 1 ? column : null; // ascending, descending, as in the file
      state.direction = isNew ? 1 : -1;
      for (const one of element("head").children) one.removeAttribute("aria-sort");
      if (state.column) head.setAttribute("aria-sort", state.direction === 1 ? "ascending" : "descending");
      update();
    });
    head.append(button);
    return head;
  }

  function createOption(value, text) {
    const option = create("option", text);
    option.value = value;
    return option;
  }

  function turnPage(step) {
    state.page += step;
    showPage();
    document.querySelector("main").scrollIntoView();
  }

  element("head").replaceChildren(...COLUMNS.map(createHead));
  element("filter").append(
    createOption("all", "all"), createOption("answered", "answered"), createOption("failed", "failed"),
  );
  if (hasScores) {
    element("filter").append(createOption("wrong", "wrong (0)"), createOption("not right", "less than 1"));
  }
  if (labels.length) {
    const group = create("optgroup");
    group.label = "answer";
    group.append(...labels.map((label, index) => createOption(String(index), label || "(empty)")));
    element("filter").append(group);
  }
  element("filter").addEventListener("change", update);
  let timer = 0;
  element("search").addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(update, 100);
  });
  document.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
  element("previous").addEventListener("click", () => turnPage(-1));
  element("next").addEventListener("click", () => turnPage(1));
  update();
})();
