"""The page: a tab for each thing to do, its colours, and what makes it work on a phone."""

from __future__ import annotations

from typing import Any

import gradio as gr

from idefics.ui import ask, batch, caption, chat, classify, few_shot, write
from idefics.ui.desk import Desk

TABS = {
    "Chat": chat.tab,
    "Caption": caption.tab,
    "Ask": ask.tab,
    "Classify": classify.tab,
    "Write": write.tab,
    "Few-shot": few_shot.tab,
    "Batch": batch.tab,
}
FONT = ("system-ui", "sans-serif")  # what the machine has: nothing is fetched
MONO = ("ui-monospace", "monospace")
KEPT = 24 * 3600  # seconds that an uploaded picture is kept, at most

STYLE = """
.together { align-items: end; }
.note { font-size: var(--text-sm); opacity: .85; }
.note:not(:has(p)) { display: none; }
"""


def page(desk: Desk) -> gr.Blocks:
    """All of it."""

    def leave(request: gr.Request) -> None:
        desk.leave(request.session_hash or "")

    with gr.Blocks(title="idefics", analytics_enabled=False, delete_cache=(3600, KEPT)) as blocks:
        gr.Markdown(
            f"# idefics\nQuestions about pictures, answered by `{desk.settings.model}`.", elem_id="title"
        )
        with gr.Tabs():
            for name, tab in TABS.items():
                with gr.Tab(name, id=name.lower()):
                    tab(desk)
        blocks.unload(leave)
    blocks.queue(api_open=False, max_size=64, default_concurrency_limit=8)
    return blocks


def look() -> dict[str, Any]:
    """Theme and style, for whoever mounts the page."""
    theme = gr.themes.Base(primary_hue="blue", neutral_hue="slate", font=FONT, font_mono=MONO)
    return {"theme": theme, "css": STYLE}
