"""Checks of compiled kernels on a weight of the model or small inputs, and of quantised weights against originals."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from idefics import quant
from idefics.config import QuantizationConfig
from idefics.errors import OutOfMemory
from idefics.evaluate.check.checks import CheckOutcome, CheckSubject, ModelCheck, join_names, judge, skipped
from idefics.evaluate.check.drawn_pictures import draw_landscape
from idefics.evaluate.check.engine_checks import compare_logits
from idefics.native import library
from idefics.nn.attention_backends import eager_attention
from idefics.nn.native_kernels import (
    NativeWeight,
    can_use_native_attention,
    can_use_native_weight,
    float32_linear,
    native_attention,
    native_linear,
)
from idefics.processing.resize import get_native_resizer, resize, resize_with_pillow
from idefics.quant.fp8 import Float8Linear
from idefics.quant.linear import Int4Linear, Int8Linear, int4_bfloat16_matmul
from idefics.quant.matmul import w8a8_matmul

NUM_ROWS, MAX_OUTPUTS = 24, 512
FLOAT32_LIMIT, ROUNDED_LIMIT = 1e-5, 0.02
FRAME_SIZE = (112, 80)
DEQUANTIZABLE = (Int8Linear, Int4Linear, Float8Linear)

KernelError = tuple[str, float, float]  # name, relative error, limit


@torch.inference_mode()
def check_kernels(subject: CheckSubject) -> CheckOutcome:
    """Runs every kernel of this processor once, and compares with plain operations in float32."""
    if library.load_library() is None:
        return skipped(f"no compiled kernels: {library.missing_reason()}")
    if subject.vlm.engine.model.dtype != torch.float32:
        return skipped("the model computes on a GPU, without these kernels")
    errors = [*_product_errors(_largest_weight(subject.network)), *_attention_errors(), *_resize_errors()]
    wrong = [f"{name}: relative error {error:.2g}" for name, error, limit in errors if not error <= limit]
    measured = ", ".join(f"{name} {error:.1g}" for name, error, _ in errors)
    return judge(
        measured,
        f"{FLOAT32_LIMIT:g} in float32, {ROUNDED_LIMIT:g} with rounded inputs, resizing exact",
        wrong,
    )


def _largest_weight(network: nn.Module) -> Tensor:
    """The first rows of the largest matrix of the decoder, in float32."""
    layers = [
        layer
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear) and "layers." in name
        if isinstance(layer, DEQUANTIZABLE) or layer.weight.is_floating_point()
    ]
    layer = max(layers, key=lambda layer: layer.in_features * layer.out_features)
    weight = layer.dequantize(torch.float32) if isinstance(layer, DEQUANTIZABLE) else layer.weight
    return weight[:MAX_OUTPUTS].detach().float().cpu().contiguous()


def _product_errors(weight: Tensor) -> Iterator[KernelError]:
    """Products of a weight stored in each format that a kernel of this processor multiplies."""
    x = torch.randn(NUM_ROWS, weight.shape[1], generator=torch.Generator().manual_seed(0))
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    half = weight.bfloat16()
    if can_use_native_weight(half):
        yield _error("bfloat16 products", native_linear(x, NativeWeight(half), None), x @ half.float().T)
    if library.best_instruction_set("float32 products") is not None:
        few = x[:4]
        yield (
            "float32 products",
            _relative(float32_linear(few, half, None), few @ half.float().T),
            FLOAT32_LIMIT,
        )
    int8, int4 = Int8Linear.from_linear(layer, weight), Int4Linear.from_linear(layer, weight)
    yield _error(
        "int8 products", w8a8_matmul(x, int8.levels, int8.scale, None), x @ int8.dequantize(x.dtype).T
    )
    yield _error(
        "int4 products",
        int4_bfloat16_matmul(x, int4.levels, int4.scale, None),
        x @ int4.dequantize(x.dtype).T,
    )


def _attention_errors() -> Iterator[KernelError]:
    """Attention in float32 and in bfloat16, with grouped heads."""
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, heads, NUM_ROWS, 64, generator=generator) for heads in (4, 2, 2))
    if can_use_native_attention(q, k, v):
        yield "attention", _relative(native_attention(q, k, v), eager_attention(q, k, v)), FLOAT32_LIMIT
    if can_use_native_attention(q, k, v, bfloat16=True):
        expected = eager_attention(q, k, v, causal=True)
        yield _error("bfloat16 attention", native_attention(q, k, v, bfloat16=True, causal=True), expected)


def _resize_errors() -> Iterator[KernelError]:
    """Resizing, which is equal to Pillow's bit by bit."""
    if get_native_resizer() is not None:
        pixels = draw_landscape(301, 207)
        found, expected = (
            function(pixels, FRAME_SIZE, "lanczos") for function in (resize, resize_with_pillow)
        )
        yield "resizing", float(np.abs(found.astype(int) - expected).max()), 0.0


def _error(name: str, found: Tensor, expected: Tensor) -> KernelError:
    """The error of a kernel that rounds its inputs."""
    return name, _relative(found, expected), ROUNDED_LIMIT


def _relative(found: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference, divided by that of the expected values."""
    return float((found - expected).square().mean().sqrt() / expected.square().mean().sqrt())


KERNEL_CHECKS = (
    ModelCheck(
        name="kernels",
        shows="each compiled kernel of this processor computes what torch and Pillow compute, on small inputs",
        tolerance=f"relative: {FLOAT32_LIMIT:g} in float32; {ROUNDED_LIMIT:g} where inputs are rounded to bfloat16 "
        "(2 to the power -9 each) or int8 (1/254 of the largest); 0 for resizing",
        run=check_kernels,
    ),
)


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
