"""Checks the values of `GenerationConfig` when they are set, and converts them to plain Python values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np
from torch import Tensor

from idefics.errors import BadSetting
from idefics.validation import validate_bool, validate_list

# Of numbers, and of the ids in lists.
MIN_BY_FIELD = {
    "max_length": 1,
    "max_new_tokens": 1,
    "min_length": 0,
    "min_new_tokens": 0,
    "num_beams": 1,
    "num_return_sequences": 1,
    "top_k": 0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "suppress_tokens": 0,
    "begin_suppress_tokens": 0,
    "max_time": 0,
    "temperature": 0,
    "top_p": 0,
    "min_p": 0,
    "top_h": 1e-9,
    "typical_p": 0.01,
    "epsilon_cutoff": 0,
    "eta_cutoff": 0,
    "repetition_penalty": 0.01,
    "encoder_repetition_penalty": 0.01,
}
PROBABILITY_FIELDS = ("top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")  # at most 1


def validate_field(name: str, annotation: str, value: Any) -> Any:
    """The value of a setting, checked and converted; `annotation` is its type. Raises BadSetting for a wrong one."""
    if isinstance(value, Tensor | np.ndarray | np.generic):
        value = value.tolist()
    low = MIN_BY_FIELD.get(name, -math.inf)
    match annotation.removesuffix(" | None"):
        case "int":
            return _validate_int(name, value, low)
        case "float":
            return _validate_float(name, value, low, 1 if name in PROBABILITY_FIELDS else math.inf)
        case "bool":
            return validate_bool(name, value)
        case "list[int]":
            return _validate_ids(name, value, low)
        case "int | list[int]":
            is_list = isinstance(value, list | tuple)
            return _validate_ids(name, value, low) if is_list else _validate_int(name, value)
        case "list[list[int]]":
            expected = "a list of lists of ids, such as [[5], [7, 8]]"
            return [_validate_ids(name, ids, 0, expected) for ids in validate_list(name, value, expected)]
        case "list[str]":
            return _validate_texts(name, value)
        case "list[float]":
            return _validate_length_penalty_decay(name, value)
        case "list[list[Any]]":
            return _validate_sequence_bias(name, value)
    if not isinstance(value, bool) and value != "never":
        raise BadSetting(f'{name} is {value!r}; give True, False or "never"')
    return value


def _validate_int(name: str, value: Any, low: float = -math.inf) -> int:
    """A setting as an int; raises BadSetting if it is no whole number or below `low`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < low:
        raise BadSetting(
            f"{name} is {value!r}; give a whole number{f' from {low}' if low > -math.inf else ''}"
        )
    return int(value)


def _validate_float(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """A setting as a float; raises BadSetting if it is no number, or not between `low` and `high`, both included."""
    if isinstance(value, bool) or not isinstance(value, Real) or not low <= float(value) <= high:
        limits = f" from {low:g}" * (low > -math.inf) + f" to {high:g}" * (high < math.inf)
        raise BadSetting(f"{name} is {value!r}; give a number{limits}")
    return float(value)


def _validate_ids(name: str, value: Any, low: float, expected: str = "a list of ids") -> list[int]:
    """A list of token ids from `low` on; raises BadSetting, which asks for `expected`, for anything else."""
    return [_validate_int(name, id, low) for id in validate_list(name, value, expected)]


def _validate_sequence_bias(name: str, value: Any) -> list[list[Any]]:
    """[[ids, number], ...], from that or from {ids: number, ...}."""
    pairs = list(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(pairs, list | tuple) or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], list | tuple) and pair[0]
        for pair in pairs
    ):
        raise BadSetting(
            f"{name} is {value!r}; give ids and a number for each, such as [[[5], 2.0], [[7, 8], -1.5]]"
        )
    return [
        [_validate_ids(f"a sequence of {name}", ids, 0), _validate_float(f"a bias of {name}", bias)]
        for ids, bias in pairs
    ]


def _validate_length_penalty_decay(name: str, value: Any) -> list[float]:
    """[start, factor] from such a pair; raises BadSetting for anything else."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise BadSetting(f"{name} is {value!r}; give the number of ids after which it acts, and a factor")
    start, factor = value
    return [
        _validate_int(f"the start of {name}", start),
        _validate_float(f"the factor of {name}", factor, 0.0),
    ]


def _validate_texts(name: str, value: Any) -> list[str]:
    """A list of texts from one text or a list; raises BadSetting for anything else, or if one is empty."""
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, list | tuple) or not all(isinstance(text, str) and text for text in strings):
        raise BadSetting(f"{name} is {value!r}; give a text or a list of texts, none of them empty")
    return list(strings)
