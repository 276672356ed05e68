"""What a check found, as JSON values and as a text to paste into a bug report."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from idefics import __version__
from idefics.errors import format_bytes
from idefics.evaluate.check.checks import CheckResult
from idefics.evaluate.check.subject import CheckSubject
from idefics.generation.environment import describe_environment
from idefics.weights import safetensors_files

HASHED_SMALL_FILES = ("*.json", "*.jinja")


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
    small = [path for pattern in HASHED_SMALL_FILES for path in folder.glob(pattern)]
    hashes = {}
    for path in sorted({*small, *safetensors_files(folder)}):
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
    yield f"### idefics check {Path(subject.model).name if Path(subject.model).exists() else subject.model}"
    yield f"idefics {__version__}, Python {environment['python']}"
    yield (
        f"loaded with device={settings.device} dtype={settings.dtype} quantize={settings.quantize} "
        f"kernels={settings.kernels} revision={settings.revision}"
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
        yield from (f"    - {detail}" for detail in outcome.details)
    yield ""
    for name, facts in file_hashes(subject.folder).items():
        yield f"- {name}: {facts['bytes']:,} bytes, sha256 {facts['sha256']}"
