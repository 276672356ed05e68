"""Attributes and keywords that users of transformers expect on models and tokenizers."""

import json

import pytest
import torch

from compat import models_tiny
from compat.models_tiny import FAMILIES, assert_close, make_our_model
from idefics import compat, weights
from idefics.errors import BadPrompt, BadSetting
from idefics.nn.attention_backends import eager_attention


@pytest.fixture(params=FAMILIES)
def model(request):
    return make_our_model(request.param)


@pytest.mark.parametrize("change", [lambda x: x[:, :-1], lambda x: x[:1], lambda x: x[0]])
def test_labels_of_a_wrong_shape_are_refused_with_both_shapes(model, change):
    inputs = models_tiny.make_batch(model, "t1ttt", "t1ttt")
    labels = change(inputs["input_ids"])
    rows, tokens = inputs["input_ids"].shape
    with pytest.raises(BadPrompt) as error:
        model(**inputs, labels=labels)
    assert f"labels are of {tuple(labels.shape)}: give ({rows}, {tokens})" in str(error.value)


class TestAttentionOfParts:
    def test_each_part_has_its_own(self, model):
        inputs = models_tiny.make_batch(model, "t1ttt")
        before = model(**inputs).logits
        model.set_attn_implementation({"vision_config": "eager", "": "sdpa"})
        layer = model.model.vision_model.encoder.layers[0].self_attn
        assert layer.attention_backend is eager_attention
        assert model.model.attention_backend is not eager_attention
        assert model.config.vision_config._attn_implementation == "eager"
        assert model.config._attn_implementation == "sdpa"
        assert_close(model(**inputs).logits, before)
        model.set_attn_implementation("sdpa")
        assert layer.attention_backend is not eager_attention

    def test_the_decoder_alone(self):
        model = make_our_model("idefics3")
        model.set_attn_implementation({"text_config": "eager"})
        assert model.model.attention_backend is eager_attention
        assert model.model.vision_model.encoder.layers[0].self_attn.attention_backend is not eager_attention

    def test_it_is_taken_by_from_pretrained_and_configs(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        loaded = type(model).from_pretrained(tmp_path, attn_implementation={"vision_config": "eager"})
        assert loaded.attn_implementation == "sdpa"
        assert loaded.config.vision_config._attn_implementation == "eager"
        config = type(model.config).from_pretrained(tmp_path, attn_implementation={"vision_config": "eager"})
        made = type(model)(config)
        assert made.attn_implementation == "sdpa"
        assert made.config.vision_config._attn_implementation == "eager"

    def test_wrong_names_are_refused(self, model):
        with pytest.raises(BadSetting, match=r"names 'audio_config'; give .*vision_config"):
            model.set_attn_implementation({"audio_config": "eager"})
        with pytest.raises(BadSetting, match='attn_implementation="none"` is not supported'):
            model.set_attn_implementation({"vision_config": "none"})


def test_a_legacy_cache_is_not_asked_for(model):
    inputs = models_tiny.make_batch(model, "t1ttt")
    inputs |= {"max_new_tokens": 3, "do_sample": False}
    assert torch.equal(model.generate(**inputs, return_legacy_cache=False), model.generate(**inputs))
    with pytest.raises(BadSetting, match=r"return_legacy_cache is True; .*to_legacy_cache"):
        model.generate(**inputs, return_legacy_cache=True)


def test_a_saved_config_does_not_claim_a_version_of_transformers(model, tmp_path):
    model.config.transformers_version = "4.37.0"
    model.save_pretrained(tmp_path)
    assert "transformers_version" not in json.loads((tmp_path / "config.json").read_text())


def test_added_tokens_are_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    folder = weights.find_checkpoint("demo")
    mine = compat.AutoTokenizer.from_pretrained(folder)
    wanted = transformers.AutoTokenizer.from_pretrained(folder)
    assert list(mine.added_tokens_decoder) == list(wanted.added_tokens_decoder)
    for id, token in wanted.added_tokens_decoder.items():
        assert mine.added_tokens_decoder[id].content == token.content
        assert mine.added_tokens_decoder[id].special == token.special
    assert mine.added_tokens_encoder == wanted.added_tokens_encoder
