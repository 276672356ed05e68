/** Takes pictures: from files and folders, the clipboard, the camera and addresses; makes them fit to be sent. */

import { button, element } from "./dom.js";
import { newId } from "./state.js";

// Until the model's are known.
const LIMITS = { max_pixels: 40_000_000, max_bytes: 15_000_000, media_types: ["image/jpeg", "image/png"] };
const BASE64_SHARE = 0.7; // of a body that a picture may have: base64 takes 4 bytes for 3, and there are other fields
const TICK_MILLISECONDS = 500; // until it is said that files are made ready, and between two updates
const VIDEO_FRAMES = 8; // pictures that are taken of a video, at even distances, where the model takes no videos
const MAX_FRAME_EDGE = 512; // pixels of those that are sent as a video
const FRAME_MILLISECONDS = 1000;
const SEEK_MILLISECONDS = 10_000; // for one of them
const JPEG_QUALITY = 0.95;
const PICTURE_NAME = /\.(jpe?g|jfif|png|apng|webp|gif|bmp|avif|tiff?|heic|heif)$/i;

/**
 * Adds files to the conversation that is open now; those that the browser cannot show are named below the composer.
 * @param {Object} app see app.js.
 * @param {File[]} files with their path as `webkitRelativePath` or `path`, if they come from a folder.
 */
export async function addFiles(app, files) {
  const { state } = app;
  const { conversation } = state;
  const problems = [];
  const pictures = [];
  const preparation = showPreparation(app);
  for (const [index, file] of files.entries()) {
    preparation.show(files.length > 1 ? `${file.name} (${index + 1} of ${files.length})` : file.name);
    try {
      const made = file.type.startsWith("video/")
        ? await toPictures(file, state.model, preparation.signal)
        : [await toPicture(file, state.model?.images)];
      preparation.signal.throwIfAborted();
      pictures.push(...made);
    } catch (error) {
      if (preparation.signal.aborted) break;
      problems.push(error.message);
    }
  }
  preparation.end();
  await addTo(app, conversation, pictures);
  app.showProblem(problems.join(" "));
  if (files.some((file) => typeName(file) === "ZIP"))
    document.getElementById("composer-note").append(" ", element("a", { href: "#/batch", text: "Open Batch" }));
}

/** Adds pictures to the conversation that they were meant for, which may have been left meanwhile. */
async function addTo(app, conversation, pictures) {
  const { state } = app;
  const said = pictures.length === 1 ? `${pictures[0].name} added` : `${pictures.length} pictures added`;
  const isInHand = conversation === state.conversation;
  if (!isInHand) {
    const { isRemoved, startSaving } = await import("./saving.js");
    startSaving(app);
    if (isRemoved(conversation)) return;
  }
  state.addPictures(pictures, conversation);
  if (!pictures.length) return;
  if (isInHand) {
    app.announce(`${said}.`);
    document.getElementById("words").focus();
    return;
  }
  const toast = app.notify(`${said} to the conversation that you left.`);
  const open = button("Open", () => {
    toast.remove();
    location.hash = `#/c/${conversation.id}`;
  });
  toast.insertBefore(open, toast.lastChild);
}

/** Says which file is made ready, for how long already, and lets it be cancelled; nothing where it is quick. */
function showPreparation(app) {
  const abort = new AbortController();
  const started = Date.now();
  const [text, seconds] = [element("span"), element("span", { "aria-hidden": "true" })];
  let toast = null;
  const tick = () => {
    if (!toast) {
      toast = app.notify("");
      toast.firstChild.append(text, seconds);
      toast.lastChild.replaceWith(button("Cancel", () => abort.abort()));
    }
    seconds.textContent = ` · ${Math.round((Date.now() - started) / 1000)} s`;
  };
  const timer = setInterval(tick, TICK_MILLISECONDS);
  return {
    signal: abort.signal,
    show: (name) => (text.textContent = `Preparing ${name}`),
    end: () => {
      clearInterval(timer);
      toast?.remove();
    },
  };
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
    const note = drawn.hasMorePages ? `${was}, the first of its pages` : was;
    return { id: newId(), name, path, blob, ...size, note };
  } finally {
    drawn.close();
  }
}

/** A video as one picture with its frames where the model takes videos, else as a few pictures. */
async function toPictures(file, model, signal) {
  if (model?.video) return [await toVideo(file, model, signal)];
  const frames = await framesOfVideo(file, signal, () => VIDEO_FRAMES);
  return Promise.all(frames.map((frame) => toPicture(frame, model?.images)));
}

async function toVideo(file, { video: { fps, max_frames: maxFrames }, images }, signal) {
  const frames = await framesOfVideo(
    file,
    signal,
    (seconds) => Math.min(maxFrames, Math.max(1, Math.round(seconds * fps))),
    MAX_FRAME_EDGE,
  );
  const picture = await toPicture(frames[Math.floor(frames.length / 2)], images);
  const note = `video: Chat sees ${frames.length} frames, the other tasks this one`;
  return { ...picture, name: file.name, note, frames, fps: frames.length / frames.seconds };
}

/**
 * Pictures of a video at even distances, as files, with its length as `seconds`.
 * @param {File} file
 * @param {AbortSignal} signal
 * @param {function(number): number} numFrames how many, by its length in seconds.
 * @param {number} [maxEdge] pixels of the longer edge.
 * @throws {Error} the browser cannot show it.
 */
async function framesOfVideo(file, signal, numFrames, maxEdge = Infinity) {
  const video = element("video", { muted: true, preload: "auto" });
  video.src = URL.createObjectURL(file);
  try {
    await happens(video, "loadeddata");
    if (video.duration === Infinity) {
      video.currentTime = Number.MAX_SAFE_INTEGER; // recordings of browsers do not say their length before
      await happens(video, "seeked");
    }
    const total = numFrames(video.duration);
    const frames = Object.assign([], { seconds: video.duration });
    let last = 0;
    for (let index = 0; index < total; index++) {
      signal.throwIfAborted();
      const shown = frameAfter(video, last);
      video.currentTime = (video.duration * (index + 0.5)) / total;
      await happens(video, "seeked");
      last = await shown;
      const blob = await snapshot(video, maxEdge);
      frames.push(new File([blob], `${file.name} at ${video.currentTime.toFixed(1)} s`, { type: blob.type }));
    }
    return frames;
  } catch {
    throw new Error(`${file.name} is a video that your browser cannot show: save it as MP4 (H.264) or WebM.`);
  } finally {
    URL.revokeObjectURL(video.src);
  }
}

/** The time of the next frame that can be drawn: "seeked" comes earlier. Not at `last`, unless none other comes. */
function frameAfter(video, last) {
  return new Promise((resolve) => {
    const check = (_, { mediaTime }) => (mediaTime === last ? next() : resolve(mediaTime));
    const next = () => video.requestVideoFrameCallback?.(check);
    next();
    setTimeout(resolve, FRAME_MILLISECONDS, last);
  });
}

function happens(video, event) {
  return new Promise((resolve, reject) => {
    const failed = () => reject(new Error(event));
    video.addEventListener(event, resolve, { once: true });
    video.addEventListener("error", failed, { once: true });
    setTimeout(failed, SEEK_MILLISECONDS);
  });
}

/** What a video shows now, as JPEG. @param {HTMLVideoElement} video @param {number} [maxEdge] @returns {Promise<Blob>} */
export function snapshot(video, maxEdge = Infinity) {
  const { videoWidth: width, videoHeight: height } = video;
  const factor = Math.min(1, maxEdge / Math.max(width, height));
  const canvas = new OffscreenCanvas(Math.round(width * factor), Math.round(height * factor));
  canvas.getContext("2d").drawImage(video, 0, 0, canvas.width, canvas.height);
  return canvas.convertToBlob({ type: "image/jpeg", quality: JPEG_QUALITY });
}

async function decode(file, name) {
  try {
    return await createImageBitmap(file);
  } catch {
    const kind = typeName(file);
    if (kind === "TIFF") return (await import("./tiff.js")).decodeTiff(await file.arrayBuffer(), name);
    if (kind === "ZIP") throw new Error(`${name} is a zip: Batch asks about all of its pictures.`);
    const hint = ["HEIC", "HEIF"].includes(kind)
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

/**
 * The files of a folder that are pictures, in the order of their paths.
 * @param {File[]} files
 * @returns {File[]} with `numLeftOut`: the number of other files, hidden ones not counted.
 */
export function onlyPictures(files) {
  const path = (file) => file.path || file.webkitRelativePath || file.name;
  const visible = files.filter((file) => !/(^|\/)(\.|__MACOSX)/.test(path(file)));
  const pictures = visible
    .filter((file) => PICTURE_NAME.test(file.name))
    .sort((first, second) => path(first).localeCompare(path(second), "en", { numeric: true }));
  return Object.assign(pictures, { numLeftOut: visible.length - pictures.length });
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
