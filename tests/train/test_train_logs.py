"""The log of a training: every record is a line, and a training that is resumed continues it."""

import json
import math
import re
from dataclasses import replace

import pytest

from idefics.errors import BadSetting, OutputError
from idefics.train.logs import JSONLinesLog, TensorBoardLog, describe_settings
from idefics.train.settings import TrainSettings
from train.train_history import make_sample, make_step, make_validation

SETTINGS = TrainSettings(data="photos", model="demo", out="adapter")


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_log(path, **options):
    """A log of three steps: 0 (a validation, a sample), 1 and 2."""
    with JSONLinesLog(path, SETTINGS, "2026-11-29T10:00:00+00:00", **options) as log:
        log.on_validation(make_validation(0))
        log.on_sample(make_sample(0))
        log.on_step(make_step(1))
        log.on_step(make_step(2, loss=math.inf))
        log.on_checkpoint(2, "folder")
        return log.history


def test_each_record_is_a_line(tmp_path):
    path = tmp_path / "new" / "log.jsonl"
    history = write_log(path, facts={"num_rows": 3})
    start, validation, sample, first, second = read_lines(path)
    assert (start["kind"], start["started"], start["num_rows"]) == ("start", "2026-11-29T10:00:00+00:00", 3)
    assert start["settings"] == describe_settings(SETTINGS) and start["settings"]["out"] == "adapter"
    assert start["versions"]["idefics"]
    assert validation == {
        "kind": "validation",
        "step": 0,
        "loss": 2.0,
        "token_accuracy": 0.5,
        "row_accuracy": 0.25,
        "num_rows": 8,
    }
    assert (sample["kind"], sample["row"], sample["answer"]) == ("sample", "val.jsonl#1", "A dog.")
    assert (first["kind"], first["step"], first["loss"]) == ("step", 1, 4.0)
    assert second["loss"] is None, "JSON has no infinity"
    assert history.steps[0] == make_step(1) and math.isnan(history.steps[1].loss)
    assert (history.validations, history.samples) == ([make_validation(0)], [make_sample(0)])


def test_a_resumed_training_continues_after_its_checkpoint(tmp_path):
    path = tmp_path / "log.jsonl"
    write_log(path)
    before = path.read_text().splitlines()
    with path.open("a") as file:
        file.write('{"kind": "step", "st')  # the process was killed
    with JSONLinesLog(path, SETTINGS, "later", last_step=1) as log:
        assert [one.step for one in log.history.steps] == [1]
        assert log.history.start["started"] == "2026-11-29T10:00:00+00:00"
        log.on_step(make_step(2))
    assert path.read_text().splitlines()[:-1] == before[:-1]
    assert read_lines(path)[-1]["loss"] == 2.0
    with JSONLinesLog(path, SETTINGS, "again") as log:
        assert log.history.steps == []
    assert [line["started"] for line in read_lines(path)] == ["again"]


def test_settings_that_a_resumed_training_has_are_those_of_the_log(tmp_path):
    path = tmp_path / "log.jsonl"
    write_log(path)
    slower = replace(SETTINGS, learning_rate=1e-5)
    with JSONLinesLog(path, slower, "later", last_step=1) as log:
        assert log.history.start["settings"]["learning_rate"] == 1e-5
    start = read_lines(path)[0]
    assert start["kind"] == "start" and start["settings"] == describe_settings(slower)
    assert start["started"] == "2026-11-29T10:00:00+00:00"


def test_other_files_are_left_as_they_are(tmp_path):
    path = tmp_path / "log.jsonl"
    for text in ("[1]\n", '{"a": 1}\n', "words\n", '{"kind": "step", "step": 1}\n'):
        path.write_text(text)
        with pytest.raises(BadSetting, match=re.escape(f"{path} is no log of a training")):
            JSONLinesLog(path, SETTINGS, "now", last_step=5)
        assert path.read_text() == text
    with pytest.raises(OutputError, match="cannot be written"):
        JSONLinesLog(tmp_path, SETTINGS, "now")


def test_tensorboard_reads_what_is_written(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with TensorBoardLog(tmp_path) as log:
        log.on_step(make_step(1))
        log.on_step(make_step(2))
        log.on_validation(make_validation(2))
        log.on_sample(make_sample(2))
        log.on_checkpoint(2, "folder")
    events = EventAccumulator(str(tmp_path)).Reload()
    losses = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert losses == [(1, 4.0), (2, 2.0)]
    assert events.Scalars("train/tokens_per_second")[0].value == 1200
    assert events.Scalars("validation/row_accuracy")[0].value == 0.25
    assert "samples/val.jsonl#1/text_summary" in events.Tags()["tensors"]
