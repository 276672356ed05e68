"""Every layout of config.json becomes the same `ModelConfig`, and what a file leaves out is what its class had."""

import json
import re
from dataclasses import replace

import pytest
import torch

from idefics.errors import BrokenCheckpoint, UnsupportedModel
from idefics.models import build_on_meta_device, family_for, read_checkpoint
from idefics.models.family import read_stop_ids
from models import tiny
from models.released import CONFIG_WITH_DIFFERENCES_ONLY, RELEASED_BY_NAME

IDEFICS_9B, IDEFICS3_8B = RELEASED_BY_NAME["9b"].config, RELEASED_BY_NAME["idefics3-8b"].config
SMOLVLM_500M, SMOLVLM_2B = RELEASED_BY_NAME["smolvlm-500m"].config, RELEASED_BY_NAME["smolvlm-2.2b"].config
SMOLVLM2_500M = RELEASED_BY_NAME["smolvlm2-500m"].config


def parse_config(raw, generation=None):
    return family_for(raw["model_type"]).read_config(raw, generation or {})


def write_and_read_checkpoint(folder, raw, generation=None):
    (folder / "config.json").write_text(json.dumps(raw))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return read_checkpoint(folder)


def test_500m_leaves_out_its_layers():
    text = parse_config(SMOLVLM_500M).text
    assert (text.num_layers, text.num_heads, text.num_kv_heads, text.head_size) == (32, 15, 5, 64)


def test_2b_leaves_out_its_heads():
    text = parse_config(SMOLVLM_2B).text
    assert (text.num_layers, text.num_heads, text.num_kv_heads, text.head_size) == (24, 32, 32, 64)


def test_small_towers_leave_out_most():
    vision = parse_config(SMOLVLM_500M).vision
    assert (vision.num_layers, vision.intermediate_size, vision.norm_epsilon) == (12, 3072, 1e-6)
    assert vision.activation == "gelu_pytorch_tanh"


@pytest.mark.parametrize(
    "raw", [tiny.IDEFICS1, tiny.IDEFICS3, SMOLVLM_500M, SMOLVLM_2B, IDEFICS3_8B, IDEFICS_9B]
)
def test_new_files_say_the_same(tmp_path, raw):
    """transformers 5 writes every default, `dtype`, and `rope_parameters` in place of `rope_theta`."""
    transformers = pytest.importorskip("transformers")
    classes = getattr(transformers, tiny.ARCHITECTURES[raw["model_type"]][0])
    written = classes.from_dict(raw)
    written.save_pretrained(tmp_path)
    new = json.loads((tmp_path / "config.json").read_text())
    assert "torch_dtype" not in new
    assert "rope_parameters" in new.get("text_config", new)
    assert read_checkpoint(tmp_path).config == parse_config(raw)


@pytest.mark.parametrize(
    ("model_type", "nested"),
    [
        ("idefics", {}),
        ("idefics3", {"text_config": {"hidden_size": 512}, "vision_config": {}}),
        ("idefics3", {}),
    ],
)
def test_defaults_are_those_of_the_classes(tmp_path, model_type, nested):
    """A config that says nothing; and one whose text_config is there, which changes the norm's epsilon."""
    transformers = pytest.importorskip("transformers")
    classes = getattr(transformers, tiny.ARCHITECTURES[model_type][0])
    classes(**nested).save_pretrained(tmp_path)
    written, silent = read_checkpoint(tmp_path).config, parse_config({"model_type": model_type, **nested})
    assert written == silent


FLAT_CONFIG = {
    "additional_vocab_size": 3,
    "alpha_type": "vector",
    "architectures": ["IdeficsForCausalLM"],
    "cross_layer_interval": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
    "max_sequence_length": 512,
    "model_type": "idefics",
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "qk_layer_norms": True,
    "qk_layer_norms_perceiver": True,
    "resampler_depth": 2,
    "resampler_head_dim": 8,
    "resampler_n_heads": 3,
    "resampler_n_latents": 7,
    "use_resampler": True,
    "vision_embed_dim": 48,
    "vision_image_size": 28,
    "vision_intermediate_size": 80,
    "vision_num_attention_heads": 6,
    "vision_num_hidden_layers": 3,
    "vision_patch_size": 7,
    "vocab_size": 100,
}
TEXT_KEYS = [
    key for key in FLAT_CONFIG if not key.startswith(("vision_", "resampler_", "qk_layer_norms_perceiver"))
]
NESTED_CONFIG = {
    **{key: FLAT_CONFIG[key] for key in TEXT_KEYS},
    "max_position_embeddings": 512,
    "perceiver_config": {
        "qk_layer_norms_perceiver": True,
        "resampler_depth": 2,
        "resampler_head_dim": 8,
        "resampler_n_heads": 3,
        "resampler_n_latents": 7,
        "use_resampler": True,
    },
    "vision_config": {
        "embed_dim": 48,
        "hidden_act": "gelu",
        "image_size": 28,
        "intermediate_size": 80,
        "layer_norm_eps": 1e-5,
        "num_attention_heads": 6,
        "num_hidden_layers": 3,
        "patch_size": 7,
    },
}


def test_idefics1_flat_layout():
    assert parse_config(FLAT_CONFIG) == parse_config(NESTED_CONFIG)
    vision, resampler = parse_config(FLAT_CONFIG).vision, parse_config(FLAT_CONFIG).resampler
    assert (vision.hidden_size, vision.intermediate_size, vision.num_layers) == (48, 80, 3)
    assert (vision.num_heads, vision.image_size, vision.patch_size) == (6, 28, 7)
    assert (resampler.depth, resampler.num_heads, resampler.head_size, resampler.num_latents) == (2, 3, 8, 7)
    assert resampler.has_qk_norms


def test_idefics1_diff_only_layout():
    """transformers 4.3x wrote only what is no default: 9b's perceiver in one field, its tower's width in another."""
    assert parse_config(CONFIG_WITH_DIFFERENCES_ONLY) == parse_config(IDEFICS_9B)


def test_idefics1_tower_without_a_width_is_the_class_default():
    assert (
        parse_config(tiny.merge_config(IDEFICS_9B, vision_config={"embed_dim": None})).vision.hidden_size
        == 768
    )


@pytest.mark.parametrize("top", [True, False])
@pytest.mark.parametrize("nested", [True, False, None])
def test_top_level_use_resampler_decides(top, nested):
    raw = tiny.merge_config(tiny.IDEFICS1, use_resampler=top, perceiver_config={"use_resampler": nested})
    assert (parse_config(raw).resampler is not None) == top


def test_old_llama_scaling_says_the_same():
    """`type` before `rope_type`, and `rope_scaling` before `rope_parameters`."""
    scaling = dict(IDEFICS3_8B["text_config"]["rope_scaling"])
    old = {**scaling, "type": scaling.pop("rope_type")}
    assert parse_config(tiny.merge_config(IDEFICS3_8B, text_config={"rope_scaling": old})) == parse_config(
        IDEFICS3_8B
    )
    rope = parse_config(IDEFICS3_8B).text.rope
    assert (rope.theta, rope.factor, rope.original_max_positions) == (500000.0, 8.0, 8192)
    assert (rope.low_frequency_factor, rope.high_frequency_factor) == (1.0, 4.0)


def test_smolvlm_is_idefics3():
    renamed = parse_config({**SMOLVLM_500M, "model_type": "smolvlm"})
    assert replace(renamed, model_type="idefics3") == parse_config(SMOLVLM_500M)


@pytest.mark.parametrize(
    ("raw", "generation", "stops"),
    [
        pytest.param(IDEFICS3_8B, {"eos_token_id": [128001, 128008, 128009, 128258]}, None, id="a list"),
        pytest.param(SMOLVLM_500M, {"bos_token_id": 0, "eos_token_id": 49279}, (49279,), id="a number"),
        pytest.param(IDEFICS_9B, {"eos_token_id": [32002, 2]}, (32002, 2), id="before config.json"),
        pytest.param({**IDEFICS_9B, "eos_token_id": 7}, {}, (7,), id="config.json"),
        pytest.param({**IDEFICS_9B, "eos_token_id": 7}, {"eos_token_id": None}, (7,), id="null"),
        pytest.param(
            tiny.merge_config(SMOLVLM_500M, text_config={"eos_token_id": [5, 6]}), {}, (5, 6), id="text"
        ),
        pytest.param(SMOLVLM_500M, {}, (2,), id="the class's own"),
    ],
)
def test_stop_ids(tmp_path, raw, generation, stops):
    expected = stops or tuple(generation["eos_token_id"])
    assert write_and_read_checkpoint(tmp_path, raw, generation).config.stop_ids == expected


@pytest.mark.parametrize(
    ("raw", "dtype"),
    [
        (IDEFICS_9B, "bfloat16"),
        (SMOLVLM2_500M, "float32"),  # though its text_config says bfloat16
        ({**SMOLVLM_500M, "dtype": "float16"}, "float16"),
    ],
)
def test_dtype(raw, dtype):
    assert parse_config(raw).dtype == dtype


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "llava"}, ["'llava'", "idefics, idefics2, idefics3, smolvlm", "idefics models"]),
        ({"model_type": None}, ["(none)", "idefics, idefics2, idefics3, smolvlm"]),
        ({"text_config": {"hidden_act": "mish"}}, ["'mish'", "silu, gelu, gelu_pytorch_tanh, relu"]),
        ({"vision_config": {"hidden_act": "quick_gelu"}}, ["'quick_gelu'", "silu, gelu"]),
        ({"text_config": {"rope_scaling": {"type": "yarn"}}}, ["'yarn'", "default and llama3"]),
        ({"text_config": {"rope_parameters": {"rope_type": "linear"}}}, ["'linear'", "default and llama3"]),
        ({"text_config": {"model_type": "qwen2"}}, ["'qwen2'", "llama"]),
        ({"quantization_config": {"quant_method": "awq"}}, ["awq", "original precision"]),
    ],
)
def test_what_is_not_known_is_refused(tmp_path, changes, words):
    with pytest.raises(UnsupportedModel) as refusal:
        write_and_read_checkpoint(tmp_path, tiny.merge_config(tiny.IDEFICS3, **changes))
    for word in words:
        assert word in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_act": "quick_gelu"}, ["'quick_gelu'"]),
        ({"vision_config": {"hidden_act": "quick_gelu"}}, ["'quick_gelu'"]),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, ["'yarn'", "default and llama3"]),
    ],
)
def test_what_is_not_known_is_refused_by_idefics1(changes, words):
    with pytest.raises(UnsupportedModel) as refusal:
        parse_config(tiny.merge_config(tiny.IDEFICS1, **changes))
    for word in words:
        assert word in str(refusal.value)


def test_incomplete_llama_scaling_is_refused():
    raw = tiny.merge_config(IDEFICS3_8B, text_config={"rope_scaling": {"low_freq_factor": None}})
    with pytest.raises(BrokenCheckpoint, match="without its 'low_freq_factor'"):
        parse_config(raw)


def test_no_quantisation_is_no_quantisation(tmp_path):
    assert write_and_read_checkpoint(tmp_path, {**tiny.IDEFICS3, "quantization_config": None})


@pytest.mark.parametrize("layers", [3, 5, 6])
def test_layers_are_a_multiple_of_the_interval(layers):
    model = parse_config({**tiny.IDEFICS1, "num_hidden_layers": layers, "cross_layer_interval": 4})
    with pytest.raises(
        UnsupportedModel, match=rf"{layers} layers .* every 4: .* multiple of cross_layer_interval"
    ):
        family_for("idefics").build(model)


def test_the_grid_is_a_multiple_of_the_shuffle():
    with pytest.raises(UnsupportedModel, match="4 patches a side cannot be shuffled by 3"):
        family_for("idefics3").build(parse_config({**tiny.IDEFICS3, "scale_factor": 3}))


@pytest.mark.parametrize("content", ["{", "[]", "\udcff"])
def test_a_config_that_is_none(tmp_path, content):
    (tmp_path / "config.json").write_text(content, errors="surrogateescape")
    with pytest.raises(UnsupportedModel, match=r"config\.json"):
        read_checkpoint(tmp_path)


def test_a_folder_without_a_config(tmp_path):
    with pytest.raises(UnsupportedModel, match=r"no config\.json: give the folder of a checkpoint"):
        read_checkpoint(tmp_path)


def test_building_takes_no_memory(tmp_path):
    model = build_on_meta_device(write_and_read_checkpoint(tmp_path, tiny.IDEFICS1))
    assert all(weight.device == torch.device("meta") for weight in model.parameters())
    assert not model.training


@pytest.mark.parametrize("wrong", [[[3]], "</s>", [2, "3"], True, 2.0])
def test_stop_ids_that_are_none_are_told_with_their_file(wrong):
    for name, raw, generation in (
        ("generation_config.json", {}, {"eos_token_id": wrong}),
        ("config.json", {"eos_token_id": wrong}, {}),
        ("config.json", {"text_config": {"eos_token_id": wrong}}, {}),
    ):
        with pytest.raises(
            BrokenCheckpoint, match=f"^{name} sets eos_token_id to {re.escape(repr(wrong))}: "
        ):
            read_stop_ids(raw, generation)
