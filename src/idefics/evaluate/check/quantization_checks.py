"""Checks of quantised weights against the original ones: each layer alone, and the whole model's choices."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from idefics import quant
from idefics.config import QuantizationConfig
from idefics.errors import OutOfMemory
from idefics.evaluate.check.checks import CheckOutcome, CheckSubject, ModelCheck, join_names, judge, skipped
from idefics.evaluate.check.engine_checks import compare_logits
from idefics.quant.linear import Int4Linear, Int8Linear

ERROR_LIMITS = {8: 0.03, 4: 0.2}  # of the weights of a layer, relative
LOST_LIMITS = {8: 0.3, 4: 0.6}  # share of weights that become 0, as next to one that is far above all others
NUM_OUTPUTS = 64  # of each layer that are quantised: all of 8B take an hour on a CPU
MIN_AGREEMENT, TIE = 0.8, 0.1  # share of positions; nats that int8 may prefer another token by
ALREADY_QUANTIZED = "the weights are quantised already: compare with a record of the original (--against)"


@torch.inference_mode()
def check_layer_errors(subject: CheckSubject) -> CheckOutcome:
    """Quantises some outputs of each layer, as `--quantize int4` does, and measures the error of their weights."""
    if subject.is_quantized:
        return skipped(ALREADY_QUANTIZED)
    config = QuantizationConfig(kind="int4")
    largest, wrong = dict.fromkeys(ERROR_LIMITS, (0.0, 0.0)), []
    for name in quant.quantizable_layer_names(subject.module_on_meta_device, config):
        layer = subject.network.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        bits = config.bits_of(name)
        error, lost = _quantization_error(layer, bits)
        largest[bits] = max(largest[bits][0], error), max(largest[bits][1], lost)
        if not (error <= ERROR_LIMITS[bits] and lost <= LOST_LIMITS[bits]):
            wrong.append(
                f"{name}: int{bits} changes its weights by {error:.1%}, and {lost:.0%} of them become 0"
            )
    return judge(
        ", ".join(f"int{bits} {error:.1%}, {lost:.0%} become 0" for bits, (error, lost) in largest.items()),
        ", ".join(f"int{bits} {limit:.0%}, {LOST_LIMITS[bits]:.0%}" for bits, limit in ERROR_LIMITS.items()),
        wrong,
    )


def _quantization_error(layer: nn.Linear, bits: int) -> tuple[float, float]:
    """The relative error (root mean square) of a layer that is quantised, and the share of weights that become 0.

    Of some outputs, evenly spaced: each has scales of its own.
    """
    stored: Tensor = layer.weight.detach()
    stored = stored[:: max(1, len(stored) // NUM_OUTPUTS)].contiguous()
    weight = stored.float()
    kind = Int8Linear if bits == 8 else Int4Linear
    rounded = kind.from_linear(layer, stored).dequantize(torch.float32)
    error = (rounded - weight).square().mean().sqrt() / weight.square().mean().sqrt().clamp(min=1e-30)
    return float(error), float(((rounded == 0) & (weight != 0)).float().mean())


def check_int8_agreement(subject: CheckSubject) -> CheckOutcome:
    """Loads the model a second time in int8, and compares which tokens are the likeliest."""
    if subject.is_quantized:
        return skipped(ALREADY_QUANTIZED)
    prompts, full = subject.fixed_prompts, subject.fixed_logits
    try:
        with subject.second_model(quantize="int8") as quantized:
            rounded = {name: quantized.logits(prompt) for name, prompt in prompts.items()}
    except OutOfMemory as error:
        return skipped(f"no memory for it: {error}")
    difference, agreement = compare_logits(full, rounded, prompts, TIE)
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
        tolerance="of normally distributed weights int8 changes about 1 % and makes about 1 % 0, int4 10 % and "
        "12 %; in the demo checkpoints, whose weights are less even, int4 makes up to a third 0. "
        "Not measured on released checkpoints",
        run=check_layer_errors,
        is_quick=False,
    ),
    ModelCheck(
        name="int8 agreement",
        shows="in int8 the model prefers the same tokens as in full precision",
        tolerance=f"{MIN_AGREEMENT:.0%} of the positions: tokens that are nearly equally likely, {TIE:g} nats apart, "
        "may change places. Not measured on released checkpoints",
        run=check_int8_agreement,
        is_quick=False,
    ),
)
