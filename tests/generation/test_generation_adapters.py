"""Adapters of a loaded model, merged into a checkpoint, and written for peft: answers are the same everywhere."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import idefics
from idefics import compat, models
from idefics.config import QuantizationConfig
from idefics.demo import __path__ as DEMO
from idefics.demo import pictures
from idefics.errors import BadSetting
from idefics.generation.cache_files import compute_model_key
from idefics.generation.load_settings import ComputePlan, LoadSettings
from idefics.generation.merge import merge_adapter
from idefics.nn.attention_backends import sdpa_attention
from idefics.prompt import Prompt
from idefics.weights.adapter_config import AdapterConfig
from idefics.weights.adapter_files import write_adapter
from models import tiny
from models.tiny_adapters import save_peft_adapter, write_random_adapter

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning:transformers", "ignore:Could not find a config file:UserWarning"
)
RAWS = [tiny.IDEFICS1, tiny.IDEFICS2, tiny.IDEFICS3, {**tiny.IDEFICS3, "model_type": "smolvlm"}]
DEMOS = {"demo": Path(DEMO[0], "idefics3"), "demo-idefics1": Path(DEMO[0], "idefics1")}
QUESTION = "What is at the bottom?"


def tensors_of(folder):
    return {
        name: value
        for file in sorted(folder.glob("*.safetensors"))
        for name, value in load_file(file).items()
    }


def header_of(file):
    """The names, dtypes and shapes in a file, in its order, and its metadata."""
    with safe_open(file, "pt") as handle:
        slices = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118
        found = [(name, one.get_dtype(), one.get_shape()) for name, one in slices.items()]
        return found, handle.metadata()


@pytest.mark.parametrize("name", DEMOS)
def test_a_demo_with_an_adapter_answers_as_the_model_that_peft_merges(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    reference = transformers.AutoModelForImageTextToText.from_pretrained(
        DEMOS[name], dtype=torch.float32
    ).eval()
    targets = r".*(layers|gated_cross_attn_layers|connector|resampler).*(q_proj|v_proj|down_proj|proj)"
    wrapped = save_peft_adapter(tmp_path / "adapter", reference, target_modules=targets, r=4, lora_alpha=6)
    with (
        idefics.load(name, dtype="float32", adapter=tmp_path / "adapter") as vlm,
        idefics.load(name, dtype="float32") as base,
    ):
        prompts = [vlm.prompt([picture, QUESTION]) for picture in pictures()[:2]]
        expected = tiny.compute_reference_logits(wrapped.merge_and_unload(), prompts)
        for prompt, theirs in zip(prompts, expected, strict=True):
            ours, before = vlm.logits(prompt), base.logits(prompt)
            torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=1e-3)
            assert ours[-1].argmax() == theirs[-1].argmax()
            assert (ours - before).abs().max() > 0.1
    merge_adapter(name, tmp_path / "adapter", tmp_path / "merged")
    with (
        idefics.load(name, adapter=tmp_path / "adapter") as vlm,
        idefics.load(tmp_path / "merged") as merged,
        idefics.load(name) as base,
    ):
        answers = [
            [one.ask(picture, QUESTION, max_new_tokens=12).text for picture in pictures()[:3]]
            for one in (vlm, merged, base)
        ]
    assert answers[0] == answers[1] != answers[2]


@pytest.mark.parametrize("raw", RAWS, ids=lambda raw: raw["model_type"])
def test_a_merged_checkpoint_is_laid_out_as_its_base(raw, tmp_path):
    transformers = pytest.importorskip("transformers")
    reference, model = tiny.make_reference_and_model(tmp_path / "base", raw)
    write_random_adapter(tmp_path / "adapter", model, ["q_proj", "down_proj", "fc1"])
    file = tmp_path / "base/model.safetensors"
    save_file(
        {name: value.bfloat16() for name, value in load_file(file).items()}, file, metadata={"format": "pt"}
    )
    (tmp_path / "base/README.md").write_text("A card.")
    merged = merge_adapter(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    names = sorted(path.name for path in (tmp_path / "base").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "merged").iterdir())
    for name in set(names) - {"model.safetensors"}:
        assert (tmp_path / "merged" / name).read_bytes() == (tmp_path / "base" / name).read_bytes()
    assert header_of(tmp_path / "merged/model.safetensors") == header_of(file)
    old, new = tensors_of(tmp_path / "base"), tensors_of(tmp_path / "merged")
    changed = [name for name in old if not old[name].equal(new[name])]
    assert all(name.endswith(("q_proj.weight", "down_proj.weight", "fc1.weight")) for name in changed)
    assert (merged.num_changed, merged.num_tensors, merged.untied) == (len(changed), len(old), False)
    ours = tiny.load_checkpoint(tmp_path / "base", adapter=tmp_path / "adapter", storage="file")
    stored = tiny.load_checkpoint(tmp_path / "merged", storage="file")
    for name, value in ours.state_dict().items():
        assert value.equal(stored.state_dict()[name]), name
    theirs = type(reference).from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    assert isinstance(theirs, transformers.PreTrainedModel)
    exact = tiny.load_checkpoint(tmp_path / "merged")
    prompts = [tiny.make_random_prompt(exact, scene) for scene in ("tt1tt", "1t")]
    expected = tiny.compute_reference_logits(theirs, prompts)
    for one, other in zip(tiny.compute_logits(exact, prompts), expected, strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=2e-4)


def test_shards_stay_shards_and_a_tied_head_becomes_its_own_tensor(tmp_path):
    pytest.importorskip("transformers")
    raw = tiny.merge_config(tiny.IDEFICS3, tie_word_embeddings=True)
    reference, model = tiny.make_reference_and_model(tmp_path / "base", raw)
    file = tmp_path / "base/model.safetensors"
    weights = load_file(file)
    assert "lm_head.weight" not in weights
    file.unlink()
    shards = {
        name: f"model-{1 + index % 2:05}-of-00002.safetensors" for index, name in enumerate(sorted(weights))
    }
    for shard in set(shards.values()):
        save_file(
            {name: weights[name] for name in weights if shards[name] == shard}, tmp_path / "base" / shard
        )
    index = {"metadata": {"total_size": sum(one.nbytes for one in weights.values())}, "weight_map": shards}
    (tmp_path / "base/model.safetensors.index.json").write_text(json.dumps(index))
    write_random_adapter(tmp_path / "adapter", model, ["lm_head"])
    merged = merge_adapter(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    assert (merged.num_changed, merged.untied) == (2, True)
    new = tensors_of(tmp_path / "merged")
    assert new.keys() == {*weights, "lm_head.weight"}
    assert new["model.text_model.embed_tokens.weight"].equal(weights["model.text_model.embed_tokens.weight"])
    new_index = json.loads((tmp_path / "merged/model.safetensors.index.json").read_text())
    assert new_index["metadata"]["total_size"] == sum(one.nbytes for one in new.values())
    assert set(new_index["weight_map"]) == new.keys()
    ours = tiny.load_checkpoint(tmp_path / "base", adapter=tmp_path / "adapter")
    theirs = type(reference).from_pretrained(tmp_path / "merged").eval()
    assert not theirs.lm_head.weight.equal(theirs.get_input_embeddings().weight)
    prompts = [tiny.make_random_prompt(ours, "t1tt")]
    [expected] = tiny.compute_reference_logits(theirs, prompts)
    for one in (ours, tiny.load_checkpoint(tmp_path / "merged")):
        torch.testing.assert_close(tiny.compute_logits(one, prompts)[0], expected, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_weights_are_quantized_after_merging(kind, tmp_path):
    base = tiny.write_checkpoint(
        tmp_path / "base",
        tiny.merge_config(tiny.IDEFICS3, text_config={"hidden_size": 64, "intermediate_size": 96}),
    )
    write_random_adapter(tmp_path / "adapter", tiny.load_checkpoint(base), ["q_proj", "down_proj", "lm_head"])
    merge_adapter(base, tmp_path / "adapter", tmp_path / "merged")
    few_bits = {"quantization": QuantizationConfig(kind=kind)}
    ours = tiny.load_checkpoint(base, adapter=tmp_path / "adapter", **few_bits).state_dict()
    merged = tiny.load_checkpoint(tmp_path / "merged", **few_bits).state_dict()
    plain = tiny.load_checkpoint(base, **few_bits).state_dict()
    assert ours.keys() == merged.keys()
    assert all(value.equal(merged[name]) for name, value in ours.items())
    assert any(not value.equal(plain[name]) for name, value in ours.items())


def test_a_folder_that_is_not_empty_is_not_merged_into(tmp_path):
    base = tiny.write_checkpoint(tmp_path / "base", tiny.IDEFICS3)
    write_random_adapter(tmp_path / "adapter", tiny.load_checkpoint(base), ["q_proj"])
    with pytest.raises(BadSetting, match="already holds other files"):
        merge_adapter(base, tmp_path / "adapter", base)
    (tmp_path / "adapter/adapter_model.safetensors").write_bytes(b"broken")
    with pytest.raises(idefics.BrokenCheckpoint):
        merge_adapter(base, tmp_path / "adapter", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_key_of_encoded_pictures_depends_on_the_adapter(tmp_path):
    base = tiny.write_checkpoint(tmp_path / "base", tiny.IDEFICS3)
    model = tiny.load_checkpoint(base)
    checkpoint, plan = models.read_checkpoint(base), ComputePlan(torch.float32, None, None, sdpa_attention)
    adapters = [
        None,
        write_random_adapter(tmp_path / "one", model, ["q_proj"]),
        write_random_adapter(tmp_path / "two", model, ["q_proj"], scale=0.3),
        write_random_adapter(tmp_path / "three", model, ["q_proj"], alpha=4),
    ]
    keys = {compute_model_key(checkpoint, plan, None, LoadSettings(), adapter) for adapter in adapters}
    assert len(keys) == 4
    (tmp_path / "moved").mkdir()
    for path in (tmp_path / "one").iterdir():
        (tmp_path / "moved" / path.name).write_bytes(path.read_bytes())
    assert compute_model_key(checkpoint, plan, None, LoadSettings(), tmp_path / "moved") in keys


@pytest.mark.parametrize("raw", RAWS, ids=lambda raw: raw["model_type"])
def test_peft_loads_what_we_write(raw, tmp_path):
    """Idefics 1's gates too, which peft loads into the model itself, as they are no modules."""
    peft = pytest.importorskip("peft")
    reference, model = tiny.make_reference_and_model(tmp_path / "base", raw)
    tensors = {}
    generator = torch.Generator().manual_seed(3)
    for name, weight in model.state_dict().items():
        module, (out, *rest) = name.removesuffix(".weight"), (*weight.shape, 1)
        if name.endswith(("q_proj.weight", "up_proj.weight")):
            tensors[f"{module}.lora_A.weight"] = 0.3 * torch.randn(3, rest[0], generator=generator)
            tensors[f"{module}.lora_B.weight"] = 0.3 * torch.randn(out, 3, generator=generator)
        elif name.endswith((".alpha_cross_attn", ".alpha_dense", "lm_head.weight", "additional_fc.weight")):
            tensors[name] = weight + 0.2 * torch.randn(weight.shape, generator=generator)
    saved = ("lm_head", *(("alpha_cross_attn", "alpha_dense") if raw["model_type"] == "idefics" else ()))
    config = AdapterConfig(
        rank=3,
        alpha=5,
        use_rslora=True,
        target_modules=("q_proj", "up_proj"),
        modules_to_save=saved,
        base_class=type(reference).__name__,
    )
    write_adapter(tmp_path / "adapter", tensors, config)
    wrapped = peft.PeftModel.from_pretrained(reference, tmp_path / "adapter").eval()
    ours = tiny.load_checkpoint(tmp_path / "base", adapter=tmp_path / "adapter")
    prompts = [tiny.make_random_prompt(ours, scene) for scene in ("tt1tt", "1t")]
    expected = tiny.compute_reference_logits(wrapped.base_model.model, prompts)
    before = tiny.compute_logits(model, prompts)
    for one, other, old in zip(tiny.compute_logits(ours, prompts), expected, before, strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=2e-4)
        assert (one - old).abs().max() > 0.1


@pytest.mark.parametrize("raw", RAWS, ids=lambda raw: raw["model_type"])
def test_transformers_own_adapters_load_here_and_ours_there(raw, tmp_path):
    peft = pytest.importorskip("peft")
    reference, model = tiny.make_reference_and_model(tmp_path / "base", raw)
    prompts = [tiny.make_random_prompt(model, scene) for scene in ("tt1tt", "1t")]
    ours = write_random_adapter(
        tmp_path / "ours", model, ["q_proj", "fc1"], base_class=type(reference).__name__
    )
    reference.load_adapter(str(ours))
    expected = tiny.compute_reference_logits(reference, prompts)
    adapted = tiny.load_checkpoint(tmp_path / "base", adapter=ours)
    for one, other in zip(tiny.compute_logits(adapted, prompts), expected, strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=2e-4)

    fresh = type(reference).from_pretrained(tmp_path / "base").eval()
    fresh.add_adapter(peft.LoraConfig(r=2, target_modules=["v_proj", "up_proj"], init_lora_weights=False))
    fresh.save_pretrained(tmp_path / "theirs")
    expected = tiny.compute_reference_logits(fresh, prompts)
    adapted = tiny.load_checkpoint(tmp_path / "base", adapter=tmp_path / "theirs")
    for one, other in zip(tiny.compute_logits(adapted, prompts), expected, strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=2e-4)


def test_an_adapter_saved_by_the_guides_classes_is_merged(tmp_path):
    peft = pytest.importorskip("peft")
    tiny.make_reference_and_model(tmp_path / "base", tiny.IDEFICS1)
    guides_model = compat.AutoModelForImageTextToText.from_pretrained(tmp_path / "base").eval()
    guides_model.add_adapter(
        peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    )
    guides_model.save_pretrained(tmp_path / "adapter")
    ours = tiny.load_checkpoint(tmp_path / "base", adapter=tmp_path / "adapter")
    ids = torch.tensor([[5, 6, 7, 8]])
    expected = guides_model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
    prompt = Prompt(tuple(ids[0].tolist()), (), (), (-1,) * 4)
    torch.testing.assert_close(tiny.compute_logits(ours, [prompt])[0], expected, atol=2e-4, rtol=2e-4)
