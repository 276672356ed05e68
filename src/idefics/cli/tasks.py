"""The commands of the tasks, made from their records: caption, complete, ask, classify and write.

Pictures run in batches that double in size; an unreadable picture does not stop the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from idefics.cli.command import Command, LoadModel
from idefics.cli.flags import (
    ImageDetailFlags,
    ModelFlags,
    PictureFlags,
    PromptFlags,
    ShotsFlags,
    flag,
    flag_group,
    read_text_file,
)
from idefics.cli.output import OutputWriter
from idefics.cli.pictures import (
    error_with_name,
    fetch_readable_pictures,
    find_pictures,
    is_sentence,
    names_several_pictures,
    split_prompt,
)
from idefics.cli.sampling import SamplingFlags
from idefics.cli.where import WhereFlags, answer_and_draw, draw_map
from idefics.config import EngineConfig
from idefics.errors import BadPicture, BadPrompt, BadSetting, IdeficsError
from idefics.lazy import cached_property
from idefics.messages import Answer, PictureOrVideo, Ranking, Shot
from idefics.tasks import classify
from idefics.tasks.classify import check_and_strip_labels
from idefics.tasks.shots import parse_shots
from idefics.tasks.task import Task

if TYPE_CHECKING:
    from idefics import Idefics

Result = TypeVar("Result", Answer, Ranking)

PICTURES_HELP = """
A PICTURE is a file, a folder, a pattern such as "photos/*.jpg", an http(s) address, or - for standard input.
Models trained on video also accept videos: clip.mp4. HEIC needs pip install 'idefics[heif]'.

Each picture of a folder is read once, hidden files never; --recursive searches subfolders too, and so does a
pattern with **. Standard error says how many files were skipped.

For one picture the answer alone is printed; for several, a folder or a pattern one line each, "name: answer".
--json always prints the name. Files that cannot be read are reported on standard error and the others are answered;
the exit code is then 2.
"""

label_flag = partial(flag, "Labels")


@flag_group
class LabelFlags:
    """The flags of `idefics classify`: the labels, and how they are scored."""

    labels: str | None = label_flag("Labels to choose from, separated by commas.", metavar="LABEL,LABEL")
    label: list[str] | None = label_flag("One label, which may contain a comma; repeatable.", metavar="LABEL")
    labels_file: Path | None = label_flag("File of labels, one per line; - is standard input.")
    length_normalized: bool = label_flag("Divide each label's score by its number of tokens.", default=False)
    calibrated: bool = label_flag("Subtract each label's score for a plain gray picture.", default=False)

    def all_labels(self) -> list[str]:
        """Reads the labels of all flags. Raises BadSetting if there are none, or one is wrong."""
        text = (
            ""
            if self.labels_file is None
            else read_text_file("--labels-file", self.labels_file, "one label per line")
        )
        lines = [line.strip() for line in text.split("\n") if line.strip()]
        labels = [*(self.labels.split(",") if self.labels else ()), *(self.label or ()), *lines]
        if not labels:
            raise BadSetting(
                'no labels given: --labels "cat,dog", --label cat --label dog, or --labels-file FILE'
            )
        return check_and_strip_labels(labels)


def make_task_command(task: Task) -> Command:
    """Makes the command of a task from its record."""
    name = task.words_name
    if task is classify.TASK:
        run: Callable[..., None] = _run_classify
        usage = "PICTURE... --labels LABEL,LABEL"
        note = "To a pipe or file only the best label is printed; --json prints all with their probabilities."
    elif name:
        run = partial(_run_task, task)
        usage = f"PICTURE... [{name.upper()}]" if task.default_words else f"PICTURE... {name.upper()}"
        more = "; the answer begins with it" if task.answer_start else ""
        note = f"The {name} comes last, in quotes, or with --prompt{more}."
    else:
        run = partial(_run_task, task, prompt=PromptFlags())
        usage = "PICTURE..."
        note = "It takes no text; `idefics ask` and `idefics complete` do."
    return Command(
        name=task.name,
        run=run,
        help=f"{task.help}\n\n{note}\n{PICTURES_HELP}",
        usage=usage,
        examples=task.examples,
    )


def _run_task(
    task: Task,
    writer: OutputWriter,
    load_model: LoadModel,
    prompt: PromptFlags,
    shots: ShotsFlags,
    pictures: PictureFlags,
    model: ModelFlags,
    sampling: SamplingFlags,
    where: WhereFlags,
) -> None:
    """Runs a task on all pictures and writes the answers; a single picture's is streamed on a terminal."""
    names, words = split_pictures_and_words(task, pictures.arguments, prompt.prompt)
    options = sampling.options(as_json=writer.as_json)
    batches = PictureBatches(writer, load_model, model, shots, names, recursive=pictures.recursive)
    where.check(batches.pictures)
    if where.where is not None or (writer.is_interactive and not writer.shows_picture_names):
        for named in fetch_readable_pictures(batches.pictures, batches.fetcher, writer):
            answer_and_draw(writer, batches.vlm, task, named, words, options, where.where)
            batches.store_prefix()
    else:
        answers = batches.answer_in_batches(
            lambda vlm, several: cast(
                "list[Answer | IdeficsError]", vlm.run(task, several, words, on_error="return", **options)
            )
        )
        for answer, name in answers:
            writer.write_result(answer, name, batches.vlm)


def split_pictures_and_words(task: Task, arguments: list[str], prompt: str | None) -> tuple[list[str], str]:
    """Splits positional arguments into names of pictures and the text that the task takes, "" if it takes none."""
    if not task.words_name:
        _refuse_words(arguments, f"{task.name} takes no text: for a question use `idefics ask`")
        return arguments, ""
    names, words = split_prompt(arguments, prompt, task.words_name)
    words = task.default_words if words is None else words
    if words is None:
        raise BadPrompt(f"no {task.words_name} given: put it last, in quotes, or use --prompt")
    if not words.strip():
        raise BadPrompt(f"the {task.words_name} is empty: put it last, in quotes, or use --prompt")
    return names, words.strip()


def _run_classify(
    writer: OutputWriter,
    load_model: LoadModel,
    labels: LabelFlags,
    shots: ShotsFlags,
    pictures: PictureFlags,
    model: ModelFlags,
    detail: ImageDetailFlags,
    where: WhereFlags,
) -> None:
    """Ranks the labels for all pictures and writes the rankings."""
    detail_options = detail.image_detail_options()
    _refuse_words(pictures.arguments, 'labels are given as --labels "cat,dog"')
    label_list = labels.all_labels()
    batches = PictureBatches(
        writer, load_model, model, shots, pictures.arguments, recursive=pictures.recursive
    )
    rankings = batches.answer_in_batches(
        lambda vlm, several: vlm.classify(
            several,
            label_list,
            length_normalized=labels.length_normalized,
            calibrated=labels.calibrated,
            on_error="return",
            **detail_options,
        )
    )
    where.check(batches.pictures)
    for ranking, name in rankings:
        writer.write_result(ranking, name)
        if where.where is not None:
            picture = batches.pictures[0].picture
            explanations = batches.vlm.explain(picture, labels=label_list, stream=True, **detail_options)
            draw_map(writer, explanations, where.where)


def _refuse_words(arguments: Sequence[str], hint: str) -> None:
    """Raises BadPrompt if an argument is a sentence, as commands without a prompt take pictures only.

    Args:
        hint: the end of the message: what to do instead.
    """
    for argument in arguments:
        if is_sentence(argument):
            raise BadPrompt(f"{argument!r} is not a picture, and {hint}")


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
        self.shots = read_shots_file(shots.shots)
        self.fetcher = Fetcher(policy=model.remote_images)
        self.pictures = find_pictures(names, writer, recursive=recursive)
        writer.shows_picture_names, writer.num_expected = names_several_pictures(names), len(self.pictures)

    @cached_property
    def vlm(self) -> Idefics:
        """The model with the few-shot examples; loading it starts the progress display of the answers."""
        vlm = self.load_model(self.model_flags).with_shots(self.shots)
        self.writer.progress.start("Answering", len(self.pictures) if len(self.pictures) > 1 else None)
        return vlm

    def answer_in_batches(
        self, answer_batch: Callable[[Idefics, tuple[PictureOrVideo, ...]], list[Result | IdeficsError]]
    ) -> Iterator[tuple[Result, str]]:
        """Yields each result with its picture's name, batch by batch; reports an error for each picture without one.

        Args:
            answer_batch: called with the model and a batch of pictures; returns a result or an error for each.
        """
        num_done, size = 0, 1  # batches of one picture, two, four and so on, up to the engine's largest batch
        while batch := self.pictures[num_done : num_done + size]:
            if readable := list(fetch_readable_pictures(batch, self.fetcher, self.writer)):
                results = answer_batch(self.vlm, tuple(named.picture for named in readable))
                for named, result in zip(readable, results, strict=True):
                    if isinstance(result, IdeficsError):
                        self.writer.report_error(error_with_name(named, result))
                    else:
                        yield result, named.name
                        self.store_prefix()
            num_done, size = num_done + len(batch), min(2 * size, EngineConfig().batch_rows)
            self.writer.progress.set_completed(num_done)

    def store_prefix(self) -> None:
        """After the answer about a single picture: stores the prompt's beginning, in case of another question.

        Nothing is stored for several pictures, about each of which one question is asked.
        """
        if len(self.pictures) == 1:
            self.vlm.loaded_model.store_prefix()


def read_shots_file(path: Path | None) -> list[Shot]:
    """The few-shot examples of the file; none without a file."""
    if path is None:
        return []
    text = read_text_file("--shots", path, "one JSON object per line")
    try:
        return parse_shots(text, path)
    except BadPrompt as error:
        raise BadPrompt(f"--shots {error}") from None
