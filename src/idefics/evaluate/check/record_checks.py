"""Checks against a record: configuration, each weight, and the logits of fixed prompts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from idefics.evaluate.check.checks import CheckOutcome, ModelCheck, judge, skipped
from idefics.evaluate.check.logits_record import describe_config, prompt_logprobs
from idefics.evaluate.check.subject import CheckSubject

NO_RECORD = "no record: give --against FILE"
SIZE_LIMIT = 5e-3  # relative; rounding to bfloat16 changes the root mean square of a matrix by less than 1e-3
PROJECTION_LIMIT = (
    0.03  # numbers in another order change a projection by about 1, rounding to bfloat16 by 0.002
)
LOGPROB_LIMIT, ROUNDED_LOGPROB_LIMIT, QUANTIZED_LOGPROB_LIMIT = 2e-3, 0.05, 0.5


def check_recorded_config(subject: CheckSubject) -> CheckOutcome:
    """Compares the configuration with the record's."""
    if subject.expected is None:
        return skipped(NO_RECORD)
    found = describe_config(subject.checkpoint.config)
    wrong = [
        f"{name} is {value!r}, in the record {other!r}"
        for name, value, other in _different_fields(found, subject.expected.config)
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
    """Compares the size and the projections of each weight with the record's."""
    if subject.expected is None:
        return skipped(NO_RECORD)
    if subject.checkpoint.quantization is not None or not subject.expected.weights:
        return skipped("one of the two is quantised: logits are compared instead")
    digests = subject.expected.weights
    wrong = [f"{name} is not in the record" for name in subject.statistics.keys() - digests.keys()]
    largest = 0.0
    for name, (rms, *projections) in digests.items():
        if (one := subject.statistics.get(name)) is None:
            wrong.append(f"{name} is in the record only")
            continue
        step = max(abs(a - b) for a, b in zip(one.projections, projections, strict=True))
        largest = max(largest, step)
        if one.num_not_finite:
            wrong.append(f"{name} has numbers that are NaN or infinite")
        elif abs(one.rms - rms) > SIZE_LIMIT * rms:
            wrong.append(f"{name} has a root mean square of {one.rms:.4g}, in the record {rms:.4g}")
        elif step > PROJECTION_LIMIT:
            wrong.append(f"{name} holds other numbers than in the record, or in another order")
    return judge(f"{len(digests)} weights, {largest:.2g}", f"{PROJECTION_LIMIT:g}", sorted(wrong))


def record_limit(subject: CheckSubject) -> float:
    """How much log-probabilities may differ from the record in the mean."""
    if subject.is_quantized:
        return QUANTIZED_LOGPROB_LIMIT
    return ROUNDED_LOGPROB_LIMIT if subject.rounds_inputs else LOGPROB_LIMIT


def check_recorded_logits(subject: CheckSubject) -> CheckOutcome:
    """Compares the log-probabilities of the ids of all prompts with the record's."""
    if subject.expected is None:
        return skipped(NO_RECORD)
    limit, largest, wrong = record_limit(subject), 0.0, []
    for name, prompt in subject.fixed_prompts.items():
        if (recorded := subject.expected.prompts.get(name)) is None:
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
        found = float(logits[-1].log_softmax(-1)[best])
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
        shows="config.json says what it said when the record was written: rotary base, sizes, ties, stop ids",
        tolerance="none",
        run=check_recorded_config,
    ),
    ModelCheck(
        name="recorded weights",
        shows="each weight holds the numbers of the record, in their order",
        tolerance=f"{PROJECTION_LIMIT:g} of the norm: rounding to 16 bits changes a projection by about 0.002, "
        "another order of the numbers by about 1",
        run=check_recorded_weights,
    ),
    ModelCheck(
        name="recorded logits",
        shows="fixed prompts get the log-probabilities of the record",
        tolerance=f"{LOGPROB_LIMIT:g} in float32, {ROUNDED_LOGPROB_LIMIT:g} with inputs of products in 16 bits, "
        f"{QUANTIZED_LOGPROB_LIMIT:g} with quantised weights; in nats, the mean over tokens",
        run=check_recorded_logits,
    ),
)
