"""The settings of a training are checked when they are made: the value, the limit and what to do."""

from pathlib import Path

import pytest

from idefics.errors import BadPrompt, BadSetting, UnknownArgument
from idefics.train.records import TrainingListener
from idefics.train.settings import RANGES, TrainSettings
from idefics.train.training import run

GIVEN = {"data": "photos", "model": "demo", "out": Path("adapter")}


def test_the_defaults_are_valid_and_a_path_may_be_a_text():
    settings = TrainSettings(**GIVEN)
    assert settings == TrainSettings(**GIVEN | {"out": "adapter"})
    assert settings == TrainSettings(**GIVEN | {"data": Path("photos"), "model": Path("demo")})
    assert (settings.method, settings.rank, settings.learning_rate) == ("lora", 16, None)
    assert settings.training_folder == Path("adapter.training")


@pytest.mark.parametrize("name", RANGES)
def test_numbers_have_a_range(name):
    low, high = RANGES[name]
    for value in (low, high):
        assert getattr(TrainSettings(**GIVEN, val="photos", **{name: value}), name) == value
    for value in (low - 1, high + 1, float("nan"), "1", True, *([low + 0.5] if isinstance(low, int) else ())):
        with pytest.raises(BadSetting, match=f"^{name} is .*; give a .*number from {low} to {high}"):
            TrainSettings(**GIVEN, **{name: value})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "dora"}, "method is 'dora'; give lora or full"),
        ({"optimizer": "sgd"}, "optimizer is 'sgd'; give adamw or adamw8bit"),
        ({"dtype": "float16"}, "dtype is 'float16'; give auto, float32 or bfloat16"),
        ({"too_long": "cut"}, "too_long is 'cut'; give refuse or skip"),
        ({"quantize": "int8"}, "quantize is 'int8'; training knows nf4 only"),
        ({"quantize": "nf4", "method": "full"}, "full training changes them: leave one of the two out"),
        ({"rank": 4, "method": "full"}, "rank=4 is for adapters: leave it at 16 to train all weights"),
        ({"dropout": 0.1, "method": "full"}, r"dropout=0\.1 is for adapters: leave it at 0\.0 to"),
        ({"steps": 4, "epochs": 2}, "steps=4 and epochs=2 are both given: leave one of them out"),
        ({"validate_every": 3}, "validate_every=3 needs rows to validate with: give val=ROWS"),
        ({"gradient_checkpointing": 1}, "gradient_checkpointing is 1; give True or False"),
    ],
)
def test_words_are_checked(values, message):
    with pytest.raises(BadSetting, match=message):
        TrainSettings(**GIVEN, **values)


def test_a_single_listener_and_rows_in_a_list_are_refused():
    with pytest.raises(BadSetting, match="listeners is a single listener: give a list of them"):
        run(TrainSettings(**GIVEN), TrainingListener())
    with pytest.raises(
        BadSetting, match=r"data is a list; write its rows into a \.jsonl file, and give the path"
    ):
        TrainSettings(**GIVEN | {"data": [{"image": "a.png"}]})


def test_unknown_names_and_empty_texts_are_refused():
    with pytest.raises(UnknownArgument, match=r"learning_rat.*did you mean 'learning_rate'"):
        TrainSettings(**GIVEN, learning_rat=1.0)
    with pytest.raises(BadPrompt, match="the data is empty"):
        TrainSettings(**GIVEN | {"data": " "})
