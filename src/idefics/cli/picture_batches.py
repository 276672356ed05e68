"""Runs pictures in batches that double in size; an unreadable picture does not stop the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from idefics.cli.flags import ModelFlags
from idefics.cli.loading import ModelLoader
from idefics.cli.output import OutputWriter
from idefics.cli.pictures import (
    NamedPicture,
    error_with_name,
    fetch_and_check_picture,
    find_pictures,
    names_several_pictures,
)
from idefics.cli.text_files import read_text_file
from idefics.config import EngineConfig
from idefics.errors import BadPicture, BadPrompt, IdeficsError
from idefics.lazy import cached_property
from idefics.messages import Answer, PictureOrVideo, Ranking, Shot
from idefics.tasks.shots import parse_shots

if TYPE_CHECKING:
    from idefics import Idefics

Result = TypeVar("Result", Answer, Ranking)


class PictureBatches:
    """The pictures of a command, answered in batches. The model is loaded when the first picture has been read.

    Args:
        arguments: names of files, folders, patterns and URLs.
        shots: a JSONL file of few-shot examples.
        writer: reports errors and shows progress.
        model: the flags of the model.
        loader: loads the model.
        recursive: whether subfolders are searched too.

    Raises:
        BadPrompt: the file of examples is invalid.
        BadPicture: no argument was given.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        shots: Path | None,
        writer: OutputWriter,
        model: ModelFlags,
        loader: ModelLoader,
        *,
        recursive: bool,
    ) -> None:
        from idefics.processing.fetch import Fetcher

        if not arguments:
            raise BadPicture("no picture given: name a file, a folder, an address, or - for standard input")
        self.writer, self.model_flags, self.loader = writer, model, loader
        self.shots = _read_shots(shots)
        self.fetcher = Fetcher(policy=model.remote_images)
        self.pictures = find_pictures(arguments, writer.report_error, writer.print_note, recursive=recursive)
        writer.shows_picture_names, writer.num_expected = (
            names_several_pictures(arguments),
            len(self.pictures),
        )

    @cached_property
    def vlm(self) -> Idefics:
        """The model with the few-shot examples; loading it starts the progress display of the answers."""
        vlm = self.loader(self.model_flags, self.writer).with_shots(self.shots)
        if len(self.pictures) > 1:
            self.writer.progress.start_counter("Answering", len(self.pictures))
        else:
            self.writer.progress.start_spinner("Answering")
        return vlm

    def readable_pictures(self, named_pictures: Iterable[NamedPicture]) -> Iterator[NamedPicture]:
        """Yields the pictures that can be read, and reports an error for each other one."""
        for named in named_pictures:
            try:
                yield fetch_and_check_picture(named, self.fetcher)
            except BadPicture as error:
                self.writer.report_error(str(error))

    def results(
        self, answer_batch: Callable[[Idefics, tuple[PictureOrVideo, ...]], list[Result | IdeficsError]]
    ) -> Iterator[tuple[Result, str]]:
        """Yields each result with its picture's name, batch by batch; reports an error for each picture without one.

        Args:
            answer_batch: called with the model and a batch of pictures; returns a result or an error for each.
        """
        num_done = 0
        for batch in _doubling_batches(self.pictures):
            if readable := list(self.readable_pictures(batch)):
                yield from self._answer_batch(readable, answer_batch)
            num_done += len(batch)
            self.writer.progress.set_completed(num_done)

    def _answer_batch(
        self,
        batch: Sequence[NamedPicture],
        answer_batch: Callable[[Idefics, tuple[PictureOrVideo, ...]], list[Result | IdeficsError]],
    ) -> Iterator[tuple[Result, str]]:
        """Answers one batch; reports an error for each picture that has one."""
        results = answer_batch(self.vlm, tuple(named.picture for named in batch))
        for named, result in zip(batch, results, strict=True):
            if isinstance(result, IdeficsError):
                self.writer.report_error(error_with_name(named, result))
            else:
                yield result, named.name


def _read_shots(path: Path | None) -> list[Shot]:
    """The few-shot examples of the file; none without a file."""
    if path is None:
        return []
    text = read_text_file("--shots", path, "one JSON object per line")
    try:
        return parse_shots(text, path)
    except BadPrompt as error:
        raise BadPrompt(f"--shots {error}") from None


def _doubling_batches(pictures: Sequence[NamedPicture]) -> Iterator[Sequence[NamedPicture]]:
    """Batches of one picture, two, four and so on, up to the engine's largest batch."""
    start, size = 0, 1
    while start < len(pictures):
        yield pictures[start : start + size]
        start, size = start + size, min(2 * size, EngineConfig().batch_rows)
