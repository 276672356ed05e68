"""What a check found, as JSON values and as a text to paste into a bug report."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from idefics import __version__
from idefics.errors import format_bytes
from idefics.evaluate.check.checks import CheckResult, CheckSubject
from idefics.generation.environment import describe_environment

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
