"""Rows, answers and a run of fakes: no model, and pictures that are a few bytes."""

import hashlib
from pathlib import Path

from idefics.batch.export import exporter_for
from idefics.batch.ledger import Ledger
from idefics.batch.output_file import LedgerExport, OutputFile
from idefics.batch.prompt_template import PromptTemplate
from idefics.batch.rows import BatchRow, Media
from idefics.batch.run import BatchRun
from idefics.batch.run_settings import RowSelection, RunSettings
from idefics.batch.text_settings import TextSettings
from idefics.batch.text_writer import TextWriter
from idefics.errors import BadPicture

SETTINGS = RunSettings(task="caption", model="fake", revision="r1", fingerprint="f" * 64)


def file_row(path, **columns):
    """A row of a file; its picture is read when it is asked for."""

    def read():
        try:
            return Path(path).read_bytes()
        except OSError as error:
            raise BadPicture(f"{path}: {error.strerror}") from None

    media = Media(path=str(path), read=read, file=Path(path), container=Path(path))
    return BatchRow(name=str(path), media=media, columns=columns)


class FakeSource:
    """Rows that are made anew in each iteration by a function."""

    def __init__(self, make_rows, count=None):
        self.make_rows, self.count = make_rows, count

    def __iter__(self):
        return iter(self.make_rows())

    def count_rows(self):
        return self.count

    def describe_skipped(self):
        return ""


class FakeAnswerer:
    """Answers an item by its bytes and prompt; bytes that begin with "bad" are an error. Holds `window` items."""

    def __init__(self, window=1, on_answer=lambda number: None):
        self.window, self.on_answer = window, on_answer
        self.calls = []

    def answer(self, items):
        in_hand = []
        for item in items:
            self.calls.append(item.key)
            in_hand.append(item)
            if len(in_hand) == self.window:
                yield self._answer(in_hand.pop())  # the last first: in another order
        while in_hand:
            yield self._answer(in_hand.pop())

    def _answer(self, item):
        self.on_answer(len(self.calls))
        if item.media.startswith(b"bad"):
            return item.key, {"error_type": "BadPicture", "error": "it is bad"}
        text = f"{hashlib.sha256(item.media).hexdigest()[:8]} {item.prompt or ''}".strip()
        return item.key, {"text": text, "tokens": 3, "finish": "stop", "seconds": 0.5}

    def close(self):
        """There is nothing to release."""


def run_batch(
    source,
    ledger,
    *,
    settings=SETTINGS,
    out=None,
    answerer=None,
    prompt=None,
    texts=None,
    selection=None,
    max_errors=None,
    retry_failed=False,
    overwrite=False,
):
    """One run, as the command line makes it; returns its `BatchRun`."""
    with Ledger(Path(ledger)) as opened:
        number = opened.run_number(settings.to_json())
        if overwrite:
            opened.forget_run(number)
        elif retry_failed:
            opened.forget_errors(number)
        export = (
            None
            if out is None
            else LedgerExport(opened, OutputFile(Path(out), exporter_for(Path(out))), overwrite=overwrite)
        )
        run = BatchRun(
            source,
            settings,
            None if prompt is None else PromptTemplate(prompt),
            answerer or FakeAnswerer(),
            opened,
            TextWriter(opened, settings, texts or TextSettings()),
            export,
            selection or RowSelection(),
            max_errors,
        )
        run.run()
    return run
