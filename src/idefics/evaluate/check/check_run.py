"""Runs all checks of a checkpoint, files first, then the loaded model; what they found as JSON and for a bug report."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idefics import __version__
from idefics.catalog import find_entry
from idefics.errors import BadSetting, IdeficsError, format_bytes
from idefics.evaluate.check.activation_checks import ACTIVATION_CHECKS, TRAINED_CHECKS
from idefics.evaluate.check.checks import CheckOutcome, CheckResult, CheckSubject, ModelCheck, judge, skipped
from idefics.evaluate.check.engine_checks import ENGINE_CHECKS
from idefics.evaluate.check.kernel_checks import KERNEL_CHECKS, QUANTIZATION_CHECKS
from idefics.evaluate.check.known_answers import known_answer_checks
from idefics.evaluate.check.logits_record import RECORDS_FOLDER, LogitsRecord
from idefics.evaluate.check.processing_checks import PICTURE_CHECKS, TEXT_CHECKS
from idefics.evaluate.check.record_checks import RECORD_CHECKS
from idefics.evaluate.check.released_checks import RELEASED_CHECKS
from idefics.evaluate.check.weight_checks import WEIGHT_CHECKS
from idefics.generation.environment import describe_environment
from idefics.generation.load_settings import LoadSettings

FILE_CHECKS = (*WEIGHT_CHECKS, *RELEASED_CHECKS, *TEXT_CHECKS, *PICTURE_CHECKS, *RECORD_CHECKS[:2])


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckSettings:
    """What is checked.

    Attributes:
        quick: leave out what loads the model a second time or quantises every layer.
        fetch: fetch the pictures of known answers from the internet.
        against: the record to compare with; None: the packaged one of a demo checkpoint.
    """

    quick: bool = False
    fetch: bool = False
    against: Path | None = None


def make_subject(model: str, settings: LoadSettings, checked: CheckSettings) -> CheckSubject:
    """The subject of a run, with its record.

    Raises:
        BadSetting: the record cannot be read.
    """
    path = checked.against
    if (
        path is None
        and settings.adapter is None
        and (entry := find_entry(model)) is not None
        and entry.package_folder
    ):
        path = RECORDS_FOLDER / f"{entry.name}.json"
    record = None if path is None else LogitsRecord.read(path)
    return CheckSubject(model, settings, record, checked.fetch)


def list_checks(subject: CheckSubject, *, quick: bool) -> list[ModelCheck]:
    """All checks of a checkpoint: those of files, those of the loaded model, those that load it with other settings."""
    checks = (
        *FILE_CHECKS,
        *ENGINE_CHECKS[:-1],
        *KERNEL_CHECKS,
        *ACTIVATION_CHECKS,
        *RECORD_CHECKS[2:],
        *TRAINED_CHECKS,
        *known_answer_checks(subject),
        *QUANTIZATION_CHECKS[:1],
        *ENGINE_CHECKS[-1:],
        *QUANTIZATION_CHECKS[1:],
    )
    return [check for check in checks if check.is_quick or not quick]


def run_checks(subject: CheckSubject, *, quick: bool) -> Iterator[CheckResult]:
    """Runs the checks and yields each result as soon as it is there.

    A check that fails with an error of this package is off; others that fail with the same error are skipped. Once the
    model cannot be loaded, what needs it is skipped.

    Raises:
        ModelError: there is no such checkpoint or adapter, or its small files cannot be read.
        BadSetting: it cannot be loaded in this way.
    """
    _ = subject.checkpoint, subject.adapter
    load_error, check_by_error = "", dict[str, str]()
    for check in list_checks(subject, quick=quick):
        start = time.perf_counter()
        if load_error and check not in FILE_CHECKS:
            outcome = skipped(load_error)
        else:
            outcome = _run_check(check, subject, check_by_error)
            if outcome.status != "ok" and check not in FILE_CHECKS and not subject.has_loaded:
                load_error = "the model cannot be loaded"
        yield CheckResult(check, outcome, time.perf_counter() - start)


def _run_check(check: ModelCheck, subject: CheckSubject, check_by_error: dict[str, str]) -> CheckOutcome:
    """The outcome of one check; an error of this package is what is wrong, if no earlier check has named it.

    Args:
        check, subject: which check of which checkpoint.
        check_by_error: the messages so far, with the names of the checks; this one's is added.

    Raises:
        BadSetting: the model cannot be loaded as the settings say, which is no fault of the model.
    """
    try:
        return check.run(subject)
    except BadSetting:
        raise
    except IdeficsError as error:
        first = check_by_error.setdefault(str(error), check.name)
        if first != check.name:
            return skipped(f"the same error as of {first!r}")
        return judge("an error", "none", [str(error)])


HASHED_FILES = ("*.json", "*.jinja", "*.safetensors")


def result_row(result: CheckResult) -> dict[str, Any]:
    """A result as a JSON object."""
    outcome = result.outcome
    return {
        "check": result.check.name,
        "status": outcome.status,
        "measured": outcome.measured,
        "limit": outcome.limit,
        "details": list(outcome.details),
        "shows": result.check.shows,
        "tolerance": result.check.tolerance,
        "seconds": round(result.seconds, 3),
    }


def file_hashes(folder: Path) -> dict[str, dict[str, Any]]:
    """Size in bytes and SHA-256 (hex) of each file of a checkpoint: weights, and the small files that are read."""
    hashes = {}
    for path in sorted(path for pattern in HASHED_FILES for path in folder.glob(pattern)):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        hashes[path.name] = {"bytes": path.stat().st_size, "sha256": digest}
    return hashes


def bug_report(subject: CheckSubject, results: Sequence[CheckResult]) -> str:
    """The text for a bug report: what was found, versions, machine, kernels and hashes. It names no path."""
    return "\n".join(_report_lines(subject, results)) + "\n"


def _report_lines(subject: CheckSubject, results: Sequence[CheckResult]) -> Iterator[str]:
    """The lines of a bug report."""
    settings, environment = subject.settings, describe_environment()
    yield f"### idefics check {subject.label}"
    yield f"idefics {__version__}, Python {environment['python']}"
    yield (
        f"loaded with device={settings.device} dtype={settings.dtype} quantize={settings.quantize} "
        f"kernels={settings.kernels} revision={settings.revision}"
        + ("" if subject.adapter is None else f" adapter={subject.adapter.name}")
    )
    yield f"processor: {environment['processor']}, {environment['cores']} cores, {environment['threads']} threads"
    yield f"devices: {', '.join(environment['devices'])}; used: {environment['device']}"
    yield "kernels: " + ", ".join(f"{name}: {used}" for name, used in environment["kernels"].items())
    yield "versions: " + ", ".join(f"{name} {x}" for name, x in environment["versions"].items() if x)
    for bound in environment["memory"]:
        yield f"memory: {format_bytes(bound['free'])} free of {format_bytes(bound['total'])}"
    yield ""
    for result in results:
        outcome = result.outcome
        limit = f" (limit: {outcome.limit})" if outcome.limit else ""
        yield f"- {outcome.status} **{result.check.name}**: {outcome.measured}{limit}, {result.seconds:.1f} s"
        yield from (f"    - {_without_paths(detail, subject)}" for detail in outcome.details)
    yield ""
    for folder in filter(None, (subject.folder, subject.adapter)):
        for name, facts in file_hashes(folder).items():
            yield f"- {name}: {facts['bytes']:,} bytes, sha256 {facts['sha256']}"


def _without_paths(text: str, subject: CheckSubject) -> str:
    """The text with the names of the folders of the checkpoint and the adapter in place of their paths."""
    for folder in filter(None, (subject.folder, subject.adapter)):
        text = text.replace(f"{folder}{os.sep}", "").replace(str(folder), folder.name)
    return text
