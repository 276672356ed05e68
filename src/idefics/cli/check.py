"""`idefics check`: tells whether this installation answers with these weights as it should."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from idefics.catalog import DEFAULT_MODEL
from idefics.cli.command import command, download_progress_callback
from idefics.cli.flags import flag_group, input_flag, model_flag, output_flag, values_for
from idefics.cli.output import OutputWriter, one_line
from idefics.config import KernelMode, QuantKind
from idefics.errors import OutputError

if TYPE_CHECKING:
    from idefics.evaluate.check.checks import CheckResult

NAME_WIDTH = 18  # characters of the first column
EXIT_OFF = 1
MARKS = {"ok": "ok", "off": "OFF", "skipped": "-"}


@flag_group
class CheckFlags:
    """The checkpoint to check, how it is loaded, and what is compared and written."""

    model: Annotated[str, typer.Argument(metavar="MODEL")]
    quick: bool = input_flag("Leave out what loads the model a second time.", default=False)
    fetch: bool = input_flag(
        "Fetch the pictures of recorded answers; without it these answers are not compared.", default=False
    )
    against: Path | None = input_flag("Compare with this record, which --record has written.")
    device: str = model_flag("auto, cpu, cuda, cuda:1 or mps.", default="auto", metavar="DEVICE")
    adapter: str | None = model_flag(
        "Folder or hub id of an adapter (LoRA), merged into the model while it is loaded.", metavar="PATH"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = model_flag(
        "auto, float32, bfloat16 or float16.", default="auto", metavar="DTYPE"
    )
    quantize: QuantKind | None = model_flag(
        "Quantize the weights: int8, int4, fp8, nf4 or fp4.", metavar="BITS"
    )
    kernels: KernelMode = model_flag("auto, autotune or reference.", default="auto", metavar="HOW")
    threads: int | None = model_flag("Number of CPU threads.")
    revision: str | None = model_flag("Branch, tag or commit on the hub.", metavar="NAME")
    offline: bool | None = model_flag("Never download a model.", names="--offline")
    record: Path | None = output_flag("Write a record of what the model computes now, for --against.")
    report: Path | None = output_flag("Write a text for a bug report: results, machine, hashes.")


@command(
    f"idefics check {DEFAULT_MODEL}",
    f"idefics check {DEFAULT_MODEL} --fetch --report report.md",
    "idefics check ./my-model --quick --record right.json",
    "idefics check ./my-model --quick --quantize int8 --against right.json",
    usage="MODEL",
)
def check(writer: OutputWriter, flags: CheckFlags) -> None:
    """Check that a model computes here what it should.

    Compares files, tokenizer, pictures, kernels and answers with what is known of the model, or with a record. The exit
    code is 1 if something is off. Nothing but the model is downloaded without --fetch.
    """
    from idefics.evaluate.check.check_run import CheckSettings, make_subject, run_checks
    from idefics.evaluate.check.logits_record import make_record
    from idefics.generation.load_settings import LoadSettings

    check_folders(flags.record, flags.report)
    progress = download_progress_callback(flags.model, writer)
    settings = LoadSettings(**values_for(LoadSettings, flags), progress=progress)
    subject = make_subject(flags.model, settings, CheckSettings(**values_for(CheckSettings, flags)))
    results: list[CheckResult] = []
    try:
        writer.progress.start(f"Checking {flags.model}")
        for result in run_checks(subject, quick=flags.quick):
            results.append(result)
            _write_result(writer, result)
        num_off = sum(result.outcome.status == "off" for result in results)
        if flags.record is not None:
            make_record(subject).write(flags.record)
            warning = f", of a model of which {num_off} checks are off" if num_off else ""
            writer.print_status(f"{flags.record} is written{warning}")
    except KeyboardInterrupt:
        writer.print_status(f"interrupted after {_summary(results)}")
        raise
    finally:
        writer.progress.stop()
        if flags.report is not None and results:
            _write_report(flags.report, subject, results)
            writer.print_status(f"{flags.report} is written")
        subject.close()
    if num_off:
        writer.exit_code = EXIT_OFF
    if not writer.as_json:
        print(_summary(results))


def check_folders(*paths: Path | None) -> None:
    """Raises OutputError if a file is to be written into a folder that does not exist."""
    for path in filter(None, paths):
        if path.is_dir() or not path.parent.is_dir():
            what = "is a folder" if path.is_dir() else "cannot be written (no such folder)"
            raise OutputError(f"{path} {what}: give another file")


def _write_result(writer: OutputWriter, result: CheckResult) -> None:
    """Writes one line for a check, and one for each thing that is wrong; or a JSON object."""
    from idefics.evaluate.check.check_run import result_row

    if writer.as_json:
        writer.write_json_line(result_row(result))
        return
    outcome = result.outcome
    limit = f"  (limit: {outcome.limit})" if outcome.limit else ""
    start = f"{MARKS[outcome.status]:<3} {result.check.name:<{NAME_WIDTH}} {result.seconds:6.1f} s"
    with writer.progress.paused():
        print(f"{start}  {one_line(outcome.measured + limit)}", flush=True)
        for detail in outcome.details:
            print(f"        {one_line(detail)}", flush=True)


def _summary(results: list[CheckResult]) -> str:
    """How many checks passed, were off and were skipped."""
    counts: Counter[str] = Counter(result.outcome.status for result in results)
    return ", ".join(f"{counts[status]} {status}" for status in MARKS)


def _write_report(path: Path, subject: Any, results: list[CheckResult]) -> None:
    """Writes the bug report. Raises OutputError if it cannot be written."""
    from idefics.evaluate.check.check_run import bug_report

    try:
        path.write_text(bug_report(subject, results), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}): give another file") from None
