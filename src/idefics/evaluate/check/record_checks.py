"""Checks against a record: settings, each weight, and the logits of fixed prompts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from idefics.evaluate.check.checks import CheckOutcome, CheckSubject, ModelCheck, Rounding, judge, skipped
from idefics.evaluate.check.logits_record import (
    DIGEST_CHARACTERS,
    describe_config,
    describe_processing,
    prompt_logprobs,
)
from idefics.evaluate.check.weight_statistics import WeightStatistics

NO_RECORD = "no record: give --against FILE"
SIZE_LIMIT = 5e-3  # relative; rounding to bfloat16 changes the root mean square of a matrix by less than 1e-3
PROJECTION_LIMIT = (
    0.03  # numbers in another order change a projection by about 1, rounding to bfloat16 by 0.002
)
LOGPROB_LIMITS: dict[Rounding, float] = {"none": 2e-3, "16 bits": 0.05, "quantised": 0.5}


def check_recorded_config(subject: CheckSubject) -> CheckOutcome:
    """Compares configuration, tokenizer, chat template and picture settings with the record's."""
    if subject.expected is None:
        return skipped(NO_RECORD)
    found = {**describe_config(subject.checkpoint.config), **describe_processing(subject)}
    expected = {**subject.expected.config, **subject.expected.processing}
    wrong = [
        f"{name} is {value!r}, in the record {other!r}"
        for name, value, other in _different_fields(found, expected)
    ]
    return judge(subject.checkpoint.config.model_type, f"record of {subject.expected.model}", wrong)


def _different_fields(
    found: Mapping[str, Any], expected: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Name and both values of each field that differs, nested ones with a dot."""
    for name in sorted(found.keys() | expected.keys()):
        one, other = found.get(name), expected.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from _different_fields(one, other, f"{prefix}{name}.")
        elif one != other:
            yield f"{prefix}{name}", one, other


def check_recorded_weights(subject: CheckSubject) -> CheckOutcome:
    """Compares the bytes of each weight with the record's; in another number format its size and its projections."""
    if subject.expected is None:
        return skipped(NO_RECORD)
    if not subject.files_hold_weights or not subject.expected.weights:
        return skipped("one of the two is quantised or has an adapter: logits are compared instead")
    expected = subject.expected.weights
    wrong = [f"{name} is not in the record" for name in subject.statistics.keys() - expected.keys()]
    num_equal, largest = 0, 0.0
    for name, recorded in expected.items():
        if (one := subject.statistics.get(name)) is None:
            wrong.append(f"{name} is in the record only")
        elif one.digest[:DIGEST_CHARACTERS] == recorded["digest"]:
            num_equal += 1
        else:
            step = max(abs(a - b) for a, b in zip(one.projections, recorded["projections"], strict=True))
            largest = max(largest, step)
            wrong += _weight_differences(one, recorded, step)
    return judge(
        f"{len(expected)} weights, {num_equal} with equal bytes, {largest:.2g}",
        f"{PROJECTION_LIMIT:g} in another number format",
        sorted(wrong),
    )


def _weight_differences(one: WeightStatistics, recorded: Mapping[str, Any], step: float) -> Iterator[str]:
    """What is wrong with a weight whose bytes differ from the recorded ones; `step`: of its projections."""
    rms = recorded["rms"]
    if one.num_not_finite:
        yield f"{one.name} has numbers that are NaN or infinite"
    elif abs(one.rms - rms) > SIZE_LIMIT * rms:
        yield f"{one.name} has a root mean square of {one.rms:.4g}, in the record {rms:.4g}"
    elif step > PROJECTION_LIMIT:
        yield f"{one.name} holds other numbers than in the record, or in another order"
    elif sorted(set(one.dtype_names)) == recorded["dtypes"]:
        yield f"{one.name} holds a few other numbers than in the record, or slightly different ones"


def record_limit(subject: CheckSubject) -> float:
    """How much log-probabilities may differ from the record in the mean: the limit of the coarsest rounding.

    Weights in another number format than the recorded ones were rounded when they were converted.
    """
    assert subject.expected is not None
    weights = subject.expected.weights
    recorded_dtypes = {dtype for recorded in weights.values() for dtype in recorded["dtypes"]}
    limits = [LOGPROB_LIMITS[subject.rounding], LOGPROB_LIMITS[subject.expected.rounding]]
    if weights and subject.stored_dtypes != recorded_dtypes:
        limits.append(LOGPROB_LIMITS["16 bits"])
    return max(limits)


def check_recorded_logits(subject: CheckSubject) -> CheckOutcome:
    """Compares the log-probabilities of the ids of all prompts with the record's."""
    if subject.expected is None:
        return skipped(NO_RECORD)
    limit, largest, wrong = record_limit(subject), 0.0, []
    for name, prompt in subject.fixed_prompts.items():
        if (recorded := subject.expected.prompts.get(name)) is None:
            wrong.append(f"{name}: the prompt is not in the record")
            continue
        if list(prompt.ids) != recorded["ids"]:
            wrong.append(f"{name}: the prompt has other token ids than in the record")
            continue
        logits = subject.fixed_logits[name]
        difference = mean_difference(prompt_logprobs(prompt, logits).tolist(), recorded["logprobs"])
        largest = max(largest, difference)
        if not difference <= limit:
            wrong.append(f"{name}: log-probabilities differ by {difference:.2g} in the mean")
        [(best, logprob), *_] = recorded["top"]
        found = float(logits[-1].log_softmax(-1)[best]) if best < logits.shape[-1] else -math.inf
        if not abs(found - logprob) <= 4 * limit:
            wrong.append(
                f"{name}: the likeliest id {best} has log-probability {found:.3f}, recorded {logprob:.3f}"
            )
    return judge(f"{largest:.2g}", f"{limit:g}", wrong)


def mean_difference(found: Sequence[float], expected: Sequence[float]) -> float:
    """The mean absolute difference; infinite where one of the numbers is not finite."""
    differences = (torch.tensor(found) - torch.tensor(expected)).abs()
    return float(differences.mean()) if differences.isfinite().all() else math.inf


RECORD_CHECKS = (
    ModelCheck(
        name="recorded settings",
        shows="the small files say what they said when the record was written: rotary base, sizes, ties, stop ids, "
        "vocabulary, chat template, picture settings",
        tolerance="none",
        run=check_recorded_config,
    ),
    ModelCheck(
        name="recorded weights",
        shows="each weight holds the numbers of the record, in their order",
        tolerance=f"none in the same number format; in another one {PROJECTION_LIMIT:g} of the norm: rounding to 16 "
        "bits changes a projection by about 0.002, another order of the numbers by about 1",
        run=check_recorded_weights,
    ),
    ModelCheck(
        name="recorded logits",
        shows="fixed prompts get the log-probabilities of the record",
        tolerance=", ".join(f"{limit:g} with rounding: {name}" for name, limit in LOGPROB_LIMITS.items())
        + ", of weights or inputs of products, here or in the record; in nats, the mean over tokens",
        run=check_recorded_logits,
    ),
)
