"""Finds the rows of training data: tables as `idefics run` reads them, and training splits of `idefics eval`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from idefics.batch.rows import Media
from idefics.batch.sidecars import read_sidecar, sidecar_path
from idefics.batch.sources.inputs import resolve_input
from idefics.batch.sources.settings import SingleInput, SourcePass, SourceSettings
from idefics.batch.sources.tables import TableInput
from idefics.errors import BadPrompt, BadSetting, IdeficsError, did_you_mean
from idefics.evaluate.answerer import make_prompt_items
from idefics.evaluate.prompt_style import PromptStyle, choose_style
from idefics.evaluate.prompts import SuitePrompts
from idefics.evaluate.shots import PictureContents
from idefics.evaluate.suite import EvaluationRow, Suite
from idefics.evaluate.suite_data import LAYOUTS_WITHOUT_FOLDER, SuiteData
from idefics.evaluate.suites import SUITES
from idefics.processing.processor import Processor
from idefics.train.data.examples import PICTURE, ExamplePicture, TrainingExample
from idefics.train.data.record_parser import TEXT_COLUMN, RecordParser
from idefics.train.data.texts import check_text

FAMILY_BY_IMAGE_TOKENS = {
    "cross_attention": "idefics1",
    "inline": "idefics2",
    "inline_tiles": "idefics3",
}  # as prompts of suites name them
SEPARATOR = ":"
COLUMN_BY_FIELD = {"txt": TEXT_COLUMN, "cls": "label"}  # of WebDataset's archives


def read_examples(path: str, processor: Processor) -> Iterator[TrainingExample | str]:
    """Yields the examples of training data in their order; instead of one that cannot be learned, the reason.

    Args:
        path: see `TrainSettings.data`.
        processor: of the checkpoint.

    Raises:
        BadPicture, BadSetting, MissingExtra: there is no such data, or it cannot be read at all.
    """
    if (named := find_suite(path)) is not None:
        yield from _read_suite(named, processor)
        return
    if SEPARATOR not in path and not Path(path).exists() and not Path(path).suffix:
        raise BadSetting(f"{path[:100]}: no such file, folder or suite{did_you_mean([path], tuple(SUITES))}")
    if path.lower().endswith(".json"):
        raise BadSetting(
            f"{path} is JSON: give JSON lines (.jsonl), with an object for each row on a line of its own"
        )
    found = resolve_input(path, SourceSettings())
    if isinstance(found, TableInput):
        yield from _read_table(found, processor)
    else:
        found.check()
        yield from _read_pictures(found, processor)


class NamedSuite(NamedTuple):
    """A suite of `idefics eval` that training data name.

    Attributes:
        suite: the suite.
        location: its folder; "": what is installed.
        split: "" if none is named.
    """

    suite: Suite
    location: str
    split: str


def find_suite(path: str) -> NamedSuite | None:
    """The suite in "NAME", "NAME:SPLIT", "NAME:FOLDER" or "NAME:FOLDER:SPLIT"; None for other data."""
    name, _, rest = path.partition(SEPARATOR)
    suite = SUITES.get(name)
    if suite is None or suite.layout == "table" or Path(path).exists():
        return None
    location, _, split = rest.rpartition(SEPARATOR)
    if not location and Path(split).is_dir():
        location, split = split, ""
    return NamedSuite(suite, location, split)


def _read_table(table: TableInput, processor: Processor) -> Iterator[TrainingExample | str]:
    """Yields the examples of a table, or why a row has none."""
    image_column = table.settings.image_column or table.reader.declared_image_column()

    def find_media(value: object, name: str) -> Media:
        return table.reader.media(value, name, table.settings.fetcher)

    parser = _make_parser(processor, find_media, image_column)
    for number, record in enumerate(table.reader.records(), 1):
        name = f"{table.name}#{number}"
        try:
            yield f"{name} {record}" if isinstance(record, str) else parser.parse(name, record)
        except IdeficsError as error:
            yield str(error)


def _read_pictures(found: SingleInput, processor: Processor) -> Iterator[TrainingExample | str]:
    """Yields the examples of pictures that have a text file, in a folder or an archive, or why one has none.

    In WebDataset's archives a JSON file has the columns of its picture.
    """

    def refuse(_: object, name: str) -> Media:
        raise BadPrompt(f"{name} names further pictures, which no archive has: give a table")

    parser = _make_parser(processor, refuse, None)
    for row in found.rows(SourcePass()):
        try:
            if row.media is None:
                raise BadPrompt(row.error)
            record = {COLUMN_BY_FIELD.get(name, name): value for name, value in row.columns.items()}
            if not record and row.media.file is not None:
                sidecar = sidecar_path(row.media.file, "txt")
                record = {TEXT_COLUMN: read_sidecar(sidecar, "txt")}
                if record[TEXT_COLUMN] is None:
                    raise BadPrompt(
                        f"{row.name} has nothing to learn: write its text into {sidecar}, or give a table"
                    )
            yield parser.parse(row.name, record, row.media)
        except IdeficsError as error:
            yield str(error)


def _make_parser(
    processor: Processor, find_media: Callable[[object, str], Media], image_column: str | None
) -> RecordParser:
    """The parser of records for a checkpoint."""
    return RecordParser(
        find_media,
        processor.prompt_format.kind,
        image_column,
        has_unused_turn_end="<end_of_utterance>" in processor.tokenizer.added_token_contents,
    )


def _read_suite(named: NamedSuite, processor: Processor) -> Iterator[TrainingExample | str]:
    """Yields the examples of a split of a suite, else of its training split, or why a row has none.

    Their prompts are those of its evaluation.
    """
    suite, location, split = named
    if not location and suite.layout not in LAYOUTS_WITHOUT_FOLDER:
        raise BadSetting(
            f"{suite.name} needs its folder, which docs/evaluation.md describes: {suite.name}:/data/{suite.name}"
        )
    data = SuiteData(suite, location, split or suite.support_split)
    kind = processor.prompt_format.kind
    family = FAMILY_BY_IMAGE_TOKENS[processor.prompt_format.image_tokens]

    def style_of(one: Suite) -> PromptStyle:
        return choose_style(one, family=family, kind=kind, choice="auto", has_shots=False)

    open_suite = replace(suite, answer="text", prompts=suite.open_prompts) if suite.open_prompts else suite
    prompts = SuitePrompts(suite, style_of(suite), style_of(open_suite), kind, None, 0, PictureContents())
    for row in data.rows():
        try:
            yield from _suite_examples(row, prompts, processor)
        except IdeficsError as error:
            yield str(error)


def _suite_examples(
    row: EvaluationRow, prompts: SuitePrompts, processor: Processor
) -> Iterator[TrainingExample]:
    """Yields the example of a row: its right label, its most frequent answer, or one example for each caption."""
    if row.error or row.media is None:
        raise BadPrompt(row.error or f"{row.name} has no picture")
    if not row.references:
        raise BadPrompt(f"{row.name} has no right answer")
    request = prompts.make_request(row)
    more = {f"{row.name}#picture{number}": media for number, media in enumerate(row.more_media, 1)}
    media_by_id: dict[str, Media] = {"": row.media, **more}
    items = make_prompt_items(request, dict.fromkeys(media_by_id, PICTURE), processor)
    pictures = tuple(ExamplePicture(media=media_by_id[id]) for id in request.picture_ids)
    if prompts.suite.answer == "caption":
        answers: Sequence[str] = row.references
    else:
        answers = [Counter(row.references).most_common(1)[0][0]]
    for number, answer in enumerate(answers, 1):
        text = f"{request.label_start.lstrip()}{answer}{request.label_end}"
        yield TrainingExample(
            name=row.name if len(answers) == 1 else f"{row.name}, caption {number}",
            prompt=items,
            answer=check_text(row.name, "answer", text).strip(),
            pictures=pictures,
            is_text_trusted=True,
        )
