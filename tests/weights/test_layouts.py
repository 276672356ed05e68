"""Every layout of config.json and every naming of tensors that the checkpoints come in: all load totally."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from idefics import weights
from idefics.catalog import CATALOG, resolve
from idefics.errors import UnsupportedModel, WeightsMismatch
from idefics.models import build, load_model, read_checkpoint
from weights.hub_configs import REAL, TINY, TINY_FLAT, TINY_IDEFICS3, TINY_NESTED

CPU = torch.device("cpu")
# Tensors in the released files.
COUNTS = {"9b": 1015, "9b-instruct": 1015, "smolvlm-256m": 471, "smolvlm-500m": 489, "smolvlm-2.2b": 657}
# The flat layout is one that transformers reads no more.
MODERN = {name: raw for name, raw in TINY.items() if raw is not TINY_FLAT}


def folder_of(folder, raw, tensors=None):
    """A folder with this config.json and, where they are given, tensors in two bfloat16 shards with an index."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw))
    if tensors is not None:
        names = sorted(tensors)
        shards = {
            "model-00001-of-00002.safetensors": names[::2],
            "model-00002-of-00002.safetensors": names[1::2],
        }
        for shard, held in shards.items():
            save_file({name: tensors[name] for name in held}, folder / shard)
        where = {name: shard for shard, held in shards.items() for name in held}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return folder


def empty(folder, raw):
    return build(read_checkpoint(folder_of(folder, raw)))


def random_tensors(folder, raw):
    """bfloat16 tensors under the model's own names, tied ones once."""
    return {name: torch.randn(p.shape).bfloat16() for name, p in empty(folder, raw).named_parameters()}


def load(folder, dtype=torch.float32):
    return load_model(read_checkpoint(folder), dtype=dtype, device=CPU)


def shapes(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def reference(folder):
    """transformers' model of a folder, on the meta device."""
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        return transformers.AutoModelForImageTextToText.from_config(config)


@pytest.mark.parametrize("name", [row.name for row in CATALOG if row.runs and row.hub])
def test_real_sizes(tmp_path, name):
    """Every checkpoint of the catalog that we run has its published number of parameters and of tensors."""
    model = empty(tmp_path, REAL[name])
    assert sum(p.numel() for p in model.parameters()) == resolve(name).parameters
    if name in COUNTS:
        assert len(model.state_dict()) == COUNTS[name]


@pytest.mark.parametrize("row", [row for row in CATALOG if row.folder], ids=lambda row: row.name)
def test_real_size_of_the_demo(row):
    model = build(read_checkpoint(weights.find(row.name)))
    assert sum(p.numel() for p in model.parameters()) == row.parameters


@pytest.mark.parametrize(
    "name", ["9b", "smolvlm-500m", "smolvlm-2.2b", "smolvlm2-2.2b", "idefics3-8b", *MODERN]
)
def test_names_and_shapes_are_the_reference_s(tmp_path, name):
    model = empty(tmp_path, (REAL | TINY)[name])
    assert shapes(model) == shapes(reference(tmp_path))


@pytest.mark.parametrize("raw", TINY.values(), ids=TINY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hub_layouts_load(tmp_path, raw, dtype):
    tensors = random_tensors(tmp_path, raw)
    loaded = load(folder_of(tmp_path, raw, tensors), dtype)
    for name, tensor in loaded.named_parameters():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, tensors[name].to(dtype)), name


def test_the_flat_layout_means_the_nested_one(tmp_path):
    nested = {
        **TINY_NESTED,
        "alpha_type": "vector",
        "perceiver_config": {
            "qk_layer_norms_perceiver": True,
            "resampler_depth": 2,
            "resampler_head_dim": 8,
            "resampler_n_heads": 2,
            "resampler_n_latents": 5,
        },
        "vision_config": {**TINY_NESTED["vision_config"], "patch_size": 7},
    }
    flat, nested = (
        read_checkpoint(folder_of(tmp_path / n, raw)).config for n, raw in (("f", TINY_FLAT), ("n", nested))
    )
    assert flat == nested
    assert flat.resampler is not None
    assert flat.resampler.qk_norms


def test_the_resampler_switch_at_the_top_decides(tmp_path):
    raw = {**TINY_NESTED, "use_resampler": False}
    raw["perceiver_config"] = {**raw["perceiver_config"], "use_resampler": True}
    assert read_checkpoint(folder_of(tmp_path, raw)).config.resampler is None
    assert read_checkpoint(folder_of(tmp_path, TINY_NESTED)).config.resampler is not None


@pytest.mark.parametrize("raw", MODERN.values(), ids=MODERN)
@pytest.mark.parametrize("shard", ["1GB", "5KB"])
def test_folders_that_transformers_5_saved_load(tmp_path, raw, shard):
    folder_of(tmp_path / "hub", raw)
    theirs = reference(tmp_path / "hub").to_empty(device="cpu").bfloat16()
    theirs.tie_weights()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_()
    theirs.save_pretrained(tmp_path / "saved", max_shard_size=shard)
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert "torch_dtype" not in saved
    assert saved["dtype"] == "bfloat16"
    assert len(list((tmp_path / "saved").glob("*.safetensors"))) > (shard != "1GB")
    hub, again = read_checkpoint(tmp_path / "hub").config, read_checkpoint(tmp_path / "saved")
    assert (again.config.text, again.config.vision, again.config.resampler) == (
        hub.text,
        hub.vision,
        hub.resampler,
    )
    ours = load(tmp_path / "saved", torch.bfloat16).state_dict()
    assert ours.keys() == theirs.state_dict().keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.state_dict().items())


OLD_NAMES = (
    (r"^model\.connector\.modality_projection\.", "model.modality_projection."),
    (r"^model\.text_model\.", "model."),
)


def cut(tensors, whole, *parts, rows=3):
    """Cuts the last rows off a table, as it was before the tables were joined."""
    table = tensors.pop(whole)
    return tensors | {parts[0]: table[:-rows].clone(), parts[1]: table[-rows:].clone()}


@pytest.mark.parametrize("head", ["lm_head.additional_fc.weight", "additional_fc.weight", None])
def test_the_names_that_idefics3_was_trained_with(tmp_path, head):
    tensors = random_tensors(tmp_path, TINY_IDEFICS3)
    old = dict(tensors)
    if head:
        old = cut(old, "lm_head.weight", "lm_head.weight", head)
        old = cut(
            old,
            "model.text_model.embed_tokens.weight",
            "model.embed_tokens.weight",
            "model.embed_tokens.additional_embedding.weight",
        )
    for pattern, name in OLD_NAMES:
        old = {re.sub(pattern, name, key): tensor for key, tensor in old.items()}
    assert "model.layers.0.mlp.up_proj.weight" in old
    assert "model.modality_projection.proj.weight" in old
    old["model.vision_model.head.attention.in_proj_weight"] = torch.ones(2)
    old["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
    loaded = load(folder_of(tmp_path, TINY_IDEFICS3, old)).state_dict()
    assert all(torch.equal(loaded[name], tensor.float()) for name, tensor in tensors.items())


def test_the_head_of_the_idefics1_training_code(tmp_path):
    tensors = random_tensors(tmp_path, TINY_NESTED)
    old = {**tensors, "additional_fc.weight": tensors["lm_head.additional_fc.weight"]}
    del old["lm_head.additional_fc.weight"]
    loaded = load(folder_of(tmp_path, TINY_NESTED, old)).state_dict()
    assert torch.equal(
        loaded["lm_head.additional_fc.weight"], tensors["lm_head.additional_fc.weight"].float()
    )


EXTRAS = (
    "model.layers.0.self_attn.rotary_emb.inv_freq",
    "model.gated_cross_attn_layers.0.cross_attn.rotary_emb.inv_freq",
    "model.text_model.layers.1.self_attn.rotary_emb.inv_freq",
    "model.vision_model.embeddings.position_ids",
)


@pytest.mark.parametrize("raw", [TINY_NESTED, TINY_IDEFICS3], ids=["idefics1", "idefics3"])
def test_what_is_recomputed_is_never_read(tmp_path, raw):
    """position_ids stored in bfloat16 cannot count past 256: a file's must not reach the model."""
    tensors = random_tensors(tmp_path, raw)
    clean = load(folder_of(tmp_path, raw, tensors))
    wrong = load(
        folder_of(tmp_path, raw, tensors | {name: torch.full((1, 9), 7.0).bfloat16() for name in EXTRAS})
    )
    assert shapes(clean) == shapes(wrong)
    frames = torch.randn(1, 3, 28, 28)
    with torch.inference_mode():
        assert torch.equal(clean.encode(frames), wrong.encode(frames))


@pytest.mark.parametrize("raw", [TINY_NESTED, TINY_IDEFICS3], ids=["idefics1", "idefics3"])
def test_loading_is_total(tmp_path, raw):
    tensors = random_tensors(tmp_path, raw)
    lost = tensors.pop("lm_head.weight")
    tensors["model.layers.0.self_attn.q_norm.weight"] = lost
    norm = "model.norm.weight" if raw is TINY_NESTED else "model.text_model.norm.weight"
    tensors[norm] = torch.ones(7)
    with pytest.raises(WeightsMismatch) as caught:
        load(folder_of(tmp_path, raw, tensors))
    assert caught.value.missing == ("lm_head.weight",)
    assert caught.value.unused == ("model.layers.0.self_attn.q_norm.weight",)
    assert caught.value.shapes == {norm: ((7,), (32,))}


def test_tied_weights_of_either_family_load_from_one(tmp_path):
    for number, raw in enumerate((TINY_NESTED, TINY_IDEFICS3)):
        tied = {**raw, "tie_word_embeddings": True}
        tensors = random_tensors(tmp_path, tied)
        assert not [name for name in tensors if name.startswith("lm_head")]
        loaded = load(folder_of(tmp_path / str(number), tied, tensors))
        table = next(name for name in tensors if name.endswith("embed_tokens.weight"))
        assert loaded.lm_head.weight is loaded.get_parameter(table)


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq"])
def test_quantised_checkpoints_are_refused(tmp_path, method):
    raw = {**TINY_IDEFICS3, "quantization_config": {"quant_method": method}}
    with pytest.raises(UnsupportedModel, match=method):
        read_checkpoint(folder_of(tmp_path, raw))
