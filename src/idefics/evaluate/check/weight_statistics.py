"""Statistics of a checkpoint's tensors, read from its files a few rows at a time: no model is loaded."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from idefics.weights import KeyRules, safetensors_files
from idefics.weights.tensors import FileTensor, open_file_tensors

MAX_CHUNK_NUMBERS = 2**22  # read at once: 16 MiB of float32
NUM_PROJECTIONS = 4


@dataclass(frozen=True, slots=True)
class WeightStatistics:
    """Statistics of one tensor. Tensors that are concatenated when they are loaded are one.

    Attributes:
        name: the model's name for it.
        shape: of the whole tensor.
        dtype_names: in the spelling of safetensors, of each part.
        digest: SHA-256 (hex) of the stored bytes.
        rms: root mean square.
        num_not_finite: how many numbers are NaN or infinite.
        is_constant: whether all numbers are equal.
        max_abs: the largest absolute value.
        projections: sums of all numbers with pseudo-random signs, divided by the root of their sum of squares. They
            change when numbers are exchanged, transposed or replaced, and hardly when they are rounded.
    """

    name: str
    shape: tuple[int, ...]
    dtype_names: tuple[str, ...]
    digest: str
    rms: float
    num_not_finite: int
    is_constant: bool
    max_abs: float
    projections: tuple[float, ...]


def read_weight_statistics(folder: Path, rules: KeyRules) -> tuple[dict[str, WeightStatistics], list[str]]:
    """Reads all tensors of a checkpoint once.

    Returns:
        The statistics by the model's names, and the names in the files that are not read when it is loaded.

    Raises:
        ModelError: the files are missing or damaged.
    """
    with ExitStack() as stack:
        tensors = open_file_tensors(safetensors_files(folder), stack, "mmap")
        sources = rules.sources_by_target(tensors)
        statistics = {target: _measure(target, parts) for target, parts in sources.items()}
    used = {part.name for parts in sources.values() for part in parts}
    return statistics, sorted(tensors.keys() - used)


def _measure(name: str, parts: Sequence[FileTensor]) -> WeightStatistics:
    """The statistics of one tensor in one or several parts."""
    digest, square_sum = hashlib.sha256(), 0.0
    num_numbers = num_not_finite = first_row = 0
    low, high = math.inf, -math.inf
    projections = np.zeros(NUM_PROJECTIONS)
    for chunk in (chunk for part in parts for chunk in _read_chunks(part)):
        digest.update(memoryview(chunk.contiguous().view(torch.uint8).numpy()))  # type: ignore[arg-type]
        values = chunk.float()
        if not values.sum().isfinite():
            num_not_finite += int(values.numel() - values.isfinite().sum())
            values = torch.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
        num_numbers += values.numel()
        square_sum += float(torch.linalg.vector_norm(values, dim=1).double().square().sum())
        lowest, highest = map(float, values.aminmax())
        low, high = min(low, lowest), max(high, highest)
        projections += _project(values, first_row)
        first_row += len(values)
    return WeightStatistics(
        name=name,
        shape=_joined_shape(parts),
        dtype_names=tuple(part.dtype_name for part in parts),
        digest=digest.hexdigest(),
        rms=math.sqrt(square_sum / max(1, num_numbers)),
        num_not_finite=num_not_finite,
        is_constant=low == high,
        max_abs=max(abs(low), abs(high)),
        projections=tuple((projections / math.sqrt(square_sum or 1.0)).tolist()),
    )


def _joined_shape(parts: Sequence[FileTensor]) -> tuple[int, ...]:
    """The shape of all parts concatenated along dimension 0."""
    first = parts[0].shape
    return first if len(parts) == 1 else (sum(part.shape[0] for part in parts), *first[1:])


def _read_chunks(part: FileTensor) -> Iterator[Tensor]:
    """The tensor as (rows, numbers of a row), at most `MAX_CHUNK_NUMBERS` at a time."""
    shape = part.shape
    if not shape:
        yield part.read().reshape(1, 1)
        return
    width = math.prod(shape[1:])
    step, content = max(1, MAX_CHUNK_NUMBERS // max(1, width)), part.handle.get_slice(part.name)
    for start in range(0, shape[0], step):
        rows: Any = content[start : min(start + step, shape[0])]
        yield rows.reshape(len(rows), -1)


def _project(values: Tensor, first_row: int) -> NDArray[np.float64]:
    """(`NUM_PROJECTIONS`,) sums of (rows, numbers) with a sign for each row and one for each number of a row."""
    column_signs = torch.from_numpy(_column_signs(values.shape[1]))
    sums = (values @ column_signs).double().numpy()
    return np.asarray((sums * hashed_signs(len(values), first_row, seed=2)).sum(0))


@lru_cache(maxsize=8)
def _column_signs(count: int) -> NDArray[np.float32]:
    """The signs for the numbers of a row."""
    return hashed_signs(count, 0, seed=1).astype(np.float32)


def hashed_signs(count: int, first: int, *, seed: int) -> NDArray[np.float64]:
    """(`count`, `NUM_PROJECTIONS`) of 1 and -1 for the numbers from `first` on, the same on every machine.

    SplitMix64 (doi 10.1145/2714064.2660195, constants of Vigna's splitmix64.c), the sign being the highest bit.
    """
    numbers = np.arange(first * NUM_PROJECTIONS, (first + count) * NUM_PROJECTIONS, dtype=np.uint64)
    state: NDArray[np.uint64] = (numbers + np.uint64(seed << 40)) * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    signs: NDArray[np.float64] = 1.0 - 2.0 * (state >> np.uint64(63)).astype(np.float64)
    return signs.reshape(count, NUM_PROJECTIONS)
