/** Where pictures come from other than files: the clipboard, the camera and addresses. */

import { button, element } from "./dom.js";
import { addFiles, snapshot } from "./pictures.js";

/** Adds the picture in the clipboard. @throws {Error} there is none, or the browser does not allow it. */
export async function pasteFromClipboard(app) {
  const found = [];
  try {
    for (const item of await navigator.clipboard.read()) {
      const type = item.types.find((one) => one.startsWith("image/"));
      if (type) found.push(new File([await item.getType(type)], "pasted picture", { type }));
    }
  } catch {
    throw new Error("The browser did not allow to read the clipboard: press Ctrl+V instead.");
  }
  if (!found.length) throw new Error("There is no picture in the clipboard: copy one first.");
  await addFiles(app, found);
}

/** Shows what the camera sees in a dialog, and adds the photo that is taken. @throws {Error} there is no camera. */
export async function takePhoto(app) {
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch {
    throw new Error("No camera: there is none, or the browser did not allow it.");
  }
  const video = element("video", { autoplay: true, playsinline: true, muted: true });
  video.srcObject = stream;
  const dialog = element("dialog.camera", { "aria-label": "Camera" }, video);
  const shoot = button(
    "Take the photo",
    async () => {
      const blob = await snapshot(video);
      dialog.close();
      await addFiles(app, [new File([blob], "photo.jpg", { type: "image/jpeg" })]);
    },
    { class: "tool primary" },
  );
  dialog.append(
    element(
      "div.dialog-buttons",
      {},
      shoot,
      button("Cancel", () => dialog.close()),
    ),
  );
  dialog.addEventListener("close", () => {
    for (const track of stream.getTracks()) track.stop();
    dialog.remove();
  });
  document.body.append(dialog);
  dialog.showModal();
}

/** The last part of an address, as people read it. @param {string} address */
function nameOfAddress(address) {
  const name = new URL(address).pathname.split("/").pop();
  try {
    return decodeURIComponent(name) || address;
  } catch {
    return name; // a "%" that encodes nothing
  }
}

/** Asks for the address of a picture in a dialog, and adds what the server fetches from there. */
export function askForAddress(app) {
  const input = element("input", {
    type: "url",
    required: true,
    placeholder: "https://",
    "aria-label": "Address of the picture",
  });
  const problem = element("p.error", { role: "alert", hidden: true });
  const form = element("form", { method: "dialog" }, element("h2", { text: "Address of the picture" }), input, problem);
  const dialog = element("dialog.address", { "aria-label": "Address of the picture" }, form);
  form.append(
    element(
      "div.dialog-buttons",
      {},
      element("button.tool.primary", { type: "submit", text: "Add" }),
      button("Cancel", () => dialog.close()),
    ),
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    problem.hidden = true;
    try {
      const blob = await app.api.fetchPicture(input.value);
      dialog.close();
      const name = nameOfAddress(input.value);
      await addFiles(app, [new File([blob], name, { type: blob.type })]);
    } catch (error) {
      problem.textContent = error.message;
      problem.hidden = false;
    }
  });
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}
