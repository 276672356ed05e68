"""Folders with adapters, and weights saved with a training wrapper, are refused with what to do."""

import json
import shutil

import pytest
from fake_hub import run_fake_hub
from safetensors.torch import load_file, save_file

import idefics
from idefics import BrokenCheckpoint, UnsupportedModel, compat
from idefics.demo import __path__ as DEMO
from idefics.weights import find_checkpoint

CONFIG = {"peft_type": "LORA", "base_model_name_or_path": "HuggingFaceTB/SmolVLM-500M-Instruct", "r": 8}
ADAPTER_MESSAGE = (
    r"holds an adapter \(LoRA\) of HuggingFaceTB/SmolVLM-500M-Instruct, not a whole model: "
    r".*adapter='.*' as its adapter; `idefics merge`"
)


@pytest.fixture
def checkpoint(tmp_path):
    shutil.copytree(f"{DEMO[0]}/idefics3", tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def adapter_folder(request, checkpoint):
    if request.param != "adapter next to weights":
        for file in checkpoint.glob("*.safetensors*"):
            file.unlink()
    if request.param == "adapter alone":
        (checkpoint / "config.json").unlink()
    (checkpoint / "adapter_config.json").write_text(json.dumps(CONFIG))
    (checkpoint / "adapter_model.safetensors").write_bytes(b"")
    return checkpoint


LOADER_BY_NAME = {
    "load": idefics.load,
    "auto": compat.AutoModelForImageTextToText.from_pretrained,
    "class": compat.Idefics3ForConditionalGeneration.from_pretrained,
}


@pytest.mark.parametrize(
    ("adapter_folder", "load"),
    [
        ("adapter alone", "load"),  # compat loads it and its base: tests/compat/test_compat_adapters.py
        *(
            (what, load)
            for what in ("adapter and config", "adapter next to weights")
            for load in LOADER_BY_NAME
        ),
    ],
    indirect=["adapter_folder"],
)
def test_an_adapter_says_what_it_is(adapter_folder, load):
    with pytest.raises(UnsupportedModel, match=ADAPTER_MESSAGE) as caught:
        LOADER_BY_NAME[load](str(adapter_folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"base_model_name_or_path": null}'])
def test_an_adapter_that_does_not_name_its_base(checkpoint, text):
    (checkpoint / "config.json").unlink()
    (checkpoint / "adapter_config.json").write_text(text)
    with pytest.raises(
        UnsupportedModel, match=r"holds an adapter \(LoRA\), not a whole model: give its base model"
    ):
        idefics.load(checkpoint)


def test_an_adapter_on_the_hub_is_not_downloaded(monkeypatch):
    files = {"adapter_config.json": json.dumps(CONFIG).encode(), "adapter_model.safetensors": b"weights"}
    with run_fake_hub({"someone/lora": files}) as (address, asked):
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        with pytest.raises(UnsupportedModel, match="someone/lora holds an adapter"):
            find_checkpoint("someone/lora", offline=False)
        assert not [path for _, path in asked if "resolve" in path]


@pytest.mark.parametrize(
    ("prefix", "said"),
    [
        ("base_model.model.", r"as peft saves them: save model\.merge_and_unload\(\)"),
        ("module.", r"as DataParallel or DeepSpeed saves them: save model\.module"),
        ("_orig_mod.", r"as torch\.compile saves them: save model\._orig_mod"),
        ("_forward_module.", "as Lightning saves them: save the module inside"),
    ],
)
@pytest.mark.parametrize(
    "load", [idefics.load, compat.AutoModelForImageTextToText.from_pretrained], ids=["load", "compat"]
)
def test_a_wrapper_around_the_names_is_one_hint(checkpoint, load, prefix, said):
    file = next(checkpoint.glob("*.safetensors"))
    weights = load_file(file)
    save_file({prefix + name: weight for name, weight in weights.items()}, file)
    with pytest.raises(BrokenCheckpoint, match=f"begin with '{prefix}', {said}") as caught:
        load(str(checkpoint))
    assert len(str(caught.value)) < 400


def test_what_wraps_some_names_alone_is_no_wrapper(checkpoint):
    """Then the ordinary list of names is told."""
    file = next(checkpoint.glob("*.safetensors"))
    weights = load_file(file)
    name = next(iter(weights))
    weights[f"module.{name}"] = weights.pop(name)
    save_file(weights, file)
    with pytest.raises(idefics.WeightsMismatch, match="1 missing"):
        idefics.load(checkpoint)
