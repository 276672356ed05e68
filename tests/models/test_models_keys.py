"""Weight names of old files, and files whose weights do not fit the model."""

import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from idefics.errors import UnsupportedModel, WeightsMismatch
from models import tiny

FAMILIES = {"idefics1": tiny.IDEFICS1, "idefics2": tiny.IDEFICS2, "idefics3": tiny.IDEFICS3}


@pytest.fixture(params=FAMILIES)
def folder(request, tmp_path):
    return tiny.write_checkpoint(tmp_path, FAMILIES[request.param])


def rewrite_weights(folder, change):
    """The weights after `change` has seen them as a dict."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file({name: weight.contiguous() for name, weight in weights.items()}, file)


def assert_same_tensors(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_what_is_computed_is_not_loaded(folder):
    """Files of transformers 4.33 hold frequencies; positions stored in bfloat16 are wrong from 257 on."""
    expected = tiny.load_checkpoint(folder)

    def add(weights):
        for layer in (
            "layers.0.self_attn",
            "text_model.layers.0.self_attn",
            "gated_cross_attn_layers.0.cross_attn",
        ):
            weights[f"model.{layer}.rotary_emb.inv_freq"] = torch.randn(6)
        weights["model.vision_model.embeddings.position_ids"] = torch.arange(300.0).bfloat16()[None]

    rewrite_weights(folder, add)
    assert assert_same_tensors(tiny.load_checkpoint(folder), expected)


@pytest.mark.parametrize("raw", [tiny.IDEFICS2, tiny.IDEFICS3], ids=["idefics2", "idefics3"])
def test_names_of_the_training_code(tmp_path, raw):
    """Neither `text_model` nor `connector`, the additional rows of both tables apart, and SigLIP's pooling head."""
    folder = tiny.write_checkpoint(tmp_path, raw)
    expected = tiny.load_checkpoint(folder)

    def age(weights):
        for name in list(weights):
            if name.startswith(("model.text_model.", "model.connector.")):
                weights[re.sub("text_model.|connector.", "", name)] = weights.pop(name)
        for table, extra in (
            ("model.embed_tokens.weight", "model.embed_tokens.additional_embedding.weight"),
            ("lm_head.weight", "additional_fc.weight"),
        ):
            weights[table], weights[extra] = weights[table][:61], weights[table][61:]
        weights["model.vision_model.head.probe"] = torch.randn(1, 1, 32)
        weights["model.vision_model.head.mlp.fc1.weight"] = torch.randn(64, 32)

    rewrite_weights(folder, age)
    assert assert_same_tensors(tiny.load_checkpoint(folder), expected)


def test_idefics1_head_at_the_top(tmp_path):
    folder = tiny.write_checkpoint(tmp_path, tiny.IDEFICS1)
    expected = tiny.load_checkpoint(folder)

    def age(weights):
        weights["additional_fc.weight"] = weights.pop("lm_head.additional_fc.weight")

    rewrite_weights(folder, age)
    assert assert_same_tensors(tiny.load_checkpoint(folder), expected)


def test_all_that_does_not_fit_is_listed(folder):
    def spoil(weights):
        name = next(name for name in weights if name.endswith("layers.1.mlp.gate_proj.weight"))
        weights["model.surplus.weight"] = weights.pop(name)
        weights["lm_head.weight"] = weights["lm_head.weight"][:, :-1]

    rewrite_weights(folder, spoil)
    with pytest.raises(WeightsMismatch) as mismatch:
        tiny.load_checkpoint(folder)
    assert len(mismatch.value.missing) == 1
    assert mismatch.value.missing[0].endswith("layers.1.mlp.gate_proj.weight")
    assert mismatch.value.unused == ("model.surplus.weight",)
    assert list(mismatch.value.shapes) == ["lm_head.weight"]


def test_biases_that_the_config_does_not_promise_are_not_passed_over(folder):
    """A decoder with biases is another decoder."""

    def add(weights):
        name = next(
            name
            for name in weights
            if name.endswith("layers.0.self_attn.q_proj.weight") and "vision" not in name
        )
        weights[name.replace("weight", "bias")] = torch.randn(48)

    rewrite_weights(folder, add)
    with pytest.raises(WeightsMismatch, match=r"1 unused \(model\..*q_proj\.bias\)"):
        tiny.load_checkpoint(folder)


@pytest.mark.parametrize("raw", FAMILIES.values(), ids=FAMILIES)
def test_tied_tables_may_be_stored_twice_but_not_differ(tmp_path, raw):
    folder = tiny.write_checkpoint(tmp_path, {**raw, "tie_word_embeddings": True})
    expected = tiny.load_checkpoint(folder)

    def double(weights):
        weights["lm_head.weight"] = next(
            w for name, w in weights.items() if "embed_tokens.weight" in name
        ).clone()

    rewrite_weights(folder, double)
    assert assert_same_tensors(tiny.load_checkpoint(folder), expected)
    rewrite_weights(folder, lambda weights: weights["lm_head.weight"].add_(1))
    with pytest.raises(UnsupportedModel, match="tie_word_embeddings"):
        tiny.load_checkpoint(folder)


@pytest.mark.parametrize("raw", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_gives_logits(tmp_path, raw, dtype):
    """Loaded in another dtype than stored; near what float32 says."""
    tiny.write_checkpoint(tmp_path, raw)
    exact, half = tiny.load_checkpoint(tmp_path), tiny.load_checkpoint(tmp_path, dtype)
    assert {weight.dtype for weight in half.parameters()} == {dtype}
    prompts = [tiny.make_random_prompt(exact, scene) for scene in ("ttt", "t1tt1t")]
    for wanted, got in zip(
        tiny.compute_logits(exact, prompts), tiny.compute_logits(half, prompts), strict=True
    ):
        assert got.dtype == dtype
        assert (got - wanted).square().mean().sqrt() < 0.05 * wanted.square().mean().sqrt()
