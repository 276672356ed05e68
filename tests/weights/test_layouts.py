"""Layouts of config.json and of weight names that are the same model, and checkpoints that are refused as a whole."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from idefics.errors import UnsupportedModel, WeightsMismatch
from idefics.models import build_on_meta_device, read_checkpoint
from models.released import CONFIG_WITH_DIFFERENCES_ONLY, FLAT_CONFIG, RELEASED_BY_NAME, shrink_config
from models.tiny import load_checkpoint

NESTED_CONFIG = shrink_config(RELEASED_BY_NAME["9b-instruct"].config)
IDEFICS3 = shrink_config(RELEASED_BY_NAME["idefics3-8b"].config)
# One of each set of fields. Not the flat layout, which transformers reads no more.
KINDS = (
    "9b-instruct",
    "idefics2-8b-base",
    "idefics2-8b",
    "idefics3-8b",
    "smolvlm-256m",
    "smolvlm-500m",
    "smolvlm-2.2b",
    "smolvlm2-2.2b",
    "granite-docling-258m",
)
READ_BY_TRANSFORMERS = {
    **{name: RELEASED_BY_NAME[name].config for name in KINDS},
    "9b, differences only": CONFIG_WITH_DIFFERENCES_ONLY,
}


def write_folder(folder, raw, tensors=None):
    """A folder with this config.json and, where they are given, tensors."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw))
    if tensors is not None:
        save_file(tensors, folder / "model.safetensors")
    return folder


def build_meta_model(folder, raw):
    return build_on_meta_device(read_checkpoint(write_folder(folder, raw)))


def random_tensors(folder, raw):
    """bfloat16 tensors under the model's own names, tied ones once."""
    return {
        name: torch.randn(p.shape).bfloat16() for name, p in build_meta_model(folder, raw).named_parameters()
    }


def shape_by_name(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def load_reference(folder):
    """transformers' model of a folder, on the meta device."""
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        return transformers.AutoModelForImageTextToText.from_config(config)


@pytest.mark.parametrize("name", READ_BY_TRANSFORMERS)
def test_names_and_shapes_are_the_reference_s(tmp_path, name):
    model = build_meta_model(tmp_path, READ_BY_TRANSFORMERS[name])
    assert shape_by_name(model) == shape_by_name(load_reference(tmp_path))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "name", ["9b", "idefics2-8b", "idefics3-8b", "smolvlm2-2.2b", "granite-docling-258m"]
)
def test_every_weight_comes_from_the_file(tmp_path, name, dtype):
    raw = shrink_config(RELEASED_BY_NAME[name].config)
    tensors = random_tensors(tmp_path, raw)
    loaded = load_checkpoint(write_folder(tmp_path, raw, tensors), dtype)
    for name, tensor in loaded.named_parameters():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, tensors[name].to(dtype)), name


def test_the_flat_layout_means_the_nested_one(tmp_path):
    nested = {**RELEASED_BY_NAME["80b-instruct"].config, "alpha_type": "vector"}
    assert (
        read_checkpoint(write_folder(tmp_path / "flat", FLAT_CONFIG)).config
        == read_checkpoint(write_folder(tmp_path / "nested", nested)).config
    )


def test_the_resampler_switch_at_the_top_decides(tmp_path):
    raw = {**NESTED_CONFIG, "use_resampler": False}
    raw["perceiver_config"] = {**raw["perceiver_config"], "use_resampler": True}
    assert read_checkpoint(write_folder(tmp_path, raw)).config.resampler is None
    assert not NESTED_CONFIG["perceiver_config"]["use_resampler"]
    assert read_checkpoint(write_folder(tmp_path, NESTED_CONFIG)).config.resampler is not None


@pytest.mark.parametrize(
    ("name", "shard"), [("smolvlm-256m", "1GB"), *((name, "5KB") for name in READ_BY_TRANSFORMERS)]
)
def test_folders_that_transformers_5_saved_load(tmp_path, name, shard):
    write_folder(tmp_path / "hub", shrink_config(READ_BY_TRANSFORMERS[name]))
    theirs = load_reference(tmp_path / "hub").to_empty(device="cpu").bfloat16()
    theirs.tie_weights()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_()
    theirs.save_pretrained(tmp_path / "saved", max_shard_size=shard)
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert "torch_dtype" not in saved
    assert saved["dtype"] == "bfloat16"
    assert len(list((tmp_path / "saved").glob("*.safetensors"))) > (shard != "1GB")
    hub, again = (read_checkpoint(tmp_path / folder).config for folder in ("hub", "saved"))
    assert replace(again, dtype=None, stop_ids=()) == replace(hub, dtype=None, stop_ids=())
    ours = load_checkpoint(tmp_path / "saved", torch.bfloat16).state_dict()
    assert ours.keys() == theirs.state_dict().keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.state_dict().items())


EXTRAS = (
    "model.layers.0.self_attn.rotary_emb.inv_freq",
    "model.gated_cross_attn_layers.0.cross_attn.rotary_emb.inv_freq",
    "model.text_model.layers.1.self_attn.rotary_emb.inv_freq",
    "model.vision_model.embeddings.position_ids",
)


@pytest.mark.parametrize("raw", [NESTED_CONFIG, IDEFICS3], ids=["idefics1", "idefics3"])
def test_what_is_recomputed_is_never_read(tmp_path, raw):
    """position_ids stored in bfloat16 cannot count past 256: a file's must not reach the model."""
    tensors = random_tensors(tmp_path, raw)
    clean = load_checkpoint(write_folder(tmp_path, raw, tensors))
    wrong = load_checkpoint(
        write_folder(tmp_path, raw, tensors | {name: torch.full((1, 9), 7.0).bfloat16() for name in EXTRAS})
    )
    assert shape_by_name(clean) == shape_by_name(wrong)
    frames = torch.randn(1, 3, 28, 28)
    with torch.inference_mode():
        assert torch.equal(clean.encode(frames), wrong.encode(frames))


@pytest.mark.parametrize("raw", [NESTED_CONFIG, IDEFICS3], ids=["idefics1", "idefics3"])
def test_loading_is_total(tmp_path, raw):
    tensors = random_tensors(tmp_path, raw)
    lost = tensors.pop("lm_head.weight")
    tensors["model.layers.0.self_attn.q_norm.weight"] = lost
    norm = "model.norm.weight" if raw is NESTED_CONFIG else "model.text_model.norm.weight"
    width = len(tensors[norm])
    tensors[norm] = torch.ones(7)
    with pytest.raises(WeightsMismatch) as caught:
        load_checkpoint(write_folder(tmp_path, raw, tensors))
    assert caught.value.missing == ("lm_head.weight",)
    assert caught.value.unused == ("model.layers.0.self_attn.q_norm.weight",)
    assert caught.value.shapes == {norm: ((7,), (width,))}


@pytest.mark.parametrize("raw", [NESTED_CONFIG, IDEFICS3], ids=["idefics1", "idefics3"])
def test_tied_weights_load_from_one(tmp_path, raw):
    tied = {**raw, "tie_word_embeddings": True}
    tensors = random_tensors(tmp_path, tied)
    assert not [name for name in tensors if name.startswith("lm_head")]
    loaded = load_checkpoint(write_folder(tmp_path, tied, tensors))
    table = next(name for name in tensors if name.endswith("embed_tokens.weight"))
    assert loaded.lm_head.weight is loaded.get_parameter(table)


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq"])
def test_quantised_checkpoints_are_refused(tmp_path, method):
    raw = {**IDEFICS3, "quantization_config": {"quant_method": method}}
    with pytest.raises(UnsupportedModel, match=method):
        read_checkpoint(write_folder(tmp_path, raw))
