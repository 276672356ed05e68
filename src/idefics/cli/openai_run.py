"""`idefics run` with a batch file of OpenAI's API: the server's code answers its lines, without a server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idefics.cli.batch_runs import find_run_settings, report_end, run_until_stopped
from idefics.cli.command import LoadModel
from idefics.cli.flags import ModelFlags
from idefics.cli.output import OutputWriter
from idefics.cli.run_flags import RunControlFlags, RunInputFlags, RunOutputFlags
from idefics.cli.run_progress import RunProgress
from idefics.errors import BadPrompt, BadSetting, MissingExtra

if TYPE_CHECKING:
    from idefics import Idefics
    from idefics.batch.ledger import Ledger
    from idefics.batch.openai_batch import BatchFileCheck, BatchLine
    from idefics.batch.output_file import LedgerExport, OutputFile
    from idefics.batch.run_counts import RunCounts
    from idefics.server.batch_lines import InProcessResponse
    from idefics.server.settings import Settings

USED_FLAGS = ("inputs", "out", "ledger", "overwrite", "retry_failed", "limit", "max_errors")
NUM_SHOWN_LINE_ERRORS = 5
LINES_PER_ROW = (
    2  # lines in hand for each row of the engine's batch: while some are computed, others are prepared
)


def run_if_openai_batch(
    writer: OutputWriter,
    load_model: LoadModel,
    inputs: RunInputFlags,
    model: ModelFlags,
    outputs: RunOutputFlags,
    control: RunControlFlags,
    other_flags: Sequence[Any],
) -> bool:
    """Answers the lines of the input, and writes them as OpenAI's batch output, if the input is a batch file.

    Args:
        writer: prints messages.
        load_model: loads the model.
        inputs: the input; of these flags and those of the outputs, only `USED_FLAGS` may be given.
        model: which model answers.
        outputs: has the output file.
        control: says where the ledger is, and which lines are taken.
        other_flags: further groups of flags, of which none may be given.

    Returns:
        Whether the input is a batch file.

    Raises:
        BadSetting: a flag has no effect on batch files, or the output file has a wrong suffix.
        BadPrompt: a line of the file is no request of a batch.
        MissingExtra: the server's extra is not installed.
        OutputError: a file cannot be read or written.
    """
    from idefics.batch.openai_batch import OpenAIBatchExporter, check_batch_file
    from idefics.batch.output_file import OutputFile, check_writable
    from idefics.batch.sources.text_tables import is_openai_batch

    batch_files = [one for one in inputs.inputs if is_openai_batch(one)]
    if not batch_files:
        return False
    if len(inputs.inputs) > 1:
        raise BadSetting(f"{batch_files[0]} is a batch file of OpenAI's API: give it as the only input")
    try:
        from idefics.server.batch_lines import batch_file_limits
    except ModuleNotFoundError:
        raise MissingExtra("answering a batch file of OpenAI's API", "serve") from None
    path, out = Path(batch_files[0]), outputs.out
    _refuse_unused_flags(path, (inputs, outputs, control, *other_flags))
    if out is None or out.suffix.lower() != ".jsonl":
        what = "nothing says where the answers go" if out is None else f"{out} does not end in .jsonl"
        raise BadSetting(f"{what}: give --out answers.jsonl for the answers to the batch file {path}")
    control.selection()  # checks the numbers
    settings = _server_settings(model)
    check = check_batch_file(path, batch_file_limits(settings))
    _refuse_invalid_lines(path, check)
    if note := check_writable(out):
        writer.print_note(note)
    num_lines = check.num_lines if control.limit is None else min(check.num_lines, control.limit)
    file = OutputFile(out, OpenAIBatchExporter())
    _run(writer, load_model, path, num_lines, model, settings, file, control)
    return True


def _run(
    writer: OutputWriter,
    load_model: LoadModel,
    path: Path,
    num_lines: int,
    model: ModelFlags,
    settings: Settings,
    file: OutputFile,
    control: RunControlFlags,
) -> None:
    """Answers the first lines of a batch file, as far as the ledger has no answers to them."""
    from idefics.batch.ledger import Ledger
    from idefics.batch.openai_batch import OPENAI_BATCH_TASK
    from idefics.batch.output_file import LedgerExport
    from idefics.batch.run_counts import RunCounts

    run_settings = find_run_settings(OPENAI_BATCH_TASK, model, writer)
    with ExitStack() as stack:
        ledger_path = control.ledger or file.path.with_name(f"{file.path.name}.ledger")
        ledger = stack.enter_context(Ledger(ledger_path))
        run_number = control.prepare_ledger(ledger, run_settings)
        export = LedgerExport(ledger, file, overwrite=control.overwrite)
        vlm = stack.enter_context(closing(load_model(model)))
        counts = RunCounts(num_expected=num_lines)
        for number, num_answered, num_failed in ledger.count_rows():
            if number == run_number:
                counts.num_done_before, counts.num_failed_before = num_answered, num_failed
        on_progress = RunProgress(writer).show
        batch_run = OpenAIBatchRun(
            vlm, settings, path, ledger, run_number, export, control, counts, on_progress
        )
        run_until_stopped(batch_run, writer)
        report_end(writer, batch_run)


@dataclass
class OpenAIBatchRun:
    """One run over a batch file.

    Attributes:
        vlm, settings: the model and the settings of the server whose code answers.
        path: the file, which was found valid.
        ledger, run_number: keeps the answers.
        export: the output file.
        control: how many lines are taken, and how many may fail.
        counts: what the run has done so far.
        on_progress: called with the counts after each line.
        is_stopping: set it to True to end the run after the lines in hand.
    """

    vlm: Idefics
    settings: Settings
    path: Path
    ledger: Ledger
    run_number: int
    export: LedgerExport
    control: RunControlFlags
    counts: RunCounts
    on_progress: Callable[[RunCounts], None]
    is_stopping: bool = False

    def run(self) -> None:
        """Answers all lines that have no answer yet, and writes the output file."""
        try:
            asyncio.run(self._answer_lines())
        finally:
            self.export.export()

    async def _answer_lines(self) -> None:
        from idefics.server.app import create_app
        from idefics.server.batch_lines import BatchLineRunner, LineSlots, batch_file_limits

        app = create_app(self.vlm, self.settings)
        max_lines = LINES_PER_ROW * self.vlm.engine.config.batch_rows
        slots = LineSlots(app.state.service.admission, max_lines)
        await BatchLineRunner(
            *(app, slots, self.ledger, self.run_number, self.path, batch_file_limits(self.settings)),
            on_answered=self._count,
            should_stop=lambda: self.is_stopping or self.counts.has_too_many_errors,
            max_lines=self.control.limit,
        ).run()

    def _count(self, line: BatchLine, response: InProcessResponse) -> None:
        """Counts a line that was answered."""
        counts, max_errors = self.counts, self.control.max_errors
        counts.num_tokens += response.num_tokens
        if response.is_error:
            counts.num_failed += 1
            counts.first_error = counts.first_error or f"{line.custom_id}: {response.error_message}"
            counts.has_too_many_errors = max_errors is not None and counts.num_failed >= max_errors
        else:
            counts.num_written += 1
        self.export.export_regularly()
        self.on_progress(counts)


def _server_settings(model: ModelFlags) -> Settings:
    """The settings of the server whose code answers: what is limited there is limited by the lines in hand."""
    from idefics.server.settings import Settings

    return Settings(
        model=model.model,
        remote_images="public" if model.remote_images == "any" else model.remote_images,
        requests_at_once=100_000,
        tokens_at_once=1_000_000_000,
        pictures_at_once=100_000,
        megabytes_at_once=1_000_000,
    )


def _refuse_unused_flags(path: Path, groups: Sequence[Any]) -> None:
    """Raises BadSetting if a flag is given that has no effect on a batch file."""
    for group in groups:
        for one in fields(group):
            if one.name not in USED_FLAGS and getattr(group, one.name) != one.default:
                flag = one.metadata.get("names") or f"--{one.name.replace('_', '-')}"
                raise BadSetting(
                    f"{path} is a batch file of OpenAI's API, each line of which says what to do: leave out {flag}"
                )


def _refuse_invalid_lines(path: Path, check: BatchFileCheck) -> None:
    """Raises BadPrompt if lines of the file are no requests of a batch; it names the first of them."""
    if not check.errors:
        return
    shown = [
        error.message if error.line is None else f"line {error.line}: {error.message}"
        for error in check.errors[:NUM_SHOWN_LINE_ERRORS]
    ]
    more = "; and more" if len(check.errors) > len(shown) else ""
    raise BadPrompt(f"{path} cannot be answered: {'; '.join(shown)}{more}")
