"""The outputs of models: values by attribute, by key and by index, and as a tuple."""

import copy
import pickle

import pytest
import torch

from compat.models_tiny import FAMILIES, assert_close, make_batch, make_our_model
from idefics.compat import modeling_outputs

NAMES = ["loss", "logits", "past_key_values", "hidden_states", "attentions", "image_hidden_states"]


@pytest.fixture(params=FAMILIES)
def model(request):
    return make_our_model(request.param)


def test_names_keys_places(model):
    inputs = make_batch(model, "t1ttt")
    out = model(**inputs, labels=inputs["input_ids"], output_hidden_states=True, output_attentions=True)
    assert list(out) == list(out.field_names) == NAMES
    assert type(out).__name__.endswith("CausalLMOutputWithPast")
    assert isinstance(out, dict)
    assert out.logits is out["logits"] is out[1]
    assert out.loss is out[0]
    assert out[:2] == (out.loss, out.logits)
    assert len(out.to_tuple()) == len(out) == 6
    bare = model(**inputs, use_cache=False)
    assert list(bare) == ["logits", "image_hidden_states"]
    assert bare.loss is bare.past_key_values is None
    assert bare[0] is bare.logits
    with pytest.raises(AttributeError, match="scores"):
        _ = bare.scores
    with pytest.raises(KeyError):
        _ = bare["loss"]


def test_tuples_in_their_place(model):
    inputs = make_batch(model, "t1ttt")
    out, as_tuple = model(**inputs), model(**inputs, return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert len(as_tuple) == len(out)
    assert_close(as_tuple[0], out[0])
    model.config.return_dict = False
    assert isinstance(model(**inputs), tuple)
    assert not isinstance(model(**inputs, return_dict=True), tuple)


def test_the_config_says_where_the_caller_does_not(model):
    inputs = make_batch(model, "t1ttt")
    model.config.update({"use_cache": False, "output_hidden_states": True, "output_attentions": True})
    out = model(**inputs)
    assert out.past_key_values is None
    assert out.hidden_states is not None
    assert out.attentions is not None
    assert model(**inputs, output_hidden_states=False, use_cache=True).hidden_states is None


def test_shapes_are_the_documented_ones(model):
    inputs = make_batch(model, "t1ttt", "tt")
    rows, tokens = inputs["input_ids"].shape
    layers, layout = model.layout.num_layers, model.layout
    out = model(**inputs, output_hidden_states=True, output_attentions=True)
    assert out.logits.shape == (rows, tokens, layout.vocab_size)
    assert [tuple(state.shape) for state in out.hidden_states] == [(rows, tokens, 48)] * (layers + 1)
    assert [tuple(weights.shape) for weights in out.attentions] == [(rows, 4, tokens, tokens)] * layers
    if model.config.model_type == "idefics":
        assert out.image_hidden_states.shape == (rows, 1, 5, 32)
    else:
        assert out.image_hidden_states.shape[0::2] == (1, 48)


def test_no_hooks_stay(model):
    inputs = make_batch(model, "t1ttt")
    model(**inputs, output_hidden_states=True)
    assert not any(module._forward_hooks for module in model.modules())


def test_copies_and_pickles():
    out = modeling_outputs.CausalLMOutputWithPast(logits=torch.ones(2), loss=None)
    for other in (copy.copy(out), copy.deepcopy(out), pickle.loads(pickle.dumps(out)), type(out)(dict(out))):
        assert list(other) == ["logits"]
        assert_close(other.logits, out.logits)
    out.loss = torch.zeros(())
    assert out["loss"] is out.loss
    with pytest.raises(TypeError, match="scores"):
        modeling_outputs.CausalLMOutputWithPast(scores=1)
