"""`model.model`, the classes without a head, and their vision towers, against transformers' on tiny models."""

import json

import pytest
import torch

from compat.models_tiny import (
    CONFIG_BY_FAMILY,
    FAMILIES,
    assert_close,
    make_batch,
    make_our_model,
    make_reference_and_model,
)
from idefics import compat
from idefics.compat.modeling_auto import BASE_MODEL_CLASS_BY_TYPE, MODEL_CLASS_BY_TYPE
from idefics.errors import BadPrompt, BadSetting
from idefics.nn.checkpointing import checkpointable_blocks
from models import tiny

SCENES = ("tt1ttttt1ttttt", "tttt", "t1tttett")
each_family = pytest.mark.parametrize("family", FAMILIES)


@each_family
def test_the_model_inside_is_the_bare_model(family, tmp_path):
    reference, model = make_reference_and_model(tmp_path, CONFIG_BY_FAMILY[family])
    inputs = make_batch(model, *SCENES)
    real = inputs["attention_mask"].bool()
    inputs["position_ids"] = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        expected, out = reference.model(**inputs), model.model(**inputs)
        assert_close(out.last_hidden_state[real], expected.last_hidden_state[real])
        assert_close(model.lm_head(out.last_hidden_state), model(**inputs).logits)
    assert type(model.model) is BASE_MODEL_CLASS_BY_TYPE[family]
    assert model.base_model is model.get_decoder() is model.model
    assert model.model.base_model is model.model
    assert model.model.config is model.config
    assert isinstance(model.model(**inputs, return_dict=False), tuple)
    assert model.model(**inputs, output_hidden_states=True, output_attentions=True).attentions
    assert not model.model.can_generate()
    assert model.can_generate()


@each_family
def test_a_class_without_a_head_reads_a_checkpoint_with_one(family, tmp_path):
    reference, model = make_reference_and_model(tmp_path, CONFIG_BY_FAMILY[family])
    inputs = make_batch(model, *SCENES)
    expected = model.model(**inputs).last_hidden_state
    for load in (compat.AutoModel, BASE_MODEL_CLASS_BY_TYPE[family]):
        bare = load.from_pretrained(tmp_path)
        assert type(bare) is BASE_MODEL_CLASS_BY_TYPE[family]
        assert_close(bare(**inputs).last_hidden_state, expected)
    bare.save_pretrained(tmp_path / "bare")
    assert json.loads((tmp_path / "bare" / "config.json").read_text())["architectures"] == [
        type(bare).__name__
    ]
    assert_close(compat.AutoModel.from_pretrained(tmp_path / "bare")(**inputs).last_hidden_state, expected)
    assert sorted(bare.state_dict()) == sorted(
        name.removeprefix("model.") for name in reference.state_dict() if name.startswith("model.")
    )
    new = compat.AutoModel.from_config(bare.config)
    assert new.num_parameters() == bare.num_parameters()


@each_family
def test_weights_are_not_kept_twice(family):
    model = make_our_model(family)
    inside = {id(weight) for weight in model.model.parameters()}
    assert inside < {id(weight) for weight in model.parameters()}
    model.model.get_input_embeddings().weight.data.fill_(0.5)
    assert bool((model.get_input_embeddings().weight == 0.5).all())


@each_family
def test_vision_towers(family, tmp_path):
    reference, model = make_reference_and_model(tmp_path, CONFIG_BY_FAMILY[family])
    pixels = make_batch(model, "t1t1t")["pixel_values"].flatten(0, 1)[:2]
    asked = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        if family == "idefics2":
            side = (
                CONFIG_BY_FAMILY[family]["vision_config"]["image_size"]
                // CONFIG_BY_FAMILY[family]["vision_config"]["patch_size"]
            )
            asked_of_theirs = {"patch_attention_mask": torch.ones(2, side, side, dtype=torch.bool)}
            pixels = torch.randn(2, 3, *[CONFIG_BY_FAMILY[family]["vision_config"]["image_size"]] * 2)
        else:
            asked_of_theirs = {}
        reference.set_attn_implementation("eager")
        expected = reference.model.vision_model(pixel_values=pixels, **asked_of_theirs, **asked)
        out = model.model.vision_model(pixel_values=pixels, **asked)
        plain = model.model.vision_model(pixels)
    assert_close(plain.last_hidden_state, expected.last_hidden_state)
    assert_close(out.last_hidden_state, expected.last_hidden_state)
    assert plain.hidden_states is None
    assert plain.attentions is None
    for ours_, theirs in ((out.hidden_states, expected.hidden_states), (out.attentions, expected.attentions)):
        assert len(ours_) == len(out.hidden_states) - (ours_ is out.attentions)
        for one, other in zip(ours_, theirs or ours_, strict=True):  # 5.23 records none in Idefics' tower
            assert_close(one, other)
    if family == "idefics":
        assert_close(out.pooler_output, expected.pooler_output)
        assert_close(out.hidden_states[-1], out.last_hidden_state)
    assert_close(model.model.vision_model(pixels, return_dict=False)[0], plain.last_hidden_state)


def test_vision_towers_say_what_they_do_not_read():
    model = make_our_model("idefics3").model.vision_model
    pixels = torch.randn(1, 3, 32, 32)
    with pytest.raises(BadPrompt, match="leaves patches out"):
        model(pixels, patch_attention_mask=torch.zeros(1, 4, 4, dtype=torch.bool))
    tower = make_our_model("idefics").model.vision_model
    with pytest.raises(BadPrompt, match="interpolate_pos_encoding=True"):
        tower(torch.randn(1, 3, 48, 48))
    assert tower(torch.randn(1, 3, 48, 48), interpolate_pos_encoding=True).last_hidden_state.shape[0] == 1


def test_frames_that_go_through_a_tower_in_groups(monkeypatch):
    model = make_our_model("idefics3").model.vision_model
    pixels = torch.randn(5, 3, 32, 32)
    whole = model(pixels, output_hidden_states=True, output_attentions=True)
    monkeypatch.setattr("idefics.nn.vit.CPU_CHUNK_PATCHES", 1)
    parts = model(pixels, output_hidden_states=True, output_attentions=True)
    for name in ("hidden_states", "attentions"):
        for one, other in zip(parts[name], whole[name], strict=True):
            assert_close(one, other)


@pytest.mark.parametrize("family", ["idefics2", "idefics3", "smolvlm"])
def test_image_features(family, tmp_path):
    reference, model = make_reference_and_model(tmp_path, CONFIG_BY_FAMILY[family])
    inputs = make_batch(model, *SCENES)
    names = ("pixel_values", "pixel_attention_mask")
    given = {name: inputs[name] for name in names if name in inputs}
    with torch.no_grad():
        expected, out = reference.get_image_features(**given), model.get_image_features(**given)
    theirs = [f.reshape(-1, f.shape[-1]) for f in expected.pooler_output]
    assert_close(torch.cat(list(out.pooler_output)), torch.cat(theirs))
    assert len(out.pooler_output) == len(inputs["input_ids"])
    image = inputs["input_ids"] == model.config.image_token_id
    assert [len(vectors) for vectors in out.pooler_output] == image.sum(1).tolist()
    if family != "idefics2":
        assert_close(out.last_hidden_state, expected.last_hidden_state)
    assert isinstance(model.model.get_image_features(**given, return_dict=False), tuple)


def test_freezing_as_the_captioning_script_does():
    model = compat.IdeficsForVisionText2Text(
        compat.IdeficsConfig.from_dict(
            {**CONFIG_BY_FAMILY["idefics"], "freeze_text_layers": False, "freeze_vision_layers": False}
        )
    )
    assert all(weight.requires_grad for weight in model.model.layers.parameters())
    model.model.freeze_text_layers()
    model.model.freeze_vision_layers()
    assert not any(weight.requires_grad for weight in model.model.layers.parameters())
    assert not any(weight.requires_grad for weight in model.model.vision_model.parameters())
    assert all(weight.requires_grad for weight in model.model.gated_cross_attn_layers.parameters())


@each_family
def test_a_loss_that_is_a_part_of_a_larger_batch(family, tmp_path):
    reference, model = make_reference_and_model(tmp_path, CONFIG_BY_FAMILY[family])
    inputs = make_batch(model, *SCENES)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    items = int((labels[:, 1:] != -100).sum())
    whole = model(**inputs, labels=labels).loss
    assert_close(model(**inputs, labels=labels, num_items_in_batch=items).loss, whole)
    assert_close(model(**inputs, labels=labels, num_items_in_batch=torch.tensor(4 * items)).loss, whole / 4)
    if family != "idefics":  # transformers 5.23 cannot compute it where there are additional tokens
        expected = reference(**inputs, labels=labels, num_items_in_batch=7).loss
        assert_close(model(**inputs, labels=labels, num_items_in_batch=7).loss, expected)


@each_family
def test_logits_of_some_tokens(family):
    model = make_our_model(family)
    inputs = make_batch(model, *SCENES)
    whole = model(**inputs).logits
    picked = torch.tensor([-1, -3])
    assert_close(model(**inputs, logits_to_keep=picked).logits, whole[:, picked])
    assert_close(model(**inputs, logits_to_keep=2).logits, whole[:, -2:])
    with pytest.raises(BadSetting, match="labels need the logits of all"):
        model(**inputs, logits_to_keep=picked, labels=inputs["input_ids"])


@each_family
def test_first_weights_can_be_drawn_again(family):
    model = make_our_model(family)
    before = model.lm_head.weight.clone()
    torch.manual_seed(3)
    model.init_weights()
    assert not torch.equal(model.lm_head.weight, before)
    assert abs(float(model.lm_head.weight.detach().std()) - model.init_std) < 0.3 * model.init_std
    torch.manual_seed(3)
    model.post_init()
    assert float(model.lm_head.weight.detach().std()) > 0


@each_family
def test_the_config_says_how_attention_is_computed(family, tmp_path):
    config = type(make_our_model(family).config).from_dict(
        CONFIG_BY_FAMILY[family], attn_implementation="eager"
    )
    model = MODEL_CLASS_BY_TYPE[family](config)
    assert model.attn_implementation == model.config._attn_implementation == "eager"
    assert model.model.attn_implementation == "eager"
    model.set_attn_implementation("sdpa")
    assert model.config._attn_implementation == model.model.attn_implementation == "sdpa"
    assert model.model.attention_backend is model.attention_backend
    model.save_pretrained(tmp_path)
    assert "attn" not in (tmp_path / "config.json").read_text().replace("cross_attn", "")
    assert MODEL_CLASS_BY_TYPE[family].from_pretrained(tmp_path, config=config).attn_implementation == "sdpa"
    assert (
        MODEL_CLASS_BY_TYPE[family]
        .from_pretrained(tmp_path, attn_implementation="eager")
        .config._attn_implementation
        == "eager"
    )


@each_family
def test_a_vocabulary_without_a_head_is_resized(family):
    bare = BASE_MODEL_CLASS_BY_TYPE[family].from_config(
        type(make_our_model(family).config).from_dict(tiny.merge_config(CONFIG_BY_FAMILY[family]))
    )
    size = bare.total_vocab_size
    bare.resize_token_embeddings(size + 4)
    assert bare.total_vocab_size == size + 4
    assert bare(torch.tensor([[size + 3]])).last_hidden_state.shape[1] == 1


@pytest.mark.parametrize("every", [1, 2])
def test_checkpointing_of_some_blocks(every):
    model = make_our_model("idefics3").train()
    model.gradient_checkpointing_enable(
        gradient_checkpointing_kwargs={"use_reentrant": False}, every_n_layers=every
    )
    blocks = list(checkpointable_blocks(model))
    wrapped = [block for block in blocks if "forward" in vars(block)]
    assert len(wrapped) == -(-len(blocks) // every)
    assert model.is_activation_checkpointing
    model.activation_checkpointing_disable()
    assert not model.is_gradient_checkpointing
    model.activation_checkpointing_enable()
    assert model.is_gradient_checkpointing
    for wrong in ({"offload": True}, {"every_n_layers": 0}):
        with pytest.raises(BadSetting, match=next(iter(wrong))):
            model.gradient_checkpointing_enable(**wrong)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_config_of_each_part_says_how_attention_is_computed(family):
    model = make_our_model(family)
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        for name in model.config.parts:
            part = getattr(model.config, name)
            assert part._attn_implementation == implementation
            assert "_attn_implementation" not in part.to_dict()


def test_an_idefics_model_says_its_vocabulary():
    model = make_our_model("idefics", additional_vocab_size=2)
    model.resize_token_embeddings(model.vocab_size + 3)
    assert model.vocab_size == model.config.vocab_size == model.model.vocab_size


def test_an_unknown_way_to_attend_is_refused_and_changes_nothing():
    model = make_our_model("idefics3")
    with pytest.raises(ValueError, match='attn_implementation="foo"` is not supported: give sdpa, eager'):
        model.set_attn_implementation("foo")
    assert model.config._attn_implementation == model.config.text_config._attn_implementation == "sdpa"
