"""`read` writes a page down as DocTags, with a checkpoint that can."""

import re

import numpy as np
import pytest

import idefics
from idefics.catalog import DOCTAGS_MODELS, find_entry
from idefics.errors import BadPrompt, BadRequest
from idefics.messages import ImageDetail, Picture, user
from idefics.tasks import TASKS
from idefics.tasks.task import compose_task_prompt
from models import doctags
from models.doctags import PAGE_TEXT

PAGE = np.full((40, 30, 3), 255, np.uint8)
REFUSAL = (
    "read needs a checkpoint that writes DocTags, and this one does not: "
    "load granite-docling-258m or smoldocling-256m (--model)"
)


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    return idefics.load(doctags.write_checkpoint(tmp_path_factory.mktemp("doctags")))


def test_the_prompt_is_the_instruction_of_the_cards():
    picture = Picture(PAGE)
    task = TASKS["read"]
    assert compose_task_prompt(task, "chat", picture, task.default_words).items == [
        user(picture, "Convert this page to docling.")
    ]


def test_a_page_is_written_down_as_doctags(vlm):
    answer = vlm.read(PAGE)
    assert (answer.text, answer.finish) == (PAGE_TEXT, "stop")
    assert answer.usage == vlm.ask(PAGE, "Convert this page to docling.", max_new_tokens=99).usage
    assert [one.text for one in vlm.read([PAGE, PAGE])] == [PAGE_TEXT] * 2
    assert "".join(vlm.read(PAGE, stream=True)) == PAGE_TEXT
    assert [done.result.text for done in vlm.map([PAGE, PAGE], "read")] == [PAGE_TEXT] * 2


def test_another_instruction_takes_its_place(vlm):
    prompt = vlm.task_prompt(TASKS["read"], Picture(PAGE), "Convert formula to LaTeX.", ImageDetail())
    assert "Convert formula to LaTeX." in vlm.processor.tokenizer.decode(prompt.ids)
    assert vlm.read(PAGE, "Convert formula to LaTeX.").usage.prompt_tokens == len(prompt)
    with pytest.raises(BadPrompt, match="instruction is empty"):
        vlm.read(PAGE, " ")


def test_a_long_page_may_fill_the_context(vlm):
    """The limit of 8192 tokens is bounded by the checkpoint's positions, here 1024."""
    answer = vlm.read(PAGE, banned=["</doctag>"], stop=[])
    assert answer.finish == "length"
    assert answer.usage.prompt_tokens + len(answer.tokens) == 1024


def test_other_checkpoints_are_refused_in_one_line():
    with idefics.load("demo") as demo:
        for call in (
            lambda: demo.read(PAGE),
            lambda: demo.read([PAGE, "missing.png"], on_error="return"),
            lambda: demo.map([PAGE], "read"),
            lambda: demo.task_prompt(TASKS["read"], Picture(PAGE), "Convert", ImageDetail()),
        ):
            with pytest.raises(BadRequest, match=f"^{re.escape(REFUSAL)}$"):
                call()


def test_the_models_of_the_refusal_are_in_the_catalog():
    assert [find_entry(name).family for name in DOCTAGS_MODELS] == ["Granite Docling", "SmolDocling"]
