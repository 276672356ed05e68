"""Checks of quantised weights against the original ones: each layer alone, and the whole model's choices."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from idefics import quant
from idefics.config import QuantizationConfig
from idefics.errors import OutOfMemory
from idefics.evaluate.check.checks import CheckOutcome, ModelCheck, join_names, judge, skipped
from idefics.evaluate.check.drawn_pictures import fixed_prompts
from idefics.evaluate.check.engine_checks import compare_logits
from idefics.evaluate.check.subject import CheckSubject
from idefics.quant.linear import Int4Linear, Int8Linear

ERROR_LIMITS = {8: 0.03, 4: 0.2}  # of the weights of a layer, relative
MIN_AGREEMENT = 0.8
ALREADY_QUANTIZED = "the weights are quantised already: compare with a record of the original (--against)"


@torch.inference_mode()
def check_layer_errors(subject: CheckSubject) -> CheckOutcome:
    """Quantises each layer alone, as `--quantize int4` does, and measures the error of its weights.

    One layer is in memory at a time, in addition to the loaded model.
    """
    if subject.is_quantized:
        return skipped(ALREADY_QUANTIZED)
    config = QuantizationConfig(kind="int4")
    largest, wrong = {8: 0.0, 4: 0.0}, []
    for name in quant.quantizable_layer_names(subject.module_on_meta_device, config):
        layer = subject.network.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        bits = config.bits_of(name)
        error = _quantization_error(layer, bits)
        largest[bits] = max(largest[bits], error)
        if not error <= ERROR_LIMITS[bits]:
            wrong.append(f"{name}: int{bits} changes its weights by {error:.1%}")
    return judge(
        ", ".join(f"int{bits} {error:.1%}" for bits, error in largest.items()),
        ", ".join(f"int{bits} {limit:.0%}" for bits, limit in ERROR_LIMITS.items()),
        wrong,
    )


def _quantization_error(layer: nn.Linear, bits: int) -> float:
    """The relative error (root mean square) of the weights of a layer that is quantised to so many bits."""
    weight: Tensor = layer.weight.detach()
    kind = Int8Linear if bits == 8 else Int4Linear
    difference = kind.from_linear(layer, weight).dequantize(torch.float32) - weight.float()
    return float(difference.square().mean().sqrt() / weight.float().square().mean().sqrt().clamp(min=1e-30))


def check_int8_agreement(subject: CheckSubject) -> CheckOutcome:
    """Loads the model a second time in int8, and compares which tokens are the likeliest."""
    if subject.is_quantized:
        return skipped(ALREADY_QUANTIZED)
    prompts = fixed_prompts(subject)
    full = {name: subject.vlm.logits(prompt) for name, prompt in prompts.items()}
    try:
        with subject.second_model(quantize="int8") as quantized:
            rounded = {name: quantized.logits(prompt) for name, prompt in prompts.items()}
    except OutOfMemory as error:
        return skipped(f"no memory for a second copy: {error}")
    difference, agreement = compare_logits(full, rounded, prompts)
    wrong = [f"the likeliest next token is the same at {agreement:.0%} of the positions only"]
    return judge(
        f"same first token at {agreement:.0%}, log-probabilities {difference:.2g} apart over {join_names(prompts)}",
        f"{MIN_AGREEMENT:.0%}",
        wrong if agreement < MIN_AGREEMENT else (),
    )


QUANTIZATION_CHECKS = (
    ModelCheck(
        name="quantised layers",
        shows="no layer has weights that int8 or int4 cannot hold, such as one number far above all others",
        tolerance="of normally distributed weights int8 changes about 1 %, int4 about 10 %; twice to three times that",
        run=check_layer_errors,
        is_quick=False,
    ),
    ModelCheck(
        name="int8 agreement",
        shows="in int8 the model prefers the same tokens as in full precision",
        tolerance=f"{MIN_AGREEMENT:.0%} of the positions: tokens that are nearly equally likely may change places. "
        "Not measured on released checkpoints",
        run=check_int8_agreement,
        is_quick=False,
    ),
)
