"""A model that answers by rule, and a run of the command line with it. Imports no torch."""

import io
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

from idefics.cli.main import run
from idefics.errors import PromptTooLong
from idefics.messages import Answer, RankedLabel, Ranking, Timings, Usage

USAGE, TIMINGS = Usage(12, 3, 1), Timings(0.1, 0.2, 0.3)
TOO_LARGE = b"too large"  # in a picture's file, behind its pixels


def answer(text, finish="stop"):
    return Answer(text, (1, 2, 3), finish, USAGE, TIMINGS)


class FakeStream:
    """Words one by one. A last word that ends in a dash was cut off."""

    def __init__(self, text):
        self.left, self.said = text.split(" "), []

    def __iter__(self):
        return self

    def __next__(self):
        if not self.left:
            raise StopIteration
        self.said.append(self.left.pop(0))
        return self.said[-1] if len(self.said) == 1 else f" {self.said[-1]}"

    def close(self):
        """Nothing to give back."""

    @property
    def answer(self):
        finish = (
            "length" if self.said and self.said[-1].endswith("-") else "cancelled" if self.left else "stop"
        )
        return answer(" ".join(self.said), finish)


@dataclass
class FakeIdefics:
    """Says what it was asked; `text` answers instead, where it is set."""

    text: str = ""
    shots: list = field(default_factory=list)
    calls: list = field(default_factory=list)

    def with_shots(self, shots):
        self.shots = list(shots)
        return self

    def run(self, task, image, words="", *, stream=False, on_error="raise", **options):
        self.calls.append(SimpleNamespace(task=task.name, image=image, words=words, options=options))
        if stream:
            return FakeStream(self._text(task, image, words))
        assert on_error == "return"
        return [
            PromptTooLong(9000, 8192, 1) if holds_too_much(one) else answer(self._text(task, one, words))
            for one in image
        ]

    def _text(self, task, picture, words):
        return self.text or " ".join(filter(None, [task.name, name_of(picture), words]))

    def classify(self, image, labels, *, length_normalized=False, calibrated=False, on_error, **look):
        options = {"length_normalized": length_normalized, "calibrated": calibrated, **look}
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
        return FakeStream(text) if stream else answer(text)

    def generate(self, items, *, stream=False, **options):
        self.calls.append(SimpleNamespace(task="generate", items=list(items), options=options))
        text = self.text or " ".join(item if isinstance(item, str) else name_of(item) for item in items)
        return FakeStream(text) if stream else answer(text)


def holds_too_much(picture):
    return isinstance(picture.source, Path) and TOO_LARGE in picture.source.read_bytes()


def name_of(picture):
    source = picture.source
    return f"<{len(source)} bytes>" if isinstance(source, bytes) else Path(source).stem


class Terminal(io.StringIO):
    """Standard output of a person."""

    encoding = "utf-8"

    def isatty(self):
        return True


@dataclass
class Done:
    """What a run left behind."""

    code: int
    out: str
    err: str
    vlm: FakeIdefics
    loads: list

    @property
    def refusals(self):
        return self.err.splitlines()


def run_fake(capsys, argv, vlm=None):
    """Runs a command line with a fake model."""
    vlm, loads = vlm or FakeIdefics(), []

    def loader(flags, screen):
        loads.append(flags)
        return vlm

    code = run([str(argument) for argument in argv], loader)
    out, err = capsys.readouterr()
    return Done(code, out, err, vlm, loads)
