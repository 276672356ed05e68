"""`idefics read`: pages as one document in Markdown, HTML, JSON or DocTags, kept in a ledger like every batch run."""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idefics.batch.documents import (
    FORMAT_BY_SUFFIX,
    DocTagsPage,
    DocumentFormat,
    check_converter,
    describe_cut,
    join_pages,
)
from idefics.batch.run_settings import PageSelection, SelectedPages
from idefics.catalog import DOCTAGS_MODELS
from idefics.cli.batch_runs import INTERRUPTED, command_line, find_run_settings, run_until_stopped
from idefics.cli.command import LoadModel, command
from idefics.cli.flags import (
    ModelFlags,
    PositionalArguments,
    PromptFlags,
    checked_text_parser,
    flag_group,
    input_flag,
    model_name_flag,
    output_flag,
)
from idefics.cli.output import OutputWriter
from idefics.cli.run_flags import LedgerControlFlags
from idefics.cli.run_progress import RunProgress
from idefics.cli.sampling import SamplingFlags
from idefics.cli.tasks import split_pictures_and_words
from idefics.errors import BadPicture, BadSetting, format_count
from idefics.tasks.read import TASK

if TYPE_CHECKING:
    from idefics.batch.answerers import Answerer
    from idefics.batch.ledger import Ledger
    from idefics.batch.rows import RowSource
    from idefics.batch.run_settings import RunSettings


@flag_group
class ReadInputFlags:
    """The flags for the pages that are read."""

    inputs: PositionalArguments
    pages: str | None = input_flag(
        "Which pages of documents: numbers and ranges, such as 1-3,7 or 5-.",
        metavar="PAGES",
        parser=checked_text_parser("--pages", PageSelection.parse),
    )


@flag_group
class ReadModelFlags(ModelFlags):
    """Which model is loaded: one that writes DocTags."""

    model: str = model_name_flag(
        f"A checkpoint that writes DocTags: {' or '.join(DOCTAGS_MODELS)}, a folder or a hub id",
        DOCTAGS_MODELS[0],
    )


@flag_group
class ReadOutputFlags:
    """The flags for the document."""

    out: Path | None = output_flag("Output file: .md, .html, .json or .doctags; else standard output.")
    to: DocumentFormat | None = output_flag(
        "markdown, html, json or doctags; else as the suffix of --out says, else markdown.", metavar="FORMAT"
    )

    @property
    def format(self) -> DocumentFormat:
        """The format of the document. Raises BadSetting if it is not known."""
        if self.to is not None:
            return self.to
        if self.out is None:
            return "markdown"
        format = FORMAT_BY_SUFFIX.get(self.out.suffix.lower())
        if format is None:
            raise BadSetting(
                f"--out {self.out} has no suffix of a format: give .md, .html, .json or .doctags, or add --to markdown"
            )
        return format


@command(*TASK.examples, usage="INPUT... [INSTRUCTION]", has_json=False)
def read(
    writer: OutputWriter,
    load_model: LoadModel,
    inputs: ReadInputFlags,
    prompt: PromptFlags,
    model: ReadModelFlags,
    sampling: SamplingFlags,
    control: LedgerControlFlags,
    outputs: ReadOutputFlags,
) -> None:
    """Convert pages of documents to Markdown, HTML or JSON.

    An INPUT is a PDF, a picture, a folder, a pattern, an address, or what else `idefics run` takes; all pages become
    one document. The instruction comes last, in quotes, or with --prompt: "Convert this page to docling." without one.

    Pages that are done are kept in a ledger next to the output file: the same command goes on where it was stopped,
    and computes no page twice. A page that cannot be read is reported with its number, and the others are written; the
    exit code is then 2.
    """
    from idefics.batch.answerers import LocalAnswerer
    from idefics.batch.ledger import Ledger
    from idefics.batch.output_file import check_origin, check_writable

    format = outputs.format
    check_converter(format)
    if outputs.out is not None and (note := check_writable(outputs.out)):
        writer.print_note(note)
    if sampling.logprobs or sampling.top_logprobs is not None:
        raise BadSetting("--logprobs is for `idefics run`: a document has no place for log-probabilities")
    names, words = split_pictures_and_words(TASK, inputs.inputs, prompt.prompt)
    source = _open_source(names, inputs, model)
    options: dict[str, Any] = {**sampling.options(as_json=False)}
    settings = replace(
        find_run_settings(TASK.name, model, writer, options),
        prompt=words.replace("{", "{{").replace("}", "}}"),
    )
    answerer = LocalAnswerer(lambda: load_model(model), TASK.name, options)
    with ExitStack() as stack:
        ledger_path = control.ledger
        if ledger_path is None and outputs.out is not None:
            ledger_path = outputs.out.with_name(f"{outputs.out.name}.ledger")
        elif ledger_path is None:
            ledger_path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "ledger"
        ledger = stack.enter_context(Ledger(ledger_path))
        if outputs.out is not None and not control.overwrite:
            check_origin(ledger, outputs.out)
        run_number = control.prepare_ledger(ledger, settings)
        is_stopped = _read_pages(source, settings, answerer, ledger, writer)
        pages = list(_pages_of_ledger(source, ledger, run_number, writer))
        _write_document(pages, format, names[0], outputs.out, ledger, writer)
    if is_stopped:
        writer.print_status(f"stopped before the end; to go on: {command_line()}")
        writer.exit_code = INTERRUPTED


def _open_source(names: list[str], inputs: ReadInputFlags, model: ModelFlags) -> RowSource:
    """The pages. Raises BadPicture if there are none."""
    from idefics.batch.sources.inputs import open_source
    from idefics.batch.sources.settings import SourceSettings
    from idefics.processing.fetch import Fetcher

    if not names:
        raise BadPicture("no document given: name a PDF, pictures or a folder of them")
    source = open_source(names, SourceSettings(fetcher=Fetcher(policy=model.remote_images)))
    if inputs.pages is None:
        return source
    selected = SelectedPages(source, PageSelection.parse(inputs.pages))
    if not selected.count_rows():
        raise BadPicture(f"--pages {inputs.pages}: there are no such pages")
    return selected


def _read_pages(
    source: RowSource, settings: RunSettings, answerer: Answerer, ledger: Ledger, writer: OutputWriter
) -> bool:
    """Reads the pages that are not in the ledger yet; returns whether Ctrl-C stopped it."""
    from idefics.batch.prompt_template import PromptTemplate
    from idefics.batch.run import BatchRun
    from idefics.batch.run_settings import RowSelection
    from idefics.batch.text_settings import TextSettings
    from idefics.batch.text_writer import TextWriter

    with closing(answerer):
        batch_run = BatchRun(
            source,
            settings,
            PromptTemplate(settings.prompt),
            answerer,
            ledger,
            TextWriter(ledger, settings, TextSettings()),
            None,
            RowSelection(),
            on_progress=RunProgress(writer).show,
        )
        run_until_stopped(batch_run, writer)
    if left_out := source.describe_skipped():
        writer.print_status(f"skipped: {left_out}")
    return batch_run.is_stopping


def _pages_of_ledger(
    source: RowSource, ledger: Ledger, run_number: int, writer: OutputWriter
) -> Iterator[DocTagsPage]:
    """Yields the pages that were read, in their order; reports those that failed, and notes those that are cut off."""
    for row in source:
        found = ledger.find_row(run_number, row.name)
        answer = None if found is None else ledger.find_answer(found.key)
        if answer is None:
            continue
        if "error_type" in answer:
            error = answer["error"]
            writer.report_error(error if row.name in error else f"{row.name}: {error}")
            continue
        page = DocTagsPage(name=row.name, doctags=answer["text"], is_cut_off=answer["finish"] == "length")
        if cut := describe_cut(page):
            tokens = f" after {answer['tokens']:,} tokens" if page.is_cut_off else ""
            writer.print_note(f"{cut}{tokens}: the end of the page is missing")
        yield page


def _write_document(
    pages: list[DocTagsPage],
    format: DocumentFormat,
    title: str,
    out: Path | None,
    ledger: Ledger,
    writer: OutputWriter,
) -> None:
    """Writes the pages to the output file or standard output; nothing if there are none."""
    from idefics.batch.file_replacement import prepare_file
    from idefics.batch.ledger import ExportMark

    if not pages:
        return
    text = join_pages(pages, format, title=Path(title).stem)
    if out is None:
        sys.stdout.write(text)
        return
    content = text.encode()
    prepare_file(out, content).commit()
    ledger.mark_exported(str(out.absolute()), ExportMark(0, len(content), hashlib.sha256(content).digest()))
    writer.print_status(f"{format_count(len(pages), 'page')} written to {out}")
