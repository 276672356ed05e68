/** Drawers at the side, and panels in the place of the conversation: each a module that is loaded when it is used. */

import { button, element } from "./dom.js";

const byId = (id) => document.getElementById(id);

/**
 * Opens a drawer; Escape, a click outside, its button or the browser's way back closes it.
 * @param {Object} app see app.js.
 * @param {string} name of a module with `open(root, app, argument)` and `TITLE`.
 * @param {*} [argument] passed on.
 */
export async function openDrawer(app, name, argument) {
  const module = await import(`./${name}.js`);
  const id = `drawer-${name}`;
  if (byId(id)?.open) return; // pressed twice while it was loaded
  const opener = document.activeElement;
  const drawer = element("dialog.drawer", { "aria-label": module.TITLE, id });
  const body = element("div.drawer-body");
  const close = button("Close", () => drawer.close());
  const messages = [byId("toasts"), byId("announcer")]; // nothing outside a modal dialog can be used or is read out
  drawer.append(element("header", {}, element("h2", { text: module.TITLE }), close), body);
  document.body.append(drawer);
  const cleanUp = module.open(body, app, argument);
  drawer.addEventListener("click", (event) => event.target === drawer && drawer.close());
  const leave = () => drawer.close(); // it belongs to what was open before
  if (!history.state?.isDrawer) history.pushState({ isDrawer: true }, ""); // one entry for all, which stays
  addEventListener("popstate", leave);
  drawer.addEventListener("close", () => {
    removeEventListener("popstate", leave);
    byId("composer").before(...messages);
    drawer.remove();
    cleanUp?.();
    // The browser has given the focus back already, unless the opener is gone; somebody may have moved it since.
    if (document.activeElement === document.body)
      (opener?.checkVisibility() ? opener : document.querySelector("#panel select, #words")).focus();
  });
  drawer.append(...messages);
  drawer.showModal();
}

let closeOpenPanel = null;

/** Shows a module in place of the conversation, with the picture on its left, such as a comparison. */
export async function openPanel(app, name, argument) {
  const module = await import(`./${name}.js`);
  closePanel();
  const panel = byId("panel");
  panel.setAttribute("aria-label", module.TITLE);
  panel.hidden = false;
  byId("conversation").hidden = true;
  closeOpenPanel = module.open(panel, app, argument) ?? (() => {});
}

/** Shows the conversation again. */
export function closePanel() {
  if (!closeOpenPanel) return;
  closeOpenPanel();
  closeOpenPanel = null;
  byId("panel").replaceChildren();
  byId("panel").hidden = true;
  byId("conversation").hidden = false;
}
