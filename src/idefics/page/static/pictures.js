/** Takes pictures: from files and folders, the clipboard, the camera and addresses; makes them fit to be sent. */

import { button, element } from "./dom.js";
import { newId } from "./state.js";

// Until the model's are known.
const LIMITS = { max_pixels: 40_000_000, max_bytes: 15_000_000, media_types: ["image/jpeg", "image/png"] };
const BASE64_SHARE = 0.7; // of a body that a picture may have: base64 takes 4 bytes for 3, and there are other fields
const VIDEO_FRAMES = 8; // pictures that are taken of a video, at even distances
const SEEK_MILLISECONDS = 10_000; // for one of them
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
      const images = file.type.startsWith("video/") ? await framesOfVideo(file) : [file];
      for (const image of images) pictures.push(await toPicture(image, app.state.model?.images));
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
 * @param {Object} [limits] `images` of the model, see `/v1/models`.
 * @returns {Promise<StoredPicture>}
 * @throws {Error} it is no picture that the browser can show.
 */
export async function toPicture(file, limits = LIMITS) {
  const path = file.path || file.webkitRelativePath || "";
  const name = file.name || "pasted picture";
  if (!file.size) throw new Error(`${name} is empty (0 bytes).`);
  const drawn = await decode(file, name);
  try {
    const { width, height } = drawn;
    const shrink = Math.min(1, Math.sqrt(limits.max_pixels / (width * height)));
    const isSent = limits.media_types.includes(file.type);
    const maxBytes = Math.min(limits.max_bytes, (limits.max_body_bytes ?? limits.max_bytes) * BASE64_SHARE);
    if (shrink === 1 && isSent && file.size <= maxBytes) {
      return { id: newId(), name, path, blob: file, width, height, note: "" };
    }
    const size = { width: Math.floor(width * shrink), height: Math.floor(height * shrink) };
    const blob = await redraw(drawn, size, file.type);
    const was =
      shrink < 1 ? `made smaller, was ${width} × ${height}` : isSent ? "packed smaller" : `was ${typeName(file)}`;
    return { id: newId(), name, path, blob, ...size, note: was };
  } finally {
    drawn.close();
  }
}

/** Pictures of a video at even distances, as files. @throws {Error} the browser cannot show it. */
async function framesOfVideo(file) {
  const video = element("video", { muted: true, preload: "auto" });
  video.src = URL.createObjectURL(file);
  try {
    await happens(video, "loadeddata");
    const frames = [];
    for (let index = 0; index < VIDEO_FRAMES; index++) {
      video.currentTime = (video.duration * (index + 0.5)) / VIDEO_FRAMES;
      await happens(video, "seeked");
      const blob = await snapshot(video);
      frames.push(new File([blob], `${file.name} at ${video.currentTime.toFixed(1)} s`, { type: blob.type }));
    }
    return frames;
  } catch {
    throw new Error(`${file.name} is a video that your browser cannot show: save it as MP4 (H.264) or WebM.`);
  } finally {
    URL.revokeObjectURL(video.src);
  }
}

function happens(video, event) {
  return new Promise((resolve, reject) => {
    const failed = () => reject(new Error(event));
    video.addEventListener(event, resolve, { once: true });
    video.addEventListener("error", failed, { once: true });
    setTimeout(failed, SEEK_MILLISECONDS);
  });
}

/** What a video shows now, as JPEG. @param {HTMLVideoElement} video @returns {Promise<Blob>} */
export function snapshot(video) {
  const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
  canvas.getContext("2d").drawImage(video, 0, 0);
  return canvas.convertToBlob({ type: "image/jpeg", quality: JPEG_QUALITY });
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

const typeName = (file) =>
  (/\.(\w+)$/.exec(file.name)?.[1] ?? file.type.split("/")[1] ?? "").toUpperCase().replace(/^TIF$/, "TIFF");

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
  return onlyPictures(files);
}

/** The files of a folder that are pictures, hidden ones left out, in the order of their paths. @param {File[]} files */
export function onlyPictures(files) {
  const path = (file) => file.path || file.webkitRelativePath || file.name;
  return files
    .filter((file) => PICTURE_NAME.test(file.name) && !/(^|\/)(\.|__MACOSX)/.test(path(file)))
    .sort((first, second) => path(first).localeCompare(path(second), "en", { numeric: true }));
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
    for (const one of some) await collect(one, files);
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
      const name = decodeURIComponent(new URL(input.value).pathname.split("/").pop()) || input.value;
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
