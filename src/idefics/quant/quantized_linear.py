"""The base of linear layers that store levels (integers or 8-bit floats) and scales in place of a weight.

Adapter libraries read `layer.weight` as a matrix of values and write to it. With levels that would be silently wrong:
they are not values without their scales, and a change that is cast to their dtype is mostly rounded to nothing. So
other code only gets a view of the levels that refuses to be computed with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from idefics.errors import BadRequest
from idefics.nn.native_kernels import NativeLinear
from idefics.nn.upcast import LinearFunction, linear_by_blocks

# Input (..., I), levels, scales, bias (O,) or None -> (..., O).
QuantizedMatmul = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]

# Functions that other code may call with levels: those that describe or copy them.
ALLOWED_FUNCTIONS = frozenset(
    {
        *("__get__", "__len__", "__repr__", "dim", "numel", "nelement", "size", "stride", "storage_offset"),
        *("element_size", "get_device", "is_complex", "is_contiguous", "is_floating_point", "equal"),
        *("as_subclass", "clone", "contiguous", "cpu", "cuda", "detach", "requires_grad_", "to", "type"),
        *("data_ptr", "untyped_storage"),
    }
)


class GuardedLevels(Tensor):
    """A view or copy of the levels of a quantised weight: only shape, device and memory may be read.

    Attributes:
        dtype: float32, since adapters are created in the dtype of their layer's weight.

    Raises:
        BadRequest: from any other use.
    """

    dtype = torch.float32
    _is_param = True  # how torch marks an nn.Parameter

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func.__name__ not in ALLOWED_FUNCTIONS:
            raise BadRequest(
                f"quantised weights cannot be changed or computed with by other code ({func.__name__}), so adapters "
                "cannot be merged into them or start from them (DoRA, PiSSA): load the model without quantize= "
                "(load_in_8bit, quantization_config), merge there, write it with save_pretrained, and quantise that"
            )
        return super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]


class QuantizedLinear(NativeLinear):
    """A linear layer of O outputs and I inputs that stores levels and scales in place of its weight.

    Attributes:
        weight: a `GuardedLevels` view of the levels, for other code.
        scale: the scales, which are not trained.
        matmul: computes the product where no gradient is needed; `quant.apply_kernel_choice` sets a faster one.
    """

    scale: nn.Parameter
    matmul: QuantizedMatmul

    @classmethod
    def from_quantized(cls, layer: nn.Linear, levels: Tensor, scale: Tensor) -> Self:
        """A layer of these levels and scales, with the shape and the bias of `layer`."""
        quantized = cls(layer.in_features, layer.out_features, bias=False, device="meta")
        quantized.bias = layer.bias
        quantized.weight, quantized.scale = _frozen_parameter(levels), _frozen_parameter(scale)
        quantized.matmul = cls.default_matmul
        return quantized

    @property
    def levels(self) -> Tensor:
        """The stored levels that the layer computes with: the parameter `weight` itself, without the guard."""
        levels = self._parameters["weight"]
        assert levels is not None, "a quantised layer has levels"
        return levels

    @staticmethod
    def dequantize_levels(levels: Tensor, scale: Tensor, num_inputs: int, dtype: torch.dtype) -> Tensor:
        """The (O, `num_inputs`) weights that some levels and their scales stand for."""
        raise NotImplementedError

    @classmethod
    def default_matmul(
        cls,
        input: Tensor,
        levels: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        linear_function: LinearFunction = functional.linear,
    ) -> Tensor:
        """A `QuantizedMatmul` on every device, with gradients: dequantises to the input's dtype and multiplies.

        Args:
            linear_function: multiplies with the dequantised weights of some outputs at a time.
        """
        inputs, dtype = input.shape[-1], input.dtype

        def dequantize_rows(rows: slice) -> Tensor:
            return cls.dequantize_levels(levels[rows], scale[rows], inputs, dtype)

        return linear_by_blocks(input, (len(levels), inputs), dequantize_rows, bias, linear_function)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The (O, I) weights that the layer computes with."""
        return self.dequantize_levels(self.levels, self.scale, self.in_features, dtype)

    def forward(self, input: Tensor) -> Tensor:
        """Applies the linear layer: (..., I) -> (..., O) in the dtype of `input`."""
        matmul = self.default_matmul if torch.is_grad_enabled() else self.matmul
        return matmul(input, self.levels, self.scale, self.bias)

    def __getattr__(self, name: str) -> Any:
        found: Any = super().__getattr__(name)
        return found.detach().as_subclass(GuardedLevels) if name == "weight" else found

    def reset_parameters(self) -> None:
        """Does nothing: levels come from a weight or from a file."""


def _frozen_parameter(tensor: Tensor) -> nn.Parameter:
    """A contiguous parameter that is not trained."""
    return nn.Parameter(tensor.contiguous(), requires_grad=False)
