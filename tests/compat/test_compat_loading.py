"""Arguments that model cards and scripts pass to `from_pretrained`: used, ignored for a reason, or refused by name."""

import json

import pytest
import torch

from compat.models_tiny import (
    CONFIG_BY_FAMILY,
    FAMILIES,
    assert_close,
    make_batch,
    make_our_model,
    make_reference_model,
)
from idefics import compat
from idefics.compat.keyword_arguments import IGNORED_MODEL_KWARGS, NEUTRAL_MODEL_KWARGS
from idefics.compat.pretrained import HUB_KWARGS
from idefics.errors import BadSetting, ModelNotFound, UnknownArgument, UnsupportedModel

SCENES = ("tt1ttttt1ttttt", "t1tttett")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("smolvlm")
    make_our_model("smolvlm").save_pretrained(path)
    return path


def load_model(folder, **options):
    return compat.AutoModelForImageTextToText.from_pretrained(folder, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"_attn_implementation": "eager", "torch_dtype": torch.float32},
        {"attn_implementation": None},
        {"cache_dir": "/somewhere", "token": "hf_x", "trust_remote_code": True, "use_auth_token": True},
        {"revision": "main", "subfolder": "", "use_safetensors": None},
        {"load_in_8bit": False, "load_in_4bit": False, "low_cpu_mem_usage": True, "force_download": False},
        dict.fromkeys(IGNORED_MODEL_KWARGS, True),
        dict.fromkeys(NEUTRAL_MODEL_KWARGS),
        {**dict.fromkeys(NEUTRAL_MODEL_KWARGS, False), "use_safetensors": True},
        {"variant": "", "key_mapping": {}},
    ],
)
def test_keywords_that_change_nothing(folder, options):
    model, plain = load_model(folder, **options), load_model(folder)
    assert model.attn_implementation == options.get("_attn_implementation", "sdpa")
    inputs = make_batch(plain, *SCENES)
    assert_close(model(**inputs).logits, plain(**inputs).logits)
    assert compat.SmolVLMForConditionalGeneration.from_pretrained(folder, **options).dtype == torch.float32
    settings = {
        name: value
        for name, value in options.items()
        if name in {*IGNORED_MODEL_KWARGS, *NEUTRAL_MODEL_KWARGS, *HUB_KWARGS}
    }
    assert compat.AutoConfig.from_pretrained(folder, **settings) == plain.config
    assert compat.SmolVLMConfig.from_pretrained(folder, **settings) == plain.config


@pytest.mark.parametrize("name", NEUTRAL_MODEL_KWARGS)
def test_what_is_not_here_is_refused_with_its_reason(folder, name):
    with pytest.raises(BadSetting, match=rf"{name} is 'other'.*leave it out") as caught:
        load_model(folder, **{name: "other"})
    assert NEUTRAL_MODEL_KWARGS[name] in str(caught.value)


def test_a_revision_of_a_folder_that_is_no_default(folder):
    with pytest.raises(BadSetting, match="only the hub has revisions"):
        load_model(folder, revision="v2")
    with pytest.raises(UnknownArgument, match="'colour'"):
        load_model(folder, colour="red")


def test_a_subfolder(folder):
    assert load_model(folder.parent, subfolder=folder.name).config == load_model(folder).config
    assert (
        compat.AutoConfig.from_pretrained(folder.parent, subfolder=folder.name) == load_model(folder).config
    )
    with pytest.raises(ModelNotFound, match="elsewhere"):
        load_model(folder, subfolder="elsewhere")
    with pytest.raises(BadSetting, match="subfolder is 'x'"):
        load_model("owner/name", subfolder="x")


def test_few_bits_by_keyword(folder):
    eight = load_model(folder, load_in_8bit=True)
    assert eight.is_quantized
    same = load_model(folder, quantization_config=compat.BitsAndBytesConfig(load_in_8bit=True))
    inputs = make_batch(same, *SCENES)
    assert torch.equal(eight(**inputs).logits, same(**inputs).logits)
    assert eight.get_memory_footprint() < 0.9 * load_model(folder).get_memory_footprint()


def test_quantization_configs_of_others():
    transformers = pytest.importorskip("transformers")
    from idefics.compat.quantization import as_quantization_config

    four = {
        "load_in_4bit": True,
        "bnb_4bit_compute_dtype": torch.bfloat16,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_quant_storage": torch.bfloat16,
    }
    own = compat.BitsAndBytesConfig(**four).to_quantization_config()
    assert (own.kind, own.double, own.compute_dtype) == ("nf4", True, "bfloat16")
    foreign = transformers.BitsAndBytesConfig(**four)
    for given in (foreign, foreign.to_dict(), compat.BitsAndBytesConfig(**four).to_dict()):
        assert as_quantization_config(given).to_quantization_config() == own
    assert as_quantization_config({"quant_method": "quanto", "weights": "int4"}).weights == "int4"
    with pytest.raises(BadSetting, match="asks for gptq"):
        as_quantization_config({"quant_method": "gptq", "bits": 4})
    with pytest.raises(BadSetting, match="is of type int"):
        as_quantization_config(4)


@pytest.mark.parametrize("family", FAMILIES)
def test_configs_of_others(family, tmp_path):
    reference = make_reference_model(CONFIG_BY_FAMILY[family])
    reference.save_pretrained(tmp_path)
    plain = load_model(tmp_path)
    inputs = make_batch(plain, *SCENES)
    content = json.loads((tmp_path / "config.json").read_text())
    for config in (reference.config, content, tmp_path, str(tmp_path / "config.json"), plain.config):
        assert_close(load_model(tmp_path, config=config)(**inputs).logits, plain(**inputs).logits)
        assert type(plain).from_pretrained(tmp_path, config=config).config.model_type == family
    made = compat.AutoModelForImageTextToText.from_config(reference.config)
    assert made.num_parameters() == plain.num_parameters()
    assert type(plain).from_config(content).num_parameters() == plain.num_parameters()
    for config in (reference.config, content):
        assert type(plain)(config).num_parameters() == plain.num_parameters()
        assert type(plain.model)(config).num_parameters() == plain.model.num_parameters()
    with pytest.raises(BadSetting, match="config is of type int; give a config"):
        type(plain)(3)


def test_configs_that_are_none(folder):
    for wrong in (5, object()):
        with pytest.raises(BadSetting, match=f"config is of type {type(wrong).__name__}"):
            load_model(folder, config=wrong)
    with pytest.raises(UnsupportedModel, match="llava"):
        load_model(folder, config={"model_type": "llava"})


def test_auto_classes(folder):
    assert compat.AutoModelForVision2Seq.from_pretrained(folder).config == load_model(folder).config
    assert type(compat.AutoConfig.from_pretrained(folder)) is compat.SmolVLMConfig
    assert type(compat.AutoConfig.for_model("idefics2", image_token_id=7)) is compat.Idefics2Config
    assert compat.AutoConfig.for_model("idefics2", image_token_id=7).image_token_id == 7
    assert compat.AutoConfig.from_pretrained(folder, image_token_id=9).image_token_id == 9
    for auto in (compat.AutoConfig, compat.AutoModelForVision2Seq):
        with pytest.raises(TypeError, match=f"{auto.__name__} is"):
            auto()


def test_a_given_generation_config(folder):
    settings = compat.GenerationConfig(max_new_tokens=3)
    assert load_model(folder, generation_config=settings).generation_config is settings


def test_the_path_by_its_name_and_what_was_lacking(folder):
    for load_ in (compat.AutoModelForImageTextToText, compat.SmolVLMForConditionalGeneration):
        model, info = load_.from_pretrained(pretrained_model_name_or_path=folder, output_loading_info=True)
        assert model.config.model_type == "smolvlm"
        assert info.pop("error_msgs") == []
        assert info == {key: set() for key in ("missing_keys", "unexpected_keys", "mismatched_keys")}


def test_what_transformers_reads_from_a_config():
    config = compat.SmolVLMConfig()
    assert config.is_encoder_decoder is False
    assert config.bos_token_id is None
    assert config.sub_configs.keys() == {"text_config", "vision_config"}
    assert "is_encoder_decoder" not in config.to_dict()
    assert compat.IdeficsConfig().bos_token_id == 1
