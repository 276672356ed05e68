"""Idefics 2 from a folder to an answer: instruct and base, pictures split, a window shorter than any prompt."""

import json

import numpy as np
import pytest
import torch

import idefics
from engine.reference_decoding import reference_greedy
from idefics.config import Sampling
from idefics.engine.request import Request
from idefics.errors import BadPrompt, UnsupportedModel
from idefics.messages import Picture, Shot, assistant, user
from models import tiny
from processing.tokenizers_tiny import END_OF_UTTERANCE

RAW_CONFIG = tiny.merge_config(tiny.IDEFICS2, text_config={"max_position_embeddings": 1024})
PICTURES = [
    np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    for seed, size in enumerate([(30, 40), (90, 50), (11, 70), (48, 48), (1, 9)])
]
LABELS = ["a cat", "dog", "the red ball"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_complete_checkpoint(tmp_path_factory.mktemp("idefics2"), RAW_CONFIG)


@pytest.fixture(scope="module")
def vlm(folder):
    return idefics.load(folder, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def base_model(tmp_path_factory):
    """As 8b-base: the tokenizer has a token for which the model has no row."""
    folder = tiny.write_complete_checkpoint(tmp_path_factory.mktemp("base"), RAW_CONFIG)
    raw = json.loads((folder / "config.json").read_text())
    rows = raw["text_config"]["vocab_size"] - 1
    tiny.write_checkpoint(
        folder, tiny.merge_config(raw, text_config={"vocab_size": rows}), {"eos_token_id": 2}
    )
    return idefics.load(folder, device="cpu", dtype="float32")


@pytest.mark.parametrize("kind", ["vlm", "base_model"])
def test_every_task_answers(kind, request):
    vlm = request.getfixturevalue(kind)
    picture = PICTURES[0]
    for answer in (
        vlm.caption(picture, max_new_tokens=5),
        vlm.complete(picture, "This is an image of", max_new_tokens=5),
        vlm.ask(picture, "What is on the table?", max_new_tokens=5),
        vlm.write(picture, max_new_tokens=5),
        vlm.generate(["A photo of", picture, "and", PICTURES[1]], max_new_tokens=5),
        vlm.with_shots([Shot(Picture(PICTURES[1]), "a cat")]).caption(picture, max_new_tokens=5),
        *vlm.caption(PICTURES[1:], max_new_tokens=5),
    ):
        assert 1 <= len(answer.tokens) <= 5 or answer.finish == "stop"
        assert answer.usage.pictures >= 1
    ranking = vlm.classify(picture, LABELS)
    assert {label.label for label in ranking} == set(LABELS)
    assert sum(label.probability for label in ranking) == pytest.approx(1)


def test_pictures_before_between_and_after_text(vlm):
    """Zero to five pictures, all of different sizes: a batch gives what the reference implementation gives alone."""
    items = [
        ["What is there?"],
        [PICTURES[0], "What is it?"],
        ["Look: ", PICTURES[1]],
        ["A", PICTURES[2], "or", PICTURES[3], "?"],
        [*PICTURES, "Which one?"],
        [PICTURES[4], "\n", PICTURES[0], PICTURES[1], "and", PICTURES[2]],
    ]
    prompts = [vlm.prompt(some) for some in items]
    slow = [
        reference_greedy(
            vlm.engine.model,
            one,
            12,
            stop_ids=vlm.loaded_model.stop_ids,
            banned_ids=vlm.processor.image_placeholder_ids,
        )
        for one in prompts
    ]
    assert [list(answer.tokens) for answer in vlm.generate(items, max_new_tokens=12)] == slow
    alone = [vlm.generate(some, max_new_tokens=12) for some in items]
    assert [list(answer.tokens) for answer in alone] == slow


def test_a_conversation_over_pictures(vlm):
    turns = [
        user(Picture(PICTURES[0]), "What is it?"),
        assistant("A wall."),
        user(Picture(PICTURES[1]), "This?"),
    ]
    answer = vlm.chat(turns, max_new_tokens=8)
    prompt = vlm.prompt(turns)
    slow = reference_greedy(
        vlm.engine.model,
        prompt,
        8,
        stop_ids=vlm.loaded_model.stop_ids,
        banned_ids=vlm.processor.image_placeholder_ids,
    )
    assert list(answer.tokens) == slow
    assert "".join(vlm.chat(turns, max_new_tokens=8, stream=True)) == answer.text
    assert len(prompt.image_token_positions[0]) == 5 * 5  # five frames of five latents


def test_image_tokens_and_stop_ids(vlm):
    tokenizer = vlm.processor.tokenizer
    assert vlm.loaded_model.stop_ids == {2, tokenizer.token_to_id(END_OF_UTTERANCE)}
    request = Request(
        vlm.prompt(["a"]),
        Sampling(max_new_tokens=200, temperature=5.0, seed=1),
        banned_ids=vlm.processor.image_placeholder_ids,
    )
    ids = vlm.engine.submit(request).result().ids
    assert len(ids) == 200 and not vlm.processor.image_placeholder_ids & set(ids)


def test_answers_are_those_of_transformers(vlm, folder):
    """Its processor prepares the pictures; the ids are ours, since its tokenizer loses blanks."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil

    reference = transformers.Idefics2ForConditionalGeneration.from_pretrained(folder).eval()
    processor = Idefics2ImageProcessorPil.from_pretrained(folder)
    shown = [PICTURES[0], PICTURES[1], PICTURES[2]]
    for items in ([shown[0], "What?"], ["a", shown[1], "b", shown[2], "c"], [*shown, "Which?"]):
        prompt = vlm.prompt(items)
        pixels = processor([item for item in items if not isinstance(item, str)], return_tensors="pt")
        ids = torch.tensor([prompt.ids])
        with torch.inference_mode():
            expected = reference(input_ids=ids, **pixels).logits[0]
        torch.testing.assert_close(vlm.logits(prompt), expected, atol=1e-4, rtol=1e-4)


# Base


def test_base_continues_documents(base_model):
    assert base_model.processor.prompt_format.kind == "base"
    assert base_model.loaded_model.stop_ids == {2}
    with pytest.raises(UnsupportedModel, match="no chat template"):
        base_model.chat([user("Hello")])


def test_base_has_no_token_for_the_end_of_a_turn(base_model):
    rows = base_model.engine.model.layout.vocab_size
    assert base_model.processor.tokenizer.token_to_id(END_OF_UTTERANCE) == rows
    with pytest.raises(BadPrompt, match=f"token {rows}, but this model's tokens are 0 to {rows - 1}"):
        base_model.generate([PICTURES[0], f"a{END_OF_UTTERANCE}"])
