"""Every released checkpoint, tiny, from every layout of its folder: it loads, and says the same of the same picture."""

from dataclasses import replace
from functools import cache

import PIL.Image
import pytest
import torch

import idefics
from idefics.catalog import CATALOG
from idefics.errors import UnsupportedModel
from idefics.models import read_checkpoint
from models import folders
from models.released import DIFFERENCES, FLAT, RELEASED

QUESTION = "What is on the table?"
ROWS = {
    **RELEASED,
    "9b, differences only": replace(RELEASED["9b"], config=DIFFERENCES),
    "80b-instruct, flat": replace(RELEASED["80b-instruct"], config=FLAT),
}
LAYOUTS = {
    "old names, in pieces": (folders.with_old_names, folders.in_pieces),
    "saved by 5": (folders.as_saved_by_5,),
}


def photo():
    return PIL.Image.radial_gradient("L").resize((60, 40)).convert("RGB")


def load(folder):
    return idefics.load(folder, device="cpu", dtype="float32")


class Row:
    """A released checkpoint, tiny, as the hub has it, with the weights in one file; and what it says."""

    def __init__(self, folder, released):
        self.folder = folders.as_on_the_hub(folder, released)
        self.config = read_checkpoint(self.folder).config
        self.vlm = load(self.folder)
        self.logits, self.tokens = said(self.vlm)


def said(vlm):
    """Logits of a question about a picture, and the ids of an answer."""
    answer = vlm.ask(photo(), QUESTION, max_new_tokens=3)
    return vlm.logits(vlm.prompt([photo(), QUESTION])), answer.tokens


@pytest.fixture(scope="module")
def row(tmp_path_factory):
    """Rows by their short names, made once."""
    return cache(lambda name: Row(tmp_path_factory.mktemp("row"), ROWS[name]))


def test_every_row_of_the_catalog_is_here():
    assert set(RELEASED) == {row.name for row in CATALOG if row.hub}
    assert {row.name: row.model_type for row in CATALOG if row.hub} == {
        name: released.config["model_type"] for name, released in RELEASED.items()
    }


@pytest.mark.parametrize("name", ROWS)
def test_a_row_answers_as_the_hub_has_it(row, name):
    one, text = row(name), row(name).config.text
    assert one.logits.isfinite().all()
    assert one.logits.shape[1] == text.vocabulary + text.additional_vocabulary
    assert len(one.tokens) <= 3
    assert one.config.dtype == ROWS[name].config["torch_dtype"]
    kind = "chat" if ROWS[name].template or "-instruct" in name else "base"
    assert one.vlm.processor.style.kind == kind
    assert (one.vlm.processor.plan.video is not None) == name.startswith("smolvlm2")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ROWS)
def test_every_layout_is_the_same_model(row, tmp_path, name, layout):
    hub, folder = row(name), copied(row(name).folder, tmp_path)
    for change in LAYOUTS[layout]:
        change(folder)
    assert read_checkpoint(folder).config == hub.config
    vlm = load(folder)
    logits, tokens = said(vlm)
    weights = hub.vlm.engine.model.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in vlm.engine.model.state_dict().items())
    assert_same(logits, hub.logits)
    assert tokens == hub.tokens
    assert same_processor(vlm, hub.vlm)


def assert_same(logits, others):
    """But for how products are rounded: mapped weights lie as their place in a file has it, aligned or not."""
    torch.testing.assert_close(logits, others, rtol=0, atol=1e-5)


def same_processor(one, other):
    """What a model is fed, and what ends its answers."""
    parts = [(vlm.processor.plan, vlm.processor.style, vlm.stop_ids) for vlm in (one, other)]
    return parts[0] == parts[1]


def copied(source, target):
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


@pytest.mark.parametrize(
    "name", ["9b-instruct", "idefics2-8b", "idefics3-8b", "smolvlm-2.2b", "granite-docling-258m"]
)
def test_what_transformers_5_really_saves(row, tmp_path, name):
    """Its own classes read the folder and write it again."""
    transformers = pytest.importorskip("transformers")
    hub = row(name)
    for kind in (transformers.AutoModelForImageTextToText, transformers.AutoProcessor):
        kind.from_pretrained(hub.folder).save_pretrained(tmp_path)
    assert not (tmp_path / "preprocessor_config.json").exists()
    vlm = load(tmp_path)
    assert_same(vlm.logits(hub.vlm.prompt([photo(), QUESTION])), hub.logits)
    assert same_processor(vlm, hub.vlm)
    logits, tokens = said(vlm)
    # It writes another tokenizer.json than it read for the two that came from SentencePiece: their ids differ.
    if name not in ("9b-instruct", "idefics2-8b"):
        assert_same(logits, hub.logits)
        assert tokens == hub.tokens


STOPS = {
    "9b": {"</s>"},
    "9b-instruct": {"</s>", "<end_of_utterance>"},
    "idefics2-8b": {"</s>", "<end_of_utterance>"},
    "idefics2-8b-base": {"</s>"},
    "idefics3-8b": {"<|end_of_text|>", "<|eom_id|>", "<|eot_id|>", "<end_of_utterance>"},
    "smolvlm-500m": {"<end_of_utterance>"},
    "smolvlm-2.2b": {"<end_of_utterance>"},
    "smolvlm2-2.2b": {"<end_of_utterance>"},
}


@pytest.mark.parametrize("name", STOPS)
def test_what_ends_an_answer(row, name):
    vlm = row(name).vlm
    assert vlm.stop_ids == {vlm.processor.tokenizer.token_id(token) for token in STOPS[name]}


PICKLES = {
    "one": ["pytorch_model.bin"],
    "shards": ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"],
    "an index": ["pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin"],
    "pt": ["model.pt"],
    "pth": ["consolidated.00.pth"],
}


@pytest.mark.parametrize("files", PICKLES.values(), ids=PICKLES)
def test_a_pickle_checkpoint_is_refused(row, tmp_path, files):
    folder = copied(row("smolvlm-256m").folder, tmp_path)
    (folder / folders.WHOLE).unlink()
    for file in files:
        (folder / file).write_bytes(b"never opened")
    with pytest.raises(UnsupportedModel) as refusal:
        load(folder)
    message = str(refusal.value)
    assert "\n" not in message
    assert all(words in message for words in ("pickle", "safetensors", "To convert", "weights_only=True"))


@pytest.mark.parametrize("name", ["9b-instruct", "smolvlm-256m"])
def test_safetensors_win_over_pickles_beside_them(row, tmp_path, name):
    folder = copied(row(name).folder, tmp_path)
    for file in PICKLES["an index"]:
        (folder / file).write_bytes(b"never opened")
    assert_same(said(load(folder))[0], row(name).logits)
