"""`idefics models`: the catalog as a table and as JSON."""

import json
from pathlib import Path

import pytest

from idefics import weights
from idefics.catalog import CATALOG, DEFAULT_MODEL, checkpoint_weight_bytes


def test_the_table_has_a_line_for_every_model(run_idefics):
    done = run_idefics("models")
    assert (done.exit_code, done.stderr) == (0, "")
    assert not done.load_flags
    heading, *lines = done.stdout.splitlines()
    assert heading.split() == ["name", "parameters", "float32", "bf16", "int8", "int4", "on", "the", "hub"]
    for row in CATALOG:
        [line] = [line for line in lines if line[2:].startswith(f"{row.name} ")]
        assert line.startswith("* " if row.package_folder else "  ")
        assert line.endswith(row.hub_id)
        assert row.package_folder or not row.note or f"      {row.note}" in lines
        assert any(
            heading.startswith(f"{'Demo' if row.package_folder else row.family}: {row.licence}")
            for heading in lines
        )
    assert "  9b                    8.93 B    35.7  17.9  9.32  5.86  HuggingFaceM4/idefics-9b" in lines


def test_the_table_fits_a_terminal_of_100_columns(run_idefics):
    cache = str(weights.cache_folder())
    assert max(len(line) for line in run_idefics("models").stdout.splitlines() if cache not in line) == 100


def test_numbers_are_aligned_with_their_headings(run_idefics):
    heading, *lines = run_idefics("models").stdout.splitlines()
    for word in ("parameters", "float32", "bf16", "int8", "int4"):
        end = heading.index(word) + len(word)
        assert all(line[end - 1] != " " == line[end] for line in lines if "HuggingFace" in line), word


def test_it_says_plainly_what_the_demo_models_know(run_idefics):
    out = " ".join(run_idefics("models").stdout.split())
    assert (
        "The demo models know only the bundled pictures and others like them. For real photographs use one of "
        f"the others, such as {DEFAULT_MODEL}, the default where" in out
    )


def test_what_is_in_the_cache_is_marked(run_idefics, monkeypatch):
    folder = Path("/cache/models--a/snapshots/1")
    monkeypatch.setattr(
        weights, "complete_cached_folder", lambda hub: folder if "/SmolVLM-500M-Instruct" in hub else None
    )
    out = run_idefics("models").stdout
    marked = [line.split()[1] for line in out.splitlines() if line.startswith("* ") and "  " in line]
    assert marked == ["demo", "demo-idefics1", DEFAULT_MODEL]
    assert f"\n  {weights.cache_folder()}\n" in out
    rows = {
        row["name"]: row["folder"]
        for row in map(json.loads, run_idefics("models", "--json").stdout.splitlines())
    }
    assert rows.pop(DEFAULT_MODEL) == str(folder)
    assert Path(rows.pop("demo"), "config.json").is_file()
    assert Path(rows.pop("demo-idefics1"), "config.json").is_file()
    assert set(rows.values()) == {None}


def test_json_is_one_object_a_model(run_idefics):
    rows = [json.loads(line) for line in run_idefics("models", "--json").stdout.splitlines()]
    assert [row["name"] for row in rows] == [row.name for row in CATALOG]
    for told, row in zip(rows, CATALOG, strict=True):
        assert told["memory"] == {
            name: checkpoint_weight_bytes(row, name) for name in ("float32", "bfloat16", "int8", "int4")
        }
        assert (told["licence"], told["parameters"], told["video"]) == (
            row.licence,
            row.num_parameters,
            row.is_video_trained,
        )
    [default] = [row for row in rows if row["default"]]
    assert default["name"] == DEFAULT_MODEL
    assert default["hub"] == "HuggingFaceTB/SmolVLM-500M-Instruct"
    assert default["memory"]["bfloat16"] == pytest.approx(2 * default["parameters"])
