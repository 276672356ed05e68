"""The tab "Caption": describes a picture, or continues the beginning of a caption."""

from __future__ import annotations

from idefics.page.backend import PageBackend
from idefics.page.task_tab import TaskTab, TaskTabConfig
from idefics.tasks import TASKS

TAB_CONFIG = TaskTabConfig(
    tab_name="caption",
    button_label="Caption",
    text_label="How it begins (optional)",
    placeholder="This is an image of",
    select_task=lambda words: "complete" if words.strip() else "caption",
    answer_label="Caption",
    max_new_tokens=TASKS["caption"].max_new_tokens,
    examples=(
        ("puppy.png", "This is an image of"),
        ("tower.png", ""),
        ("shapes.png", ""),
        ("picnic.png", ""),
    ),
)


def build_tab(backend: PageBackend) -> None:
    """Builds the tab "Caption" inside the current Gradio block."""
    TaskTab(backend, TAB_CONFIG)
