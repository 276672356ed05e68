"""Runs pictures in batches that double in size; an unreadable picture does not stop the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from idefics.cli.flags import ModelFlags, ShotsFlags
from idefics.cli.loading import LoadModel
from idefics.cli.output import OutputWriter
from idefics.cli.pictures import (
    NamedPicture,
    error_with_name,
    fetch_readable_pictures,
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
        writer: reports errors and shows progress.
        load_model: loads the model.
        model: the flags of the model.
        shots: the file of few-shot examples, if there is one.
        names: names of files, folders, patterns and URLs.
        recursive: whether subfolders are searched too.

    Raises:
        BadPrompt: the file of examples is invalid.
        BadPicture: no picture was named.
    """

    def __init__(
        self,
        writer: OutputWriter,
        load_model: LoadModel,
        model: ModelFlags,
        shots: ShotsFlags,
        names: Sequence[str],
        *,
        recursive: bool,
    ) -> None:
        from idefics.processing.fetch import Fetcher

        if not names:
            raise BadPicture("no picture given: name a file, a folder, an address, or - for standard input")
        self.writer, self.model_flags, self.load_model = writer, model, load_model
        self.shots = _read_shots(shots.shots)
        self.fetcher = Fetcher(policy=model.remote_images)
        self.pictures = find_pictures(names, writer, recursive=recursive)
        writer.shows_picture_names, writer.num_expected = names_several_pictures(names), len(self.pictures)

    @cached_property
    def vlm(self) -> Idefics:
        """The model with the few-shot examples; loading it starts the progress display of the answers."""
        vlm = self.load_model(self.model_flags).with_shots(self.shots)
        self.writer.progress.start("Answering", len(self.pictures) if len(self.pictures) > 1 else None)
        return vlm

    def readable_pictures(self, named_pictures: Sequence[NamedPicture]) -> Iterator[NamedPicture]:
        """Yields the pictures that can be read, and reports an error for each other one."""
        return fetch_readable_pictures(named_pictures, self.fetcher, self.writer)

    def answer_in_batches(
        self, answer_batch: Callable[[Idefics, tuple[PictureOrVideo, ...]], list[Result | IdeficsError]]
    ) -> Iterator[tuple[Result, str]]:
        """Yields each result with its picture's name, batch by batch; reports an error for each picture without one.

        Args:
            answer_batch: called with the model and a batch of pictures; returns a result or an error for each.
        """
        num_done = 0
        for batch in _doubling_batches(self.pictures):
            if readable := list(self.readable_pictures(batch)):
                results = answer_batch(self.vlm, tuple(named.picture for named in readable))
                for named, result in zip(readable, results, strict=True):
                    if isinstance(result, IdeficsError):
                        self.writer.report_error(error_with_name(named, result))
                    else:
                        yield result, named.name
            num_done += len(batch)
            self.writer.progress.set_completed(num_done)


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
