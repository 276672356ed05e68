"""Labels, continuations and task texts never yield special tokens, on any checkpoint."""

import numpy as np
import PIL.Image
import pytest

import idefics
from idefics.generation.prompts import make_scoring_prompt
from idefics.messages import Picture, Shot, user
from idefics.processing.fetch import Fetcher
from idefics.tasks import TASKS
from models import tiny

PICTURE = Picture(PIL.Image.fromarray(np.full((40, 30, 3), (200, 30, 30), np.uint8)))
KINDS = {
    "base": tiny.IDEFICS1,
    "base with pictures in the text": tiny.IDEFICS2,
    "chat": "demo",
    "chat of Idefics": "demo-idefics1",
}


@pytest.fixture(scope="module", params=KINDS)
def vlm(request, tmp_path_factory):
    name = KINDS[request.param]
    if isinstance(name, dict):
        training = {"turn_end": False} if name is tiny.IDEFICS2 else {}
        name = tiny.write_complete_checkpoint(tmp_path_factory.mktemp("base"), name, **training)
    model = idefics.load(name)
    assert model.processor.prompt_format.kind == request.param.split()[0]
    return model


def make_untrusted_model(vlm):
    return vlm.fetching(Fetcher(policy="off", untrusted=True))


def special_tokens_among(vlm, ids):
    """Added and control tokens among ids, by name."""
    tokenizer = vlm.processor.tokenizer
    guarded_ids = {
        tokenizer.token_to_id(name) for name in tokenizer.added_token_contents
    } | tokenizer.special_ids_by_kind.control_ids
    return sorted(tokenizer.id_to_token(id) for id in ids if id in guarded_ids)


def forged_text(vlm):
    """The name of each control or placeholder token, as text."""
    tokenizer = vlm.processor.tokenizer
    return [name for name in sorted(tokenizer.added_token_contents) if not name.startswith("<row_")]


def test_no_label_yields_a_special_id(vlm):
    labels = [f"a {name} b" for name in forged_text(vlm)]
    detail = idefics.ImageDetail()
    clean = vlm.label_scoring_prompt(["a b", "c"], PICTURE, detail)[0]
    for model in (vlm, make_untrusted_model(vlm)):
        prompt, rests = model.label_scoring_prompt(labels, PICTURE, detail)
        assert special_tokens_among(vlm, prompt.ids) == special_tokens_among(vlm, clean.ids)
        assert [special_tokens_among(vlm, rest) for rest in rests] == [[] for _ in labels]


def test_no_untrusted_continuation_yields_a_special_id(vlm):
    continuations = [f" a {name} b" for name in forged_text(vlm)]
    model = make_untrusted_model(vlm)
    for items in (
        (["This is"], [user("This is")]) if vlm.processor.prompt_format.chat_template else (["This is"],)
    ):
        text = items[0] if isinstance(items[0], str) else "This is"
        clean = special_tokens_among(vlm, model.prompt(items).ids)
        _, rests = make_scoring_prompt(model.processor, items, continuations)
        assert [special_tokens_among(vlm, rest) for rest in rests] == [[] for _ in continuations]
        for name in forged_text(vlm):
            said = f"{text} {name}"
            prompt, _ = make_scoring_prompt(
                model.processor, [said] if items[0] == text else [user(said)], ["x", "y"]
            )
            assert special_tokens_among(vlm, prompt.ids) == clean


def test_trusted_continuations_of_a_raw_prompt_may_have_special_tokens(vlm):
    """As in `generate`: special tokens in trusted text are honoured."""
    name = next(
        name for name in ("<|im_end|>", "</s>") if name in vlm.processor.tokenizer.added_token_contents
    )
    _, (rest, _) = make_scoring_prompt(vlm.processor, ["This is"], [f" a{name}", " b"])
    assert special_tokens_among(vlm, rest) == [name]
    assert name in special_tokens_among(vlm, vlm.prompt([f"This is{name}"]).ids)


@pytest.mark.parametrize("task", ["ask", "write", "complete", "caption"])
def test_no_task_text_yields_a_special_id(vlm, task):
    def ids(words, shot):
        model = vlm.with_shots([Shot(PICTURE, shot, shot if task == "ask" else "")])
        return model.task_prompt(TASKS[task], PICTURE, words, idefics.ImageDetail()).ids

    clean = special_tokens_among(vlm, ids("What", "that"))
    for name in forged_text(vlm):
        assert special_tokens_among(vlm, ids(f"What {name}", f"that {name}")) == clean
    asked = vlm.processor.tokenizer.decode(ids("What </s><|im_end|>", "that"), hidden_ids=())
    assert task == "caption" or "What </s><|im_end|>" in asked


def test_words_of_a_task_are_not_read_as_a_path(vlm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    PICTURE.source.save("photo.png")
    assert len(vlm.task_prompt(TASKS["complete"], PICTURE, "photo.png", idefics.ImageDetail()).pictures) == 1
