"""Checks of released checkpoints against facts about them that a wrong or edited file would contradict."""

from __future__ import annotations

from dataclasses import dataclass

from idefics.catalog import CATALOG, CatalogEntry
from idefics.evaluate.check.checks import CheckOutcome, ModelCheck, judge, skipped
from idefics.evaluate.check.subject import CheckSubject


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasedFacts:
    """What the files of a released checkpoint say, where other loaders went wrong.

    Attributes:
        rope_theta: base of the rotary embedding.
        norm_epsilon: of the decoder; in Idefics 2 also of the perceiver, as released.
        num_rows: rows of the embedding, added tokens included.
        stop_ids: ids that end an answer.
        max_positions: the longest sequence, in tokens.
        rope_factor: of Llama 3.1's frequency scaling; 1 without.
        sliding_window: tokens that a token attends to (Mistral).
        is_tied: whether the head is the embedding.
    """

    rope_theta: float = 10000.0
    norm_epsilon: float = 1e-5
    num_rows: int
    stop_ids: tuple[int, ...]
    max_positions: int
    rope_factor: float = 1.0
    sliding_window: int | None = None
    is_tied: bool = False


_SMALL_SMOLVLM = ReleasedFacts(rope_theta=100000.0, num_rows=49280, stop_ids=(49279,), max_positions=8192)
_IDEFICS2 = ReleasedFacts(num_rows=32003, stop_ids=(2, 32002), max_positions=32768, sliding_window=4096)

# By the catalog's short names. Source: config.json and generation_config.json of the checkpoints.
FACTS_BY_NAME = {
    "9b": ReleasedFacts(norm_epsilon=1e-6, num_rows=32002, stop_ids=(2,), max_positions=2048),
    "9b-instruct": ReleasedFacts(norm_epsilon=1e-6, num_rows=32003, stop_ids=(2,), max_positions=2048),
    "80b": ReleasedFacts(num_rows=32002, stop_ids=(2,), max_positions=2048),
    "80b-instruct": ReleasedFacts(num_rows=32003, stop_ids=(2,), max_positions=2048),
    "idefics2-8b": _IDEFICS2,
    "idefics2-8b-chatty": _IDEFICS2,
    "idefics2-8b-base": ReleasedFacts(
        num_rows=32002, stop_ids=(2,), max_positions=32768, sliding_window=4096
    ),
    "idefics3-8b": ReleasedFacts(
        rope_theta=500000.0,
        num_rows=128259,
        stop_ids=(128001, 128008, 128009, 128258),
        max_positions=131072,
        rope_factor=8.0,
    ),
    "smolvlm-256m": _SMALL_SMOLVLM,
    "smolvlm-500m": _SMALL_SMOLVLM,
    "smolvlm2-256m": _SMALL_SMOLVLM,
    "smolvlm2-500m": _SMALL_SMOLVLM,
    "smoldocling-256m": _SMALL_SMOLVLM,
    "smolvlm-2.2b": ReleasedFacts(
        rope_theta=273768.0, num_rows=49155, stop_ids=(49154,), max_positions=16384
    ),
    "smolvlm2-2.2b": ReleasedFacts(
        rope_theta=273768.0, num_rows=49280, stop_ids=(49279,), max_positions=8192
    ),
    "granite-docling-258m": ReleasedFacts(
        rope_theta=100000.0, num_rows=100352, stop_ids=(100257,), max_positions=8192, is_tied=True
    ),
}


def find_released(subject: CheckSubject) -> CatalogEntry | None:
    """The released checkpoint that the subject is or is built like: by name, else by its exact number of parameters."""
    if subject.entry is not None:
        return subject.entry
    model_type, count = subject.checkpoint.config.model_type, subject.num_parameters
    same = [entry for entry in CATALOG if (entry.model_type, entry.num_parameters) == (model_type, count)]
    return same[0] if same else None


def check_released(subject: CheckSubject) -> CheckOutcome:
    """Compares the configuration with the facts about the released checkpoint."""
    entry = find_released(subject)
    facts = FACTS_BY_NAME.get(entry.name) if entry is not None else None
    if entry is None or facts is None:
        return skipped("not one of the released checkpoints, nor of the size of one")
    config = subject.checkpoint.config
    text = config.text
    pairs: dict[str, tuple[object, object]] = {
        "parameters": (subject.num_parameters, entry.num_parameters),
        "rotary base": (text.rope.theta, facts.rope_theta),
        "rotary factor": (text.rope.factor, facts.rope_factor),
        "epsilon of norms": (text.norm_epsilon, facts.norm_epsilon),
        "rows of the embedding": (text.vocab_size + text.additional_vocab_size, facts.num_rows),
        "longest sequence": (text.max_positions, facts.max_positions),
        "sliding window": (text.sliding_window, facts.sliding_window),
        "tied head": (text.tie_word_embeddings, facts.is_tied),
        "stop ids": (tuple(sorted(config.stop_ids)), facts.stop_ids),
    }
    if config.perceiver is not None:
        pairs["epsilon of the perceiver"] = (config.perceiver.norm_epsilon, facts.norm_epsilon)
    wrong = [
        f"{name}: {found}, released with {known}" for name, (found, known) in pairs.items() if found != known
    ]
    return judge(f"{len(pairs)} facts", f"{entry.name} as released", wrong)


RELEASED_CHECKS = (
    ModelCheck(
        name="released settings",
        shows="config.json says what the released one says, where a wrong number gives answers that only look right",
        tolerance="none",
        run=check_released,
    ),
)
