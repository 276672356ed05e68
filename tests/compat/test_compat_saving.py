"""Loading and saving models, and the attributes and methods that every model class has."""

import json

import pytest
import torch
from safetensors import safe_open

import idefics
from compat.models_tiny import (
    CONFIG_BY_FAMILY,
    FAMILIES,
    assert_close,
    make_batch,
    make_our_model,
    make_reference_and_model,
    make_reference_model,
)
from idefics import compat
from idefics.compat.modeling_auto import MODEL_CLASS_BY_TYPE, AutoModelForImageTextToText
from idefics.errors import BadSetting, ModelNotFound, UnknownArgument, UnsupportedModel, WeightsMismatch
from models import tiny
from models.tiny import ARCHITECTURES

SCENES = ("tt1ttttt1ttttt", "tttt")


@pytest.fixture(params=FAMILIES)
def model(request):
    return make_our_model(request.param)


@pytest.mark.parametrize("family", FAMILIES)
def test_names_of_parameters_are_the_released_ones(family):
    reference, model = make_reference_model(CONFIG_BY_FAMILY[family]), make_our_model(family)
    for what in ("named_parameters", "state_dict"):
        expected, names = dict(getattr(reference, what)()), dict(getattr(model, what)())
        assert {n: tuple(w.shape) for n, w in names.items()} == {
            n: tuple(w.shape) for n, w in expected.items()
        }
    assert model.num_parameters() == reference.num_parameters()
    assert model.get_memory_footprint(return_buffers=False) == reference.get_memory_footprint(
        return_buffers=False
    )


@pytest.mark.parametrize("shards", ["5GB", "40KB"])
def test_saved_and_loaded_again(model, shards, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size=shards)
    again = type(model).from_pretrained(tmp_path)
    assert not again.training
    inputs = make_batch(model, *SCENES)
    assert_close(again(**inputs).logits, model(**inputs).logits, atol=0)
    files = {file.name for file in tmp_path.iterdir()}
    assert ("model.safetensors" in files) == (shards == "5GB")
    assert ("model.safetensors.index.json" in files) == (shards == "40KB")
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["architectures"] == [type(model).__name__]
    assert content["torch_dtype"] == "float32"
    auto = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(auto) is type(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_reference_loads_what_we_save(family, tmp_path):
    transformers = pytest.importorskip("transformers")
    model = make_our_model(family)
    model.save_pretrained(tmp_path)
    reference = getattr(transformers, ARCHITECTURES[family][1]).from_pretrained(tmp_path)
    inputs = make_batch(model, *SCENES)
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        assert_close(model(**inputs).logits[real], reference(**inputs).logits[real])


def test_the_package_loads_what_compat_saves(model, tmp_path):
    model.save_pretrained(tmp_path)
    weights = dict(tiny.load_checkpoint(tmp_path).named_parameters())
    assert all(torch.equal(weight, weights[name]) for name, weight in model.named_parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_tied_weights_are_saved_once_and_stay_tied(family, tmp_path):
    model = make_our_model(family, tie_word_embeddings=True)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in set(file.keys())
    again = type(model).from_pretrained(tmp_path)
    assert again.lm_head.weight is again.get_input_embeddings().weight
    inputs = make_batch(model, *SCENES)
    assert_close(again(**inputs).logits, model(**inputs).logits, atol=0)


def test_a_model_without_a_head_is_saved_and_loaded(tmp_path):
    whole = make_our_model("idefics")
    whole.save_pretrained(tmp_path / "whole")
    bare = compat.IdeficsModel.from_pretrained(tmp_path / "whole")
    bare.save_pretrained(tmp_path / "bare")
    again = compat.IdeficsModel.from_pretrained(tmp_path / "bare")
    inputs = make_batch(whole, *SCENES)
    assert_close(
        again(**inputs).last_hidden_state, whole(**inputs, output_hidden_states=True).hidden_states[-1]
    )
    with pytest.raises(WeightsMismatch, match="missing"):
        compat.IdeficsForVisionText2Text.from_pretrained(tmp_path / "bare")


@pytest.mark.parametrize("name", [torch.bfloat16, "bfloat16", "torch.bfloat16"])
def test_dtypes(model, name, tmp_path):
    model.save_pretrained(tmp_path)
    stored = type(model).from_pretrained(tmp_path, torch_dtype="auto")
    assert stored.dtype == torch.float32
    half = type(model).from_pretrained(tmp_path, torch_dtype=name)
    assert half.dtype == type(model).from_pretrained(tmp_path, dtype=name).dtype == torch.bfloat16
    assert half.get_memory_footprint() * 2 == model.get_memory_footprint()
    half.save_pretrained(tmp_path)
    assert type(model).from_pretrained(tmp_path).dtype == torch.bfloat16
    assert half.device == torch.device("cpu")
    assert half.to("cpu", torch.float32).dtype == torch.float32


def test_arguments_of_loading(model, tmp_path):
    model.save_pretrained(tmp_path)
    load = type(model).from_pretrained
    assert load(tmp_path, attn_implementation="eager").attn_implementation == "eager"
    assert load(tmp_path, use_cache=False).config.use_cache is False
    assert load(tmp_path, config=model.config).config is model.config
    assert (
        load(tmp_path, local_files_only=True, low_cpu_mem_usage=True, trust_remote_code=False).device.type
        == "cpu"
    )
    with pytest.raises(UnknownArgument, match="'colour'") as caught:
        load(tmp_path, colour="red")
    assert isinstance(caught.value, TypeError)
    with pytest.raises(TypeError, match="colour"):
        AutoModelForImageTextToText.from_pretrained(tmp_path, colour="red")
    with pytest.raises(BadSetting, match="sdpa"):
        load(tmp_path, attn_implementation="flash_attention_2")
    with pytest.raises(BadSetting, match="float64"):
        load(tmp_path, torch_dtype="float64")
    with pytest.raises(BadSetting, match="safetensors"):
        load(tmp_path, use_safetensors=False)
    with pytest.raises(BadSetting, match="safetensors"):
        model.save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(ModelNotFound):
        load(tmp_path / "nowhere")


def test_a_checkpoint_of_another_class(tmp_path):
    make_our_model("idefics").save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match=r"'idefics' and Idefics3.*AutoModelForImageTextToText"):
        compat.Idefics3ForConditionalGeneration.from_pretrained(tmp_path)


def test_smolvlm_and_idefics3_read_each_others(tmp_path):
    make_our_model("idefics3").save_pretrained(tmp_path)
    assert compat.SmolVLMForConditionalGeneration.from_pretrained(tmp_path).config.model_type == "idefics3"


def test_short_names_are_found():
    model = AutoModelForImageTextToText.from_pretrained("demo", torch_dtype=torch.float32)
    assert model.name_or_path == "demo"
    assert model.generation_config.eos_token_id is not None
    prompt = idefics.load("demo").prompt(["A picture of"])
    ids = torch.tensor([prompt.ids])
    assert_close(model(ids).logits[0], idefics.load("demo").logits(prompt), atol=1e-3)


def test_only_the_main_process_writes(model, tmp_path):
    model.save_pretrained(tmp_path / "none", is_main_process=False)
    assert not (tmp_path / "none").exists()
    doubled = {name: weight * 2 for name, weight in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=doubled)
    assert_close(type(model).from_pretrained(tmp_path).lm_head.weight, model.lm_head.weight * 2)


def test_from_config_has_first_weights_and_the_asked_dtype(model):
    new = AutoModelForImageTextToText.from_config(
        model.config, torch_dtype="bfloat16", attn_implementation="eager"
    )
    assert type(new) is MODEL_CLASS_BY_TYPE[model.config.model_type]
    assert new.dtype == torch.bfloat16
    assert new.attn_implementation == "eager"
    with pytest.raises(TypeError, match="from_pretrained"):
        AutoModelForImageTextToText()


def test_counts_of_parameters(model):
    embeddings = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Embedding))
    assert model.num_parameters() - model.num_parameters(exclude_embeddings=True) == embeddings
    model.lm_head.requires_grad_(False)
    assert model.num_parameters() - model.num_parameters(only_trainable=True) == sum(
        w.numel() for w in model.lm_head.parameters()
    )


def test_embeddings_and_head_can_be_had_and_set(model):
    new = torch.nn.Embedding(model.total_vocab_size, 48)
    assert model.get_output_embeddings() is model.lm_head
    model.set_input_embeddings(new)
    assert model.get_input_embeddings() is new
    head = torch.nn.Linear(48, 9, bias=False)
    model.set_output_embeddings(head)
    assert model.lm_head is head
    assert model.base_model is model.model
    assert model.can_generate()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_a_larger_vocabulary_keeps_what_ids_mean(family, tied, tmp_path):
    model = make_our_model(family, tie_word_embeddings=tied)
    inputs = make_batch(model, *SCENES)
    size, expected = model.total_vocab_size, model(**inputs).logits
    embeddings = model.resize_token_embeddings(size + 3, pad_to_multiple_of=8)
    larger = -(-(size + 3) // 8) * 8
    assert embeddings is model.get_input_embeddings()
    assert model.total_vocab_size == larger
    out = model(**inputs).logits
    assert out.shape[-1] == larger
    assert_close(out[..., :size], expected)
    assert tied == (model.lm_head.weight is embeddings.weight)
    model(**{**inputs, "input_ids": inputs["input_ids"].masked_fill(inputs["input_ids"] == 5, larger - 1)})
    model.save_pretrained(tmp_path)
    assert_close(type(model).from_pretrained(tmp_path)(**inputs).logits, out)
    model.resize_token_embeddings(size)
    assert_close(model(**inputs).logits, expected)
    assert model.resize_token_embeddings() is embeddings


def test_new_rows_are_the_mean_or_as_first_weights_are():
    model = make_our_model("idefics3")
    old = model.get_input_embeddings().weight.detach().clone()
    assert_close(model.resize_token_embeddings(70).weight[-1], old.mean(0))
    model = make_our_model("idefics3")
    row = model.resize_token_embeddings(70, mean_resizing=False).weight[-1]
    assert row.std() < 0.1
    assert row.std() > 0


def test_a_vocabulary_without_additional_tokens(tmp_path):
    reference, model = make_reference_and_model(tmp_path, tiny.IDEFICS1, additional_vocab_size=0)
    ids = torch.randint(3, 49, (1, 5))
    none = {"pixel_values": torch.zeros(1, 1, 3, 32, 32), "image_attention_mask": torch.zeros(1, 5, 1)}
    assert_close(model(ids).logits, reference(ids, attention_mask=torch.ones_like(ids), **none).logits)
    model.resize_token_embeddings(60)
    assert model.config.vocab_size == model.get_input_embeddings().weight.shape[0] == 60
    assert model(ids).logits.shape[-1] == 60


def test_a_vocabulary_smaller_than_the_one_before_additional_tokens():
    with pytest.raises(BadSetting, match="new_num_tokens is 50; give more than vocab_size, 50"):
        make_our_model("idefics").resize_token_embeddings(50)


def test_weights_in_eight_bits(model, tmp_path):
    model.save_pretrained(tmp_path)
    small = type(model).from_pretrained(tmp_path, quantization_config=compat.QuantoConfig(weights="int8"))
    assert small.get_memory_footprint() < 0.9 * model.get_memory_footprint()
    assert type(small.get_input_embeddings()) is type(model.get_input_embeddings())
    inputs = make_batch(model, *SCENES)
    real = inputs["attention_mask"].bool()
    gap = (small(**inputs).logits - model(**inputs).logits)[real].abs().mean()
    assert 0 < gap < 0.2 * model(**inputs).logits[real].abs().mean()
    small.generate(inputs["input_ids"][:1, -3:], max_new_tokens=2)
    with pytest.raises(UnsupportedModel, match="idefics quantize MODEL"):
        small.save_pretrained(tmp_path)


def test_weights_in_four_bits(model, tmp_path):
    pytest.importorskip("bitsandbytes")
    model.save_pretrained(tmp_path)
    config = compat.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    small = type(model).from_pretrained(tmp_path, quantization_config=config)
    assert small.get_memory_footprint() < 0.8 * model.get_memory_footprint()
    small(**make_batch(model, *SCENES))


def test_what_quantization_configs_mean():
    four = compat.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_compute_dtype=torch.float16, bnb_4bit_use_double_quant=True
    ).to_quantization_config()
    assert (four.kind, four.compute_dtype, four.double) == ("nf4", "float16", True)
    eight = compat.BitsAndBytesConfig(
        load_in_8bit=True, llm_int8_skip_modules=["lm_head"]
    ).to_quantization_config()
    assert (eight.kind, eight.skip) == ("int8", ("lm_head",))
    assert compat.QuantoConfig("int4").to_quantization_config().kind == "int4"
    for wrong, message in [
        (lambda: compat.BitsAndBytesConfig(), "neither"),
        (lambda: compat.BitsAndBytesConfig(load_in_8bit=True, load_in_4bit=True), "both"),
        (lambda: compat.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="int4"), "nf4 or fp4"),
        (lambda: compat.QuantoConfig(weights="int2"), "int8 or int4"),
        (lambda: compat.QuantoConfig(activations="int8"), "only weights"),
    ]:
        with pytest.raises(BadSetting, match=message):
            wrong()
    with pytest.raises(TypeError):
        compat.BitsAndBytesConfig(load_in_3bit=True)


def test_device_maps(model, tmp_path):
    model.save_pretrained(tmp_path)
    inputs = make_batch(model, *SCENES)
    for device_map in ("cpu", {"": "cpu"}):
        placed = type(model).from_pretrained(tmp_path, device_map=device_map)
        assert placed.device.type == "cpu"
        assert_close(placed(**inputs).logits, model(**inputs).logits)
    with pytest.raises(BadSetting):
        type(model).from_pretrained(tmp_path, device_map="everywhere")


def test_auto_placement(model, tmp_path):
    pytest.importorskip("accelerate")
    model.save_pretrained(tmp_path)
    inputs = make_batch(model, *SCENES)
    placed = type(model).from_pretrained(tmp_path, device_map="auto")
    assert_close(placed(**inputs).logits.cpu(), model(**inputs).logits)
