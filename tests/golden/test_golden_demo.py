"""Golden answers: the demo checkpoints answer about the bundled pictures as when they were released.

After new weights: `python demo-model/evaluate_demo.py --write-golden`.
"""

import json
from functools import cache
from pathlib import Path

import pytest

import idefics
from recipe.golden import GOLDEN_CALLS, PICTURES_FOLDER, GoldenCall, run_call

HERE = Path(__file__).parent
CHECKPOINTS = ("demo", "demo-idefics1")


def read_golden_calls(name):
    rows = json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))
    return [
        (GoldenCall(row["verb"], tuple(row["pictures"]), tuple(row["words"])), row["text"], row["logprobs"])
        for row in rows
    ]


@cache
def load_model(name):
    return idefics.load(name, device="cpu", dtype="float32")


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_the_file_has_every_call(name):
    assert tuple(call for call, _, _ in read_golden_calls(name)) == GOLDEN_CALLS
    assert {picture for call in GOLDEN_CALLS for picture in call.pictures} == {
        path.stem for path in PICTURES_FOLDER.glob("*.png")
    }


@pytest.mark.parametrize("call", GOLDEN_CALLS, ids=lambda call: f"{call.verb}-{'-'.join(call.pictures)}")
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_answers_stay_the_same(name, call):
    _, text, logprobs = next(row for row in read_golden_calls(name) if row[0] == call)
    answer, answer_logprobs = run_call(load_model(name), call)
    assert answer == text
    assert answer_logprobs == pytest.approx(logprobs, abs=1e-3)
