"""The tensors that a model needs: their names and shapes, compared with those that a checkpoint has."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from idefics.errors import UnsupportedModel, WeightsMismatch
from idefics.weights.file_tensors import FileTensor

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class TensorWithNames:
    """A parameter or persistent buffer of the model, with all its names."""

    tensor: Tensor
    names: list[str]


def state_dict_tensors_tied_once(model: nn.Module) -> list[TensorWithNames]:
    """The tensors of a model's state dict; a tied one once, with all its names."""
    tensor_by_id: dict[int, TensorWithNames] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        tensor_by_id.setdefault(id(tensor), TensorWithNames(tensor, [])).names.append(name)
    return list(tensor_by_id.values())


def check_names_shapes_and_dtypes(
    parameters: Sequence[TensorWithNames],
    sources: Mapping[str, Sequence[FileTensor]],
    optional_names: Collection[str],
) -> None:
    """Raises WeightsMismatch, before any tensor is read, if names or shapes of a checkpoint are not the model's.

    Raises UnsupportedModel if integers are stored in place of floating-point numbers, or the other way round.
    """
    missing: list[str] = []
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    for parameter in parameters:
        names_in_checkpoint = [name for name in parameter.names if name in sources]
        if not names_in_checkpoint and parameter.names[0] not in optional_names:
            missing.append(parameter.names[0])
        for name in names_in_checkpoint:
            model_shape = tuple(parameter.tensor.shape)
            file_shape = concatenated_or_mismatched_shape(sources[name], model_shape)
            if file_shape != model_shape:
                shapes[name] = (file_shape, model_shape)
    model_names = {name for parameter in parameters for name in parameter.names}
    unused = [part.name for name, parts in sources.items() if name not in model_names for part in parts]
    if missing or unused or shapes:
        raise WeightsMismatch(missing, sorted(unused), shapes)
    for parameter in parameters:
        for part in chain.from_iterable(sources.get(name, ()) for name in parameter.names):
            if part.dtype_name.startswith(("F", "BF")) != parameter.tensor.is_floating_point():
                raise UnsupportedModel(
                    f"{part.file}: {part.name} is stored as {part.dtype_name}, the model computes with "
                    f"{parameter.tensor.dtype}: give the checkpoint in its original precision"
                )


def concatenated_or_mismatched_shape(
    parts: Sequence[FileTensor], expected: tuple[int, ...]
) -> tuple[int, ...]:
    """The shape of all parts concatenated along dimension 0; if they cannot be, a shape that is not `expected`."""
    if len(parts) == 1:
        return parts[0].shape
    tail = max((part.shape[1:] for part in parts), key=lambda tail: tail != expected[1:])
    return (sum(math.prod(part.shape[:1]) for part in parts), *tail)
