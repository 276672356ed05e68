"""Checks the values of `GenerationConfig` when they are set, and converts them to plain Python values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
from torch import Tensor

from idefics.errors import BadSetting

MIN_BY_INTEGER_FIELD = {  # whole numbers -> smallest value
    "max_length": 1,
    "max_new_tokens": 1,
    "min_length": 0,
    "min_new_tokens": 0,
    "num_beams": 1,
    "num_return_sequences": 1,
    "top_k": 0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
}
RANGE_BY_FLOAT_FIELD = {  # numbers -> smallest and largest value
    "temperature": (0.0, math.inf),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "top_h": (1e-9, 1.0),
    "typical_p": (0.01, 1.0),
    "epsilon_cutoff": (0.0, 1.0),
    "eta_cutoff": (0.0, 1.0),
    "repetition_penalty": (0.01, math.inf),
    "encoder_repetition_penalty": (0.01, math.inf),
    "length_penalty": (-math.inf, math.inf),
    "guidance_scale": (-math.inf, math.inf),
    "max_time": (0.0, math.inf),
}
BOOLEAN_FIELDS = {
    "do_sample",
    "use_cache",
    "renormalize_logits",
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "output_scores",
    "return_dict_in_generate",
}
ID_FIELDS = {"eos_token_id", "forced_eos_token_id"}  # one id, or a list of them
ID_LIST_FIELDS = {"suppress_tokens", "begin_suppress_tokens"}


def validate_field(name: str, value: Any) -> Any:
    """The value of a setting, checked and converted. Raises BadSetting where it is not allowed."""
    if isinstance(value, Tensor | np.ndarray | np.generic):
        value = value.tolist()
    if name in MIN_BY_INTEGER_FIELD:
        return _validate_int(name, value, MIN_BY_INTEGER_FIELD[name])
    if name in RANGE_BY_FLOAT_FIELD:
        return _validate_float(name, value, *RANGE_BY_FLOAT_FIELD[name])
    if name in BOOLEAN_FIELDS and not isinstance(value, bool):
        raise BadSetting(f"{name} is {value!r}; give True or False")
    if name == "early_stopping" and not isinstance(value, bool) and value != "never":
        raise BadSetting(f'early_stopping is {value!r}; give True, False or "never"')
    if name == "bad_words_ids":
        return _validate_bad_words_ids(value)
    if name == "sequence_bias":
        return _validate_sequence_bias(value)
    if name == "exponential_decay_length_penalty":
        return _validate_length_penalty_decay(value)
    if name == "stop_strings":
        return _validate_stop_strings(value)
    if name in ID_LIST_FIELDS or (name in ID_FIELDS and isinstance(value, list | tuple)):
        if not isinstance(value, list | tuple):
            raise BadSetting(f"{name} is {value!r}; give a list of ids")
        return [_validate_int(name, id, 0 if name in ID_LIST_FIELDS else -math.inf) for id in value]
    if name.endswith("_token_id"):
        return _validate_int(name, value)
    return value


def _validate_int(name: str, value: Any, low: float = -math.inf) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < low:
        raise BadSetting(
            f"{name} is {value!r}; give a whole number{f' from {low}' if low > -math.inf else ''}"
        )
    return int(value)


def _validate_float(name: str, value: Any, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not low <= float(value) <= high:
        limits = f" from {low:g}" * (low > -math.inf) + f" to {high:g}" * (high < math.inf)
        raise BadSetting(f"{name} is {value!r}; give a number{limits}")
    return float(value)


def _validate_bad_words_ids(value: Any) -> list[list[int]]:
    if not isinstance(value, list | tuple) or not all(isinstance(word, list | tuple) for word in value):
        raise BadSetting(f"bad_words_ids is {value!r}; give a list of lists of ids, such as [[5], [7, 8]]")
    return [[_validate_int("an id of bad_words_ids", id, 0) for id in word] for word in value]


def _validate_sequence_bias(value: Any) -> list[list[Any]]:
    """[[ids, number], ...], from that or from {ids: number, ...}."""
    pairs = [[list(ids), bias] for ids, bias in value.items()] if isinstance(value, Mapping) else value
    if not isinstance(pairs, list | tuple) or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], list | tuple) and pair[0]
        for pair in pairs
    ):
        raise BadSetting(
            f"sequence_bias is {value!r}; give ids and a number for each, such as [[[5], 2.0], [[7, 8], -1.5]]"
        )
    return [
        [
            [_validate_int("an id of sequence_bias", id, 0) for id in ids],
            _validate_float("a bias of sequence_bias", bias, -math.inf, math.inf),
        ]
        for ids, bias in pairs
    ]


def _validate_length_penalty_decay(value: Any) -> list[float]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise BadSetting(
            f"exponential_decay_length_penalty is {value!r}; give the number of ids after which it acts, and a factor"
        )
    start, factor = value
    name = "exponential_decay_length_penalty"
    return [
        _validate_int(f"the start of {name}", start),
        _validate_float(f"the factor of {name}", factor, 0.0, math.inf),
    ]


def _validate_stop_strings(value: Any) -> list[str]:
    strings: Sequence[Any] = [value] if isinstance(value, str) else value
    if not isinstance(strings, list | tuple) or not all(isinstance(text, str) and text for text in strings):
        raise BadSetting(f"stop_strings is {value!r}; give a text or a list of texts, none of them empty")
    return list(strings)
