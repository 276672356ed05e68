"""The rules of a checkpoint's generation_config.json that hold for every answer of a model from `idefics.load`.

The decoding strategy (sampling, beams, lengths: `generation_fields.SEARCH_FIELDS`) is the caller's choice, by default
greedy, and is not taken from the file. `GenerationConfigConstraint` applies the rules as transformers' `generate` does.
Works on token ids; independent of tensors and models.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from idefics.errors import BadSetting, BrokenCheckpoint, UnsupportedModel
from idefics.generation_fields import SEARCH_FIELDS, answer_changing_fields
from idefics.processing.structured_output import BannedStrings, GrammarConstraint
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
        return (*(name for name in names if getattr(self, name)), *words)


def _parse_count_or_id(name: str, value: Any) -> int:
    """A field's value, a count or an id; raises BadSetting unless it is an int from 0 to `MAX_COUNT_OR_ID`."""
    validate_range(name, value, 0, MAX_COUNT_OR_ID)
    return int(value)


def _parse_ids(name: str, value: Any) -> tuple[int, ...]:
    """A field's value, one id or a list of ids, as a tuple; raises BadSetting for anything else."""
    several = value if isinstance(value, list) else [value]
    return tuple(_parse_count_or_id(name, id) for id in several)


def _parse_bad_words(name: str, value: Any) -> tuple[tuple[int, ...], ...]:
    """A field's value, a list of lists of ids, as tuples without empty ones; raises BadSetting for anything else."""
    if not isinstance(value, list) or not all(isinstance(word, list) for word in value):
        raise BadSetting(f"{name} is {value!r}; give a list of lists of ids")
    return tuple(_parse_ids(name, word) for word in value if word)


def _parse_penalty(name: str, value: Any) -> float:
    """A field's value as a float; raises BadSetting unless it is a number from 0.01 to 10."""
    validate_range(name, value, 0.01, 10.0)
    return float(value)


def _parse_strings(name: str, value: Any) -> tuple[str, ...]:
    """A field's value, one string or a list of strings, as a tuple; raises BadSetting for anything else, and for ""."""
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

InnerConstraint = GrammarConstraint | BannedStrings  # of the caller's options


@dataclass(eq=False)
class GenerationConfigConstraint:
    """Applies the rules of a generation_config.json to one answer, or to the beams of a beam search.

    It is a `TokenConstraint` and a `BeamConstraint` of `engine.request`.

    Attributes:
        config: the rules.
        prompt: the ids before the answer.
        max_new_tokens: how many ids the answer may have.
        vocab_size: V, how many ids the model has.
        stop_ids: ids that end an answer.
        inner: another constraint on the tokens that is applied too; not for beams.
        is_renormalized: whether the probabilities of the allowed tokens of a beam are scaled to sum to 1.
    """

    config: CheckpointGenerationConfig
    prompt: Sequence[int]
    max_new_tokens: int
    vocab_size: int
    stop_ids: Collection[int]
    inner: InnerConstraint | None

    def __post_init__(self) -> None:
        self.is_renormalized = self.config.renormalize_logits
        self._ids = list(self.prompt)

    @property
    def is_finished(self) -> bool:
        """Whether the inner constraint says that the answer is complete; the rules themselves never end one."""
        return self.inner is not None and self.inner.is_finished

    def compute_token_bitmask(self) -> bytes:
        """The allowed next ids, one bit for each, the lowest id first.

        Raises:
            BadSetting: no id is allowed.
        """
        allowed = self._allowed_mask(self._ids)
        if self.inner is not None:
            inner_bits = np.frombuffer(self.inner.compute_token_bitmask(), np.uint8)
            allowed &= np.unpackbits(inner_bits, count=self.vocab_size, bitorder="little").astype(bool)
        return self._to_bitmask(allowed)

    def accept_token(self, id: int, max_remaining_tokens: int) -> int:
        """Advances by one token: by `id`, or by the id that the inner constraint returns for it."""
        accepted_id = id if self.inner is None else self.inner.accept_token(id, max_remaining_tokens)
        self._ids.append(accepted_id)
        return accepted_id

    def compute_beam_bitmask(self, generated_ids: Sequence[int]) -> tuple[bytes, bool]:
        """The allowed next ids of a beam, one bit for each, and whether one id is forced (which costs no probability).

        Raises:
            BadSetting: no id is allowed.
        """
        ids = [*self.prompt, *generated_ids]
        return self._to_bitmask(self._allowed_mask(ids)), self._forced_next_id(ids) is not None

    def _to_bitmask(self, allowed: np.ndarray) -> bytes:
        """Packs a mask (V,) into one bit for each id, the lowest id first; raises BadSetting if no id is allowed."""
        if not allowed.any():
            names = ", ".join(self.config.step_dependent_fields)
            raise BadSetting(
                f"no token may follow: {GENERATION_CONFIG_FILE} of this checkpoint ({names}) leaves none"
            )
        return np.packbits(allowed, bitorder="little").tobytes()

    def _forced_next_id(self, ids: Sequence[int]) -> int | None:
        """The one id that must follow `ids`; None if no id is forced."""
        config = self.config
        if config.forced_bos_token_id is not None and len(ids) == 1:
            return config.forced_bos_token_id
        is_last = len(ids) - len(self.prompt) == self.max_new_tokens - 1
        return min(config.forced_eos_token_id, default=None) if is_last else None

    def _allowed_mask(self, ids: list[int]) -> np.ndarray:
        """(V,) bool: which ids may follow `ids`, prompt and answer so far, by the rules alone (no inner constraint)."""
        config, num_ids = self.config, len(ids)
        if (forced := self._forced_next_id(ids)) is not None:
            allowed = np.zeros(self.vocab_size, dtype=bool)
            allowed[forced] = True
            return allowed
        allowed = np.ones(self.vocab_size, dtype=bool)
        min_length = config.min_length
        if config.min_new_tokens is not None:
            min_length = len(self.prompt) + config.min_new_tokens
        if num_ids < min_length:
            allowed[list(self.stop_ids)] = False
        if num_ids == len(self.prompt) + (config.forced_bos_token_id is not None and len(self.prompt) == 1):
            allowed[list(config.begin_suppress_tokens)] = False
        if size := config.no_repeat_ngram_size:
            last_ids = ids[num_ids - size + 1 :]
            for end in range(size - 1, num_ids):
                if ids[end - size + 1 : end] == last_ids:
                    allowed[ids[end]] = False
        for word in config.bad_words_ids:
            if 1 < len(word) <= num_ids + 1 and ids[num_ids - len(word) + 1 :] == list(word[:-1]):
                allowed[word[-1]] = False
        return allowed


AnswerConstraint = InnerConstraint | GenerationConfigConstraint
