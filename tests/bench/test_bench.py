"""The benchmarks' tools: alternating rounds, reports, and checkpoints in the released shapes."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open

import checkpoints
import idefics
from harness import (
    ROOT,
    BenchmarkReport,
    RunTiming,
    median_first_token_seconds,
    median_tokens_per_second,
    run_rounds,
)
from idefics.models import build_on_meta_device, family_for, read_checkpoint
from idefics.processing.tokenizer import Tokenizer
from models.released import RELEASED_BY_NAME


def test_rounds_alternate_and_exclude_the_warm_up():
    calls = []

    def call(who):
        return lambda number: calls.append((number, who)) or number

    assert run_rounds({"a": call("a"), "b": call("b")}, 2) == {"a": [1, 2], "b": [1, 2]}
    assert calls == [(0, "a"), (0, "b"), (1, "a"), (1, "b"), (2, "b"), (2, "a")]


def test_speed_counts_tokens_after_the_first():
    runs = [
        RunTiming(first_token_seconds=1.0, decode_seconds=2.0, num_decode_tokens=10),
        RunTiming(3.0, 1.0, 10),
        RunTiming(2.0, 4.0, 10),
    ]
    assert (median_tokens_per_second(runs), median_first_token_seconds(runs)) == (5.0, 2.0)
    assert RunTiming(1.0, 0.0, 0).tokens_per_second == 0


def test_a_report_lists_targets_and_ends_with_json(capsys):
    report = BenchmarkReport("tried")
    report.add_figure("a case", "ours", 12.5, "tokens/s", "a note")
    report.add_target("more", 1.4, min_value=1.5)
    report.add_target("less", 0.05, max_value=0.05)
    report.print_report()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-2:] for line in lines if line.startswith("  more")] == [["NOT", "reached"]]
    found = json.loads(lines[-1])
    assert [row["reached"] for row in found["targets"]] == [False, True]
    assert found["figures"][0]["value"] == 12.5
    assert found["versions"]["torch"] == torch.__version__


def test_a_quick_run_has_no_targets():
    report = BenchmarkReport("tried", is_quick=True)
    report.add_target("more", 0.0, min_value=1.5)
    assert not report.targets


@pytest.fixture
def tiny_release(tmp_path, monkeypatch):
    """A SmolVLM with two layers, written like the real ones."""
    monkeypatch.setattr(checkpoints, "CACHE", tmp_path)
    monkeypatch.setattr(checkpoints, "MAX_SHARD_BYTES", 1 << 22)  # bytes: several files
    small = {
        "text_config": {"num_hidden_layers": 2, "vocab_size": 49280},
        "vision_config": {"num_hidden_layers": 1, "hidden_size": 96, "intermediate_size": 64},
    }
    monkeypatch.setitem(checkpoints.REDUCED_CONFIG_BY_NAME, "smolvlm-256m", small)
    return checkpoints.get_checkpoint("smolvlm-256m")


def test_a_checkpoint_is_the_released_one_but_for_its_weights(tiny_release):
    released = RELEASED_BY_NAME["smolvlm-256m"]
    config = json.loads((tiny_release / "config.json").read_text())
    assert config["text_config"] == released.config["text_config"] | {"num_hidden_layers": 2}
    shapes = {}
    for file in sorted(tiny_release.glob("*.safetensors")):
        with safe_open(file, "pt") as weights:
            shapes |= {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    assert shapes == {
        name: tuple(x.shape)
        for name, x in build_on_meta_device(read_checkpoint(tiny_release)).named_parameters()
    }
    assert len(list(tiny_release.glob("*.safetensors"))) > 1
    tokenizer = Tokenizer.load(tiny_release)
    assert {id: tokenizer.token_to_id(word) for id, word in released.token_by_id.items()} == {
        id: id for id in released.token_by_id
    }


def test_reduced_checkpoints_keep_the_width():
    for name, changes in checkpoints.REDUCED_CONFIG_BY_NAME.items():
        raw = checkpoints._merge_changes(RELEASED_BY_NAME[name].config, changes)
        text = family_for(raw["model_type"]).read_config(raw, {}).text
        whole = family_for(raw["model_type"]).read_config(RELEASED_BY_NAME[name].config, {}).text
        assert text.num_layers < whole.num_layers
        assert (text.hidden_size, text.intermediate_size, text.num_heads) == (
            whole.hidden_size,
            whole.intermediate_size,
            whole.num_heads,
        )


def test_unsplit_pictures_are_one_frame(tiny_release):
    vlm = idefics.load(checkpoints.copy_without_image_splitting(tiny_release))
    import idefics_runner

    (tiles,) = vlm.prompt([idefics.Picture(idefics_runner.random_photo(1)), "What is it?"]).pictures
    assert len(tiles.frames) == 1
    (tiny_release.parent / "other").mkdir()
    moved = tiny_release.rename(tiny_release.parent / "other" / tiny_release.name)
    assert (
        len(
            idefics.load(checkpoints.copy_without_image_splitting(moved))
            .prompt([idefics.Picture(idefics_runner.random_photo(1))])
            .pictures
        )
        == 1
    )
    assert (
        len(idefics.load(moved).prompt([idefics.Picture(idefics_runner.random_photo(1))]).pictures[0].frames)
        == 17
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "command_line",
    [
        "adapters",
        "batch",
        "evaluate",
        "explain",
        "generate",
        "reuse",
        "serve",
        "serve --case long-prompts",
        "start",
        "training",
    ],
)
def test_a_quick_run_works(command_line):
    script, *flags = command_line.split()
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
