"""A model that answers by rule, and a run of the command line with it. Imports no torch."""

import io
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from idefics.cli.main import run
from idefics.errors import PromptTooLong
from idefics.messages import Answer, RankedLabel, Ranking, Timings, Usage

USAGE, TIMINGS = Usage(12, 3, 1), Timings(0.1, 0.2, 0.3)
TOO_LARGE_MARKER = b"too large"  # in a picture's file, behind its pixels


def make_answer(text, finish="stop"):
    return Answer(text, (1, 2, 3), finish, USAGE, TIMINGS)


class FakeStream:
    """A stream of words. An answer whose last word ends in a dash has the finish reason "length"."""

    def __init__(self, text):
        self.remaining_words, self.yielded_words = text.split(" "), []

    def __iter__(self):
        return self

    def __next__(self):
        if not self.remaining_words:
            raise StopIteration
        self.yielded_words.append(self.remaining_words.pop(0))
        return self.yielded_words[-1] if len(self.yielded_words) == 1 else f" {self.yielded_words[-1]}"

    def close(self):
        """There is nothing to release."""

    @property
    def answer(self):
        """The answer so far: cancelled if words are left."""
        finish = (
            "length"
            if self.yielded_words and self.yielded_words[-1].endswith("-")
            else "cancelled"
            if self.remaining_words
            else "stop"
        )
        return make_answer(" ".join(self.yielded_words), finish)


@dataclass
class FakeLoadedModel:
    """Records after how many calls the beginning of a prompt was to be stored."""

    calls: list
    stored_after: list = field(default_factory=list)

    def store_prefix(self):
        self.stored_after.append(len(self.calls))


@dataclass
class FakeIdefics:
    """Answers with the arguments of the call, or with `text` where it is set."""

    text: str = ""
    shots: list = field(default_factory=list)
    calls: list = field(default_factory=list)

    def __post_init__(self):
        self.loaded_model = FakeLoadedModel(self.calls)

    def with_shots(self, shots):
        self.shots = list(shots)
        return self

    def run(self, task, image, words="", *, stream=False, on_error="raise", **options):
        self.calls.append(SimpleNamespace(task=task.name, image=image, words=words, options=options))
        if stream:
            return FakeStream(self._answer_text(task, image, words))
        assert on_error == "return"
        return [
            PromptTooLong(9000, 8192, 1)
            if is_too_large(one)
            else make_answer(self._answer_text(task, one, words))
            for one in image
        ]

    def _answer_text(self, task, picture, words):
        return self.text or " ".join(filter(None, [task.name, picture_name(picture), words]))

    def classify(self, image, labels, *, length_normalized=False, calibrated=False, on_error, **image_detail):
        options = {"length_normalized": length_normalized, "calibrated": calibrated, **image_detail}
        self.calls.append(SimpleNamespace(task="classify", image=image, words=labels, options=options))
        weights = [2.0**-index for index in range(len(labels))]
        ranked = [
            RankedLabel(label, weight / sum(weights), -index)
            for index, (label, weight) in enumerate(zip(labels, weights, strict=True))
        ]
        return [Ranking(tuple(ranked), USAGE, TIMINGS) for _ in image]

    def chat(self, messages, *, stream=False, **options):
        self.calls.append(SimpleNamespace(task="chat", messages=list(messages), options=options))
        parts = messages[-1].parts
        text = self.text or f"{len(messages)} turns, {len(parts) - 1} pictures, {parts[-1]}"
        if "too long" in parts[-1]:
            raise PromptTooLong(9000, 8192, 0)
        return FakeStream(text) if stream else make_answer(text)

    def generate(self, items, *, stream=False, **options):
        self.calls.append(SimpleNamespace(task="generate", items=list(items), options=options))
        text = self.text or " ".join(item if isinstance(item, str) else picture_name(item) for item in items)
        return FakeStream(text) if stream else make_answer(text)


def is_too_large(picture):
    return isinstance(picture.source, Path) and TOO_LARGE_MARKER in picture.source.read_bytes()


def picture_name(picture):
    source = picture.source
    return f"<{len(source)} bytes>" if isinstance(source, bytes) else Path(source).stem


def make_writer(report_error=pytest.fail, print_note=pytest.fail):
    """The part of an `OutputWriter` that `find_pictures` uses; an unexpected error or note fails the test."""
    return SimpleNamespace(report_error=report_error, print_note=print_note)


class FakeTerminal(io.StringIO):
    """Standard output that is a terminal."""

    encoding = "utf-8"

    def isatty(self):
        return True


@dataclass
class CommandResult:
    """The exit code, the output and the calls of a run."""

    exit_code: int
    stdout: str
    stderr: str
    vlm: FakeIdefics
    load_flags: list

    @property
    def error_lines(self):
        return self.stderr.splitlines()


def run_command(capsys, argv, vlm=None):
    """Runs a command line with a fake model."""
    vlm, loads = vlm or FakeIdefics(), []

    def loader(flags, screen):
        loads.append(flags)
        return vlm

    code = run([str(argument) for argument in argv], loader)
    out, err = capsys.readouterr()
    return CommandResult(code, out, err, vlm, loads)
