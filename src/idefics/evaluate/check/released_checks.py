"""Checks of released checkpoints against facts about them that a wrong or edited file would contradict."""

from __future__ import annotations

from dataclasses import dataclass, replace

from idefics.catalog import CATALOG, CatalogEntry
from idefics.evaluate.check.checks import CheckOutcome, CheckSubject, ModelCheck, judge, skipped


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasedFacts:
    """What the files of a released checkpoint say, where other loaders went wrong. None: not seen, so not compared.

    Attributes:
        rope_theta: base of the rotary embedding.
        norm_epsilon: of the decoder; in Idefics 2 also of the perceiver, as released.
        num_rows: rows of the embedding, added tokens included.
        stop_ids: ids that end an answer.
        max_positions: the longest sequence, in tokens.
        sliding_window: tokens that a token attends to (Mistral); 0: all.
        is_tied: whether the head is the embedding.
    """

    rope_theta: float | None = 10000.0
    norm_epsilon: float | None = 1e-5
    num_rows: int | None
    stop_ids: tuple[int, ...]
    max_positions: int | None
    sliding_window: int = 0
    is_tied: bool = False


_IDEFICS_9B = ReleasedFacts(norm_epsilon=1e-6, num_rows=32002, stop_ids=(2,), max_positions=2048)
_IDEFICS2_8B = ReleasedFacts(num_rows=32003, stop_ids=(2, 32002), max_positions=32768, sliding_window=4096)
_SMOLVLM = ReleasedFacts(rope_theta=100000.0, num_rows=49280, stop_ids=(49279,), max_positions=8192)

# By the catalog's short names. Source: config.json and generation_config.json of the checkpoints or of copies of them.
FACTS_BY_NAME = {
    "9b": _IDEFICS_9B,
    "9b-instruct": replace(_IDEFICS_9B, num_rows=32003),
    "80b": replace(_IDEFICS_9B, norm_epsilon=1e-5),
    "80b-instruct": replace(_IDEFICS_9B, norm_epsilon=1e-5, num_rows=None),
    "idefics2-8b": _IDEFICS2_8B,
    "idefics2-8b-chatty": _IDEFICS2_8B,
    "idefics2-8b-base": replace(_IDEFICS2_8B, num_rows=32002, stop_ids=(2,)),
    "idefics3-8b": ReleasedFacts(
        rope_theta=500000.0,
        num_rows=128259,
        stop_ids=(128001, 128008, 128009, 128258),
        max_positions=None,
    ),
    "smolvlm-256m": _SMOLVLM,
    "smolvlm-500m": _SMOLVLM,
    "smolvlm2-256m": _SMOLVLM,
    "smolvlm2-500m": _SMOLVLM,
    "smolvlm-2.2b": ReleasedFacts(
        rope_theta=273768.0, num_rows=49155, stop_ids=(49154,), max_positions=16384
    ),
    "smolvlm2-2.2b": replace(_SMOLVLM, rope_theta=None, max_positions=None),
    "granite-docling-258m": ReleasedFacts(
        rope_theta=100000.0,
        norm_epsilon=None,
        num_rows=100352,
        stop_ids=(100257,),
        max_positions=None,
        is_tied=True,
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
    num_parameters = None if facts.num_rows is None else entry.num_parameters
    pairs: dict[str, tuple[object, object]] = {
        "parameters": (subject.num_parameters, num_parameters),
        "rotary base": (text.rope.theta, facts.rope_theta),
        "epsilon of norms": (text.norm_epsilon, facts.norm_epsilon),
        "rows of the embedding": (text.vocab_size + text.additional_vocab_size, facts.num_rows),
        "longest sequence": (text.max_positions, facts.max_positions),
        "sliding window": (text.sliding_window or 0, facts.sliding_window),
        "tied head": (text.tie_word_embeddings, facts.is_tied),
        "stop ids": (tuple(sorted(config.stop_ids)), facts.stop_ids),
    }
    if config.perceiver is not None:
        pairs["epsilon of the perceiver"] = (config.perceiver.norm_epsilon, facts.norm_epsilon)
    pairs = {name: pair for name, pair in pairs.items() if pair[1] is not None}
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
