"""`idefics models`: the catalog, for people and for programs."""

import json
from pathlib import Path

import pytest

from idefics import weights
from idefics.catalog import CATALOG, DEFAULT, memory


def test_the_table_has_a_line_for_every_model(idefics):
    done = idefics("models")
    assert (done.code, done.err) == (0, "")
    assert not done.loads
    heading, *lines = done.out.splitlines()
    assert heading.split() == ["name", "parameters", "float32", "bf16", "int8", "int4", "on", "the", "hub"]
    for row in CATALOG:
        [line] = [line for line in lines if line[2:].startswith(f"{row.name} ")]
        assert line.startswith("* " if row.folder else "  ")
        assert line.endswith(row.hub)
        assert row.folder or not row.note or f"      {row.note}" in lines
        assert any(
            heading.startswith(f"{'Demo' if row.folder else row.family}: {row.licence}") for heading in lines
        )
    assert "  9b                    8.93 B    35.7  17.9  9.32  5.86  HuggingFaceM4/idefics-9b" in lines


def test_the_table_fits_a_terminal_of_100_columns(idefics):
    cache = str(weights.cache_folder())
    assert max(len(line) for line in idefics("models").out.splitlines() if cache not in line) == 100


def test_figures_stand_under_their_headings(idefics):
    heading, *lines = idefics("models").out.splitlines()
    for word in ("parameters", "float32", "bf16", "int8", "int4"):
        end = heading.index(word) + len(word)
        assert all(line[end - 1] != " " == line[end] for line in lines if "HuggingFace" in line), word


def test_it_says_plainly_what_the_demo_models_know(idefics):
    out = " ".join(idefics("models").out.split())
    assert (
        "The demo models know only the picture book inside this package; for real photographs use one of the "
        f"others, such as {DEFAULT}, which is taken" in out
    )


def test_what_is_in_the_cache_is_marked(idefics, monkeypatch):
    folder = Path("/cache/models--a/snapshots/1")
    monkeypatch.setattr(weights, "cached", lambda hub: folder if "/SmolVLM-500M-Instruct" in hub else None)
    out = idefics("models").out
    marked = [line.split()[1] for line in out.splitlines() if line.startswith("* ") and "  " in line]
    assert marked == ["demo", "demo-idefics1", DEFAULT]
    assert f"\n  {weights.cache_folder()}\n" in out
    rows = {
        row["name"]: row["folder"] for row in map(json.loads, idefics("models", "--json").out.splitlines())
    }
    assert rows.pop(DEFAULT) == str(folder)
    assert Path(rows.pop("demo"), "config.json").is_file()
    assert Path(rows.pop("demo-idefics1"), "config.json").is_file()
    assert set(rows.values()) == {None}


def test_json_is_one_object_a_model(idefics):
    rows = [json.loads(line) for line in idefics("models", "--json").out.splitlines()]
    assert [row["name"] for row in rows] == [row.name for row in CATALOG]
    for told, row in zip(rows, CATALOG, strict=True):
        assert told["memory"] == {name: memory(row, name) for name in ("float32", "bfloat16", "int8", "int4")}
        assert (told["licence"], told["parameters"], told["video"]) == (
            row.licence,
            row.parameters,
            row.video,
        )
    [default] = [row for row in rows if row["default"]]
    assert default["name"] == DEFAULT
    assert default["hub"] == "HuggingFaceTB/SmolVLM-500M-Instruct"
    assert default["memory"]["bfloat16"] == pytest.approx(2 * default["parameters"])
