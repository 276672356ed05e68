"""Every catalog entry as a tiny checkpoint, in every layout of its folder: it loads and gives the same answer."""

from dataclasses import replace
from functools import cache

import PIL.Image
import pytest
import torch

import idefics
from idefics.catalog import CATALOG
from idefics.errors import UnsupportedModel
from idefics.models import read_checkpoint
from models import checkpoint_folders
from models.released import CONFIG_WITH_DIFFERENCES_ONLY, FLAT_CONFIG, RELEASED_BY_NAME

QUESTION = "What is on the table?"
RELEASED_VARIANTS = {
    **RELEASED_BY_NAME,
    "9b, differences only": replace(RELEASED_BY_NAME["9b"], config=CONFIG_WITH_DIFFERENCES_ONLY),
    "80b-instruct, flat": replace(RELEASED_BY_NAME["80b-instruct"], config=FLAT_CONFIG),
}
FOLDER_CONVERSIONS = {
    "old names, in pieces": (checkpoint_folders.rename_to_old_keys, checkpoint_folders.split_into_shards),
    "saved by 5": (checkpoint_folders.convert_to_transformers5_layout,),
}


def photo():
    return PIL.Image.radial_gradient("L").resize((60, 40)).convert("RGB")


def load(folder):
    return idefics.load(folder, device="cpu", dtype="float32")


class TinyRelease:
    """A released checkpoint, tiny, as the hub has it, with the weights in one file; and what it says."""

    def __init__(self, folder, released):
        self.folder = checkpoint_folders.write_hub_layout(folder, released)
        self.config = read_checkpoint(self.folder).config
        self.vlm = load(self.folder)
        self.logits, self.tokens = logits_and_answer_ids(self.vlm)


def logits_and_answer_ids(vlm):
    """Logits of a question about a picture, and the ids of an answer."""
    answer = vlm.ask(photo(), QUESTION, max_new_tokens=3)
    return vlm.logits(vlm.prompt([photo(), QUESTION])), answer.tokens


@pytest.fixture(scope="module")
def get_tiny_release(tmp_path_factory):
    """Rows by their short names, made once."""
    return cache(lambda name: TinyRelease(tmp_path_factory.mktemp("row"), RELEASED_VARIANTS[name]))


def test_every_row_of_the_catalog_is_here():
    assert set(RELEASED_BY_NAME) == {row.name for row in CATALOG if row.hub_id}
    assert {row.name: row.model_type for row in CATALOG if row.hub_id} == {
        name: released.config["model_type"] for name, released in RELEASED_BY_NAME.items()
    }


@pytest.mark.parametrize("name", RELEASED_VARIANTS)
def test_a_row_answers_as_the_hub_has_it(get_tiny_release, name):
    one, text = get_tiny_release(name), get_tiny_release(name).config.text
    assert one.logits.isfinite().all()
    assert one.logits.shape[1] == text.vocab_size + text.additional_vocab_size
    assert len(one.tokens) <= 3
    assert one.config.dtype == RELEASED_VARIANTS[name].config["torch_dtype"]
    kind = "chat" if RELEASED_VARIANTS[name].template or "-instruct" in name else "base"
    assert one.vlm.processor.prompt_format.kind == kind
    assert (one.vlm.processor.image_config.video is not None) == name.startswith("smolvlm2")


@pytest.mark.parametrize("layout", FOLDER_CONVERSIONS)
@pytest.mark.parametrize("name", RELEASED_VARIANTS)
def test_every_layout_is_the_same_model(get_tiny_release, tmp_path, name, layout):
    hub, folder = get_tiny_release(name), copy_folder(get_tiny_release(name).folder, tmp_path)
    for change in FOLDER_CONVERSIONS[layout]:
        change(folder)
    assert read_checkpoint(folder).config == hub.config
    vlm = load(folder)
    logits, tokens = logits_and_answer_ids(vlm)
    weights = hub.vlm.engine.model.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in vlm.engine.model.state_dict().items())
    assert_same(logits, hub.logits)
    assert tokens == hub.tokens
    assert assert_same_processor(vlm, hub.vlm)


def assert_same(logits, others):
    """But for how products are rounded: mapped weights lie as their place in a file has it, aligned or not."""
    torch.testing.assert_close(logits, others, rtol=0, atol=1e-5)


def assert_same_processor(one, other):
    """What a model is fed, and what ends its answers."""
    parts = [
        (vlm.processor.image_config, vlm.processor.prompt_format, vlm.loaded_model.stop_ids)
        for vlm in (one, other)
    ]
    return parts[0] == parts[1]


def copy_folder(source, target):
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


@pytest.mark.parametrize(
    "name", ["9b-instruct", "idefics2-8b", "idefics3-8b", "smolvlm-2.2b", "granite-docling-258m"]
)
def test_what_transformers_5_really_saves(get_tiny_release, tmp_path, name):
    """Its own classes read the folder and write it again."""
    transformers = pytest.importorskip("transformers")
    hub = get_tiny_release(name)
    for kind in (transformers.AutoModelForImageTextToText, transformers.AutoProcessor):
        kind.from_pretrained(hub.folder).save_pretrained(tmp_path)
    assert not (tmp_path / "preprocessor_config.json").exists()
    vlm = load(tmp_path)
    assert_same(vlm.logits(hub.vlm.prompt([photo(), QUESTION])), hub.logits)
    assert assert_same_processor(vlm, hub.vlm)
    logits, tokens = logits_and_answer_ids(vlm)
    # It writes another tokenizer.json than it read for the two that came from SentencePiece: their ids differ.
    if name not in ("9b-instruct", "idefics2-8b"):
        assert_same(logits, hub.logits)
        assert tokens == hub.tokens


STOP_TOKENS_BY_NAME = {
    "9b": {"</s>"},
    "9b-instruct": {"</s>", "<end_of_utterance>"},
    "idefics2-8b": {"</s>", "<end_of_utterance>"},
    "idefics2-8b-base": {"</s>"},
    "idefics3-8b": {"<|end_of_text|>", "<|eom_id|>", "<|eot_id|>", "<end_of_utterance>"},
    "smolvlm-500m": {"<end_of_utterance>"},
    "smolvlm-2.2b": {"<end_of_utterance>"},
    "smolvlm2-2.2b": {"<end_of_utterance>"},
}


@pytest.mark.parametrize("name", STOP_TOKENS_BY_NAME)
def test_what_ends_an_answer(get_tiny_release, name):
    vlm = get_tiny_release(name).vlm
    assert vlm.loaded_model.stop_ids == {
        vlm.processor.tokenizer.token_to_id(token) for token in STOP_TOKENS_BY_NAME[name]
    }


PICKLE_FILES_BY_LAYOUT = {
    "one": ["pytorch_model.bin"],
    "shards": ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"],
    "an index": ["pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin"],
    "pt": ["model.pt"],
    "pth": ["consolidated.00.pth"],
}


@pytest.mark.parametrize("files", PICKLE_FILES_BY_LAYOUT.values(), ids=PICKLE_FILES_BY_LAYOUT)
def test_a_pickle_checkpoint_is_refused(get_tiny_release, tmp_path, files):
    folder = copy_folder(get_tiny_release("smolvlm-256m").folder, tmp_path)
    (folder / checkpoint_folders.WEIGHTS_FILE).unlink()
    for file in files:
        (folder / file).write_bytes(b"never opened")
    with pytest.raises(UnsupportedModel) as refusal:
        load(folder)
    message = str(refusal.value)
    assert "\n" not in message
    assert all(words in message for words in ("pickle", "safetensors", "To convert", "weights_only=True"))


@pytest.mark.parametrize("name", ["9b-instruct", "smolvlm-256m"])
def test_safetensors_win_over_pickles_in_the_same_folder(get_tiny_release, tmp_path, name):
    folder = copy_folder(get_tiny_release(name).folder, tmp_path)
    for file in PICKLE_FILES_BY_LAYOUT["an index"]:
        (folder / file).write_bytes(b"never opened")
    assert_same(logits_and_answer_ids(load(folder))[0], get_tiny_release(name).logits)
