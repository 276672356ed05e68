"""Subclasses with modules of their own: they load, generate, are saved and loaded again."""

import pytest
import torch
from torch import nn

from compat import models_tiny
from compat.models_tiny import FAMILIES, assert_close, make_our_model
from idefics import compat
from idefics.compat.modeling_auto import MODEL_CLASS_BY_TYPE
from idefics.errors import WeightsMismatch

MISSING_WEIGHTS_WARNING = (
    r"2 weights are not in the checkpoint and have first weights "
    r"\(custom_text_proj.weight, custom_text_proj.bias\)"
)


def make_retriever(base):
    """As ColPali does it: the model with a head, another matrix on top, and a `forward` that takes anything."""

    class Retriever(base):
        def __init__(self, config):
            super().__init__(config)
            self.custom_text_proj = nn.Linear(48, 8)
            self.norm_of_mine = nn.LayerNorm(8) if config.model_type == "idefics" else nn.Identity()
            self.post_init()

        def forward(self, *args, **kwargs):
            kwargs.pop("return_dict", None)
            return super().forward(*args, **kwargs, return_dict=True)

        def embed_pictures(self, **inputs):
            hidden = self.model(**inputs).last_hidden_state
            return nn.functional.normalize(self.custom_text_proj(hidden), dim=-1)

    return Retriever


class ColIdefics3(compat.Idefics3PreTrainedModel):
    """As ColPali's own package does it: put together from the model without a head."""

    def __init__(self, config):
        super().__init__(config)
        self.model = compat.Idefics3Model(config)
        self.linear = nn.Linear(config.text_config.hidden_size, 8)
        self.scale = nn.Parameter(torch.full((3,), 7.0))
        self.post_init()

    def forward(self, *args, **kwargs):
        return self.linear(self.model(*args, **kwargs)[0]) * self.scale.sum()


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def saved_checkpoint(family, tmp_path):
    make_our_model(family).save_pretrained(tmp_path / "plain")
    return tmp_path / "plain"


def test_modules_of_a_subclass_get_first_weights(saved_checkpoint, family, tmp_path):
    kind = make_retriever(MODEL_CLASS_BY_TYPE[family])
    plain = MODEL_CLASS_BY_TYPE[family].from_pretrained(saved_checkpoint)
    with pytest.warns(UserWarning, match=r"not in the checkpoint.*custom_text_proj\.weight.*train them"):
        model = kind.from_pretrained(saved_checkpoint)
    weight = model.custom_text_proj.weight.detach()
    assert 0.3 * model.init_std < weight.std() < 3 * model.init_std
    assert not model.custom_text_proj.bias.any()
    assert not any(tensor.is_meta for tensor in model.state_dict().values())
    inputs = models_tiny.make_batch(plain, "1tt", "t1t1ttt")
    assert_close(model(**inputs).logits, plain(**inputs).logits)
    expected = plain.generate(**inputs, max_new_tokens=4)
    assert model.generate(**inputs, max_new_tokens=4).tolist() == expected.tolist()
    vectors = model.embed_pictures(**inputs)
    assert vectors.shape[-1] == 8
    model.save_pretrained(tmp_path / "retriever")
    again = kind.from_pretrained(tmp_path / "retriever")  # no warning: all weights are there
    assert_close(again.embed_pictures(**inputs), vectors)


def test_dtypes_and_few_bits_of_added_modules(saved_checkpoint, family):
    kind = make_retriever(MODEL_CLASS_BY_TYPE[family])
    with pytest.warns(UserWarning, match="custom_text_proj"):
        half = kind.from_pretrained(saved_checkpoint, torch_dtype="bfloat16")
    assert half.custom_text_proj.weight.dtype == torch.bfloat16
    with pytest.warns(UserWarning, match="custom_text_proj"):
        eight = kind.from_pretrained(saved_checkpoint, load_in_8bit=True)
    assert type(eight.custom_text_proj) is nn.Linear
    assert (
        eight.get_memory_footprint()
        < MODEL_CLASS_BY_TYPE[family].from_pretrained(saved_checkpoint).get_memory_footprint()
    )


def test_a_model_put_together_from_the_one_without_a_head(tmp_path):
    plain = make_our_model("idefics3")
    plain.save_pretrained(tmp_path / "plain")
    with pytest.warns(UserWarning, match=r"3 weights .*linear\.weight"):
        model = ColIdefics3.from_pretrained(tmp_path / "plain")
    assert model.scale.tolist() == [7.0] * 3  # a parameter keeps what the constructor gave it
    inputs = models_tiny.make_batch(plain, "t1tt")
    hidden = plain.model(**inputs).last_hidden_state
    assert_close(model(**inputs), model.linear(hidden) * 21)
    assert model.get_input_embeddings() is model.model.text_model.embed_tokens
    assert model.get_output_embeddings() is None
    model.save_pretrained(tmp_path / "col")
    assert_close(ColIdefics3.from_pretrained(tmp_path / "col")(**inputs), model(**inputs))
    made = ColIdefics3(plain.config)
    assert made(**inputs).shape[-1] == 8
    assert made.attn_implementation == "sdpa"


def test_some_of_the_added_weights_are_there(tmp_path):
    from safetensors.torch import load_file, save_file

    kind = make_retriever(MODEL_CLASS_BY_TYPE["smolvlm"])
    model = kind(make_our_model("smolvlm").config)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["custom_text_proj.bias"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.warns(UserWarning, match="1 weights"):
        again = kind.from_pretrained(tmp_path)
    assert torch.equal(again.custom_text_proj.weight, model.custom_text_proj.weight)


def test_weights_of_the_model_itself_must_be_there(tmp_path):
    from safetensors.torch import load_file, save_file

    make_our_model("smolvlm").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.text_model.norm.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(WeightsMismatch, match=r"1 missing \(model\.text_model\.norm\.weight\)"):
        make_retriever(MODEL_CLASS_BY_TYPE["smolvlm"]).from_pretrained(tmp_path)


def test_a_subclass_says_how_its_weights_begin(saved_checkpoint, family):
    class Ones(make_retriever(MODEL_CLASS_BY_TYPE[family])):
        def _init_weights(self, module):
            if isinstance(module, nn.Linear) and module.out_features == 8:
                nn.init.ones_(module.weight)
            else:
                super()._init_weights(module)

    with pytest.warns(UserWarning, match="custom_text_proj"):
        model = Ones.from_pretrained(saved_checkpoint)
    assert bool((model.custom_text_proj.weight == 1).all())


def test_a_subclass_may_change_what_the_model_is_given():
    class Counting(MODEL_CLASS_BY_TYPE["smolvlm"]):
        seen = ()

        def prepare_inputs_for_generation(self, input_ids, **kwargs):
            self.seen += (tuple(input_ids.shape),)
            return super().prepare_inputs_for_generation(input_ids, **kwargs)

    model = Counting(make_our_model("smolvlm").config)
    model.generate(torch.tensor([[4, 5, 6]]), max_new_tokens=3, eos_token_id=None)
    assert model.seen == ((1, 3), (1, 1), (1, 1))
