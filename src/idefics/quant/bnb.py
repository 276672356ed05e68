"""bitsandbytes' layers of four bits: "nf4", the quantiles of a normal distribution, and "fp4" (arXiv 2305.14314).

The library is imported when it is needed: it takes seconds, and comes with an extra.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from idefics.config import QuantizationConfig
from idefics.errors import MissingExtra

BLOCK_SIZE = 64  # weights that share a scale: bitsandbytes' own default
DEQUANTIZE_OP = "bitsandbytes::dequantize_4bit"


def linear4bit_factory(quantization: QuantizationConfig) -> Callable[[nn.Linear, Tensor], nn.Linear]:
    """What makes a 4-bit layer of a layer and its (O, I) weight, on the weight's device.

    Raises:
        MissingExtra: bitsandbytes is not installed.
    """
    try:
        from bitsandbytes.nn import Linear4bit, Params4bit
    except ImportError:
        raise MissingExtra(f"quantising to {quantization.kind}", "quant") from None

    _patch_cpu_dequantize()
    quantization_arguments = {"compress_statistics": quantization.double, "quant_type": quantization.kind}
    compute_dtype_name = quantization.compute_dtype

    def create_layer(layer: nn.Linear, weight: Tensor) -> nn.Linear:
        dtype = getattr(torch, compute_dtype_name) if compute_dtype_name else weight.dtype
        shape = (layer.in_features, layer.out_features)
        quantized_layer: nn.Linear = Linear4bit(
            *shape, bias=False, compute_dtype=dtype, device="meta", **quantization_arguments
        )
        # Processors with bfloat16 products would repack weights in place at the first call, round float32 inputs, and
        # fail where outputs are no multiple of 32 (bitsandbytes 0.50).
        quantized_layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
        parameter = Params4bit(
            weight,
            requires_grad=False,
            blocksize=BLOCK_SIZE,
            module=quantized_layer,
            **quantization_arguments,
        )
        quantized_layer.weight, quantized_layer.bias = (
            parameter.to(weight.device),
            layer.bias,
        )  # `to` is what quantises
        return quantized_layer

    return create_layer


@cache
def _patch_cpu_dequantize() -> torch.library.Library:
    """Replaces bitsandbytes' CPU kernel where a row is no multiple of the block size.

    bitsandbytes 0.50 begins a new block with each row there, though it quantizes the weight as one sequence: errors of
    a third of a weight instead of a tenth. The same numbers in one row of whole blocks are read as they were written.
    The kernel is replaced, and not the layers' `forward`, so that peft reads the same weights when it merges adapters.
    """
    original_kernel = torch.library.get_kernel(DEQUANTIZE_OP, "CPU")

    def dequantize(
        keys: Any,
        packed: Tensor,
        absmax: Tensor,
        block: int,
        kind: str,
        shape: Sequence[int],
        dtype: torch.dtype,
    ) -> Any:
        """(bytes of two values, scales of blocks) -> weights of that shape."""
        num_values = prod(shape)
        if shape[-1] % block == 0:
            return original_kernel.call_boxed(keys, packed, absmax, block, kind, shape, dtype)
        padded_size = num_values + -num_values % block
        flat = packed.contiguous().view(torch.uint8).flatten()
        flat = functional.pad(flat, (0, padded_size // 2 - flat.numel()))
        row = original_kernel.call_boxed(keys, flat, absmax, block, kind, (1, padded_size), dtype)
        return row.flatten()[:num_values].view(*shape)

    library = torch.library.Library("bitsandbytes", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch says that a kernel is replaced, which is meant
        library.impl("dequantize_4bit", dequantize, "CPU", with_keyset=True, allow_override=True)
    return library


def quant_state_tensors(module: nn.Module) -> Iterator[Tensor]:
    """What a 4-bit layer keeps beside its weights: scales of blocks, those of the scales, tables of levels."""
    from bitsandbytes.nn import Linear4bit

    if isinstance(module, Linear4bit):
        state = module.weight.quant_state
        yield from (state.absmax, state.code)
        if state.nested:
            yield from (state.offset, state.state2.absmax, state.state2.code)
