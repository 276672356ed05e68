"""`--where FILE`: draws which parts of the picture carried the answer, or the labels of a ranking."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from idefics.cli.flags import flag_group, output_flag
from idefics.cli.output import OutputWriter
from idefics.cli.pictures import NamedPicture
from idefics.errors import BadSetting, OutputError

if TYPE_CHECKING:
    from idefics import Explanation, Idefics, Options, Stream
    from idefics.tasks.task import Task

MAP_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MAX_MAPS = 12  # of an answer with more words one map is drawn


@flag_group
class WhereFlags:
    """The flag that names the file of the map."""

    where: Path | None = output_flag(
        "Also draw which parts of the picture carried the answer, and each word, into this picture file."
    )

    def check(self, pictures: Sequence[NamedPicture]) -> None:
        """Checks before any work that the map can be drawn and written.

        Raises:
            BadSetting: the suffix is not one of a picture, its folder does not exist, or there are several pictures.
        """
        if self.where is None:
            return
        if self.where.suffix.lower() not in MAP_SUFFIXES:
            raise BadSetting(
                f"--where is {str(self.where)!r}: give a file that ends in {', '.join(MAP_SUFFIXES)}"
            )
        if not self.where.parent.is_dir():
            raise BadSetting(
                f"--where is {str(self.where)!r}, and there is no folder {str(self.where.parent)!r}"
            )
        if len(pictures) != 1:
            raise BadSetting(f"--where draws the map of one picture, and {len(pictures)} are named")


def answer_and_draw(
    writer: OutputWriter,
    vlm: Idefics,
    task: Task,
    named: NamedPicture,
    words: str,
    options: Options,
    path: Path | None,
) -> None:
    """Runs a task on one picture, writes the answer, streamed on a terminal, and draws its maps.

    Args:
        words: the text that the task takes; "" if it takes none.
        options: of the answer.
        path: the file of the maps; None: they are not drawn.
    """
    stream = cast("Stream", vlm.run(task, named.picture, words, stream=True, **options))
    if writer.is_interactive and not writer.shows_picture_names:
        writer.write_stream(stream)
    else:
        deque(stream, maxlen=0)  # reads it to its end
        writer.write_result(stream.answer, named.name, vlm)
    if path is None:
        return
    text = stream.answer.text.removeprefix(task.answer_start.format(words=words))
    detail, max_tiles = options.get("detail", "high"), options.get("max_tiles")
    draw_map(
        writer,
        vlm.explain(
            named.picture,
            words or None,
            text,
            task=task.name,
            stream=True,
            detail=detail,
            max_tiles=max_tiles,
        ),
        path,
    )


def draw_map(writer: OutputWriter, explanations: Iterator[Explanation], path: Path) -> None:
    """Waits for an explanation, showing its progress, and writes its maps.

    Args:
        explanations: as `Idefics.explain` streams them.

    Raises:
        OutputError: the file cannot be written.
    """
    writer.progress.start("Explaining")
    for explanation in explanations:
        writer.progress.start("Explaining", explanation.max_passes)
        writer.progress.set_completed(explanation.num_passes)
    writer.progress.stop()
    try:
        explanation.save(path, "all" if len(explanation.words) < MAX_MAPS else None)
    except OSError as error:
        raise OutputError(f"--where: {path} cannot be written: {error.strerror or error}") from None
    share = explanation.total.words_share
    writer.print_status(
        f"{path}: the map; without the picture the answer is {share:.0%} as likely"
        if share < 1
        else f"{path}: the map; without the picture the answer is at least as likely"
    )
