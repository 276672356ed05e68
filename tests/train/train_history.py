"""Records of a training that did not take place."""

from idefics.train.records import SampleRecord, StepRecord, ValidationRecord


def make_step(step, **values):
    values = {
        "num_steps": 100,
        "epoch": step / 50,
        "loss": 4 / step,
        "learning_rate": 1e-4,
        "gradient_norm": 0.5,
        "num_tokens": 300,
        "num_targets": 30,
        "seconds": 0.25,
        "seconds_left": 25 - step / 4,
    } | values
    return StepRecord(step=step, **values)


def make_validation(step, **values):
    values = {"loss": 2.0, "token_accuracy": 0.5, "row_accuracy": 0.25, "num_rows": 8} | values
    return ValidationRecord(step=step, **values)


def make_sample(step, row="val.jsonl#1", **values):
    values = {"prompt": "What is it?", "reference": "A cat.", "answer": "A dog."} | values
    return SampleRecord(step=step, row=row, **values)
