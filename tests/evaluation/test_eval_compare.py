"""Two reports side by side: which rows are compared, and what is said of pairs and of metrics that are not defined."""

import json

import pytest
from test_eval_scoring import pair

from idefics.errors import BadSetting
from idefics.evaluate.report import row_json
from idefics.evaluate.report_comparison import comparison_lines
from idefics.evaluate.scoring import METRICS

SETTINGS = {
    "model": "m",
    "revision": "",
    "fingerprint": "",
    "settings": {},
    "seed": 0,
    "data": {"sha256": ""},
}


@pytest.fixture
def compare(tmp_path):
    """The lines about two lists of rows, each with the metric of a report."""

    def compare(first, second, metric="exact-match", figure="exact match", **changes):
        for name, rows in (("a.json", first), ("b.json", second)):
            report = SETTINGS | {"metric": metric, "metrics": [{"name": figure}], "rows": rows}
            (tmp_path / name).write_text(json.dumps(report | (changes if name == "b.json" else {})))
        return [
            line.replace(f"{tmp_path}/", "")
            for line in comparison_lines(tmp_path / "a.json", tmp_path / "b.json")
        ]

    return compare


def row(name, score, path="1.png", question="What?"):
    return {"name": name, "path": path, "question": question, "answer": "x", "score": score}


def test_rows_about_something_else_are_left_out(compare):
    first = [row("t#1", 1, "a/1.png"), row("t#2", 0, "a/2.png"), row("t#3", 0)]
    second = [row("t#1", 0, "b/1.png"), row("t#2", 1, "b/3.png"), row("t#3", 1, question="Where?")]
    lines = compare(first, second, is_complete=False)
    assert lines[0] == "exact match: 100.0 -> 0.0, 1 row that both have"
    assert "left out: 2 rows with another picture or question, such as t#2" in lines
    assert "b.json is of a run that was stopped" in lines
    assert "1 row changed" in lines


def test_each_setting_that_differs_is_named(compare):
    rows = [row("t#1", 1)]
    settings = {"prompts": "p" * 100, "shots": 4}
    lines = compare(rows, rows, settings=settings, model="n")
    assert "model: m -> n" in lines
    assert "shots: none -> 4" in lines


def test_pairs_are_compared_by_the_score_of_the_pair(compare):
    def rows(*pairs):
        evaluated = [one for pair in pairs for one in pair]
        scores = METRICS["winoground"].compute(evaluated, 0)
        return [row_json(one, scores, index) for index, one in enumerate(evaluated)]

    right, one_wrong = [(-1, -2), (-3, -0.5)], [(-1, -2), (-0.1, -0.5)]
    lines = compare(
        rows(pair("1", *right), pair("2", *one_wrong), pair("3", (-1, -2))),
        rows(pair("1", *right), pair("2", *right)),
        "winoground",
        "group score",
    )
    assert lines[0] == "group score: 50.0 -> 100.0, 2 pairs that both have"
    assert "1 pair changed" in lines
    assert lines[-1].startswith("2: 0.00 -> 1.00 ")


def test_a_metric_that_is_not_defined(compare):
    rows = [row("t#1", 1) | {"numbers": [1, 1]}, row("t#2", 1) | {"numbers": [1, 1]}]
    lines = compare(rows, rows, "roc-auc", "ROC-AUC")
    assert lines[0] == "ROC-AUC: not defined -> not defined, 2 rows that both have"


@pytest.mark.parametrize("rows", [[5], [], [{"name": "x"}], 3])
def test_what_is_no_report(compare, rows):
    with pytest.raises(BadSetting, match="is no report of"):
        compare(rows, rows)
