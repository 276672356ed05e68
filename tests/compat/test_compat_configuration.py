"""Configs: fields and defaults of transformers, every layout of the released files, and the `ModelConfig` of each."""

import inspect
import json

import pytest
import torch

from compat.models_tiny import CONFIG_BY_FAMILY, FAMILIES
from idefics.compat import (
    Idefics2Config,
    Idefics3Config,
    IdeficsConfig,
    IdeficsForVisionText2Text,
    SmolVLMConfig,
)
from idefics.compat.configuration_auto import CONFIG_CLASS_BY_MODEL_TYPE
from idefics.errors import BrokenCheckpoint, IdeficsError, UnsupportedModel
from idefics.models import family_for
from models import tiny

# The reference page, in its order.
DOCUMENTED_DEFAULTS = {
    "vocab_size": 32000,
    "additional_vocab_size": 0,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "dropout": 0.0,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "alpha_initializer": "zeros",
    "alphas_initializer_range": 0.0,
    "alpha_type": "float",
    "rms_norm_eps": 1e-6,
    "use_cache": True,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
    "cross_layer_interval": 1,
    "qk_layer_norms": False,
    "freeze_text_layers": True,
    "freeze_text_module_exceptions": [],
    "freeze_lm_head": False,
    "freeze_vision_layers": True,
    "freeze_vision_module_exceptions": [],
    "use_resampler": False,
    "vision_config": None,
    "perceiver_config": None,
}


def test_the_signature_is_the_reference_pages():
    parameters = inspect.signature(IdeficsConfig).parameters
    documented = {
        name: parameter.default for name, parameter in list(parameters.items())[: len(DOCUMENTED_DEFAULTS)]
    }
    assert documented == DOCUMENTED_DEFAULTS
    assert list(documented) == list(DOCUMENTED_DEFAULTS)
    assert parameters["kwargs"].kind is inspect.Parameter.VAR_KEYWORD
    config = IdeficsConfig(32128, 3)
    assert (config.vocab_size, config.additional_vocab_size) == (32128, 3)
    with pytest.raises(TypeError):
        IdeficsConfig(32128, vocab_size=5)


def test_defaults_are_attributes_and_parts_are_configs():
    config = IdeficsConfig()
    for name, value in DOCUMENTED_DEFAULTS.items():
        if not name.endswith("_config"):
            assert getattr(config, name) == value
    assert config.vision_config.embed_dim == 768
    assert config.perceiver_config.resampler_n_latents == 64
    assert config.use_return_dict
    config.freeze_text_module_exceptions.append("Linear")
    assert IdeficsConfig().freeze_text_module_exceptions == []


@pytest.mark.parametrize("family", FAMILIES)
def test_defaults_are_those_of_the_package(family):
    silent = family_for(family).read_config({"model_type": family}, {})
    assert CONFIG_CLASS_BY_MODEL_TYPE[family]().to_model_config() == silent


@pytest.mark.parametrize("family", FAMILIES)
def test_defaults_are_the_references(family):
    transformers = pytest.importorskip("transformers")
    theirs = getattr(transformers, tiny.ARCHITECTURES[family][0])().to_dict()
    mine = CONFIG_CLASS_BY_MODEL_TYPE[family]().to_dict()

    def compare(one, other, where):
        for name in one.keys() & other.keys() - {"architectures", "model_type", "dtype"}:
            if isinstance(one[name], dict):
                compare(one[name], other[name], f"{where}{name}.")
            elif name not in ("num_key_value_heads", "head_dim") or one[name] is not None:  # None: worked out
                told = list(other[name]) if isinstance(other[name], tuple) else other[name]
                assert one[name] == told, f"{where}{name}"

    compare(mine, theirs, "")


@pytest.mark.parametrize("family", FAMILIES)
def test_files_keep_what_they_say(family, tmp_path):
    raw = {
        **CONFIG_BY_FAMILY[family],
        "transformers_version": "4.33.0",
        "ffn_dim": 7,
        "torch_dtype": "bfloat16",
    }
    config = CONFIG_CLASS_BY_MODEL_TYPE[family].from_dict(raw)
    assert config.ffn_dim == 7
    config.save_pretrained(tmp_path / "new")
    content = json.loads((tmp_path / "new" / "config.json").read_text())
    assert (
        content.items() >= {name: value for name, value in raw.items() if not isinstance(value, dict)}.items()
    )
    again = CONFIG_CLASS_BY_MODEL_TYPE[family].from_pretrained(tmp_path / "new")
    assert again == config
    assert again.to_model_config() == config.to_model_config() == family_for(family).read_config(raw, {})
    assert repr(config).startswith(type(config).__name__)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_reference_reads_our_files(family, tmp_path):
    transformers = pytest.importorskip("transformers")
    CONFIG_CLASS_BY_MODEL_TYPE[family].from_dict(CONFIG_BY_FAMILY[family]).save_pretrained(tmp_path)
    theirs = getattr(transformers, tiny.ARCHITECTURES[family][0]).from_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path)
    assert CONFIG_CLASS_BY_MODEL_TYPE[family].from_pretrained(tmp_path).to_model_config() == family_for(
        family
    ).read_config(CONFIG_BY_FAMILY[family], {})


def test_the_flat_files_of_2023():
    flat = {name: value for name, value in tiny.IDEFICS1.items() if not name.endswith("_config")}
    vision, perceiver = tiny.IDEFICS1["vision_config"], tiny.IDEFICS1["perceiver_config"]
    flat |= {f"vision_{name}": value for name, value in vision.items() if name != "hidden_act"}
    flat |= {name: value for name, value in perceiver.items() if name != "use_resampler"}
    config = IdeficsConfig(**flat)
    assert config.vision_config.embed_dim == 32
    assert config.perceiver_config.resampler_n_latents == 5
    assert config.to_model_config() == IdeficsConfig.from_dict(tiny.IDEFICS1).to_model_config()
    assert "vision_embed_dim" not in config.to_dict()


def test_a_layer_too_many():
    with pytest.raises(
        UnsupportedModel, match=r"num_hidden_layers is 6 and cross_layer_interval 4"
    ) as caught:
        IdeficsConfig(num_hidden_layers=6, cross_layer_interval=4)
    assert isinstance(caught.value, IdeficsError)
    config = IdeficsConfig.from_dict(tiny.IDEFICS1)
    config.num_hidden_layers = 5
    with pytest.raises(UnsupportedModel, match="multiple"):
        IdeficsForVisionText2Text(config)


def test_parts_may_be_configs_or_dicts():
    config = IdeficsConfig(vision_config={"embed_dim": 64}, perceiver_config=IdeficsConfig().perceiver_config)
    assert config.vision_config.embed_dim == 64
    assert Idefics2Config().text_config.rms_norm_eps == Idefics3Config().text_config.rms_norm_eps == 1e-5
    assert Idefics2Config(text_config={"vocab_size": 32003}).to_model_config().text.vocab_size == 32003
    assert SmolVLMConfig().model_type == "smolvlm"


def test_no_window_is_not_the_default_window():
    config = Idefics2Config(text_config={"sliding_window": None})
    assert config.to_model_config().text.sliding_window is None
    assert Idefics2Config.from_dict(config.to_dict()).to_model_config().text.sliding_window is None


def test_a_dtype_goes_by_its_name():
    assert IdeficsConfig(torch_dtype=torch.bfloat16).torch_dtype == "bfloat16"
    assert IdeficsConfig(dtype="float16").to_dict()["torch_dtype"] == "float16"


def test_changes_of_fields_while_reading(tmp_path):
    IdeficsConfig.from_dict(tiny.IDEFICS1).save_pretrained(tmp_path)
    assert IdeficsConfig.from_pretrained(tmp_path, use_cache=False).use_cache is False


def test_text_models_of_other_kinds_are_refused():
    config = Idefics3Config(text_config={"model_type": "qwen2"})
    with pytest.raises(UnsupportedModel, match="qwen2"):
        config.to_model_config()


def test_files_of_another_class_or_none(tmp_path):
    IdeficsConfig.from_dict(tiny.IDEFICS1).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match="'idefics', Idefics3Config of 'idefics3'"):
        Idefics3Config.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(BrokenCheckpoint, match="not a JSON object"):
        IdeficsConfig.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BrokenCheckpoint, match="is not JSON"):
        IdeficsConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("family", ["idefics2", "idefics3", "smolvlm"])
def test_heads_are_numbers_always(family):
    text = CONFIG_CLASS_BY_MODEL_TYPE[family](
        text_config={"hidden_size": 64, "num_attention_heads": 4, "head_dim": None}
    ).text_config
    assert text.head_dim == 16
    assert text.num_key_value_heads == (8 if family == "idefics2" else 4)
    assert (
        CONFIG_CLASS_BY_MODEL_TYPE[family](
            text_config={"num_key_value_heads": None}
        ).text_config.num_key_value_heads
        == 32
    )


@pytest.mark.parametrize("config", CONFIG_CLASS_BY_MODEL_TYPE.values())
def test_helpers_of_configs(config, tmp_path):
    changed = config(image_token_id=11, text_config={"hidden_size": 64})
    changed.to_json_file(tmp_path / "mine.json")
    assert config.from_json_file(tmp_path / "mine.json") == changed
    assert json.loads(changed.to_json_string(use_diff=False)) == json.loads(changed.to_json_string())
    difference = changed.to_diff_dict()
    assert difference["image_token_id"] == 11
    assert difference["model_type"] == config.model_type
    assert "use_cache" not in difference
    assert config.from_dict(difference) == changed
    text = changed.get_text_config(decoder=True)
    assert text is (changed if config.model_type == "idefics" else changed.text_config)


def test_a_dict_for_a_part_changes_what_it_names():
    content = CONFIG_CLASS_BY_MODEL_TYPE["idefics3"](
        text_config={"hidden_size": 64, "num_hidden_layers": 2}
    ).to_dict()
    text = (
        CONFIG_CLASS_BY_MODEL_TYPE["idefics3"]
        .from_dict(content, text_config={"num_hidden_layers": 3})
        .text_config
    )
    assert (text.hidden_size, text.num_hidden_layers) == (64, 3)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_class_of_a_part_reads_it_from_a_whole_config(family, tmp_path):
    whole = CONFIG_CLASS_BY_MODEL_TYPE[family].from_dict(CONFIG_BY_FAMILY[family])
    whole.save_pretrained(tmp_path)
    assert whole.parts
    for name, part in whole.parts.items():
        read = part.from_pretrained(tmp_path)
        assert type(read) is part
        assert read == getattr(whole, name)
        assert read != part()
    changed = part.from_pretrained(tmp_path, initializer_range=0.5)
    assert changed.to_dict() == {**getattr(whole, name).to_dict(), "initializer_range": 0.5}


def test_the_class_of_another_familys_part_is_refused(tmp_path):
    CONFIG_CLASS_BY_MODEL_TYPE["idefics2"].from_dict(CONFIG_BY_FAMILY["idefics2"]).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match="llama"):
        CONFIG_CLASS_BY_MODEL_TYPE["idefics3"].parts["text_config"].from_pretrained(tmp_path)
