"""Adapters of peft on the patch embedding, which is a convolution in the checkpoints."""

import pytest
import torch

from compat import models_tiny
from compat.models_tiny import CONFIG_BY_FAMILY, FAMILIES, assert_close

peft = pytest.importorskip("peft")
pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def wrap(model, use_dora):
    """The model with a random adapter, the same for models with the same weights."""
    torch.manual_seed(1)
    config = peft.LoraConfig(
        r=3, target_modules=["patch_embedding"], use_dora=use_dora, init_lora_weights=False
    )
    return peft.get_peft_model(model, config)


@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_of_the_patch_embedding_gives_transformers_logits(family, use_dora, tmp_path):
    pair = models_tiny.make_reference_and_model(tmp_path, CONFIG_BY_FAMILY[family])
    inputs = models_tiny.make_batch(pair[1], "t1ttt")
    with torch.no_grad():
        before = pair[1](**inputs).logits
    reference, ours = (wrap(model, use_dora) for model in pair)
    expected, logits = reference(**inputs).logits, ours(**inputs).logits
    assert_close(logits, expected, atol=1e-3)
    assert (logits - before).abs().max() > 1e-2
    for wrapped, out in ((reference, expected), (ours, logits)):
        out.square().mean().backward()
        assert any(weight.grad is not None for weight in wrapped.parameters())
    gradients = [
        {name: weight.grad for name, weight in wrapped.named_parameters() if weight.requires_grad}
        for wrapped in (ours, reference)
    ]
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert_close(gradient, gradients[1][name], atol=1e-2)
    with torch.no_grad():
        assert_close(ours.merge_and_unload()(**inputs).logits, logits, atol=1e-3)
