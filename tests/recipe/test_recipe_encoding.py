"""What training reads is what the product sends, token for token and pixel for pixel."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as Library

import idefics
from idefics import Message, Picture, user
from idefics.models import read_checkpoint
from idefics.processing import settings
from idefics.processing.fetch import Fetcher
from idefics.processing.processor import Processor
from idefics.processing.tokenizer import Tokenizer
from picturebook import DETAILED_KINDS, MIX, draw, make, sample
from recipe.batches import collate, frames_of
from recipe.checkpoints import RECIPES
from recipe.encoding import Encoder

DEMO = Path(idefics.__file__).parent / "demo"
BLANK = Picture(np.zeros((96, 96, 3), dtype=np.uint8))


class Checkpoint:
    """The two readers of one demo checkpoint's settings: training's and the product's."""

    def __init__(self, recipe):
        folder = DEMO / recipe.folder
        checkpoint = read_checkpoint(folder)
        self.tokenizer = Tokenizer.load(folder)
        self.plan = checkpoint.family.images(checkpoint.config, settings.preprocessor(folder))
        style = checkpoint.family.prompt(settings.chat_template(folder), self.tokenizer.added)
        self.processor = Processor(self.tokenizer, self.plan, style, Fetcher(policy="off"))
        library = Library.from_file(str(folder / "tokenizer.json"))
        self.encoder = Encoder(library, 0 if checkpoint.config.cross else self.plan.tokens)
        self.stop_ids, self.recipe, self.folder = checkpoint.config.stop_ids, recipe, folder


@pytest.fixture(scope="module")
def checkpoints():
    return {name: Checkpoint(recipe) for name, recipe in RECIPES.items()}


def words_of(turn):
    return f"{turn.given} {turn.parts[0]}" if turn.given else turn.parts[0]


def prompts(processor, sample):
    """For each answer of a sample its number, and the prompt that a user of the product would send for it."""
    if sample.raw:
        items = [part if isinstance(part, str) else BLANK for part in sample.turns[0].parts]
        yield 1, processor.raw(items)
        return
    messages = []
    for number, turn in enumerate(sample.turns):
        if turn.role == "user":
            messages.append(user(*(part if isinstance(part, str) else BLANK for part in turn.parts)))
        else:
            yield number, processor.chat(messages, answer_start=turn.given)
            messages.append(Message("assistant", (words_of(turn),)))


KINDS = [
    (name, kind)
    for name, recipe in RECIPES.items()
    for kind in (*MIX, *DETAILED_KINDS)
    if recipe.raw or not kind.startswith("raw")
]


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_training_reads_what_the_product_sends(checkpoints, name, kind):
    """Prompt ids, the picture that each token sees, the places of pictures; then the answer, which alone is learned."""
    checkpoint, rng = checkpoints[name], random.Random(3)
    encoder, tokenizer = checkpoint.encoder, checkpoint.tokenizer
    for split in ("train", "held-out"):
        for _ in range(8):
            sample = make(rng, split, kind)
            encoded = encoder(sample)
            ids, learned = encoded.ids.tolist(), np.zeros(len(encoded.ids), dtype=bool)
            for number, prompt in prompts(checkpoint.processor, sample):
                length, turn = len(prompt), sample.turns[number]
                assert list(prompt.ids) == ids[:length]
                assert list(prompt.sees) == encoded.sees[:length].tolist()
                marks = [position for position, id in enumerate(prompt.ids) if id == encoder.image]
                assert [position for places in prompt.places for position in places] == marks
                end = next(
                    position for position in range(length, len(ids)) if is_end(tokenizer, ids[position])
                )
                assert tokenizer.decode_bytes(ids[length:end]).decode().lstrip(" ") == turn.parts[0]
                learned[length : end + 1] = turn.learn
            assert encoded.learned.tolist() == learned.tolist()


def is_end(tokenizer, id):
    return id in (tokenizer.token_id("<end_of_utterance>"), tokenizer.token_id("</s>"))


@pytest.mark.parametrize("name", RECIPES)
def test_answers_that_are_ranked_are_tokenised_as_those_that_are_learned(checkpoints, name):
    checkpoint, rng = checkpoints[name], random.Random(4)
    for _ in range(40):
        sample = make(rng, "train", "classify")
        encoded = checkpoint.encoder(sample).ids.tolist()
        question = next(part for part in sample.turns[0].parts if isinstance(part, str))
        labels = question.partition("list: ")[2].removesuffix(".").split(", ")
        prompt, endings = checkpoint.processor.chat_endings([user(BLANK, question)], labels)
        right = endings[labels.index(sample.turns[1].parts[0])]
        assert encoded[: len(prompt) + len(right)] == [*prompt.ids, *right]


@pytest.mark.parametrize("name", RECIPES)
def test_answers_end_where_the_product_stops(checkpoints, name):
    checkpoint = checkpoints[name]
    turn_end = checkpoint.tokenizer.token_id(checkpoint.processor.style.turn_end)
    chat = make(random.Random(0), "train", "caption")
    assert turn_end in checkpoint.encoder(chat).ids[checkpoint.encoder(chat).learned]
    if checkpoint.recipe.raw:
        document = make(random.Random(0), "train", "raw")
        assert checkpoint.encoder(document).ids[-1] in checkpoint.stop_ids


@pytest.mark.parametrize("name", RECIPES)
def test_training_sees_what_the_product_sees(checkpoints, name):
    """To a rounding of float32. Shapes alone: they are drawn without a font."""
    plan, rng = checkpoints[name].plan, random.Random(5)
    scenes = [sample(rng, "train", only="shape") for _ in range(6)]
    for scene, frame in zip(scenes, frames_of(scenes, plan).numpy(), strict=True):
        prompt = checkpoints[name].processor.chat([user(Picture(draw(scene)), "Describe this image.")])
        (seen,) = prompt.pictures[0].frames
        assert np.abs(seen - frame).max() < 1e-6


@pytest.mark.parametrize("name", RECIPES)
def test_batches_learn_the_next_token(checkpoints, name):
    """Each row's targets are its answers, one to the left; each token sees a picture of its own row."""
    checkpoint, rng = checkpoints[name], random.Random(6)
    encoded = []
    while len(encoded) < 4:
        chat = make(rng, "train", "chat")
        if all(item.thing.kind == "shape" for scene in chat.scenes for item in scene.items):
            encoded.append(checkpoint.encoder(chat))
    batch = collate(encoded, checkpoint.plan, pad=0)
    rows = zip(*(part.view(4, -1) for part in (batch.ids, batch.targets, batch.sees)), strict=True)
    for number, (row, (ids, targets, sees)) in enumerate(zip(encoded, rows, strict=True)):
        length = len(row.ids)
        assert ids[:length].tolist() == row.ids.tolist()
        assert targets[targets >= 0].tolist() == row.ids[row.learned].tolist()
        assert targets.roll(1)[:length][row.learned].tolist() == row.ids[row.learned].tolist()
        assert set(sees[sees >= 0].tolist()) <= {2 * number, 2 * number + 1}
    assert len(batch.frames) == 8


@pytest.mark.parametrize("name", RECIPES)
def test_the_shipped_settings_are_those_of_the_recipe(checkpoints, name):
    recipe, folder = RECIPES[name], checkpoints[name].folder
    library = Library.from_file(str(folder / "tokenizer.json"))
    wanted = {
        **recipe.settings,
        "config.json": recipe.config(library),
        "generation_config.json": recipe.generation(library),
    }
    for file, content in wanted.items():
        assert json.loads((folder / file).read_text(encoding="utf-8")) == content, file
