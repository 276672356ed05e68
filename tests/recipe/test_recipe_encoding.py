"""Training data equals what the package sends to the model: token by token, pixel by pixel."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as Library

import idefics
from idefics import Message, Picture, user
from idefics.models import read_checkpoint
from idefics.processing import checkpoint_settings
from idefics.processing.fetch import Fetcher
from idefics.processing.processor import Processor
from idefics.processing.tokenizer import Tokenizer
from picturebook import DETAILED_KINDS, WEIGHT_BY_KIND, draw_scene, make_sample, sample_scene
from recipe.batches import collate, render_frames
from recipe.checkpoints import RECIPE_BY_NAME
from recipe.encoding import SampleEncoder

DEMO = Path(idefics.__file__).parent / "demo"
BLANK = Picture(np.zeros((96, 96, 3), dtype=np.uint8))


class EncoderAndProcessor:
    """The training encoder and the package's processor of one demo checkpoint."""

    def __init__(self, recipe):
        folder = DEMO / recipe.folder
        checkpoint = read_checkpoint(folder)
        self.tokenizer = Tokenizer.load(folder)
        self.image_plan = checkpoint.family.read_image_config(
            checkpoint.config, checkpoint_settings.read_preprocessor_config(folder)
        )
        style = checkpoint.family.read_prompt_format(
            checkpoint_settings.read_chat_template(folder), self.tokenizer.added_token_contents
        )
        self.processor = Processor(self.tokenizer, self.image_plan, style, Fetcher(policy="off"))
        library = Library.from_file(str(folder / "tokenizer.json"))
        self.encoder = SampleEncoder(
            library, 0 if checkpoint.config.cross_attention else self.image_plan.tokens_per_frame
        )
        self.stop_ids, self.recipe, self.folder = checkpoint.config.stop_ids, recipe, folder


@pytest.fixture(scope="module")
def checkpoints():
    return {name: EncoderAndProcessor(recipe) for name, recipe in RECIPE_BY_NAME.items()}


def turn_text(turn):
    return f"{turn.answer_prefix} {turn.parts[0]}" if turn.answer_prefix else turn.parts[0]


def prompts_for_answers(processor, sample):
    """For each answer of a sample its turn and the prompt that the package makes for it."""
    if sample.is_raw_prompt:
        items = [part if isinstance(part, str) else BLANK for part in sample.turns[0].parts]
        yield 1, processor.encode_raw(items)
        return
    messages = []
    for number, turn in enumerate(sample.turns):
        if turn.role == "user":
            messages.append(user(*(part if isinstance(part, str) else BLANK for part in turn.parts)))
        else:
            yield number, processor.encode_chat(messages, answer_start=turn.answer_prefix)
            messages.append(Message("assistant", (turn_text(turn),)))


KINDS = [
    (name, kind)
    for name, recipe in RECIPE_BY_NAME.items()
    for kind in (*WEIGHT_BY_KIND, *DETAILED_KINDS)
    if recipe.has_raw_prompts or not kind.startswith("raw")
]


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_training_prompts_equal_the_packages(checkpoints, name, kind):
    """Prompt ids, the picture of each token, image token positions; then the answer, the only target of the loss."""
    checkpoint, rng = checkpoints[name], random.Random(3)
    encoder, tokenizer = checkpoint.encoder, checkpoint.tokenizer
    for split in ("train", "held-out"):
        for _ in range(8):
            sample = make_sample(rng, split, kind)
            encoded = encoder(sample)
            ids, learned = encoded.ids.tolist(), np.zeros(len(encoded.ids), dtype=bool)
            for number, prompt in prompts_for_answers(checkpoint.processor, sample):
                length, turn = len(prompt), sample.turns[number]
                assert list(prompt.ids) == ids[:length]
                assert list(prompt.image_index) == encoded.image_index[:length].tolist()
                marks = [position for position, id in enumerate(prompt.ids) if id == encoder.image_token_id]
                assert [position for places in prompt.image_token_positions for position in places] == marks
                end = next(
                    position
                    for position in range(length, len(ids))
                    if is_stop_token(tokenizer, ids[position])
                )
                assert tokenizer.decode_bytes(ids[length:end]).decode().lstrip(" ") == turn.parts[0]
                learned[length : end + 1] = turn.is_target
            assert encoded.is_target.tolist() == learned.tolist()


def is_stop_token(tokenizer, id):
    return id in (tokenizer.token_to_id("<end_of_utterance>"), tokenizer.token_to_id("</s>"))


@pytest.mark.parametrize("name", RECIPE_BY_NAME)
def test_ranked_answers_are_tokenised_as_in_training(checkpoints, name):
    checkpoint, rng = checkpoints[name], random.Random(4)
    for _ in range(40):
        sample = make_sample(rng, "train", "classify")
        encoded = checkpoint.encoder(sample).ids.tolist()
        question = next(part for part in sample.turns[0].parts if isinstance(part, str))
        labels = question.partition("list: ")[2].removesuffix(".").split(", ")
        prompt, endings = checkpoint.processor.encode_chat_continuations([user(BLANK, question)], labels)
        right = endings[labels.index(sample.turns[1].parts[0])]
        assert encoded[: len(prompt) + len(right)] == [*prompt.ids, *right]


@pytest.mark.parametrize("name", RECIPE_BY_NAME)
def test_answers_end_with_a_stop_id(checkpoints, name):
    checkpoint = checkpoints[name]
    turn_end = checkpoint.tokenizer.token_to_id(checkpoint.processor.prompt_format.turn_end_token)
    chat = make_sample(random.Random(0), "train", "caption")
    assert turn_end in checkpoint.encoder(chat).ids[checkpoint.encoder(chat).is_target]
    if checkpoint.recipe.has_raw_prompts:
        document = make_sample(random.Random(0), "train", "raw")
        assert checkpoint.encoder(document).ids[-1] in checkpoint.stop_ids


@pytest.mark.parametrize("name", RECIPE_BY_NAME)
def test_training_frames_equal_the_packages(checkpoints, name):
    """To a rounding of float32. Only shapes, which need no font."""
    plan, rng = checkpoints[name].image_plan, random.Random(5)
    scenes = [sample_scene(rng, "train", thing_filter="shape") for _ in range(6)]
    for scene, frame in zip(scenes, render_frames(scenes, plan).numpy(), strict=True):
        prompt = checkpoints[name].processor.encode_chat(
            [user(Picture(draw_scene(scene)), "Describe this image.")]
        )
        (seen,) = prompt.pictures[0].frames
        assert np.abs(seen - frame).max() < 1e-6


@pytest.mark.parametrize("name", RECIPE_BY_NAME)
def test_targets_are_the_next_tokens_of_answers(checkpoints, name):
    """The targets of a sequence are its answers, shifted by one; tokens attend to pictures of their own sequence."""
    checkpoint, rng = checkpoints[name], random.Random(6)
    encoded = []
    while len(encoded) < 4:
        chat = make_sample(rng, "train", "chat")
        if all(item.thing.category == "shape" for scene in chat.scenes for item in scene.items):
            encoded.append(checkpoint.encoder(chat))
    batch = collate(encoded, checkpoint.image_plan, pad_id=0)
    rows = zip(*(part.view(4, -1) for part in (batch.ids, batch.targets, batch.image_index)), strict=True)
    for number, (row, (ids, targets, sees)) in enumerate(zip(encoded, rows, strict=True)):
        length = len(row.ids)
        assert ids[:length].tolist() == row.ids.tolist()
        assert targets[targets >= 0].tolist() == row.ids[row.is_target].tolist()
        assert targets.roll(1)[:length][row.is_target].tolist() == row.ids[row.is_target].tolist()
        assert set(sees[sees >= 0].tolist()) <= {2 * number, 2 * number + 1}
    assert len(batch.frames) == 8


@pytest.mark.parametrize("name", RECIPE_BY_NAME)
def test_the_shipped_settings_are_those_of_the_recipe(checkpoints, name):
    recipe, folder = RECIPE_BY_NAME[name], checkpoints[name].folder
    library = Library.from_file(str(folder / "tokenizer.json"))
    wanted = {
        **recipe.json_by_filename,
        "config.json": recipe.make_config(library),
        "generation_config.json": recipe.make_generation_config(library),
    }
    for file, content in wanted.items():
        assert json.loads((folder / file).read_text(encoding="utf-8")) == content, file
