"""Errors are caught by the clauses that scripts for transformers have: each pair raises what transformers raises."""

import json

import pytest
import torch

from compat import models_tiny
from compat.models_tiny import ours
from idefics import compat
from idefics.errors import IdeficsError


@pytest.fixture(scope="module")
def model():
    return ours("smolvlm")


@pytest.fixture
def folder(tmp_path):
    ours("smolvlm").save_pretrained(tmp_path)
    return tmp_path


def caught(expected, call):
    with pytest.raises(expected) as error:
        call()
    assert isinstance(error.value, IdeficsError)


AUTO = compat.AutoModelForImageTextToText
IDS = torch.tensor([[4, 5, 6]])


def test_files(folder, tmp_path):
    caught(OSError, lambda: AUTO.from_pretrained(tmp_path / "nowhere"))
    caught(OSError, lambda: compat.AutoConfig.from_pretrained(tmp_path / "nowhere"))
    caught(OSError, lambda: compat.GenerationConfig.from_pretrained(tmp_path / "nowhere"))
    (folder / "model.safetensors").unlink()
    caught(OSError, lambda: AUTO.from_pretrained(folder))
    (folder / "config.json").write_text("{")
    caught(OSError, lambda: compat.AutoConfig.from_pretrained(folder))
    (folder / "config.json").write_text(json.dumps({"model_type": "llava"}))
    caught(ValueError, lambda: AUTO.from_pretrained(folder))


def test_arguments_of_loading(folder):
    caught(ValueError, lambda: AUTO.from_pretrained(folder, attn_implementation="paged"))
    caught(ValueError, lambda: AUTO.from_pretrained(folder, torch_dtype="float64"))
    caught(TypeError, lambda: AUTO.from_pretrained(folder, colour="red"))
    caught(ValueError, lambda: compat.BitsAndBytesConfig(load_in_8bit=True, load_in_4bit=True))
    caught(ValueError, lambda: compat.AutoConfig.for_model("llava"))


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
    caught(ValueError, lambda: model.generate(IDS, **arguments))


def test_arguments_of_forward(model):
    caught(ValueError, lambda: model())
    caught(ValueError, lambda: model(IDS, inputs_embeds=torch.zeros(1, 3, 48)))
    inputs = models_tiny.batch(model, "1t")
    ids = inputs["input_ids"].masked_fill(inputs["input_ids"] == model.config.image_token_id, 5)
    caught(ValueError, lambda: model(**{**inputs, "input_ids": ids}))


def test_adapters(model):
    pytest.importorskip("peft")
    caught(ValueError, lambda: ours("smolvlm").set_adapter("none"))
    caught(ValueError, model.active_adapters)
