"""What `idefics run` and `idefics read` do before and during a run: its settings, and Ctrl-C."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from idefics.cli.command import download_progress_callback
from idefics.cli.flags import ModelFlags
from idefics.cli.output import OutputWriter
from idefics.cli.run_end import StoppableRun, command_line
from idefics.errors import BadSetting

if TYPE_CHECKING:
    from idefics import Shot
    from idefics.batch.prompt_template import PromptTemplate
    from idefics.batch.run_settings import RunSettings

# Flags of the model that change answers, and so belong to the key of each row.
ANSWER_CHANGING_FLAGS = ("dtype", "quantize", "kernels")


def check_outputs(
    out: Path | None, report: Path | None, inputs: Iterable[str | Path], purpose: str, writer: OutputWriter
) -> None:
    """Checks before a run that its output file and its HTML report can be written, and that neither is an input.

    Args:
        out, report: None: it is not written.
        inputs: what the run reads.
        purpose: what the run is, and what it writes, for the message.
        writer: prints a note on a disk that is almost full.

    Raises:
        BadSetting: a path is an input, or the report's is a file of another kind.
        OutputError: a path cannot be written.
    """
    from idefics.batch.output_file import check_writable
    from idefics.batch.report import check_report_path

    sources = {Path(name).resolve() for name in inputs}
    for path in filter(None, (out, report)):
        if path.resolve() in sources:
            raise BadSetting(f"{path} is an input of this {purpose}")
        if note := check_writable(path):
            writer.print_note(note)
    if report is not None:
        check_report_path(report)


def find_run_settings(
    task_name: str,
    template: PromptTemplate | None,
    options: dict[str, Any],
    shots: list[Shot],
    model: ModelFlags,
    writer: OutputWriter,
    affixes: tuple[str, str] = ("", ""),
) -> RunSettings:
    """The settings of a run. Finds the checkpoint, and downloads it if it is not on this machine.

    Args:
        task_name: a key of `TASKS`.
        template: makes the prompts; None: the rows have none, or the task's default.
        options: the options of the task.
        shots: the few-shot examples.
        model: the flags of the model.
        writer: shows the progress of a download.
        affixes: the texts before and after each answer.

    Raises:
        ModelError: the checkpoint is not found.
    """
    from idefics import weights
    from idefics.batch.run_settings import RunSettings, fingerprint_checkpoint, hash_shots, revision_of

    folder = weights.find_checkpoint(
        model.model,
        revision=model.revision,
        offline=model.offline or None,
        progress=download_progress_callback(model.model, writer),
    )
    adapter_fingerprint = ""
    if model.adapter is not None:
        progress = download_progress_callback(model.adapter, writer)
        adapter = weights.find_adapter(model.adapter, offline=model.offline or None, progress=progress)
        adapter_fingerprint = weights.fingerprint_adapter(adapter)
    writer.progress.stop()
    fingerprint = fingerprint_checkpoint(folder, weights.safetensors_files(folder), adapter_fingerprint)
    changed = {name: getattr(model, name) for name in ANSWER_CHANGING_FLAGS}
    return RunSettings(
        task=task_name,
        prompt="" if template is None else template.text,
        model=model.model,
        revision=revision_of(folder, fingerprint),
        fingerprint=fingerprint,
        options=options | {name: value for name, value in changed.items() if value not in (None, "auto")},
        shots=hash_shots(shots),
        adapter=model.adapter or "",
        prefix=affixes[0],
        suffix=affixes[1],
    )


@contextmanager
def stop_on_signals(batch_run: StoppableRun, writer: OutputWriter) -> Iterator[None]:
    """Context in which Ctrl-C and SIGTERM end the run after the rows in hand, and a second one ends it at once."""

    def stop(number: int, _: FrameType | None) -> None:
        if batch_run.is_stopping:
            raise KeyboardInterrupt
        batch_run.is_stopping = True
        writer.print_status(
            "finishing the rows in hand; Ctrl-C again stops at once, and loses nothing that is done"
        )

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except KeyboardInterrupt:
        writer.print_status(f"stopped; to go on: {command_line()}")
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
