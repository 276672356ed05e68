"""Adapters are merged while weights are loaded: logits equal those of peft's merged model, for every family."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file

from models import tiny
from models.tiny_adapters import edit_tensors, save_peft_adapter

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning:transformers",
    "ignore:Model has `tie_word_embeddings=True`:UserWarning",
    "ignore:Setting `save_embedding_layers`:UserWarning",
    "ignore:Could not find a config file:UserWarning",
)
RAW_BY_FAMILY = {
    "idefics": tiny.IDEFICS1,
    "idefics-vector": {**tiny.IDEFICS1, "alpha_type": "vector"},
    "idefics2": tiny.IDEFICS2,
    "idefics3": tiny.IDEFICS3,
    "smolvlm": {**tiny.IDEFICS3, "model_type": "smolvlm"},
}
OPTIONS = {
    "all-linear": {"target_modules": "all-linear"},
    "rslora and patterns": {
        "target_modules": ["q_proj", "down_proj", "fc1"],
        "use_rslora": True,
        "rank_pattern": {r"layers\.1\.mlp\.down_proj": 5},
        "alpha_pattern": {"q_proj": 11},
    },
    "regular expression": {"target_modules": r".*(layers|blocks).*\.(q|v|gate)_proj"},
    "dora": {"target_modules": ["q_proj", "up_proj", "patch_embedding"], "use_dora": True},
    "layers": {
        "target_modules": ["v_proj"],
        "layers_to_transform": [1],
        "layers_pattern": "layers",
        "exclude_modules": r".*vision_model.*",
    },
    "head and embedding": {"target_modules": ["o_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
    "convolution": {"target_modules": ["patch_embedding", "k_proj"]},
}
SCENES = ["tt1tt", "t", "1tt2t"]


def compare(raw, folder, reference, wrapped, load=tiny.load_checkpoint):
    """Whether our model with the adapter equals peft's merged model, and differs from the model without."""
    ours = load(folder / "base", adapter=folder / "adapter")
    prompts = [tiny.make_random_prompt(ours, scene) for scene in SCENES]
    before = [one.clone() for one in tiny.compute_logits(load(folder / "base"), prompts)]
    expected = tiny.compute_reference_logits(wrapped.merge_and_unload(), prompts)
    found = tiny.compute_logits(ours, prompts)
    for ours_, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours_, theirs, atol=2e-4, rtol=2e-4)
    assert max((new - old).abs().max() for new, old in zip(found, before, strict=True)) > 0.05


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("family", RAW_BY_FAMILY)
def test_logits_equal_those_of_the_model_that_peft_merges(family, options, tmp_path):
    raw = RAW_BY_FAMILY[family]
    reference, _ = tiny.make_reference_and_model(tmp_path / "base", raw)
    wrapped = save_peft_adapter(tmp_path / "adapter", reference, **copy.deepcopy(options))
    compare(raw, tmp_path, reference, wrapped)


@pytest.mark.parametrize("family", ["idefics", "idefics-vector"])
def test_gates_and_gated_layers_are_replaced(family, tmp_path):
    raw = RAW_BY_FAMILY[family]
    reference, _ = tiny.make_reference_and_model(tmp_path / "base", raw)
    wrapped = save_peft_adapter(
        tmp_path / "adapter",
        reference,
        target_modules=["cross_attn.q_proj", "cross_attn.v_proj", "self_attn.k_proj"],
        exclude_modules=r".*gated_cross_attn_layers\.1\..*",
        modules_to_save=["gated_cross_attn_layers.1"],
    )
    assert any(
        name.endswith("alpha_dense") for name in load_file(tmp_path / "adapter/adapter_model.safetensors")
    )
    compare(raw, tmp_path, reference, wrapped)


def test_an_embedding_may_have_factors(tmp_path):
    reference, _ = tiny.make_reference_and_model(tmp_path / "base", tiny.IDEFICS3)
    wrapped = save_peft_adapter(tmp_path / "adapter", reference, target_modules=["embed_tokens", "lm_head"])
    compare(tiny.IDEFICS3, tmp_path, reference, wrapped)


def test_shards_and_old_names(tmp_path):
    """The base in two files, and an adapter with the names of the code that these models were trained with."""
    reference, _ = tiny.make_reference_and_model(tmp_path / "base", tiny.IDEFICS2)
    wrapped = save_peft_adapter(tmp_path / "adapter", reference, target_modules=["q_proj", "down_proj"])
    file = tmp_path / "base/model.safetensors"
    weights = load_file(file)
    file.unlink()
    for number, names in enumerate((sorted(weights)[::2], sorted(weights)[1::2]), start=1):
        save_file(
            {name: weights[name] for name in names}, tmp_path / f"base/model-{number:05}-of-00002.safetensors"
        )
    file = tmp_path / "adapter/adapter_model.safetensors"
    old_names = {
        name.replace("model.text_model.layers", "model.layers").replace("model.connector.", "model."): value
        for name, value in load_file(file).items()
    }
    assert not any("text_model" in name for name in old_names)
    save_file(old_names, file)
    compare(tiny.IDEFICS2, tmp_path, reference, wrapped)


def test_an_adapter_of_the_model_without_its_head(tmp_path):
    reference, _ = tiny.make_reference_and_model(tmp_path / "base", tiny.IDEFICS3)
    wrapped = save_peft_adapter(tmp_path / "adapter", reference, target_modules=["q_proj", "down_proj"])
    file = tmp_path / "adapter/adapter_model.safetensors"
    short = {
        name.replace("base_model.model.model.", "base_model.model."): one
        for name, one in load_file(file).items()
    }
    save_file(short, file)
    compare(tiny.IDEFICS3, tmp_path, reference, wrapped)


def test_the_head_alone_is_changed_where_it_is_tied(tmp_path):
    """peft's own merging would change the embedding too; the trained model is the one that is not merged."""
    raw = tiny.merge_config(tiny.IDEFICS3, tie_word_embeddings=True)
    reference, _ = tiny.make_reference_and_model(tmp_path / "base", raw)
    wrapped = save_peft_adapter(tmp_path / "adapter", reference, target_modules=["lm_head", "q_proj"])
    ours = tiny.load_checkpoint(tmp_path / "base", adapter=tmp_path / "adapter")
    assert not ours.lm_head.weight.equal(ours.model.text_model.embed_tokens.weight)
    prompts = [tiny.make_random_prompt(ours, scene) for scene in SCENES]
    expected = tiny.compute_reference_logits(wrapped.base_model.model, prompts)
    for ours_, theirs in zip(tiny.compute_logits(ours, prompts), expected, strict=True):
        torch.testing.assert_close(ours_, theirs, atol=2e-4, rtol=2e-4)


def test_sums_are_rounded_once_where_weights_have_16_bits(tmp_path):
    reference, _ = tiny.make_reference_and_model(tmp_path / "base", tiny.IDEFICS3)
    save_peft_adapter(tmp_path / "adapter", reference, target_modules="all-linear")
    file = tmp_path / "base/model.safetensors"
    save_file({name: value.bfloat16() for name, value in load_file(file).items()}, file)
    exact = tiny.load_checkpoint(tmp_path / "base", adapter=tmp_path / "adapter").state_dict()
    stored = tiny.load_checkpoint(
        tmp_path / "base", adapter=tmp_path / "adapter", storage="file", mmap=True
    ).state_dict()
    changed = [name for name, value in stored.items() if value.dtype == torch.bfloat16]
    assert changed
    for name in changed:
        assert stored[name].equal(exact[name].bfloat16())


def test_rows_are_merged_in_parts(tmp_path, monkeypatch):
    reference, _ = tiny.make_reference_and_model(tmp_path / "base", tiny.IDEFICS3)
    save_peft_adapter(tmp_path / "adapter", reference, target_modules=["q_proj", "up_proj"], use_dora=True)
    whole = tiny.load_checkpoint(tmp_path / "base", adapter=tmp_path / "adapter").state_dict()
    monkeypatch.setattr("idefics.weights.adapters.MERGED_AT_ONCE", 300)
    parts = tiny.load_checkpoint(tmp_path / "base", adapter=tmp_path / "adapter").state_dict()
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value)


def test_what_a_regular_expression_names_is_compared_in_the_adapters_own_names(tmp_path):
    """In the old names only the perceiver matches; in the model's, the decoder does too, and has no factors."""
    reference, _ = tiny.make_reference_and_model(tmp_path / "base", tiny.IDEFICS2)
    targets = r".*perceiver_resampler.*\.q_proj"
    wrapped = save_peft_adapter(tmp_path / "adapter", reference, target_modules=targets)
    edit_tensors(
        tmp_path / "adapter",
        lambda tensors: [
            tensors.update({name.replace("model.connector.", "model."): tensors.pop(name)})
            for name in list(tensors)
        ],
    )
    config = tmp_path / "adapter/adapter_config.json"
    config.write_text(
        config.read_text().replace(".*perceiver_resampler", ".*(text_model|perceiver_resampler)")
    )
    compare(tiny.IDEFICS2, tmp_path, reference, wrapped)
