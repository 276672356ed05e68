"""Tiny models of every family in transformers' classes and ours, with the same weights, and batches for both."""

from types import SimpleNamespace

import pytest
import torch

from idefics.compat.configuration_auto import CONFIG_CLASS_BY_MODEL_TYPE
from idefics.compat.modeling_auto import AutoModelForImageTextToText
from models import tiny

CONFIG_BY_FAMILY = {
    "idefics": tiny.IDEFICS1,
    "idefics2": tiny.IDEFICS2,
    "idefics3": tiny.IDEFICS3,
    "smolvlm": tiny.merge_config(tiny.IDEFICS3, model_type="smolvlm"),
}
FAMILIES = tuple(CONFIG_BY_FAMILY)


def make_reference_model(raw, **changes):
    """transformers' model of `raw` with random weights, in evaluation mode."""
    transformers = pytest.importorskip("transformers")
    raw = tiny.merge_config(raw, **changes)
    config, architecture = (getattr(transformers, name) for name in tiny.ARCHITECTURES[raw["model_type"]])
    return tiny.randomize_weights(architecture(config.from_dict(raw)))


def make_reference_and_model(folder, raw, **changes):
    """The same model in both, through a folder that transformers wrote."""
    reference = make_reference_model(raw, **changes)
    reference.save_pretrained(folder)
    return reference, AutoModelForImageTextToText.from_pretrained(folder)


def make_our_model(family, **changes):
    """Our model alone, with random weights."""
    config = CONFIG_CLASS_BY_MODEL_TYPE[family].from_dict(
        tiny.merge_config(CONFIG_BY_FAMILY[family], **changes)
    )
    return tiny.randomize_weights(AutoModelForImageTextToText.from_config(config))


def make_batch(model, *scenes):
    """Rows for one of our models or its twin, padded on the left, of scenes as in `tiny.make_random_prompt`."""
    return tiny.make_reference_inputs(
        model, [tiny.make_random_prompt(PromptModel(model), scene) for scene in scenes]
    )


class PromptModel:
    """What `tiny.make_random_prompt` asks of a model."""

    def __init__(self, model):
        raw = model.config.to_dict()
        self.config = CONFIG_CLASS_BY_MODEL_TYPE[raw["model_type"]].from_dict(raw).to_model_config()
        text = self.config.text
        self.layout = SimpleNamespace(vocab_size=text.vocab_size + text.additional_vocab_size)


def select_rows(inputs, picked):
    """These rows of a batch, without the padding that they share."""
    some = {name: value[picked] for name, value in inputs.items()}
    start = int(some["attention_mask"].any(dim=0).int().argmax())
    along = ("input_ids", "attention_mask", "image_attention_mask", "labels")
    return {name: value[:, start:] if name in along else value for name, value in some.items()}


def assert_close(one, other, atol=1e-4):
    torch.testing.assert_close(one, other, atol=atol, rtol=1e-4)
