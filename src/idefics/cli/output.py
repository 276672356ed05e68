"""What a run shows: to a person, down a pipe, or as JSON lines.

Answers go to standard output, everything else to standard error. Imports rich only for a person.
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
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Self, TextIO

from idefics.cli.progress import ProgressDisplay
from idefics.errors import IdeficsError
from idefics.lazy import cached_property
from idefics.messages import Answer, Ranking

if TYPE_CHECKING:
    from rich.console import Console

    from idefics import Idefics
    from idefics.generation import Stream

MAX_BARS = 10  # labels that a person is shown; --json has all
BAR_WIDTH = 30
MIN_LOGPROB = -9999.0  # stands for a probability of zero: JSON has no infinity
CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # what could take a terminal over


def one_line(text: str) -> str:
    """The text with its line breaks as spaces and without control characters."""
    return CONTROL_CHARACTERS.sub("", re.sub(r"\s*[\r\n]\s*", " ", text)).strip()


class OutputWriteError(IdeficsError):
    """Answers cannot be written to standard output."""

    def __init__(self, reason: str, progress: str = "") -> None:
        super().__init__(f"cannot write answers: {reason}{progress}")
        self.reason = reason


class EscapingStdout(io.TextIOWrapper):
    """Standard output while a command runs: whatever its encoding lacks is written as an escape.

    Raises:
        OutputLost: it cannot be written, as on a full disk.
        BrokenPipeError: its reader has ended.
    """

    def write(self, text: str) -> int:
        """Writes as the base class does."""
        with _output_write_errors():
            return super().write(text)

    def flush(self) -> None:
        """Flushes as the base class does."""
        with _output_write_errors():
            super().flush()


class ClosedOutput(io.StringIO):
    """Stands for standard output where the caller has closed it, as in `idefics ... >&-`."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        """Raises OutputLost."""
        raise OutputWriteError("standard output is closed")


@contextmanager
def _output_write_errors() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        reason = "disk full" if error.errno == errno.ENOSPC else str(error.strerror or error).lower()
        raise OutputWriteError(reason) from error


def print_error_line(text: str) -> None:
    """One line on standard error, lost in silence where that cannot be written."""
    try:
        print(one_line(text), file=sys.stderr, flush=True)
    except OSError:
        redirect_to_devnull(sys.stderr)


def redirect_to_devnull(stream: TextIO) -> None:
    """Sends what a stream could not write, and all that follows, nowhere: Python would fail when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class OutputWriter:
    """Where a run's words go.

    Args:
        command: what is running, such as "idefics ask"; begins each refusal.
        as_json: standard output gets JSON lines.

    Attributes:
        is_interactive: somebody reads standard output.
        shows_picture_names: an answer is preceded by its picture's name.
        exit_code: the exit code so far: 2 once something has been refused.
        num_expected: how many answers the run is to give; 0 where that is not known.
        num_written: how many have been written.
        progress: what a person sees until there is an answer.
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
            raise OutputWriteError(
                error.reason, f" ({self.num_written} of {self.num_expected} done)"
            ) from error

    @cached_property
    def console(self) -> Console:
        """Standard output with colour, unless NO_COLOR is set."""
        from rich.console import Console

        return Console(highlight=False, soft_wrap=True)

    def report_error(self, text: str) -> None:
        """One line on standard error. The run goes on, and ends with 2."""
        self.exit_code = 2
        self.print_status(f"{self.command}: {text}")

    def print_note(self, text: str) -> None:
        """One line on standard error about what is not refused."""
        self.print_status(f"{self.command}: {text}")

    def print_result_notes(self, result: Answer | Ranking) -> None:
        """What was not read of the pictures' files, each sentence once in a run."""
        for text in result.notes:
            if text not in self._printed_notes:
                self._printed_notes.add(text)
                self.print_note(text)

    def print_status(self, text: str) -> None:
        """One line on standard error."""
        with self.progress.paused():
            print_error_line(text)

    def write_answer(self, answer: Answer, name: str | None = None, model: Idefics | None = None) -> None:
        """An answer, whole.

        Args:
            name: of its picture.
            model: what spells the tokens whose log-probabilities were asked for.
        """
        if self.as_json:
            row: dict[str, Any] = {"text": answer.text, "finish": answer.finish}
            if answer.logprobs is not None and model is not None:
                row["tokens"] = list(_token_rows(answer, model))
            self._write_result_json(name, row, answer)
        else:
            self._write_text(answer.text, name)
        self.print_result_notes(answer)
        self.num_written += 1

    def write_ranking(self, ranking: Ranking, name: str | None = None) -> None:
        """A ranking: bars for a person, the best label down a pipe, all of it as JSON."""
        if self.as_json:
            row = {"best": ranking.best, "labels": [label._asdict() for label in ranking]}
            self._write_result_json(name, row, ranking)
        elif self.is_interactive:
            self._write_bars(ranking, name)
        else:
            self._write_text(ranking.best, name)
        self.print_result_notes(ranking)
        self.num_written += 1

    def write_stream(self, stream: Stream) -> Answer:
        """Words as they come, to a person. Where it is broken off, the line is ended."""
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
        return answer

    def _write_text(self, text: str, name: str | None) -> None:
        with self.progress.paused():
            if self.is_interactive:
                self._write_name(name, end=": ")
                print(CONTROL_CHARACTERS.sub("", text), flush=True)
            elif self.shows_picture_names and name is not None:
                print(f"{one_line(name)}: {one_line(text)}", flush=True)
            else:
                print(text, flush=True)

    def _write_bars(self, ranking: Ranking, name: str | None) -> None:
        from rich.bar import Bar
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        for label in ranking.labels[:MAX_BARS]:
            bar = Bar(1.0, 0.0, label.probability, width=BAR_WIDTH, color="cyan")
            table.add_row(one_line(label.label), bar, f"{label.probability:6.1%}")
        with self.progress.paused():
            self._write_name(name, end="\n")
            self.console.print(table)
            if len(ranking) > MAX_BARS:
                print(f"and {len(ranking) - MAX_BARS} less likely (--json lists all)", flush=True)

    def _write_name(self, name: str | None, *, end: str) -> None:
        if self.shows_picture_names and name is not None:
            from rich.text import Text

            self.console.print(Text(one_line(name), "cyan"), end=end)

    def _write_result_json(self, name: str | None, row: dict[str, Any], result: Answer | Ranking) -> None:
        image_field = {} if name is None else {"image": name}
        notes = {"notes": result.notes} if result.notes else {}
        seconds = {key: round(value, 4) for key, value in asdict(result.timings).items()}
        self.write_json_line(
            {**image_field, **row, **notes, "usage": asdict(result.usage), "timings": seconds}
        )

    def write_json_line(self, row: dict[str, Any]) -> None:
        """One line of JSON."""
        is_unicode = sys.stdout.encoding.lower() in ("utf-8", "utf8")
        with self.progress.paused():
            print(json.dumps(row, ensure_ascii=not is_unicode), flush=True)


def _token_rows(answer: Answer, model: Idefics) -> Iterator[dict[str, Any]]:
    """Each token of an answer: id, text, natural-log probability, and the most likely tokens in its place."""
    top_logprobs = answer.top_logprobs or [()] * len(answer.tokens)
    for id, logprob, top in zip(answer.tokens, answer.logprobs or (), top_logprobs, strict=True):
        top_rows = [_token_row(model, one.token, one.logprob) for one in top]
        yield _token_row(model, id, logprob) | ({"top": top_rows} if answer.top_logprobs else {})


def _token_row(model: Idefics, id: int, logprob: float) -> dict[str, Any]:
    token_bytes = model.processor.tokenizer.decode_bytes([id], hidden_ids=())
    return {"id": id, "text": token_bytes.decode(errors="replace"), "logprob": max(logprob, MIN_LOGPROB)}
