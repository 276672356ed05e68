"""`idefics models`: the catalog, for people and for programs."""

import json

import pytest

from idefics import weights
from idefics.catalog import CATALOG, DEFAULT


def test_the_table_says_what_each_model_needs(idefics):
    done = idefics("models")
    assert (done.code, done.err) == (0, "")
    assert not done.loads
    lines = done.out.splitlines()
    assert lines[0].split() == ["name", "parameters", "float32", "bfloat16", "int8", "int4"]
    for row, first, second in zip(CATALOG, lines[1::2], lines[2::2], strict=False):
        assert first.split()[0] == row.name
        assert "GB" in first or "MB" in first
        state = "not in this version" if not row.runs else "to download" if row.hub else "in the package"
        assert first.endswith(state)
        assert all(part in second for part in (row.hub, row.licence, row.note, *row.names[1:]))
    assert "8.46 B" in done.out


def test_it_says_plainly_what_the_demo_models_know(idefics):
    out = idefics("models").out
    assert "The demo models know only the picture book inside this package; for real photographs use" in out
    assert f"such as smolvlm-256m, {DEFAULT}" in out


def test_what_is_in_the_cache_is_said(idefics, monkeypatch):
    monkeypatch.setattr(weights, "cached", lambda hub: 10**9 if "500M-Instruct" in hub else None)
    [line] = [line for line in idefics("models").out.splitlines() if line.endswith("in the cache")]
    assert line.startswith(DEFAULT)
    rows = [json.loads(line) for line in idefics("models", "--json").out.splitlines()]
    assert [row["name"] for row in rows if row["here"]] == ["demo", "demo-idefics1", DEFAULT]


def test_json_is_one_object_a_model(idefics):
    rows = [json.loads(line) for line in idefics("models", "--json").out.splitlines()]
    assert [row["name"] for row in rows] == [row.name for row in CATALOG]
    [default] = [row for row in rows if row["default"]]
    assert default["name"] == DEFAULT
    assert default["hub"] == "HuggingFaceTB/SmolVLM-500M-Instruct"
    assert default["memory"]["bfloat16"] == pytest.approx(2 * default["parameters"])
    assert default["memory"]["int4"] == pytest.approx(default["parameters"] / 2, abs=1)
