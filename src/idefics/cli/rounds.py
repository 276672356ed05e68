"""A run over pictures: answers come as soon as they can, and one bad picture spoils no other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from idefics.cli.flags import ModelFlags
from idefics.cli.loading import Loader
from idefics.cli.output import Screen
from idefics.cli.pictures import Named, about, find, names_many, opened
from idefics.cli.text_files import read_text_file
from idefics.config import EngineConfig
from idefics.errors import BadPicture, BadPrompt, IdeficsError
from idefics.lazy import cached_property
from idefics.messages import Answer, Ranking, Shot, Visual
from idefics.tasks.shots import parse_shots

if TYPE_CHECKING:
    from idefics import Idefics

Result = TypeVar("Result", Answer, Ranking)


class Round:
    """Pictures, and the model that answers about them; it is loaded when the first has turned out to be one.

    Args:
        arguments: what was typed for the pictures.
        shots: file of worked examples.
        screen: is told what is refused and how far the round has come.
        loader: loads what `model` says.
        recursive: whether subfolders of folders are searched too.

    Raises:
        BadPrompt: the file of shots is not one.
        BadPicture: no picture was named.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        shots: Path | None,
        screen: Screen,
        model: ModelFlags,
        loader: Loader,
        *,
        recursive: bool,
    ) -> None:
        from idefics.processing.fetch import Fetcher

        if not arguments:
            raise BadPicture("no picture given: name a file, a folder, an address, or - for standard input")
        self.screen, self.model, self.loader = screen, model, loader
        self.shots = _shots(shots)
        self.fetcher = Fetcher(policy=model.remote_images)
        self.found = find(arguments, screen.refuse, screen.note, recursive=recursive)
        screen.names, screen.total = names_many(arguments), len(self.found)

    @cached_property
    def vlm(self) -> Idefics:
        """The model, with the shots. From here on a person sees that pictures are looked at."""
        vlm = self.loader(self.model, self.screen).with_shots(self.shots)
        if len(self.found) > 1:
            self.screen.waiting.count("Answering", len(self.found))
        else:
            self.screen.waiting.spin("Looking")
        return vlm

    def opened(self, pictures: Iterable[Named]) -> Iterator[Named]:
        """Those pictures that can be read; the others are refused."""
        for named in pictures:
            try:
                yield opened(named, self.fetcher)
            except BadPicture as error:
                self.screen.refuse(str(error))

    def replies(
        self, reply: Callable[[Idefics, tuple[Visual, ...]], list[Result | IdeficsError]]
    ) -> Iterator[tuple[Result, str]]:
        """Each result with its picture's name. `reply` answers several pictures together, with errors in place."""
        done = 0
        for few in _growing(self.found):
            if sound := list(self.opened(few)):
                yield from self._together(sound, reply)
            done += len(few)
            self.screen.waiting.reach(done)

    def _together(
        self,
        pictures: Sequence[Named],
        reply: Callable[[Idefics, tuple[Visual, ...]], list[Result | IdeficsError]],
    ) -> Iterator[tuple[Result, str]]:
        """One call for all; a picture that the model cannot read is refused."""
        results = reply(self.vlm, tuple(named.picture for named in pictures))
        for named, result in zip(pictures, results, strict=True):
            if isinstance(result, IdeficsError):
                self.screen.refuse(about(named, result))
            else:
                yield result, named.name


def _shots(path: Path | None) -> list[Shot]:
    if path is None:
        return []
    text = read_text_file("--shots", path, "one JSON object per line")
    try:
        return parse_shots(text, path)
    except BadPrompt as error:
        raise BadPrompt(f"--shots {error}") from None


def _growing(pictures: Sequence[Named]) -> Iterator[Sequence[Named]]:
    """One picture, then two, then four, up to as many as the engine answers side by side."""
    start, size = 0, 1
    while start < len(pictures):
        yield pictures[start : start + size]
        start, size = start + size, min(2 * size, EngineConfig().batch_rows)
