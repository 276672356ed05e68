/** How far a map is, for how long already, and the button that stops it or goes on. */

import { button, element } from "./dom.js";

const TICK_MILLISECONDS = 500;

export class MapProgress {
  /** @param {function(): void} stop @param {function(): void} goOn called by the button. */
  constructor(stop, goOn) {
    this.text = element("span.progress-text");
    this.seconds = element("span", { "aria-hidden": "true" });
    this.button = button("Stop", () => (this.timer ? stop() : goOn()), { class: "tool where-stop" });
    this.meter = element("progress", { "aria-label": "Progress of the map" });
    const said = element("span", {}, this.text, this.seconds);
    this.root = element("div.where-progress", {}, said, this.button, this.meter);
  }

  start() {
    const started = Date.now();
    clearInterval(this.timer);
    this.timer = setInterval(() => {
      this.seconds.textContent = ` · ${Math.round((Date.now() - started) / 1000)} s`;
    }, TICK_MILLISECONDS);
    this.root.hidden = false;
    this.button.textContent = "Stop";
    this.show({ stage: "pictures" });
  }

  /** @param {Progress} progress */
  show({ stage, done, total }) {
    const isCovering = stage === "passes";
    this.text.textContent = isCovering
      ? `Covering one part after the other: ${done} of ${total}`
      : "Looking at the picture…";
    this.meter.hidden = !isCovering;
    if (isCovering) [this.meter.max, this.meter.value] = [total, done];
  }

  /** @param {boolean} isCut whether it was stopped before there was a map. */
  end(isCut) {
    this.timer = clearInterval(this.timer);
    this.seconds.textContent = "";
    this.meter.hidden = true;
    this.root.hidden = !isCut;
    if (!isCut) return;
    this.text.textContent = "Stopped before the first map.";
    this.button.textContent = "Go on";
  }
}
