"""`from_pretrained` of a config and weights in memory, without a checkpoint."""

import pytest
import torch

from compat.models_tiny import FAMILIES, assert_close, make_batch, make_our_model
from idefics import compat
from idefics.errors import BadSetting, WeightsMismatch

SCENES = ("tt1ttttt1ttttt", "t1tttett")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_of_a_config_and_its_weights(family):
    model = make_our_model(family).eval()
    weights = model.state_dict()
    again = type(model).from_pretrained(None, config=model.config, state_dict=weights)
    assert not again.training
    assert again.state_dict().keys() == weights.keys()
    for name, weight in again.state_dict().items():
        assert weight.data_ptr() != weights[name].data_ptr()
        assert torch.equal(weight, weights[name])
    inputs = make_batch(model, *SCENES)
    assert_close(again(**inputs).logits, model(**inputs).logits)
    bare = type(model.model).from_pretrained(
        None, config=model.config, state_dict=model.model.state_dict(), attn_implementation="eager"
    )
    assert bare.config._attn_implementation == "eager"
    assert torch.equal(bare.get_input_embeddings().weight, model.get_input_embeddings().weight)


def test_the_dtype_is_that_of_the_weights_or_the_one_asked_for():
    model = make_our_model("idefics3").to(torch.bfloat16)
    given = {"config": model.config, "state_dict": model.state_dict()}
    assert type(model).from_pretrained(None, **given).dtype == torch.bfloat16
    assert type(model).from_pretrained(None, **given, dtype="float32").dtype == torch.float32


def test_one_name_of_tied_weights_is_enough():
    model = make_our_model("idefics3", tie_word_embeddings=True)
    weights = model.state_dict()
    assert weights["lm_head.weight"].data_ptr() == model.get_input_embeddings().weight.data_ptr()
    del weights["lm_head.weight"]
    again = type(model).from_pretrained(None, config=model.config, state_dict=weights)
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)


def test_weights_that_are_not_the_models():
    model = make_our_model("idefics3")
    weights = model.state_dict()
    weights["other"] = weights.pop("model.text_model.norm.weight")
    weights["lm_head.weight"] = weights["lm_head.weight"][1:]
    with pytest.raises(WeightsMismatch) as caught:
        type(model).from_pretrained(None, config=model.config, state_dict=weights)
    assert caught.value.missing == ("model.text_model.norm.weight",)
    assert caught.value.unused == ("other",)
    assert list(caught.value.shapes) == ["lm_head.weight"]


@pytest.mark.parametrize("names", [(), ("config",), ("state_dict",)])
def test_one_without_the_other(names):
    model = make_our_model("idefics3")
    given = {"config": model.config, "state_dict": model.state_dict()}
    with pytest.raises(BadSetting, match="both config and state_dict"):
        type(model).from_pretrained(None, **{name: given[name] for name in names})


def test_what_needs_a_checkpoint_is_refused():
    model = make_our_model("idefics3")
    given = {"config": model.config, "state_dict": model.state_dict()}
    with pytest.raises(BadSetting, match="load_in_8bit is given"):
        type(model).from_pretrained(None, **given, load_in_8bit=True)


def test_weights_given_with_a_checkpoint_are_refused(tmp_path):
    with pytest.raises(BadSetting, match="state_dict"):
        compat.Idefics3ForConditionalGeneration.from_pretrained(tmp_path, state_dict={"a": torch.zeros(1)})
