/** Builds elements without HTML (what people or models write is always text), and small things that all views use. */

const SVG = "http://www.w3.org/2000/svg";

/**
 * Creates an element.
 * @param {string} tag name of the element, with classes after dots, such as "button.tool".
 * @param {Object<string, *>} [attributes] attributes; `text` is its text, functions are listeners by the event's name.
 * @param {...(Node|string|null)} children what it holds; null is left out.
 * @returns {HTMLElement}
 */
export function element(tag, attributes = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const made = document.createElement(name);
  if (classes.length) made.className = classes.join(" ");
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "text") made.textContent = value;
    else if (typeof value === "function") made.addEventListener(key, value);
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

/**
 * Creates a button.
 * @param {string} label its text.
 * @param {function(Event): *} click called when it is pressed.
 * @param {Object<string, *>} [attributes] further attributes.
 * @returns {HTMLButtonElement}
 */
export function button(label, click, attributes = {}) {
  return element("button.tool", { type: "button", click, text: label, ...attributes });
}

/**
 * Creates an icon of 24 by 24 units.
 * @param {string} path data of its strokes.
 * @returns {SVGElement}
 */
export function icon(path) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  const stroke = document.createElementNS(SVG, "path");
  stroke.setAttribute("d", path);
  svg.append(stroke);
  return svg;
}

/**
 * Creates a round button with an icon.
 * @param {string} label what it does.
 * @param {string} path data of the icon's strokes.
 * @param {function(Event): *} click called when it is pressed.
 * @param {Object<string, *>} [attributes] further attributes.
 * @returns {HTMLButtonElement}
 */
export function iconButton(label, path, click, attributes = {}) {
  return element(
    "button.icon",
    { type: "button", "aria-label": label, title: label, click, ...attributes },
    icon(path),
  );
}

/**
 * A count with its noun: "1 token", "2,000 tokens".
 * @param {number} count
 * @param {string} noun in the singular.
 * @returns {string}
 */
export function count(count, noun) {
  return `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
}

/**
 * A time for people: "under 0.1 s", "2.4 s", "1 min 20 s".
 * @param {number} seconds
 * @returns {string}
 */
export function duration(seconds) {
  if (seconds < 0.1) return "under 0.1 s";
  if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
}

/**
 * Lets the browser save a file.
 * @param {Blob} blob its content.
 * @param {string} name its name.
 */
export function saveFile(blob, name) {
  const link = element("a", { download: name, href: URL.createObjectURL(blob) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/**
 * Waits.
 * @param {number} milliseconds
 * @param {AbortSignal} signal
 * @throws {DOMException} the signal was aborted.
 */
export function delay(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const end = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", end);
      if (signal.aborted) reject(signal.reason);
      else resolve();
    };
    const timer = setTimeout(end, Math.max(0, milliseconds));
    signal.addEventListener("abort", end);
  });
}
