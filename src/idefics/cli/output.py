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

from idefics.cli.waiting import Waiting
from idefics.errors import IdeficsError
from idefics.lazy import cached_property
from idefics.messages import Answer, Ranking

if TYPE_CHECKING:
    from rich.console import Console

    from idefics import Idefics
    from idefics.pipeline import Stream

MOST_BARS = 10  # labels that a person is shown; --json has all
BAR_WIDTH = 30
LEAST = -9999.0  # stands for a probability of zero: JSON has no infinity
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # what could take a terminal over


def one_line(text: str) -> str:
    """The text with its line breaks as spaces and without control characters."""
    return CONTROL.sub("", re.sub(r"\s*[\r\n]\s*", " ", text)).strip()


class OutputLost(IdeficsError):
    """Answers cannot be written to standard output."""

    def __init__(self, reason: str, progress: str = "") -> None:
        super().__init__(f"cannot write answers: {reason}{progress}")
        self.reason = reason


class AnswerStream(io.TextIOWrapper):
    """Standard output while a command runs: whatever its encoding lacks is written as an escape.

    Raises:
        OutputLost: it cannot be written, as on a full disk.
        BrokenPipeError: its reader has ended.
    """

    def write(self, text: str) -> int:
        """Writes as the base class does."""
        with _as_output_lost():
            return super().write(text)

    def flush(self) -> None:
        """Flushes as the base class does."""
        with _as_output_lost():
            super().flush()


class ClosedOutput(io.StringIO):
    """Stands for standard output where the caller has closed it, as in `idefics ... >&-`."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        """Raises OutputLost."""
        raise OutputLost("standard output is closed")


@contextmanager
def _as_output_lost() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        reason = "disk full" if error.errno == errno.ENOSPC else str(error.strerror or error).lower()
        raise OutputLost(reason) from error


def print_line(text: str) -> None:
    """One line on standard error, lost in silence where that cannot be written."""
    try:
        print(one_line(text), file=sys.stderr, flush=True)
    except OSError:
        discard(sys.stderr)


def discard(stream: TextIO) -> None:
    """Sends what a stream could not write, and all that follows, nowhere: Python would fail when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class Screen:
    """Where a run's words go.

    Args:
        called: what is running, such as "idefics ask"; begins each refusal.
        as_json: standard output gets JSON lines.

    Attributes:
        person: somebody reads standard output.
        names: an answer is preceded by its picture's name.
        code: the exit code so far: 2 once something has been refused.
        total: how many answers the run is to give; 0 where that is not known.
        done: how many have been written.
        waiting: what a person sees until there is an answer.
    """

    def __init__(self, called: str, *, as_json: bool = False) -> None:
        self.called, self.as_json = called, as_json
        self.person = sys.stdout.isatty() and not as_json
        self.names = False
        self.code = self.total = self.done = 0
        self.waiting = Waiting()
        self._noted: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self.waiting.end()
        if isinstance(error, OutputLost) and self.total:
            raise OutputLost(error.reason, f" ({self.done} of {self.total} done)") from error

    @cached_property
    def console(self) -> Console:
        """Standard output with colour, unless NO_COLOR is set."""
        from rich.console import Console

        return Console(highlight=False, soft_wrap=True)

    def refuse(self, text: str) -> None:
        """One line on standard error. The run goes on, and ends with 2."""
        self.code = 2
        self.say(f"{self.called}: {text}")

    def note(self, text: str) -> None:
        """One line on standard error about what is not refused."""
        self.say(f"{self.called}: {text}")

    def notes(self, result: Answer | Ranking) -> None:
        """What was not read of the pictures' files, each sentence once in a run."""
        for text in result.notes:
            if text not in self._noted:
                self._noted.add(text)
                self.note(text)

    def say(self, text: str) -> None:
        """One line on standard error."""
        with self.waiting.aside():
            print_line(text)

    def answer(self, answer: Answer, name: str | None = None, model: Idefics | None = None) -> None:
        """An answer, whole.

        Args:
            name: of its picture.
            model: what spells the tokens whose log-probabilities were asked for.
        """
        if self.as_json:
            row: dict[str, Any] = {"text": answer.text, "finish": answer.finish}
            if answer.logprobs is not None and model is not None:
                row["tokens"] = list(_tokens(answer, model))
            self._object(name, row, answer)
        else:
            self._text(answer.text, name)
        self.notes(answer)
        self.done += 1

    def ranking(self, ranking: Ranking, name: str | None = None) -> None:
        """A ranking: bars for a person, the best label down a pipe, all of it as JSON."""
        if self.as_json:
            row = {"best": ranking.best, "labels": [label._asdict() for label in ranking]}
            self._object(name, row, ranking)
        elif self.person:
            self._bars(ranking, name)
        else:
            self._text(ranking.best, name)
        self.notes(ranking)
        self.done += 1

    def stream(self, stream: Stream) -> Answer:
        """Words as they come, to a person. Where it is broken off, the line is ended."""
        try:
            for piece in stream:
                self.waiting.end()
                print(CONTROL.sub("", piece), end="", flush=True)
        finally:
            self.waiting.end()
            print(flush=True)
        answer = stream.answer
        if answer.finish == "length":
            self.say(f"(cut off after {len(answer.tokens)} tokens; --max-new-tokens allows more)")
        self.notes(answer)
        return answer

    def _text(self, text: str, name: str | None) -> None:
        with self.waiting.aside():
            if self.person:
                self._name(name, end=": ")
                print(CONTROL.sub("", text), flush=True)
            elif self.names and name is not None:
                print(f"{one_line(name)}: {one_line(text)}", flush=True)
            else:
                print(text, flush=True)

    def _bars(self, ranking: Ranking, name: str | None) -> None:
        from rich.bar import Bar
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        for label in ranking.labels[:MOST_BARS]:
            bar = Bar(1.0, 0.0, label.probability, width=BAR_WIDTH, color="cyan")
            table.add_row(one_line(label.label), bar, f"{label.probability:6.1%}")
        with self.waiting.aside():
            self._name(name, end="\n")
            self.console.print(table)
            if len(ranking) > MOST_BARS:
                print(f"and {len(ranking) - MOST_BARS} less likely (--json lists all)", flush=True)

    def _name(self, name: str | None, *, end: str) -> None:
        if self.names and name is not None:
            from rich.text import Text

            self.console.print(Text(one_line(name), "cyan"), end=end)

    def _object(self, name: str | None, row: dict[str, Any], result: Answer | Ranking) -> None:
        about = {} if name is None else {"image": name}
        notes = {"notes": result.notes} if result.notes else {}
        seconds = {key: round(value, 4) for key, value in asdict(result.timings).items()}
        self.row({**about, **row, **notes, "usage": asdict(result.usage), "timings": seconds})

    def row(self, row: dict[str, Any]) -> None:
        """One line of JSON."""
        is_unicode = sys.stdout.encoding.lower() in ("utf-8", "utf8")
        with self.waiting.aside():
            print(json.dumps(row, ensure_ascii=not is_unicode), flush=True)


def _tokens(answer: Answer, model: Idefics) -> Iterator[dict[str, Any]]:
    """Each token of an answer: id, text, natural-log probability, and the most likely tokens in its place."""
    tops = answer.top_logprobs or [()] * len(answer.tokens)
    for id, logprob, top in zip(answer.tokens, answer.logprobs or (), tops, strict=True):
        likely = [_token(model, one.token, one.logprob) for one in top]
        yield _token(model, id, logprob) | ({"top": likely} if answer.top_logprobs else {})


def _token(model: Idefics, id: int, logprob: float) -> dict[str, Any]:
    spelled = model.processor.tokenizer.decode_bytes([id], hidden=())
    return {"id": id, "text": spelled.decode(errors="replace"), "logprob": max(logprob, LEAST)}
