"""The dry run: how long the steps that are left will take, from the speed of one batch."""

import pytest

from idefics.train import dry_run
from idefics.train.plan import plan_training
from idefics.train.settings import TrainSettings
from idefics.train.trainee import load_trainee
from idefics.train.trainer import Trainer
from train.training_data import write_pictures, write_rows


@pytest.fixture
def measure(tmp_path, monkeypatch):
    """Makes a dry run of six rows, with a clock on which pictures take 1 second, and then a batch 2 seconds."""
    folder = write_pictures(tmp_path)
    rows = [
        {"image": name, "question": "What is it?", "answer": "A thing."} for name in ("wide.png", "tall.jpg")
    ]
    path = write_rows(folder / "rows.jsonl", *rows * 3)

    def run(**values):
        settings = TrainSettings(data=str(path), model="demo", out=tmp_path / "out", max_tiles=1, **values)
        plan = plan_training(settings)
        trainee = load_trainee(plan.checkpoint, settings)
        trainer = Trainer(trainee.model, trainee.learned, plan.rows, settings, tmp_path / "training")
        times = iter((0.0, 1.0, 3.0))
        with monkeypatch.context() as patch:
            patch.setattr(dry_run.time, "perf_counter", lambda: next(times))
            record = dry_run.run_dry(trainer, plan.longest, plan.forecast.sizes)
        assert all(weight.grad is None for weight in trainee.learned.by_name.values())
        return record, len(plan.rows[0])

    return run


def test_the_time_is_that_of_all_tokens_and_of_new_pictures(measure):
    record, row_tokens = measure(batch_size=6, epochs=5)
    assert record.num_tokens == 6 * row_tokens and record.tokens_per_second == 3 * row_tokens
    assert record.seconds_left == pytest.approx(5 * 2), "the pictures are known by then"
    assert record.peak_bytes is None or record.peak_bytes > 100e6
    assert f"one batch of {record.num_tokens} tokens: " in record.line()
    assert record.line().endswith("; the steps take about 10.0 s, without validation and samples")


def test_pictures_that_no_step_reaches_are_not_counted(measure):
    record, _ = measure(batch_size=1, steps=1)
    assert record.seconds_left == pytest.approx(2)
    record, _ = measure(batch_size=1, epochs=1)
    assert record.seconds_left == pytest.approx(6 * 2 + 1), "one of two pictures was encoded"
