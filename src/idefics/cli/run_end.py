"""The end of `idefics run`: what it prints, its exit code, and the report."""

from __future__ import annotations

import shlex
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from idefics.cli.output import OutputWriter
from idefics.errors import BadPicture

if TYPE_CHECKING:
    from idefics.batch.ledger import Ledger
    from idefics.batch.records import RunSummary
    from idefics.batch.run_counts import RunCounts
    from idefics.batch.run_settings import RunSettings
    from idefics.batch.text_writer import TextWriter

FAILED_ROWS, INTERRUPTED = 1, 130  # exit codes


def command_line(*more: str) -> str:
    """The command line of this process, as a shell takes it, with further flags."""
    return shlex.join(["idefics", *sys.argv[1:], *(flag for flag in more if flag not in sys.argv)])


class StoppableRun(Protocol):
    """A batch run.

    Attributes:
        counts: what it has done so far.
        is_stopping: whether it ends after the rows in hand; may be set at any time.
    """

    counts: RunCounts
    is_stopping: bool


def report_end(
    writer: OutputWriter, batch_run: StoppableRun, left_out: str = "", texts: TextWriter | None = None
) -> None:
    """Prints what the run has done, what failed, and how to go on.

    Args:
        batch_run: the run.
        left_out: what of the input it has not taken.
        texts: has written the answers next to pictures, if the run did so.

    Raises:
        BadPicture: the input has no row.
    """
    counts, num_failed_texts = batch_run.counts, texts.num_failed if texts else 0
    if not counts.num_done and not counts.num_expected:
        raise BadPicture(f"the input has no picture; skipped: {left_out or 'nothing'}")
    parts = [f"{counts.num_written:,} written"]
    if counts.num_reused:
        parts[0] += f" ({counts.num_reused:,} of them known from equal pictures)"
    for number, what in (
        (counts.num_done_before, "done before"),
        (counts.num_left_alone, "left alone, as they have a text"),
        (counts.num_failed, "failed"),
        (counts.num_failed_before, "failed before"),
        (texts.num_written if texts else 0, "sidecars or descriptions written"),
        (texts.num_without_file if texts else 0, "without, as the picture has no file of its own"),
        (num_failed_texts, "of them could not be written"),
    ):
        if number:
            parts.append(f"{number:,} {what}")
    if left_out:
        writer.print_status(f"skipped: {left_out}")
    writer.print_status(", ".join(parts))
    first_error = counts.first_error or (texts.first_error if texts else "")
    if first_error:
        writer.print_status(f"first error: {first_error}")
    if counts.num_failed_before and not first_error:
        writer.print_status("`idefics ledger` lists what failed")
    if counts.num_failed or counts.num_failed_before:
        writer.print_status(f"to try them again: {command_line('--retry-failed')}")
    if batch_run.is_stopping or counts.has_too_many_errors:
        writer.print_status(f"stopped before the end; to go on: {command_line()}")
    if batch_run.is_stopping:
        writer.exit_code = INTERRUPTED
    elif counts.num_failed or counts.num_failed_before or num_failed_texts:
        writer.exit_code = FAILED_ROWS


def summarize_run(
    settings: RunSettings,
    counts: RunCounts,
    started: datetime,
    title: str = "Batch run",
    figures: tuple[tuple[str, str], ...] = (),
) -> RunSummary:
    """What the report says about a run.

    Args:
        settings, counts: of the run.
        started: when it began, with its time zone.
        title, figures: see `RunSummary`.
    """
    from idefics.batch.records import RunSummary

    return RunSummary(
        task=settings.task,
        model=settings.model,
        revision=settings.revision,
        settings=dict(settings.options),
        command=command_line(),
        started=started,
        seconds=counts.seconds,
        num_written=counts.num_written,
        num_failed=counts.num_failed,
        num_skipped=counts.num_skipped,
        num_tokens=counts.num_tokens,
        title=title,
        figures=figures,
    )


def find_thumbnail(ledger: Ledger, path: str) -> bytes | None:
    """The thumbnail of a picture: that of the ledger, else one that is made of its file; None if it has none."""
    from idefics.batch.thumbnails import make_thumbnail

    known = ledger.find_thumbnail(path)
    if known is not None or not Path(path).is_file():
        return known
    return make_thumbnail(Path(path).read_bytes(), path)


def write_run_report(
    path: Path,
    ledger: Ledger,
    run_number: int,
    settings: RunSettings,
    counts: RunCounts,
    started: datetime,
) -> None:
    """Writes the report of the rows of a run, those of earlier parts of it included."""
    from idefics.batch.ledger_export import records_after
    from idefics.batch.report import write_report

    records = (record for _, record in records_after(ledger, 0, run=run_number))
    summary = summarize_run(settings, counts, started)
    write_report(path, records, summary, lambda record: find_thumbnail(ledger, record.path))
