"""Adapters of peft on quantised layers work; writing to levels and reading them as values is refused."""

import copy
from io import BytesIO

import pytest
import torch
from torch import nn

from idefics.config import QuantizationConfig
from idefics.errors import BadRequest
from idefics.quant import quantizers_by_name

peft = pytest.importorskip("peft")
OWN = ("int8", "int4", "fp8")
REFUSED = r"^quantised weights .* load the model without quantize=.* merge .* save_pretrained.* quantise"


class Model(nn.Module):
    """A model of one quantised layer."""

    def __init__(self, kind, inputs=64, outputs=64):
        super().__init__()
        self.layer = nn.Linear(inputs, outputs)
        for name, pack in quantizers_by_name(self, QuantizationConfig(kind=kind)).items():
            pack(self.get_parameter(name).detach())

    def forward(self, x):
        return self.layer(x)


def make_adapted_model(kind, config=None, **options):
    """A model with an adapter that has an effect, in evaluation."""
    config = config or peft.LoraConfig(
        r=4, lora_alpha=40, target_modules=["layer"], **{"init_lora_weights": False, **options}
    )
    return peft.get_peft_model(Model(kind), config).eval()


def copy_state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_unchanged(model, before):
    after = model.state_dict()
    assert after.keys() == before.keys()
    for name, value in before.items():
        assert value.dtype == after[name].dtype
        assert value.view(torch.uint8).equal(after[name].view(torch.uint8)), name


def assert_refused(call):
    with pytest.raises(BadRequest, match=REFUSED) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", OWN)
@torch.inference_mode()
def test_an_adapter_works_on_a_quantised_layer(kind):
    model, x = make_adapted_model(kind), torch.randn(3, 64)
    lora = model.base_model.model.layer
    delta = lora.get_delta_weight("default").float()
    assert delta.abs().max() > 0.1
    expected = lora.base_layer(x) + x @ delta.T
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.unload()(x), lora.base_layer(x))


@pytest.mark.parametrize("kind", OWN)
@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("how", ["merge_and_unload", "merge_adapter"])
def test_merging_is_refused_and_changes_nothing(kind, safe, bias, how):
    model, x = make_adapted_model(kind, lora_bias=bias), torch.randn(3, 64)
    before, answer = copy_state(model), model(x)
    assert_refused(lambda: getattr(model, how)(safe_merge=safe))
    assert_unchanged(model, before)
    assert torch.equal(model(x), answer)
    with pytest.warns(UserWarning, match="Already unmerged"):
        model.unmerge_adapter()
    assert torch.equal(model(x), answer)


@pytest.mark.parametrize("kind", OWN)
@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize("feedforward", [False, True])
def test_merging_factors_is_refused(kind, safe, feedforward):
    targets = {"target_modules": ["layer"], "feedforward_modules": ["layer"] if feedforward else []}
    model = make_adapted_model(kind, peft.IA3Config(init_ia3_weights=False, **targets))
    before = copy_state(model)
    assert_refused(lambda: model.merge_adapter(safe_merge=safe))
    assert_unchanged(model, before)


@pytest.mark.parametrize("kind", OWN)
def test_reading_levels_as_values_is_refused(kind):
    """DoRA computes norms of weights, HRA multiplies with them: both would be wrong with levels."""
    assert_refused(lambda: make_adapted_model(kind, use_dora=True))
    rotated = make_adapted_model(kind, peft.HRAConfig(r=4, target_modules=["layer"], init_weights=False))
    assert_refused(lambda: rotated(torch.randn(3, 64)))
    assert_refused(lambda: rotated.merge_adapter(safe_merge=True))


@pytest.mark.parametrize("kind", OWN)
@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "mica"])
def test_adapters_that_start_from_the_weights_are_refused(kind, start):
    assert_refused(lambda: make_adapted_model(kind, init_lora_weights=start))


@pytest.mark.parametrize("kind", OWN)
def test_other_code_can_neither_change_nor_compute_with_the_weight(kind):
    layer = Model(kind).layer
    before, weight = copy_state(layer), layer.weight
    assert isinstance(weight, nn.Parameter)
    assert (weight.shape, weight.dtype, weight.device.type) == (layer.levels.shape, torch.float32, "cpu")
    assert weight.data_ptr() == layer.levels.data_ptr()
    for call in (
        lambda: weight + 1,
        lambda: weight.data.add_(1),
        lambda: weight.detach().clone().mul_(2),
        lambda: weight.to(torch.float32) * 2,
        lambda: weight.float().norm(),
        lambda: torch.zeros(2, weight.shape[1]) @ weight.T.float(),
        lambda: nn.functional.linear(torch.zeros(2, weight.shape[1]), weight),
        lambda: weight.data.copy_(torch.ones(weight.shape)),
        lambda: weight.zero_(),
        lambda: setattr(weight, "data", torch.zeros_like(layer.levels)),
        lambda: torch.stack([weight]).sum(),
        lambda: weight[0].sum(),
    ):
        assert_refused(call)
    assert_unchanged(layer, before)


@pytest.mark.parametrize("kind", OWN)
@pytest.mark.parametrize("autocast", [True, False])
def test_adapters_are_not_rounded_to_the_dtype_of_the_levels(kind, autocast):
    """Adapters take the dtype of the base layer's weight: in int8 or fp8 they would be rounded to nothing."""
    config = peft.LoraConfig(r=4, target_modules=["layer"], init_lora_weights="gaussian")
    model = peft.get_peft_model(Model(kind), config, autocast_adapter_dtype=autocast)
    values = model.base_model.model.layer.lora_A["default"].weight
    assert values.dtype == torch.float32
    assert not values.equal(values.to(torch.float8_e4m3fn).float())
    shared = peft.UniLoraConfig(r=4, theta_d_length=64, target_modules=["layer"])
    model = peft.get_peft_model(Model(kind), shared, autocast_adapter_dtype=autocast).base_model.model.layer
    scales = model.unilora_scales_A["default"]
    assert scales.dtype == torch.float32
    assert scales.abs().min() > 0


def save_and_load(layer):
    file = BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("kind", OWN)
@pytest.mark.parametrize("copied", [copy.deepcopy, save_and_load])
@torch.inference_mode()
def test_a_copy_is_guarded_and_computes_the_same(kind, copied):
    layer, x = Model(kind).layer, torch.randn(3, 64)
    again = copied(layer)
    assert torch.equal(again(x), layer(x))
    assert_refused(lambda: again.weight + 1)
    assert all(type(value) is torch.Tensor for value in again.state_dict().values())
    assert all(type(weight) is nn.Parameter for weight in again.parameters())


@pytest.mark.parametrize("kind", OWN)
@torch.inference_mode()
def test_state_and_devices_are_set_through_the_layer(kind):
    one, other, x = Model(kind).layer, Model(kind).layer, torch.randn(3, 64)
    for assign in (False, True):
        other.load_state_dict(one.state_dict(), assign=assign)
        assert torch.equal(one(x), other(x))
        assert_refused(lambda: other.weight + 1)
    assert other.to("meta").weight.device.type == "meta"
