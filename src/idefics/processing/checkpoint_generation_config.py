"""The rules of a checkpoint's generation_config.json that hold for every answer of a model from `idefics.load`.

The decoding strategy (sampling, beams, lengths: `generation_fields.SEARCH_FIELDS`) is the caller's choice, by default
greedy, and is not taken from the file. Works on token ids; independent of tensors.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from idefics.errors import BadSetting, BrokenCheckpoint, UnsupportedModel
from idefics.generation_fields import SEARCH_FIELDS, answer_changing_fields
from idefics.validation import validate_bool, validate_range

GENERATION_CONFIG_FILE = "generation_config.json"
MAX_COUNT_OR_ID = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointGenerationConfig:
    """The fields of the file that hold for every answer, under their names in the file; the defaults change nothing.

    Attributes:
        suppress_tokens: ids that are never chosen.
        begin_suppress_tokens: ids that are not chosen as the first.
        bad_words_ids: sequences of ids that never occur; they may begin in the prompt.
        repetition_penalty: the default where the caller gives none.
        no_repeat_ngram_size: no sequence of this many ids occurs twice, in prompt and answer together; 0: no limit.
        min_length, min_new_tokens: no stop id is chosen before this many ids, counted with or without the prompt; the
            latter takes precedence.
        forced_bos_token_id: chosen first after a prompt of one id.
        forced_eos_token_id: chosen as the last id that `max_new_tokens` allows; of several the lowest, as in
            transformers, where all are equally likely.
        stop_strings: end an answer like those of the caller.
        renormalize_logits: has an effect in beam search only.
    """

    suppress_tokens: frozenset[int] = frozenset()
    begin_suppress_tokens: frozenset[int] = frozenset()
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    min_length: int = 0
    min_new_tokens: int | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    renormalize_logits: bool = False

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any], vocab_size: int) -> CheckpointGenerationConfig:
        """Parses the fields of the file. Bans of ids beyond the model's vocabulary are dropped.

        Args:
            settings: the content of generation_config.json.
            vocab_size: how many ids the model has.

        Raises:
            UnsupportedModel: a field changes answers and is not supported.
            BrokenCheckpoint: a field has a value of the wrong type or range.
        """
        fields = {
            name: value
            for name, value in answer_changing_fields(settings).items()
            if name not in SEARCH_FIELDS and name != "eos_token_id"  # stop ids are read by each family
        }
        if unsupported := sorted(fields.keys() - PARSER_BY_FIELD.keys()):
            name = unsupported[0]
            raise UnsupportedModel(
                f"{GENERATION_CONFIG_FILE} sets {name} to {fields[name]!r}, which changes answers and is not "
                "supported: take it out of the file to go on without it"
            )
        try:
            parsed = {name: PARSER_BY_FIELD[name](name, value) for name, value in fields.items()}
        except BadSetting as error:
            raise BrokenCheckpoint(f"in {GENERATION_CONFIG_FILE} {error}") from None
        for name in ("suppress_tokens", "begin_suppress_tokens"):
            parsed[name] = frozenset(id for id in parsed.get(name, ()) if id < vocab_size)
        parsed["bad_words_ids"] = tuple(
            word for word in parsed.get("bad_words_ids", ()) if max(word) < vocab_size
        )
        for name in ("forced_bos_token_id", "forced_eos_token_id"):
            if (forced := max(_parse_ids(name, fields.get(name, 0)), default=0)) >= vocab_size:
                raise BrokenCheckpoint(
                    f"{GENERATION_CONFIG_FILE} sets {name} to {forced}, but the model has {vocab_size} ids"
                )
        return cls(**parsed)

    def banned_ids(self, stop_ids: Collection[int]) -> frozenset[int]:
        """Ids that are banned at every step: `suppress_tokens`, and the bad words of a single id.

        As in transformers, `bad_words_ids` cannot ban a stop id; `suppress_tokens` can.

        Args:
            stop_ids: ids that end an answer.
        """
        words = {word[0] for word in self.bad_words_ids if len(word) == 1}
        return self.suppress_tokens | (words - frozenset(stop_ids))

    @property
    def step_dependent_fields(self) -> tuple[str, ...]:
        """Names of the fields that are set and whose effect changes with the ids generated so far."""
        names = (
            "begin_suppress_tokens",
            "no_repeat_ngram_size",
            "min_length",
            "min_new_tokens",
            "forced_bos_token_id",
            "forced_eos_token_id",
        )
        words = ("bad_words_ids",) if any(len(word) > 1 for word in self.bad_words_ids) else ()
        return (*(name for name in names if getattr(self, name) not in (None, 0, (), frozenset())), *words)


def _parse_count_or_id(name: str, value: Any) -> int:
    validate_range(name, value, 0, MAX_COUNT_OR_ID)
    return int(value)


def _parse_ids(name: str, value: Any) -> tuple[int, ...]:
    """One id or a list of ids, as a tuple."""
    several = value if isinstance(value, list) else [value]
    return tuple(_parse_count_or_id(name, id) for id in several)


def _parse_bad_words(name: str, value: Any) -> tuple[tuple[int, ...], ...]:
    """A list of lists of ids, without empty ones."""
    if not isinstance(value, list) or not all(isinstance(word, list) for word in value):
        raise BadSetting(f"{name} is {value!r}; give a list of lists of ids")
    return tuple(_parse_ids(name, word) for word in value if word)


def _parse_penalty(name: str, value: Any) -> float:
    """A number from 0.01 to 10."""
    validate_range(name, value, 0.01, 10.0)
    return float(value)


def _parse_strings(name: str, value: Any) -> tuple[str, ...]:
    """One string or a list of strings, as a tuple; none of them is empty."""
    several = [value] if isinstance(value, str) else value
    if not isinstance(several, list) or not all(isinstance(one, str) and one for one in several):
        raise BadSetting(f"{name} is {value!r}; give a text or a list of texts")
    return tuple(several)


PARSER_BY_FIELD: Mapping[str, Any] = {
    "suppress_tokens": _parse_ids,
    "begin_suppress_tokens": _parse_ids,
    "bad_words_ids": _parse_bad_words,
    "repetition_penalty": _parse_penalty,
    "no_repeat_ngram_size": _parse_count_or_id,
    "min_length": _parse_count_or_id,
    "min_new_tokens": _parse_count_or_id,
    "forced_bos_token_id": _parse_count_or_id,
    "forced_eos_token_id": _parse_ids,
    "stop_strings": _parse_strings,
    "renormalize_logits": validate_bool,
}
