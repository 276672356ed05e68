/** The stage: one picture large, and all pictures of the conversation as a strip. */

import { count, element, iconButton } from "./dom.js";

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
  const zoom = iconButton("Full screen", "M4 9V4h5M15 4h5v5M20 15v5h-5M9 20H4v-5", () => light.requestFullscreen());
  const remove = iconButton("Remove the picture", "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13M10 11v6M14 11v6", () =>
    removeActive(app),
  );
  const leave = iconButton("Leave full screen", "M6 6l12 12M18 6L6 18", () => document.exitFullscreen());
  leave.classList.add("leave");
  const light = element("div.light", {}, frame, leave);
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
      showCaption(caption, picture, app);
      overlay.replaceChildren();
      light.classList.remove("dimmed");
    }
    shown = picture;
    showStrip(strip, app);
  };
  state.subscribe("pictures", show);
  state.subscribe("settings", () => shown && showCaption(caption, shown, app));
  show();
  return { overlay, dim: (isDim) => light.classList.toggle("dimmed", isDim) };
}

/** Names the picture at once, and adds what it costs the model when the server has said it. */
async function showCaption(caption, picture, { api, state }) {
  const size = `${picture.width.toLocaleString("en")} × ${picture.height.toLocaleString("en")}`;
  const parts = [picture.path || picture.name, size, picture.note].filter(Boolean);
  caption.textContent = caption.title = parts.join(" · ");
  try {
    const { tokens, tiles } = await api.fetchCost(picture.width, picture.height, state.settings.detail);
    if (state.activePicture !== picture) return;
    const tiled = tiles > 1 ? `${count(tokens, "token")} in ${tiles} parts` : count(tokens, "token");
    caption.textContent = caption.title = [...parts, tiled].join(" · ");
  } catch {
    // The size of the prompt is a detail: the answer itself will say what is wrong with the server.
  }
}

function removeActive(app) {
  const { name, path, id } = app.state.activePicture;
  const undo = app.state.removePicture(id);
  app.confirmUndo(`${path || name} is removed.`, undo, app.state.conversation);
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
  const active = strip.querySelector("[aria-current]");
  active?.scrollIntoView({ block: "nearest", inline: "nearest" });
  if (hadFocus) active?.focus();
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
