"""The layout of the page: its tabs, style sheet and script."""

from __future__ import annotations

import json
from typing import Any

import gradio as gr

from idefics.page import ask, batch, caption, chat, classify, few_shot, write
from idefics.page.backend import PageBackend

TAB_BUILDER_BY_TITLE = {
    "Chat": chat.build_tab,
    "Caption": caption.build_tab,
    "Ask": ask.build_tab,
    "Classify": classify.build_tab,
    "Write": write.build_tab,
    "Few-shot": few_shot.build_tab,
    "Batch": batch.build_tab,
}
FONT_FAMILIES = ("system-ui", "sans-serif")  # installed fonts: none is downloaded
MONOSPACE_FAMILIES = ("ui-monospace", "monospace")
UPLOAD_LIFETIME_SECONDS = 24 * 3600  # uploaded pictures are deleted after this time

ALT_TEXT_BY_PICTURE = {  # alternative texts of the bundled pictures, for screen readers
    "door.png": "A wooden entrance at night, and a pumpkin",
    "picnic.png": "A couple, a basket and a sandwich on grass",
    "puppy.png": "A puppy among flowers",
    "shapes.png": "A red circle, a blue square and a green star",
    "statue.png": "A statue",
    "tower.png": "A tower at night",
    "vegetables.png": "A tomato, a corn cob, a carrot and an eggplant",
}
# What the script adds to Gradio:
# - an alternative text for every picture: that of `ALT_TEXT_BY_PICTURE`, else the file's name;
# - copied text without word joiners (see `chat_turns.WORD_JOINER`);
# - a pasted picture goes into the picture field of the visible tab, wherever the focus is.
PAGE_SCRIPT = """
const alts = ALTS;
const mend = () => document.querySelectorAll('img:not([alt]), img[alt=""]').forEach((img) => {
  const name = decodeURIComponent((img.getAttribute("src") || "").split("/").pop());
  if (name) img.alt = alts[name] || name;
});
new MutationObserver(mend).observe(document.body, {subtree: true, childList: true, attributeFilter: ["src"]});
mend();
const take = async (place, file) => {
  place.querySelector('[aria-label="Remove Image"]')?.click();
  for (let attempt = 0; attempt < 40; attempt++) {
    const input = place.querySelector("input[type=file]");
    if (input) {
      const data = new DataTransfer();
      data.items.add(file);
      input.files = data.files;
      input.dispatchEvent(new Event("change", {bubbles: true}));
      return;
    }
    await new Promise((done) => setTimeout(done, 50));
  }
};
const plain = (text) => text.replaceAll("<\u2060", "<");
const write = navigator.clipboard?.writeText?.bind(navigator.clipboard);
if (write) navigator.clipboard.writeText = (text) => write(plain(text));
document.addEventListener("copy", (event) => {
  const text = String(getSelection());
  if (text === plain(text)) return;
  event.clipboardData.setData("text/plain", plain(text));
  event.preventDefault();
});
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
  const place = [...document.querySelectorAll(".takes-picture")].find((one) => one.checkVisibility());
  if (!file || !place || event.defaultPrevented) return;
  event.preventDefault();
  take(place, file);
});
"""
PAGE_CSS = """
.together { align-items: end; }
.together > button, .together > .block + button { white-space: nowrap; }
.note { font-size: var(--text-sm); opacity: .85; }
.note:not(:has(p)) { display: none; }
button[aria-label="Share"], .message-buttons-left button[aria-label="Edit"] { display: none; }
#chat-history .wrap { flex-direction: column; flex-wrap: nowrap; max-height: 240px; overflow: auto; }
#chat-history label { flex-shrink: 0; }
#chat-talk img { max-height: 200px; }
#batch-table * { font-family: var(--font); }
[data-testid="status-tracker"]:has(.error) { display: none !important; }
textarea, #chat-talk .message { unicode-bidi: plaintext; text-align: start; }
progress { width: 100%; height: 12px; appearance: none; border: 0; background: var(--neutral-300); }
progress::-webkit-progress-bar { background: var(--neutral-300); }
progress::-webkit-progress-value { background: var(--primary-500); }
progress::-moz-progress-bar { background: var(--primary-500); }
footer { display: none; }
"""


def build_blocks(backend: PageBackend) -> gr.Blocks:
    """Builds the whole page: a title and one tab for each entry of `TAB_BUILDER_BY_TITLE`."""

    def stop_session(request: gr.Request) -> None:
        backend.stop_session(request.session_hash or "")

    with gr.Blocks(
        title="idefics", analytics_enabled=False, delete_cache=(3600, UPLOAD_LIFETIME_SECONDS)
    ) as blocks:
        gr.Markdown(
            f"# idefics\nQuestions about pictures, answered by `{backend.settings.model}`.", elem_id="title"
        )
        with gr.Tabs():
            for name, build_tab in TAB_BUILDER_BY_TITLE.items():
                with gr.Tab(name, id=name.lower()):
                    build_tab(backend)
        blocks.unload(stop_session)
    blocks.queue(api_open=False, max_size=64, default_concurrency_limit=8)
    return blocks


def theme_css_and_script() -> dict[str, Any]:
    """The arguments `theme`, `css` and `js` of `gr.mount_gradio_app`."""
    theme = gr.themes.Base(
        primary_hue="blue", neutral_hue="slate", font=FONT_FAMILIES, font_mono=MONOSPACE_FAMILIES
    )
    script = PAGE_SCRIPT.replace("ALTS", json.dumps(ALT_TEXT_BY_PICTURE))
    return {"theme": theme, "css": PAGE_CSS, "js": f"() => {{{script}}}"}
