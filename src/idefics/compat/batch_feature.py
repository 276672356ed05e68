"""`BatchFeature`, what tokenizers and processors return, and `PaddingOptions`, how rows become one length."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import torch

from idefics.errors import BadSetting

Side = Literal["left", "right"]
Array = np.ndarray[Any, np.dtype[Any]]

NO_PADDING = (False, "do_not_pad")
NO_TRUNCATION = (False, "do_not_truncate")
ALLOWED_VALUES: dict[str, Collection[object]] = {
    "padding": (True, False, "longest", "max_length", "do_not_pad"),
    "truncation": (True, "longest_first", "only_first", False, "do_not_truncate", None),
    "padding_side": ("left", "right"),
    "truncation_side": ("left", "right"),
    "return_tensors": ("pt", "np", None),
}
VERY_LARGE_INTEGER = 10**20  # tokenizer configs without a longest text have 10^30


class BatchFeature(dict[str, Any]):
    """A dict whose entries are also attributes, and whose tensors can be moved together.

    Args:
        data, entries: the entries.
        tensor_type: as in `convert_to_tensors`.
    """

    def __init__(
        self, data: Mapping[str, Any] | None = None, tensor_type: str | None = None, **entries: Any
    ) -> None:
        super().__init__({**(data or {}), **entries})
        self.convert_to_tensors(tensor_type)

    @property
    def data(self) -> dict[str, Any]:
        """The entries as a dict: the object itself."""
        return self

    def convert_to_tensors(self, tensor_type: str | None = None) -> Self:
        """Converts all entries, in place, to tensors ("pt") or arrays ("np"); None leaves them. Returns itself."""
        if tensor_type is not None:
            self.update({name: to_tensor_type(value, tensor_type) for name, value in self.items()})
        return self

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"there is no {name!r} among {', '.join(self) or 'no entries'}") from None

    def to(
        self,
        *targets: str | int | torch.device | torch.dtype,
        device: str | int | torch.device | None = None,
        dtype: torch.dtype | None = None,
        non_blocking: bool = False,
    ) -> Self:
        """Moves all tensors, in place, to a device, and floating-point tensors to a dtype. Returns itself.

        Args:
            targets: a device, a dtype or both, in any order.
            device, dtype: the same by name.
            non_blocking: as in `torch.Tensor.to`.
        """
        for target in targets:
            if isinstance(target, torch.dtype):
                dtype = target
            else:
                device = target
        for name, value in self.items():
            if isinstance(value, torch.Tensor):
                kind = dtype if value.is_floating_point() else None
                self[name] = value.to(device=device, dtype=kind, non_blocking=non_blocking)
        return self


BatchEncoding = BatchFeature  # the name in transformers of what tokenizers return


@dataclass(frozen=True, slots=True)
class PaddingOptions:
    """How rows of a batch are padded and truncated, as transformers names it.

    Attributes:
        padding: True or "longest"; "max_length"; False or "do_not_pad". Tensors are always padded.
        truncation: True or "longest_first" truncates rows longer than `max_length`, False or "do_not_truncate" never;
            None truncates where `max_length` is given and `padding` is not.
        max_length: in tokens; None: `model_max_length`.
        padding_side, truncation_side: where tokens are added and removed.
        pad_to_multiple_of: padded rows have a multiple of so many tokens.
        return_tensors: "pt", "np" or None, which leaves lists.
        model_max_length: the longest text of the tokenizer in tokens; `VERY_LARGE_INTEGER` and more: no limit.
    """

    padding: bool | str = False
    truncation: bool | str | None = None
    max_length: int | None = None
    padding_side: Side = "left"
    pad_to_multiple_of: int | None = None
    return_tensors: str | None = None
    truncation_side: Side = "right"
    model_max_length: int = VERY_LARGE_INTEGER

    def __post_init__(self) -> None:
        for name, allowed in ALLOWED_VALUES.items():
            if (value := getattr(self, name)) not in allowed:
                raise BadSetting(f"{name} is {value!r}; give one of {', '.join(map(repr, allowed))}")
        for name, number in (
            ("max_length", self.max_length),
            ("pad_to_multiple_of", self.pad_to_multiple_of),
        ):
            if number is not None and number < 1:
                raise BadSetting(f"{name} is {number}; give at least 1")

    @property
    def _effective_max_length(self) -> int | None:
        """`max_length`, else the tokenizer's `model_max_length`, in tokens; None: no limit."""
        if self.max_length is not None:
            return self.max_length
        return self.model_max_length if self.model_max_length < VERY_LARGE_INTEGER else None

    def kept_positions(self, length: int, *, num_opening_tokens: int = 0) -> list[int]:
        """The positions that truncation leaves of a row of `length` tokens.

        Args:
            num_opening_tokens: how many tokens at the beginning are kept in any case.
        """
        positions = list(range(length))
        truncates = self.truncation not in NO_TRUNCATION
        if self.truncation is None:
            truncates = self.max_length is not None and self.padding in NO_PADDING
        if not truncates or self._effective_max_length is None or length <= self._effective_max_length:
            return positions
        opening, others = positions[:num_opening_tokens], positions[num_opening_tokens:]
        num_others = max(self._effective_max_length - num_opening_tokens, 0)
        start = 0 if self.truncation_side == "right" else len(others) - num_others
        return opening[: self._effective_max_length] + others[start : start + num_others]

    def padded_length(self, lengths: Sequence[int]) -> int | None:
        """The length to which rows of these lengths are padded; None: they are not padded.

        Raises:
            BadSetting: `padding` is "max_length", and there is none.
        """
        if self.padding in NO_PADDING and self.return_tensors is None:
            return None
        width = max(lengths, default=0)
        if self.padding == "max_length":
            if self._effective_max_length is None:
                raise BadSetting("padding is 'max_length', but there is no max_length: give one")
            width = max(width, self._effective_max_length)
        multiple = self.pad_to_multiple_of or 1
        return -(-width // multiple) * multiple

    def pad(self, rows: Sequence[Sequence[Any]], value: Any) -> list[list[Any]]:
        """Pads rows with `value` to `padded_length`, and returns them as new lists."""
        padded_length = self.padded_length([len(row) for row in rows])
        padded = []
        for row in rows:
            padding = [value] * ((padded_length or 0) - len(row))
            padded.append([*padding, *row] if self.padding_side == "left" else [*row, *padding])
        return padded

    def to_batch(self, entries: dict[str, Any]) -> BatchFeature:
        """Makes a `BatchFeature` of entries, converted to tensors or arrays as `return_tensors` says."""
        return BatchFeature(entries, self.return_tensors)


def to_tensor_type(value: Any, return_tensors: str | None) -> Any:
    """Converts rows or an array to a tensor ("pt") or an array ("np"); None leaves them."""
    if return_tensors is None or (return_tensors == "pt" and isinstance(value, torch.Tensor)):
        return value
    array = np.asarray(value)
    if not array.size:  # NumPy makes an empty list an array of floats
        array = array.astype(np.int64)
    return torch.from_numpy(array) if return_tensors == "pt" else array
