"""Errors are caught by the clauses that scripts for transformers have: each pair raises what transformers raises."""

import json

import pytest
import torch

from compat import models_tiny
from compat.models_tiny import make_our_model
from idefics import compat
from idefics.errors import IdeficsError


@pytest.fixture(scope="module")
def model():
    return make_our_model("smolvlm")


@pytest.fixture
def folder(tmp_path):
    make_our_model("smolvlm").save_pretrained(tmp_path)
    return tmp_path


def is_caught(expected, call):
    with pytest.raises(expected) as error:
        call()
    assert isinstance(error.value, IdeficsError)


AUTO = compat.AutoModelForImageTextToText
IDS = torch.tensor([[4, 5, 6]])


def test_files(folder, tmp_path):
    is_caught(OSError, lambda: AUTO.from_pretrained(tmp_path / "nowhere"))
    is_caught(OSError, lambda: compat.AutoConfig.from_pretrained(tmp_path / "nowhere"))
    is_caught(OSError, lambda: compat.GenerationConfig.from_pretrained(tmp_path / "nowhere"))
    (folder / "model.safetensors").unlink()
    is_caught(OSError, lambda: AUTO.from_pretrained(folder))
    (folder / "config.json").write_text("{")
    is_caught(OSError, lambda: compat.AutoConfig.from_pretrained(folder))
    (folder / "config.json").write_text(json.dumps({"model_type": "llava"}))
    is_caught(ValueError, lambda: AUTO.from_pretrained(folder))


def test_arguments_of_loading(folder):
    is_caught(ValueError, lambda: AUTO.from_pretrained(folder, attn_implementation="paged"))
    is_caught(ValueError, lambda: AUTO.from_pretrained(folder, torch_dtype="float64"))
    is_caught(TypeError, lambda: AUTO.from_pretrained(folder, colour="red"))
    is_caught(ValueError, lambda: compat.BitsAndBytesConfig(load_in_8bit=True, load_in_4bit=True))
    is_caught(ValueError, lambda: compat.AutoConfig.for_model("llava"))


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_beams": 0},
        {"num_return_sequences": 2},
        {"temprature": 1.0},
        {"pixels": IDS},
        {"max_length": 2},
        {"stop_strings": ["a"]},
        {"custom_generate": "mine"},
        {"temperature": 0.0, "do_sample": True},
    ],
    ids=str,
)
def test_arguments_of_generate(model, arguments):
    is_caught(ValueError, lambda: model.generate(IDS, **arguments))


def test_arguments_of_forward(model):
    is_caught(ValueError, lambda: model())
    is_caught(ValueError, lambda: model(IDS, inputs_embeds=torch.zeros(1, 3, 48)))
    inputs = models_tiny.make_batch(model, "1t")
    ids = inputs["input_ids"].masked_fill(inputs["input_ids"] == model.config.image_token_id, 5)
    is_caught(ValueError, lambda: model(**{**inputs, "input_ids": ids}))


def test_adapters(model):
    pytest.importorskip("peft")
    is_caught(ValueError, lambda: make_our_model("smolvlm").set_adapter("none"))
    is_caught(ValueError, model.active_adapters)
