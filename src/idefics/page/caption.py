"""The tab "Caption": what a picture shows, with or without the person's first words."""

from __future__ import annotations

from idefics.page.backend import PageBackend
from idefics.page.task_tab import TaskTabConfig, build_task_tab
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
    """Makes it."""
    build_task_tab(backend, TAB_CONFIG)
