"""Quantized checkpoints equal quantizing at load, and are written completely or not at all."""

import json
import shutil

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file, save_file

import idefics
from idefics import weights
from idefics.cli.main import run
from idefics.compat import AutoModelForImageTextToText
from idefics.config import QuantizationConfig
from idefics.errors import BadSetting, UnsupportedModel
from idefics.generation import quantize
from idefics.generation.quantize import measure_layer_errors, quantize_checkpoint

MODELS = ("demo", "demo-idefics1")
QUANT_KINDS = ("int8", "int4")


@pytest.fixture(scope="module")
def picture():
    pixels = np.full((96, 96, 3), (90, 160, 90), np.uint8)
    pixels[36:60, 36:60] = (215, 30, 40)
    return PIL.Image.fromarray(pixels)


@pytest.fixture(
    scope="module", params=[(model, kind) for model in MODELS for kind in QUANT_KINDS], ids="-".join
)
def quantized_checkpoint(request, tmp_path_factory):
    """A checkpoint, its kind and what was written."""
    model, kind = request.param
    out = tmp_path_factory.mktemp("made") / "deep" / "small"
    return model, kind, quantize_checkpoint(model, QuantizationConfig(kind=kind), out)


def prompt_logits(vlm, picture):
    return vlm.logits(vlm.prompt([picture, "A small red square"]))


def test_a_written_checkpoint_equals_quantizing_at_load(quantized_checkpoint, picture):
    model, kind, written = quantized_checkpoint
    one, other = idefics.load(written.folder, device="cpu"), idefics.load(model, device="cpu", quantize=kind)
    assert torch.equal(prompt_logits(one, picture), prompt_logits(other, picture))
    assert one.caption(picture).tokens == other.caption(picture).tokens
    assert one.memory == other.memory


def test_scales_of_older_folders_stay_exactly_as_they_are(tmp_path, picture):
    """Their scales had 32 bits, and the integers were chosen for these scales."""
    quantize_checkpoint("demo", QuantizationConfig(kind="int4"), tmp_path)
    file = tmp_path / "model.safetensors"
    stored = load_file(file)
    wide = {
        name: tensor.float() * 1.0001
        for name, tensor in stored.items()
        if name.endswith(".scale") and tensor.dtype == torch.bfloat16
    }
    assert wide
    save_file({**stored, **wide}, file, metadata={"format": "pt"})
    vlm = idefics.load(tmp_path, device="cpu")
    assert all(torch.equal(vlm.engine.model.get_parameter(name), scale) for name, scale in wide.items())
    assert vlm.caption(picture, max_new_tokens=4).tokens


def test_bytes_layers_and_group_are_true(quantized_checkpoint):
    model, kind, written = quantized_checkpoint
    assert written.is_new and written.group_size == (32 if kind == "int4" else None)
    assert written.bytes_before == (weights.find_checkpoint(model) / "model.safetensors").stat().st_size
    assert written.bytes_after == sum(file.stat().st_size for file in written.folder.glob("*.safetensors"))
    assert written.bytes_after < 0.7 * written.bytes_before
    stored = load_file(written.folder / "model.safetensors")
    counts = {8: 0, 4: 0}
    for tensor in stored.values():
        counts[8] += tensor.dtype == torch.int8
        counts[4] += tensor.dtype == torch.uint8
    assert dict(written.num_layers_by_bits) == {bits: count for bits, count in counts.items() if count}
    assert all("n" in name.split(".") or "." in name or name == "lm_head" for name in written.skipped_layers)


def test_an_existing_checkpoint_is_not_written_again(quantized_checkpoint):
    model, kind, written = quantized_checkpoint
    before = {file: file.stat().st_mtime_ns for file in written.folder.iterdir()}
    again = quantize_checkpoint(model, QuantizationConfig(kind=kind), written.folder)
    assert not again.is_new and (again.num_layers_by_bits, again.bytes_after, again.skipped_layers) == (
        written.num_layers_by_bits,
        written.bytes_after,
        written.skipped_layers,
    )
    assert {file: file.stat().st_mtime_ns for file in written.folder.iterdir()} == before


def test_errors_of_layers_worst_first(quantized_checkpoint):
    model, kind, written = quantized_checkpoint
    found = measure_layer_errors(model, written.folder)
    assert len(found) == sum(written.num_layers_by_bits.values())
    assert [row.output_error for row in found] == sorted((row.output_error for row in found), reverse=True)
    most = {"int8": 0.02, "int4": 0.13}[kind]
    assert all(0 < row.weight_error < most and 0 < row.output_error < 2 * most for row in found)


def test_compat_reads_a_quantized_checkpoint(quantized_checkpoint, tmp_path):
    *_, written = quantized_checkpoint
    model = AutoModelForImageTextToText.from_pretrained(written.folder)
    assert model.is_quantized and model.get_memory_footprint() < 2 * written.bytes_after
    with pytest.raises(UnsupportedModel, match="idefics quantize"):
        model.save_pretrained(tmp_path)


@pytest.mark.parametrize("holds", ["a file", "other bits", "other weights", "broken"])
def test_a_folder_with_other_files_is_refused(tmp_path, holds):
    out = tmp_path / "out"
    if holds == "other bits":
        quantize_checkpoint("demo", QuantizationConfig(kind="int4"), out)
    elif holds == "other weights":
        tuned = shutil.copytree(weights.find_checkpoint("demo"), tmp_path / "tuned")
        stored = load_file(tuned / "model.safetensors")
        save_file({name: weight * 1.5 for name, weight in stored.items()}, tuned / "model.safetensors")
        quantize_checkpoint(tuned, QuantizationConfig(kind="int8"), out)
    else:
        out.mkdir()
        (out / ("config.json" if holds == "broken" else "diary.txt")).write_text("{")
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    with pytest.raises(BadSetting, match="already holds other files"):
        quantize_checkpoint("demo", QuantizationConfig(kind="int8"), out)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("huggingface_hub.save_torch_state_dict", full)
    with pytest.raises(BadSetting, match=r"cannot be written .No space left"):
        quantize_checkpoint("demo", QuantizationConfig(kind="int8"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_quantized_checkpoint_is_not_quantized_again(tmp_path):
    quantize_checkpoint("demo", QuantizationConfig(kind="int8"), tmp_path / "one")
    with pytest.raises(BadSetting, match=r"is already quantized \(int8\): give the original"):
        quantize_checkpoint(tmp_path / "one", QuantizationConfig(kind="int4"), tmp_path / "two")
    with pytest.raises(BadSetting, match="is stored in int8 already: leave quantize out"):
        idefics.load(tmp_path / "one", quantize="int4")


def test_an_empty_folder_is_filled(tmp_path):
    assert quantize_checkpoint("demo", QuantizationConfig(kind="int8"), tmp_path).is_new
    assert (tmp_path / "tokenizer.json").is_file() and not (
        tmp_path / "model.safetensors.index.json"
    ).exists()


@pytest.mark.parametrize(
    "block", [{"quant_method": "awq"}, {"bits": 4}, {"quant_method": "idefics", "bits": "int3"}]
)
def test_other_schemes_are_refused(tmp_path, block):
    folder = shutil.copytree(weights.find_checkpoint("demo"), tmp_path / "demo")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": block}))
    with pytest.raises(UnsupportedModel, match=r"is quantised \((awq|unknown|idefics)\); give"):
        idefics.load(folder)


def test_the_command_prints_a_report(tmp_path, capsys):
    out = tmp_path / "small"
    assert run(["quantize", "demo", "--to", "int4", "--out", str(out), "--check"]) == 0
    message = capsys.readouterr().out
    for word in (
        f"{out} was written",
        "in int4",
        "in int8",
        "one scale per 32 weights",
        "connector",
        "before",
        "%",
    ):
        assert word in message
    assert message.count("gate_proj") >= 2
    assert run(["quantize", "demo", "--to", "int4", "--out", str(out), "--check", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["new"] is False and found["group"] == 32
    assert found["bytes"]["after"] == sum(file.stat().st_size for file in out.glob("*.safetensors"))
    assert len(found["errors"]) == sum(found["layers"].values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--to", "int3", "--out", "x"], "--to is 'int3': give int8 or int4"),
        (["demo", "--to", "int8"], "--out"),
        (["nothing", "--to", "int8", "--out", "x"], "nothing"),
    ],
)
def test_error_messages_are_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["quantize", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_weights_may_be_in_several_files(tmp_path, monkeypatch, picture):
    monkeypatch.setattr(quantize, "MAX_SHARD_SIZE", "1MB")
    written = quantize_checkpoint("demo", QuantizationConfig(kind="int8"), tmp_path / "shards")
    assert len(list(written.folder.glob("*.safetensors"))) > 2
    whole = idefics.load("demo", device="cpu", quantize="int8")
    assert torch.equal(
        prompt_logits(idefics.load(written.folder, device="cpu"), picture), prompt_logits(whole, picture)
    )
    assert not quantize_checkpoint("demo", QuantizationConfig(kind="int8"), tmp_path / "shards").is_new
