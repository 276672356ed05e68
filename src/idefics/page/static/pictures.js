/** Takes pictures: from files and folders, the clipboard, the camera and addresses; makes them fit to be sent. */

import { button, element } from "./dom.js";
import { newId } from "./state.js";

const MAX_PIXELS = 40_000_000; // of a picture that is sent; the server reads no larger ones
const MAX_BYTES = 16 * 2 ** 20; // of a picture that is sent: a request has 20 MB by default
const SENT_TYPES = ["image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp"];
const JPEG_QUALITY = 0.95;
const PICTURE_NAME = /\.(jpe?g|jfif|png|apng|webp|gif|bmp|avif|tiff?|heic|heif)$/i;

/**
 * Adds files to the conversation; those that the browser cannot show are named below the composer.
 * @param {Object} app see app.js.
 * @param {File[]} files with their path as `webkitRelativePath` or `path`, if they come from a folder.
 */
export async function addFiles(app, files) {
  const problems = [];
  const pictures = [];
  for (const file of files) {
    try {
      pictures.push(await toPicture(file));
    } catch (error) {
      problems.push(error.message);
    }
  }
  app.state.addPictures(pictures);
  app.showProblem(problems.join(" "));
  if (pictures.length) {
    app.announce(pictures.length === 1 ? `Picture ${pictures[0].name} added.` : `${pictures.length} pictures added.`);
    document.getElementById("words").focus();
  }
}

/**
 * A file as a picture that the server reads: smaller or in another format where it has to be.
 * @param {File} file
 * @returns {Promise<StoredPicture>}
 * @throws {Error} it is no picture that the browser can show.
 */
export async function toPicture(file) {
  const path = file.path ?? file.webkitRelativePath ?? "";
  const name = file.name || "pasted picture";
  if (!file.size) throw new Error(`${name} is empty (0 bytes).`);
  const drawn = await decode(file, name);
  const { width, height } = drawn;
  const shrink = Math.min(1, Math.sqrt(MAX_PIXELS / (width * height)));
  const isSent = SENT_TYPES.includes(file.type);
  if (shrink === 1 && isSent && file.size <= MAX_BYTES) {
    drawn.close();
    return { id: newId(), name, path, blob: file, width, height, note: "" };
  }
  const small = { width: Math.floor(width * shrink), height: Math.floor(height * shrink) };
  const blob = await redraw(drawn, small, file.type);
  drawn.close();
  const was = shrink < 1 ? `made smaller: was ${width} × ${height}` : isSent ? "packed smaller" : `was ${typeName(file)}`;
  return { id: newId(), name, path, blob, ...small, note: was };
}

async function decode(file, name) {
  try {
    return await createImageBitmap(file);
  } catch {
    const kind = typeName(file);
    const hint = ["TIFF", "HEIC", "HEIF"].includes(kind)
      ? `${name}: your browser cannot show ${kind} files. Save it as JPEG or PNG and add that.`
      : `${name} is not a picture that can be read.`;
    throw new Error(hint);
  }
}

const typeName = (file) => (/\.(\w+)$/.exec(file.name)?.[1] ?? file.type.split("/")[1] ?? "").toUpperCase().replace(/^TIF$/, "TIFF");

async function redraw(drawn, { width, height }, type) {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(drawn, 0, 0, width, height);
  const target = ["image/png", "image/avif", "image/webp"].includes(type) ? "image/webp" : "image/jpeg";
  return canvas.convertToBlob({ type: target, quality: JPEG_QUALITY });
}

/**
 * The files of a drop, those of folders too, each with its `path` in the folder.
 * @param {DataTransfer} transfer
 * @returns {Promise<File[]>}
 */
export async function filesOfDrop(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return [...transfer.files];
  const files = [];
  for (const entry of entries) await collect(entry, files);
  return files.filter((file) => PICTURE_NAME.test(file.name) || file.type.startsWith("image/"));
}

async function collect(entry, files) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    file.path = entry.fullPath.replace(/^\//, "");
    files.push(file);
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return;
    for (const one of some.sort((first, second) => first.name.localeCompare(second.name))) await collect(one, files);
  }
}

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
  const shoot = button("Take the photo", async () => {
    const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
    canvas.getContext("2d").drawImage(video, 0, 0);
    const blob = await canvas.convertToBlob({ type: "image/jpeg", quality: JPEG_QUALITY });
    dialog.close();
    await addFiles(app, [new File([blob], "photo.jpg", { type: "image/jpeg" })]);
  }, { class: "tool primary" });
  dialog.append(element("div.dialog-buttons", {}, shoot, button("Cancel", () => dialog.close())));
  dialog.addEventListener("close", () => {
    for (const track of stream.getTracks()) track.stop();
    dialog.remove();
  });
  document.body.append(dialog);
  dialog.showModal();
}
