/** The stage: one picture large, and all pictures of the conversation as a strip. */

import { button, element } from "./dom.js";

/**
 * @typedef {Object} Stage
 * @property {HTMLElement} overlay lies exactly over the picture, for heat and marks; emptied when another one is shown.
 * @property {function(boolean): void} dim makes the picture darker, so that the overlay stands out.
 */

/**
 * Fills the stage and keeps it as the conversation is.
 * @param {HTMLElement} root
 * @param {Object} app see app.js.
 * @returns {Stage}
 */
export function openStage(root, app) {
  const { state } = app;
  const image = element("img", { alt: "" });
  const overlay = element("div.overlay");
  const frame = element("div.frame", {}, image, overlay);
  const caption = element("span.picture-name");
  const zoom = button("Full screen", () => root.querySelector(".light").requestFullscreen());
  const remove = button("Remove", () => removeActive(app));
  const light = element("div.light", {}, frame);
  const bar = element("div.stage-bar", {}, caption, element("div.stage-tools", {}, zoom, remove));
  const strip = element("ul.strip", { "aria-label": "All pictures" });
  const empty = element("p.stage-empty", { text: "No picture. Drop one here, paste one, or press +." });
  root.append(light, empty, bar, strip);

  let shown = null;
  const show = () => {
    const picture = state.activePicture;
    for (const part of [light, bar]) part.hidden = !picture;
    empty.hidden = Boolean(picture);
    if (picture && picture !== shown) {
      image.src = state.pictureUrl(picture);
      image.alt = picture.path || picture.name;
      frame.style.setProperty("--ratio", picture.width / picture.height);
      caption.textContent = describe(picture);
      overlay.replaceChildren();
      light.classList.remove("dimmed");
    }
    shown = picture;
    showStrip(strip, app);
  };
  state.subscribe("pictures", show);
  show();
  return { overlay, dim: (isDim) => light.classList.toggle("dimmed", isDim) };
}

function describe({ name, path, width, height, note }) {
  const size = `${width.toLocaleString("en")} × ${height.toLocaleString("en")}`;
  return [path || name, size, note].filter(Boolean).join(" · ");
}

function removeActive(app) {
  const { name, path, id } = app.state.activePicture;
  const undo = app.state.removePicture(id);
  app.confirmUndo(`${path || name} is removed.`, undo);
  document.getElementById("words").focus();
}

function showStrip(strip, { state }) {
  const { pictures, activePictureId } = state.conversation;
  strip.hidden = pictures.length < 2;
  if (strip.hidden) {
    strip.replaceChildren();
    return;
  }
  const hadFocus = strip.contains(document.activeElement);
  strip.replaceChildren(...pictures.map((picture) => thumbnail(picture, picture.id === activePictureId, state)));
  if (hadFocus) strip.querySelector("[aria-current]").focus();
}

function thumbnail(picture, isActive, state) {
  const name = picture.path || picture.name;
  const small = element("img", { src: state.pictureUrl(picture), alt: "", loading: "lazy" });
  const choose = element(
    "button",
    { type: "button", title: name, "aria-label": `Show ${name}`, "aria-current": isActive ? "true" : null },
    small,
  );
  choose.addEventListener("click", () => state.selectPicture(picture.id));
  choose.addEventListener("keydown", ({ key, currentTarget }) => {
    const item = currentTarget.parentElement;
    const next = { ArrowRight: item.nextSibling, ArrowLeft: item.previousSibling }[key];
    next?.firstChild.click();
  });
  return element("li", {}, choose);
}
