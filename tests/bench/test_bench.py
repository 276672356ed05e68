"""The benchmarks' tools: what is measured is measured in turns, reported truly, and of the released shapes."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open

import checkpoints
import idefics
from harness import ROOT, Report, Run, first, rounds, speed
from idefics.models import build, family_for, read_checkpoint
from idefics.processing.tokenizer import Tokenizer
from models.released import RELEASED


def test_rounds_take_turns_and_leave_the_first_call_out():
    calls = []

    def call(who):
        return lambda number: calls.append((number, who)) or number

    assert rounds({"a": call("a"), "b": call("b")}, 2) == {"a": [1, 2], "b": [1, 2]}
    assert calls == [(0, "a"), (0, "b"), (1, "a"), (1, "b"), (2, "b"), (2, "a")]


def test_speed_counts_what_came_after_the_first_token():
    runs = [Run(first=1.0, rest=2.0, tokens=10), Run(3.0, 1.0, 10), Run(2.0, 4.0, 10)]
    assert (speed(runs), first(runs)) == (5.0, 2.0)
    assert Run(1.0, 0.0, 0).speed == 0


def test_a_report_says_what_was_reached_and_ends_with_json(capsys):
    report = Report("tried")
    report.figure("a case", "ours", 12.5, "tokens/s", "a note")
    report.target("more", 1.4, at_least=1.5)
    report.target("less", 0.05, at_most=0.05)
    report.close()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-2:] for line in lines if line.startswith("  more")] == [["NOT", "reached"]]
    found = json.loads(lines[-1])
    assert [row["reached"] for row in found["targets"]] == [False, True]
    assert found["figures"][0]["value"] == 12.5
    assert found["versions"]["torch"] == torch.__version__


def test_a_quick_look_claims_nothing():
    report = Report("tried", quick=True)
    report.target("more", 0.0, at_least=1.5)
    assert not report.targets


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A SmolVLM in two layers and few rows, written as the real ones are."""
    monkeypatch.setattr(checkpoints, "CACHE", tmp_path)
    monkeypatch.setattr(checkpoints, "SHARD", 1 << 22)  # bytes: several files
    small = {
        "text_config": {"num_hidden_layers": 2, "vocab_size": 49280},
        "vision_config": {"num_hidden_layers": 1, "hidden_size": 96, "intermediate_size": 64},
    }
    monkeypatch.setitem(checkpoints.REDUCED, "smolvlm-256m", small)
    return checkpoints.checkpoint("smolvlm-256m")


def test_a_checkpoint_is_the_released_one_but_for_its_weights(tiny):
    released = RELEASED["smolvlm-256m"]
    config = json.loads((tiny / "config.json").read_text())
    assert config["text_config"] == released.config["text_config"] | {"num_hidden_layers": 2}
    shapes = {}
    for file in sorted(tiny.glob("*.safetensors")):
        with safe_open(file, "pt") as weights:
            shapes |= {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    assert shapes == {name: tuple(x.shape) for name, x in build(read_checkpoint(tiny)).named_parameters()}
    assert len(list(tiny.glob("*.safetensors"))) > 1
    tokenizer = Tokenizer.load(tiny)
    assert {id: tokenizer.token_id(word) for id, word in released.tokens.items()} == {
        id: id for id in released.tokens
    }


def test_whole_checkpoints_have_every_layer():
    for name, changes in checkpoints.REDUCED.items():
        raw = checkpoints._changed(RELEASED[name].config, changes)
        text = family_for(raw["model_type"]).config(raw, {}).text
        whole = family_for(raw["model_type"]).config(RELEASED[name].config, {}).text
        assert text.layers < whole.layers
        assert (text.width, text.inner, text.heads) == (whole.width, whole.inner, whole.heads)


def test_unsplit_pictures_are_one_frame(tiny):
    vlm = idefics.load(checkpoints.unsplit(tiny))
    import ours

    (tiles,) = vlm.prompt([idefics.Picture(ours.photo(1)), "What is it?"]).pictures
    assert len(tiles.frames) == 1
    (tiny.parent / "other").mkdir()
    moved = tiny.rename(tiny.parent / "other" / tiny.name)
    assert (
        len(idefics.load(checkpoints.unsplit(moved)).prompt([idefics.Picture(ours.photo(1))]).pictures) == 1
    )
    assert len(idefics.load(moved).prompt([idefics.Picture(ours.photo(1))]).pictures[0].frames) == 17


@pytest.mark.slow
@pytest.mark.parametrize("asked", ["generate", "reuse", "serve", "serve --case long-prompts", "start"])
def test_a_quick_look_runs(asked):
    script, *flags = asked.split()
    done = subprocess.run(
        [sys.executable, ROOT / "bench" / f"{script}.py", *flags, "--quick"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["title"] == script
    assert all(row["value"] > 0 for row in found["figures"])
    assert not found["targets"]
