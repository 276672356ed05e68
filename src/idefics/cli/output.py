"""Writes results: formatted for a terminal, plain for a pipe, or as JSON lines.

Answers go to standard output, everything else to standard error. rich is imported for a terminal only.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, Self, TextIO

from idefics.cli.flags import ModelFlags
from idefics.cli.progress import ProgressDisplay
from idefics.cli.sampling import SamplingFlags
from idefics.cli.train_flags import LearnFlags, StepsFlags, TrainDataFlags, TrainModelFlags, WatchFlags
from idefics.errors import IdeficsError
from idefics.generation.token_rows import token_rows
from idefics.lazy import cached_property
from idefics.messages import Answer, Ranking
from idefics.server.settings import Settings

if TYPE_CHECKING:
    from rich.console import Console

    from idefics import Idefics, Stream

MAX_BARS = 10  # labels in the bar chart; --json has all
BAR_WIDTH = 30
CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # they could control a terminal
FLAG_GROUPS = (
    *(ModelFlags, SamplingFlags, Settings),
    *(TrainDataFlags, TrainModelFlags, LearnFlags, StepsFlags, WatchFlags),
)
KEYWORD_NAMES = (
    *dict.fromkeys(field.name for group in FLAG_GROUPS for field in fields(group)),
    "length_normalized",
    *("task", "limit", "shard", "max_errors", "image_column", "id_column"),
)


def one_line(text: str) -> str:
    """The text on one line: line breaks become spaces, control characters are removed."""
    return CONTROL_CHARACTERS.sub("", re.sub(r"\s*[\r\n]\s*", " ", text)).strip()


def keywords_as_flags(message: str) -> str:
    """The message with Python's keywords as flags: "use num_beams=1" -> "use --num-beams 1"."""
    for name in KEYWORD_NAMES:
        flag = "--" + name.replace("_", "-")
        message = re.sub(rf"(?<![\w-]){name}=True\b", flag, message)
        message = re.sub(rf"(?<![\w-]){name}=\"([^\"]*)\"", rf"{flag} \1", message)
        message = re.sub(rf"(?<![\w-]){name}=(?=\S)", f"{flag} ", message)
        message = re.sub(rf"^{name} (is|cannot) ", rf"{flag} \1 ", message)
        if "_" in name:
            message = re.sub(rf"(?<![\w./-]){name}(?![\w./-])", flag, message)
    return message


class OutputWriteError(IdeficsError):
    """Answers cannot be written to standard output."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"cannot write answers: {reason}")


class EscapingStdout(io.TextIOWrapper):
    r"""Standard output while a command runs: characters that its encoding lacks are written as `\uXXXX`.

    Raises:
        OutputWriteError: it cannot be written, as on a full disk.
        BrokenPipeError: its reader has exited.
    """

    def write(self, text: str) -> int:
        """Writes text; raises OutputWriteError in place of OSError."""
        with _convert_os_errors():
            return super().write(text)

    def flush(self) -> None:
        """Flushes; raises OutputWriteError in place of OSError."""
        with _convert_os_errors():
            super().flush()


class ClosedOutput(io.StringIO):
    """Replaces standard output that the shell has closed, as in `idefics ... >&-`."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        """Raises OutputWriteError: there is nowhere to write to."""
        raise OutputWriteError("standard output is closed")


@contextmanager
def _convert_os_errors() -> Iterator[None]:
    """Raises OutputWriteError in place of OSErrors other than BrokenPipeError."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        reason = "disk full" if error.errno == errno.ENOSPC else str(error.strerror or error).lower()
        raise OutputWriteError(reason) from error


def print_to_stderr(text: str) -> None:
    """Prints one line on standard error; does nothing where standard error cannot be written."""
    try:
        print(one_line(text), file=sys.stderr, flush=True)
    except OSError:
        redirect_to_devnull(sys.stderr)


def redirect_to_devnull(stream: TextIO) -> None:
    """Redirects a stream that cannot be written to the null device, so that Python's flush at exit does not fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class OutputWriter:
    """Writes the answers, notes and errors of one run of a command.

    Args:
        command: the running command, such as "idefics ask"; errors and notes begin with it.
        as_json: answers are written as JSON lines.

    Attributes:
        is_interactive: whether answers are formatted for a terminal.
        shows_picture_names: whether each answer is preceded by its picture's name.
        exit_code: the exit code so far: 0, or 2 after an error.
        num_expected: number of answers that the run should write; 0 where that is not known.
        num_written: number of answers written so far.
        progress: the spinner or bar on standard error.
    """

    def __init__(self, command: str, *, as_json: bool = False) -> None:
        self.command, self.as_json = command, as_json
        self.is_interactive = sys.stdout.isatty() and not as_json
        self.shows_picture_names = False
        self.exit_code = self.num_expected = self.num_written = 0
        self.progress = ProgressDisplay()
        self._printed_notes: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self.progress.stop()
        if isinstance(error, OutputWriteError) and self.num_expected:
            error.args = (f"{error} ({self.num_written} of {self.num_expected} done)",)

    @cached_property
    def console(self) -> Console:
        """rich's console on standard output; without colour where NO_COLOR is set."""
        from rich.console import Console

        return Console(highlight=False, soft_wrap=True)

    def report_error(self, text: str) -> None:
        """Prints an error on one line of standard error. The run goes on; its exit code will be 2."""
        self.exit_code = 2
        self.print_note(keywords_as_flags(text))

    def print_note(self, text: str) -> None:
        """Prints a note on one line of standard error; the exit code does not change."""
        self.print_status(f"{self.command}: {text}")

    def print_result_notes(self, result: Answer | Ranking) -> None:
        """Prints a result's notes, such as frames of an animation left out; each sentence once in a run."""
        for text in result.notes:
            if text not in self._printed_notes:
                self._printed_notes.add(text)
                self.print_note(text)

    def print_status(self, text: str) -> None:
        """Prints one line on standard error, such as what is being done, above the progress display."""
        with self.progress.paused():
            print_to_stderr(text)

    def write_result(
        self, result: Answer | Ranking, name: str | None = None, model: Idefics | None = None
    ) -> None:
        """Writes a finished answer, or a ranking: a bar chart on a terminal, the best label to a pipe, all as JSON.

        Args:
            result: the answer or ranking.
            name: the picture's name, printed where there are several pictures.
            model: decodes the tokens, where an answer has log-probabilities.
        """
        heading = one_line(name) if name is not None and self.shows_picture_names else ""
        if self.as_json:
            self._write_result_json(result, name, model)
        elif self.is_interactive and isinstance(result, Ranking):
            self._write_bars(result, heading)
        else:
            self._write_text(str(result), heading)
        self.print_result_notes(result)
        self.num_written += 1

    def write_stream(self, stream: Stream) -> None:
        """Writes an answer to a terminal while it is generated."""
        try:
            for piece in stream:
                self.progress.stop()
                print(CONTROL_CHARACTERS.sub("", piece), end="", flush=True)
        finally:
            self.progress.stop()
            print(flush=True)
        answer = stream.answer
        if answer.finish == "length":
            self.print_status(f"(cut off after {len(answer.tokens)} tokens; --max-new-tokens allows more)")
        self.print_result_notes(answer)

    def _write_text(self, text: str, heading: str) -> None:
        """Writes an answer as text; to a pipe on one line, after the heading (the picture's name) if there is one."""
        with self.progress.paused():
            if self.is_interactive:
                self._write_heading(heading, end=": ")
                print(CONTROL_CHARACTERS.sub("", text), flush=True)
            else:
                print(f"{heading}: {one_line(text)}" if heading else text, flush=True)

    def _write_bars(self, ranking: Ranking, heading: str) -> None:
        """Writes a ranking as a bar chart, with at most `MAX_BARS` labels."""
        from rich.bar import Bar
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        for label in ranking.labels[:MAX_BARS]:
            bar = Bar(1.0, 0.0, label.probability, width=BAR_WIDTH, color="cyan")
            table.add_row(one_line(label.label), bar, f"{label.probability:6.1%}")
        with self.progress.paused():
            self._write_heading(heading, end="\n")
            self.console.print(table)
            if len(ranking) > MAX_BARS:
                print(f"and {len(ranking) - MAX_BARS} less likely ones (--json lists all)", flush=True)

    def _write_heading(self, heading: str, *, end: str) -> None:
        """Writes the picture's name to the terminal, in colour; nothing if it is empty."""
        if heading:
            from rich.text import Text

            self.console.print(Text(heading, "cyan"), end=end)

    def _write_result_json(self, result: Answer | Ranking, name: str | None, model: Idefics | None) -> None:
        """Writes a result as a JSON line: the picture's name, the answer or the labels, notes, usage and timings."""
        row: dict[str, Any] = {} if name is None else {"image": name}
        if isinstance(result, Ranking):
            row |= {"best": result.best, "labels": [label._asdict() for label in result]}
        else:
            row |= {"text": result.text, "finish": result.finish}
            if result.logprobs is not None and model is not None:
                row["tokens"] = list(token_rows(result, model.processor.tokenizer))
        if result.notes:
            row["notes"] = result.notes
        seconds = {key: round(value, 4) for key, value in asdict(result.timings).items()}
        self.write_json_line({**row, "usage": asdict(result.usage), "timings": seconds})

    def write_json_line(self, row: dict[str, Any]) -> None:
        """Writes one JSON object on one line of standard output."""
        is_unicode = sys.stdout.encoding.lower() in ("utf-8", "utf8")
        with self.progress.paused():
            print(json.dumps(row, ensure_ascii=not is_unicode), flush=True)
