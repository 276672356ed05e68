"""Trainings of tiny models on random rows, and what they write."""

from dataclasses import asdict

import torch
from safetensors.torch import load_file

from idefics.models import read_checkpoint
from idefics.train.records import TrainingListener
from idefics.train.settings import TrainSettings
from idefics.train.trainee import load_trainee
from idefics.train.training import train_rows
from train.row_makers import Rows, make_row

SCENES = (
    "tt1ttt",
    "1ttttttttt",
    "t1t1tttttttttttttttttttttttttttttttt",
    "ttttt",
    "1tttt",
    "tttt1tttttt",
    "ttttttttt",
)


class Recorder(TrainingListener):
    """A listener that keeps records, and calls `after` with the number of each step."""

    def __init__(self, after=lambda step: None):
        self.steps, self.validations, self.checkpoints, self.after = [], [], [], after

    def on_step(self, record):
        self.steps.append({name: one for name, one in asdict(record).items() if "seconds" not in name})
        self.after(record.step)

    def on_validation(self, record):
        self.validations.append(record)

    def on_checkpoint(self, step, folder):
        self.checkpoints.append(step)


def make_settings(folder, out, **changes):
    fields = {"batch_size": 3, "steps": 6, "learning_rate": 0.01, "warmup_steps": 2}
    if changes.get("method") != "full":
        fields["rank"] = 2
    return TrainSettings(data="x", model=str(folder), out=out, **{**fields, **changes})


def make_trainee(folder, settings):
    return load_trainee(read_checkpoint(folder), settings)


def make_rows(model, scenes=SCENES):
    return Rows(make_row(model, scene, name=f"row {number}") for number, scene in enumerate(scenes))


def train(folder, out, listener=None, scenes=SCENES, edit=lambda rows: rows, **changes):
    settings = make_settings(folder, out, **changes)
    trainee = make_trainee(folder, settings)
    rows = edit(make_rows(trainee.model, scenes))
    return train_rows(trainee, rows, None, settings, [listener] if listener else [])


def read_result(out):
    (path,) = [
        out / name for name in ("adapter_model.safetensors", "model.safetensors") if (out / name).exists()
    ]
    return load_file(path)


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
