"""What commands with a ledger do before, during and after a run: settings, Ctrl-C, report, exit code, final lines."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

from idefics.cli.command import download_progress_callback
from idefics.cli.flags import ModelFlags
from idefics.cli.output import OutputWriter
from idefics.errors import BadPicture, BadSetting

if TYPE_CHECKING:
    from idefics.batch.ledger import Ledger
    from idefics.batch.records import RunSummary
    from idefics.batch.run_counts import RunCounts
    from idefics.batch.run_settings import RunSettings
    from idefics.batch.text_writer import TextWriter


# Flags of the model that change answers, and so belong to the key of each row.
ANSWER_CHANGING_FLAGS = ("dtype", "quantize", "kernels")


def check_outputs(
    out: Path | None,
    report: Path | None,
    inputs: Iterable[str | Path | None],
    purpose: str,
    writer: OutputWriter,
) -> None:
    """Checks before a run that its output file and its HTML report can be written, and that neither is an input.

    Args:
        out, report: None: it is not written.
        inputs: what the run reads; blank ones do not count.
        purpose: what the run is, and what it writes, for the message.
        writer: prints a note on a disk that is almost full.

    Raises:
        BadSetting: a path is an input, or the report's is a file of another kind.
        OutputError: a path cannot be written.
    """
    from idefics.batch.output_file import check_writable
    from idefics.batch.report import check_report_path

    sources = {Path(name).resolve() for name in inputs if name}
    for path in filter(None, (out, report)):
        if path.resolve() in sources:
            raise BadSetting(f"{path} is an input of this {purpose}")
        if note := check_writable(path):
            writer.print_note(note)
    if report is not None:
        check_report_path(report)


def find_run_settings(
    task_name: str, model: ModelFlags, writer: OutputWriter, options: Mapping[str, Any] = {}
) -> RunSettings:
    """The settings of a run with a model. Finds the checkpoint, and downloads it if it is not on this machine.

    Args:
        task_name: a key of `TASKS`.
        model: the flags of the model.
        writer: shows the progress of a download.
        options: the options of the task.

    Raises:
        ModelError: the checkpoint is not found.
    """
    from idefics import weights
    from idefics.batch.run_settings import RunSettings, fingerprint_checkpoint, revision_of

    folder = weights.find_checkpoint(
        model.model,
        revision=model.revision,
        offline=model.offline,
        progress=download_progress_callback(model.model, writer),
    )
    adapter_fingerprint = ""
    if model.adapter is not None:
        progress = download_progress_callback(model.adapter, writer)
        adapter = weights.find_adapter(model.adapter, offline=model.offline, progress=progress)
        adapter_fingerprint = weights.fingerprint_adapter(adapter)
    writer.progress.stop()
    fingerprint = fingerprint_checkpoint(folder, weights.safetensors_files(folder), adapter_fingerprint)
    changed = {name: getattr(model, name) for name in ANSWER_CHANGING_FLAGS}
    return RunSettings(
        task=task_name,
        model=model.model,
        revision=revision_of(folder, fingerprint),
        fingerprint=fingerprint,
        options={**options} | {name: value for name, value in changed.items() if value not in (None, "auto")},
        adapter=model.adapter or "",
    )


def run_until_stopped(batch_run: StoppableRun, writer: OutputWriter) -> None:
    """Runs; Ctrl-C and SIGTERM end the run after the rows in hand, and a second one ends it at once."""

    def stop(number: int, _: FrameType | None) -> None:
        if batch_run.is_stopping:
            raise KeyboardInterrupt
        batch_run.is_stopping = True
        writer.print_status(
            "finishing the rows in hand; Ctrl-C again stops at once, and loses nothing that is done"
        )

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        batch_run.run()
        writer.progress.stop()
    except KeyboardInterrupt:
        writer.print_status(f"stopped; to go on: {command_line()}")
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


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

    def run(self) -> None:
        """Does what is left of it."""


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
    from idefics.batch.report import make_thumbnail

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
    from idefics.batch.output_file import records_after
    from idefics.batch.report import write_report

    records = (record for _, record in records_after(ledger, 0, run=run_number))
    summary = summarize_run(settings, counts, started)
    write_report(path, records, summary, lambda record: find_thumbnail(ledger, record.path))
