"""4-bit layers of bitsandbytes: "nf4", the quantiles of a normal distribution, and "fp4" (arXiv 2305.14314).

bitsandbytes is an extra and takes seconds to import, so it is imported when it is needed.
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

BLOCK_SIZE = 64  # weights that share a scale: bitsandbytes' default
DEQUANTIZE_OP = "bitsandbytes::dequantize_4bit"


def linear4bit_factory(quantization: QuantizationConfig) -> Callable[[nn.Linear, Tensor], nn.Linear]:
    """Returns a function (layer, weight (O, I)) -> 4-bit layer on the weight's device.

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
        # On CPUs with bfloat16 products bitsandbytes 0.50 would repack weights in place at the first call, round
        # float32 inputs, and fail for outputs that are no multiple of 32.
        quantized_layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
        parameter = Params4bit(
            weight,
            requires_grad=False,
            blocksize=BLOCK_SIZE,
            module=quantized_layer,
            **quantization_arguments,
        )
        quantized_layer.weight = parameter.to(weight.device)  # `to` quantises
        quantized_layer.bias = layer.bias
        return quantized_layer

    return create_layer


@cache
def _patch_cpu_dequantize() -> torch.library.Library:
    """Replaces bitsandbytes' CPU kernel for weights whose width is no multiple of the block size.

    Version 0.50 quantizes a weight as one sequence, but dequantises as if each row began a new block: errors of a third
    of a weight instead of a tenth. Passed as one row of whole blocks, the same numbers are dequantised correctly. The
    kernel is replaced, not the layers' `forward`, so that peft reads the same weights when it merges adapters.
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
        """`packed`: two values in a byte; `absmax`: scales of blocks. -> weights of `shape`."""
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
        warnings.simplefilter("ignore", UserWarning)  # torch warns that a kernel is replaced
        library.impl("dequantize_4bit", dequantize, "CPU", with_keyset=True, allow_override=True)
    return library


def quant_state_tensors(module: nn.Module) -> Iterator[Tensor]:
    """Yields the tensors of a 4-bit layer other than its weight: scales, their scales, tables of levels.

    Yields nothing for other modules.
    """
    from bitsandbytes.nn import Linear4bit

    if isinstance(module, Linear4bit):
        state = module.weight.quant_state
        yield from (state.absmax, state.code)
        if state.nested:
            yield from (state.offset, state.state2.absmax, state.state2.code)
