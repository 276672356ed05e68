"""Linear layers that store levels and scales in place of a weight, and what code outside of them sees of the levels.

Libraries of adapters read `layer.weight` as a matrix of values and write to it. Levels are no values without their
scales: what is computed with them is wrong, and a change that is cast to their dtype is mostly rounded to nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from idefics.errors import BadRequest

# What may be called with levels from outside: all that describes or copies them.
HARMLESS = frozenset(
    {
        *("__get__", "__len__", "__repr__", "dim", "numel", "nelement", "size", "stride", "storage_offset"),
        *("element_size", "get_device", "is_complex", "is_contiguous", "is_floating_point", "equal"),
        *("as_subclass", "clone", "contiguous", "cpu", "cuda", "detach", "requires_grad_", "to", "type"),
        *("data_ptr", "untyped_storage"),
    }
)


class GuardedLevels(Tensor):
    """The levels of a quantised weight, or a copy: their shape, device and memory may be read.

    Attributes:
        dtype: of the values, not of the levels: adapters take the dtype of their layer's weight, and would be rounded.

    Raises:
        BadRequest: they are computed with or written to.
    """

    dtype = torch.float32
    _is_param = True  # torch's mark of an nn.Parameter

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func.__name__ not in HARMLESS:
            raise BadRequest(
                "quantised weights can neither be changed nor computed with from outside "
                f"({func.__name__}): no adapter is merged into them or starts from them (DoRA, PiSSA): load the model "
                "without quantize= (load_in_8bit, quantization_config), merge there, write it with save_pretrained, "
                "and quantise what is written"
            )
        return super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]


class QuantizedLinear(nn.Linear):
    """A linear layer that stores levels and scales in place of its weight.

    Attributes:
        weight: what others see of the levels, a `GuardedLevels`.
    """

    @property
    def levels(self) -> Tensor:
        """The parameter `weight` as it is stored, which the layer computes with."""
        levels = self._parameters["weight"]
        assert levels is not None, "a quantised layer has levels"
        return levels

    def __getattr__(self, name: str) -> Any:
        found: Any = super().__getattr__(name)
        return found.detach().as_subclass(GuardedLevels) if name == "weight" else found

    def reset_parameters(self) -> None:
        """Does nothing: levels come from a weight or from a file."""
