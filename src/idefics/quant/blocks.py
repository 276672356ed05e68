"""bitsandbytes' layers of four bits: "nf4", the quantiles of a normal distribution, and "fp4" (arXiv 2305.14314).

The library is imported when it is needed: it takes seconds, and comes with an extra.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from idefics.config import QuantizationConfig
from idefics.errors import MissingExtra

# Weights that share a scale, bitsandbytes' own default. Rows are padded to whole blocks: where a block runs over the
# end of a row, bitsandbytes 0.50 reads it wrongly on a CPU (errors of a third of a weight instead of a tenth).
BLOCK = 64


def maker(quantisation: QuantizationConfig) -> Callable[[nn.Linear, Tensor], nn.Linear]:
    """What makes a 4-bit layer of a layer and its (O, I) weight, on the weight's device.

    Raises:
        MissingExtra: bitsandbytes is not installed.
    """
    try:
        from bitsandbytes.nn import Linear4bit, Params4bit
    except ImportError:
        raise MissingExtra(f"quantising to {quantisation.kind}", "quant") from None

    how = {"compress_statistics": quantisation.double, "quant_type": quantisation.kind}
    compute = quantisation.compute_dtype

    def make(layer: nn.Linear, weight: Tensor) -> nn.Linear:
        dtype = getattr(torch, compute) if compute else weight.dtype
        shape = (layer.in_features, layer.out_features)
        made: nn.Linear = Linear4bit(*shape, bias=False, compute_dtype=dtype, device="meta", **how)
        # Processors with bfloat16 products would repack weights in place at the first call, round float32 inputs, and
        # fail where outputs are no multiple of 32 (bitsandbytes 0.50).
        made.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
        if missing := -layer.in_features % BLOCK:
            weight = functional.pad(weight, (0, missing))
            made.register_forward_pre_hook(partial(_widen, missing))
        whole = Params4bit(weight, requires_grad=False, blocksize=BLOCK, module=made, **how)
        made.weight, made.bias = whole.to(weight.device), layer.bias  # `to` is what quantises
        return made

    return make


def _widen(missing: int, module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (functional.pad(inputs[0], (0, missing)),)


def scales(module: nn.Module) -> Iterator[Tensor]:
    """What a 4-bit layer keeps beside its weights: scales of blocks, those of the scales, tables of levels."""
    from bitsandbytes.nn import Linear4bit

    if isinstance(module, Linear4bit):
        state = module.weight.quant_state
        yield from (state.absmax, state.code)
        if state.nested:
            yield from (state.offset, state.state2.absmax, state.state2.code)
