"""Sample rows are answered by the model in training as it would answer anybody, and training does not notice."""

import numpy as np
import pytest
import torch

import idefics
from idefics import Picture, assistant, user
from idefics.demo import pictures as demo_pictures
from idefics.train.rows import TrainingRow
from idefics.train.samples import MAX_NEW_TOKENS, SampleAnswerer, SampleRow
from idefics.train.settings import TrainSettings
from idefics.train.trainee import find_trainable_checkpoint, load_trainee

PICTURES = {path.stem: str(path) for path in demo_pictures()}
DOOR, TOWER = Picture(PICTURES["door"]), Picture(PICTURES["tower"])
QUESTION = "What color is the ground?"


@pytest.fixture(scope="module", params=["demo", "demo-idefics1"])
def model_name(request):
    return request.param


@pytest.fixture(scope="module")
def vlm(model_name):
    with idefics.load(model_name, kernels="reference", feature_cache=False) as model:
        yield model


def make_row(vlm, messages, answer, name="row"):
    """A row whose last answer is `answer`; no earlier one is learned."""
    processor = vlm.loaded_model.processor
    prompt = processor.encode_chat(messages)
    answer_ids = processor.tokenizer.encode(f" {answer}", add_special_tokens=False)
    ids = [*prompt.ids, *answer_ids, min(vlm.loaded_model.stop_ids)]
    index = [*prompt.image_index, *prompt.image_index[-1:] * (len(ids) - len(prompt))]
    return TrainingRow(
        name=name,
        ids=np.array(ids, np.int32),
        is_target=np.arange(len(ids)) >= len(prompt),
        image_index=np.array(index, np.int32),
        image_token_positions=tuple(np.array(one, np.int32) for one in prompt.image_token_positions),
        picture_keys=tuple(one.content_hash for one in prompt.pictures),
        read_pictures=lambda: prompt.pictures,
    )


def make_answerer(vlm, rows):
    loaded = vlm.loaded_model
    return SampleAnswerer(
        loaded.engine.model, rows, loaded.processor.tokenizer, loaded.stop_ids, loaded.banned_ids
    )


@pytest.mark.parametrize("targets", ["text", "text+connector", "all"])
def test_a_model_that_trains_in_bfloat16_answers_whatever_learns(vlm, model_name, targets, tmp_path):
    settings = TrainSettings(data="x", model=model_name, out=tmp_path, targets=targets, dtype="bfloat16")
    model = load_trainee(find_trainable_checkpoint(settings), settings).model
    loaded = vlm.loaded_model
    rows = [make_row(vlm, [user(DOOR, QUESTION)], "Purple.")]
    answerer = SampleAnswerer(model, rows, loaded.processor.tokenizer, loaded.stop_ids, loaded.banned_ids)
    (record,) = answerer.answer(0)
    assert record.answer == vlm.chat([user(DOOR, QUESTION)], max_new_tokens=MAX_NEW_TOKENS).text.strip()


def test_answers_are_those_that_the_model_gives_anyone(vlm):
    two_turns = [user(DOOR, QUESTION), assistant("Gray."), user(TOWER, "And here?")]
    rows = [
        make_row(vlm, [user(DOOR, QUESTION)], "Purple."),
        make_row(vlm, two_turns, "Blue.", "second"),
    ]
    first, second = make_answerer(vlm, rows).answer(7)
    assert first.answer == vlm.chat([user(DOOR, QUESTION)], max_new_tokens=MAX_NEW_TOKENS).text.strip()
    assert second.answer == vlm.chat(two_turns, max_new_tokens=MAX_NEW_TOKENS).text.strip()
    assert (first.step, first.row, first.reference) == (7, "row", "Purple.")
    assert (second.row, second.reference) == ("second", "Blue.")
    assert QUESTION in first.prompt and "Purple" not in first.prompt
    assert "Gray." in second.prompt and "image" not in second.prompt


def test_training_does_not_notice(vlm):
    model = vlm.loaded_model.engine.model
    row = make_row(vlm, [user(DOOR, QUESTION)], "Purple.")
    model.train()
    model.model.vision_model.eval()
    modes, state = [module.training for module in model.modules()], torch.get_rng_state()
    ids, weights = row.ids.copy(), [weight.clone() for weight in model.parameters()]
    list(make_answerer(vlm, [row]).answer(0))
    assert [module.training for module in model.modules()] == modes and True in modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, weights, model.parameters())) and (row.ids == ids).all()
    model.eval()
    x = model.embed(torch.tensor(row.ids[:4]))
    assert not x.is_inference()


def test_answers_drop_nothing_out(vlm, model_name):
    """An adapter with dropout, whose factors change the answers."""
    settings = TrainSettings(data="x", model=model_name, out="x", dropout=0.9)
    checkpoint = find_trainable_checkpoint(settings)
    trainee = load_trainee(checkpoint, settings)
    for name, weight in trainee.learned.by_name.items():
        if name.endswith("lora_B.weight"):
            torch.nn.init.normal_(weight, std=0.3)
    row = make_row(vlm, [user(DOOR, QUESTION)], "Purple.")
    loaded = vlm.loaded_model
    parts = (loaded.processor.tokenizer, loaded.stop_ids, loaded.banned_ids)
    trainee.model.train()
    answers = {next(SampleAnswerer(trainee.model, [row], *parts).answer(0)).answer for _ in range(3)}
    trainee.model.eval()
    assert answers == {next(SampleAnswerer(trainee.model, [row], *parts).answer(0)).answer}


def test_the_answer_of_a_row_is_its_last_run_of_learned_tokens():
    def split(targets, image_positions=()):
        row = TrainingRow(
            name="row",
            ids=np.arange(len(targets), dtype=np.int32),
            is_target=np.array(targets, bool),
            image_index=np.zeros(len(targets), np.int32),
            image_token_positions=tuple(np.array([one]) for one in image_positions),
            picture_keys=("",) * len(image_positions),
            read_pictures=lambda: tuple(f"picture {one}" for one in image_positions),
        )
        return SampleRow.of(row)

    sample = split([0, 1, 1, 0, 0, 1, 1, 0], (0, 3))
    assert (sample.start, sample.end) == (5, 7)
    prompt = sample.read_prompt()
    assert (prompt.ids, prompt.image_token_positions) == ((0, 1, 2, 3, 4), ((0,), (3,)))
    assert prompt.pictures == ("picture 0", "picture 3")
    document = split([1, 1, 0, 1, 1, 1], (2,))
    assert (document.start, document.end) == (3, 6)
    text = split([1, 1, 1])
    assert (text.start, text.end) == (1, 3), "a prompt has a token at least"
    after = split([0, 1, 1, 0, 0], (0, 4)).read_prompt()
    assert (after.ids, after.pictures) == ((0,), ("picture 0",))
