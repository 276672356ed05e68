"""The tab "Ask": answers a question about a picture."""

from __future__ import annotations

from idefics.errors import BadPrompt
from idefics.page.backend import PageBackend
from idefics.page.task_tab import TaskTab, TaskTabConfig
from idefics.tasks import TASKS


def _select_task(text: str) -> str:
    """The task "ask"; raises BadPrompt if the question is empty."""
    if not text.strip():
        raise BadPrompt("the question is empty: give one, such as “What is on the left?”")
    return "ask"


TAB_CONFIG = TaskTabConfig(
    tab_name="ask",
    button_label="Ask",
    text_label="Question",
    placeholder="What is on the table?",
    select_task=_select_task,
    answer_label="Answer",
    max_new_tokens=TASKS["ask"].max_new_tokens,
    examples=(
        ("picnic.png", "What is on the left?"),
        ("puppy.png", "Where is the puppy?"),
        ("tower.png", "Is it day or night?"),
        ("shapes.png", "What color is the star?"),
    ),
)


def build_tab(backend: PageBackend) -> None:
    """Builds the tab "Ask" inside the current Gradio block."""
    TaskTab(backend, TAB_CONFIG)
