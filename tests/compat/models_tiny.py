"""Tiny models of every family in transformers' classes and ours, with the same weights, and batches for both."""

from types import SimpleNamespace

import pytest
import torch

from idefics.compat.configuration_auto import CONFIGS
from idefics.compat.modeling_auto import AutoModelForImageTextToText
from models import tiny

RAWS = {
    "idefics": tiny.IDEFICS1,
    "idefics2": tiny.IDEFICS2,
    "idefics3": tiny.IDEFICS3,
    "smolvlm": tiny.changed(tiny.IDEFICS3, model_type="smolvlm"),
}
FAMILIES = tuple(RAWS)


def theirs(raw, **changes):
    """transformers' model of `raw` with random weights, in evaluation mode."""
    transformers = pytest.importorskip("transformers")
    raw = tiny.changed(raw, **changes)
    config, architecture = (getattr(transformers, name) for name in tiny.ARCHITECTURES[raw["model_type"]])
    return tiny.randomise(architecture(config.from_dict(raw)))


def pair(folder, raw, **changes):
    """The same model in both, through a folder that transformers wrote."""
    reference = theirs(raw, **changes)
    reference.save_pretrained(folder)
    return reference, AutoModelForImageTextToText.from_pretrained(folder)


def ours(family, **changes):
    """Our model alone, with random weights."""
    config = CONFIGS[family].from_dict(tiny.changed(RAWS[family], **changes))
    return tiny.randomise(AutoModelForImageTextToText.from_config(config))


def batch(model, *scenes):
    """Rows for one of our models or its twin, padded on the left, of scenes as in `tiny.prompt`."""
    return tiny.reference_inputs(model, [tiny.prompt(Settings(model), scene) for scene in scenes])


class Settings:
    """What `tiny.prompt` asks of a model."""

    def __init__(self, model):
        raw = model.config.to_dict()
        self.config = CONFIGS[raw["model_type"]].from_dict(raw).settings()
        text = self.config.text
        self.layout = SimpleNamespace(vocabulary=text.vocabulary + text.additional_vocabulary)


def rows(inputs, picked):
    """These rows of a batch, without the padding that they share."""
    some = {name: value[picked] for name, value in inputs.items()}
    start = int(some["attention_mask"].any(dim=0).int().argmax())
    along = ("input_ids", "attention_mask", "image_attention_mask", "labels")
    return {name: value[:, start:] if name in along else value for name, value in some.items()}


def assert_close(one, other, atol=1e-4):
    torch.testing.assert_close(one, other, atol=atol, rtol=1e-4)
