"""The report of a training: its figures, its curves, and answers before and after."""

import base64
import math
import re
from html import unescape

import pytest
from playwright.sync_api import sync_playwright

from idefics.errors import BadSetting, OutputError
from idefics.train.logs import TrainingHistory, describe_settings
from idefics.train.report import ReportWriter, group_samples, write_training_report
from idefics.train.report_charts import smooth, thin_out, training_charts
from idefics.train.settings import TrainSettings
from page.browser import CHROMIUM_FLAGS, CHROMIUM_PATH, PHONE_SIZE
from train.train_history import make_sample, make_step, make_validation

HOSTILE = "<script>alert(1)</script>"


def make_history(num_steps=100, **values):
    settings = describe_settings(TrainSettings(data="photos", model="demo", out="adapter"))
    return TrainingHistory(
        start={"started": "2026-11-29", "settings": settings, "versions": {"torch": "2.13"}, "num_rows": 3},
        steps=[make_step(step) for step in range(1, num_steps + 1)],
        **values,
    )


def write_page(folder, history, pictures=None):
    path = folder / "report.html"
    write_training_report(path, history, pictures or {})
    return path.read_text(encoding="utf-8")


def plain_text(html):
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", html.partition("<body>")[2])).split())


def test_figures_say_what_has_changed(tmp_path):
    validations = [make_validation(0), make_validation(100, loss=0.5, row_accuracy=0.9)]
    text = plain_text(write_page(tmp_path, make_history(validations=validations)))
    assert "whole answers right 25.0% → 90.0%" in text
    assert "validation loss 2 → 0.5" in text
    assert "loss 4 → 0.04 steps 100 epochs 2 time in steps 25.0 s tokens a second 1,200" in text
    assert "batch size 16" in text and "num rows 3" in text and "torch 2.13" in text
    unfinished = plain_text(write_page(tmp_path, make_history(40, samples=[make_sample(0), make_sample(20)])))
    assert "steps 40 of 100" in unfinished and "So far" in unfinished
    assert "validation" not in unfinished.partition("versions")[2]


def test_an_error_of_the_training_is_not_hidden_by_one_of_the_report(tmp_path):
    with pytest.raises(BadSetting, match="the loss"), ReportWriter(tmp_path, make_history(), {}):
        raise BadSetting("the loss is nan")
    with pytest.raises(OutputError), ReportWriter(tmp_path, make_history(), {}):
        pass


def test_a_training_that_has_not_begun_has_a_page(tmp_path):
    assert "Training: demo on photos" in plain_text(write_page(tmp_path, make_history(0)))


def test_samples_are_shown_before_and_after(tmp_path):
    samples = [
        make_sample(0),
        make_sample(0, row="val.jsonl#2", prompt=HOSTILE, answer=HOSTILE),
        make_sample(50, answer="A fox."),
        make_sample(100, answer="a  CAT."),
    ]
    first, second = group_samples(samples, {"val.jsonl#1": [b"jpeg"]})
    assert (first.first.answer, [one.answer for one in first.between], first.last.answer) == (
        "A dog.",
        ["A fox."],
        "a  CAT.",
    )
    assert (first.first.is_right, first.last.is_right) == (False, True)
    assert first.pictures == [base64.b64encode(b"jpeg").decode()] and second.pictures == []
    assert second.last is None
    html = write_page(tmp_path, make_history(samples=samples), {"val.jsonl#1": [b"jpeg"]})
    text = plain_text(html)
    assert "What is it? val.jsonl#1 A cat. A dog. a CAT. on the way after 50 steps A fox." in text
    assert HOSTILE not in html and HOSTILE in text
    assert html.count('class="answer right"') == 1


def test_charts_have_the_values_at_their_places():
    history = make_history(4, validations=[make_validation(0), make_validation(4, loss=8.0, row_accuracy=1)])
    loss, right, norm, rate = training_charts(history)
    training, validation = loss.lines
    assert training.points == "25.00,50.00 50.00,75.00 75.00,83.33 100.00,87.50"
    assert validation.points == "0.00,75.00 100.00,0.00"
    assert (training.last, validation.last) == ("1", "8")
    assert [(tick.label, tick.percent) for tick in loss.y_ticks][::2] == [("0", 100), ("4", 50), ("8", 0)]
    assert [(tick.label, tick.percent) for tick in loss.x_ticks] == [
        ("0", 0),
        ("1", 25),
        ("2", 50),
        ("3", 75),
        ("4", 100),
    ]
    assert right.lines[0].points == "0.00,75.00 100.00,0.00" and right.y_ticks[-1].label == "100"
    assert (norm.lines[0].last, rate.lines[0].last) == ("0.5", "0.0001")
    assert len(training_charts(make_history(4))) == 3


def test_long_curves_are_smoothed_and_thinned_out():
    points = [(float(step), float(step % 2)) for step in range(1000)]
    assert smooth(points[:19]) == []
    assert smooth(points)[-1] == (999.0, 0.5)
    thinned = thin_out(points)
    assert len(thinned) == 334 and thinned[0] == (2.0, 1 / 3)
    assert thin_out([(1.0, math.nan), (2.0, 3.0)]) == [(2.0, 3.0)]


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM_PATH is None, reason="no Chromium")
@pytest.mark.parametrize("size", [{"width": 1280, "height": 900}, PHONE_SIZE])
def test_the_page_fits_and_breaks_no_rule_of_its_own(tmp_path, size):
    """No script runs, nothing is fetched, and nothing is wider than the window."""
    validations = [make_validation(0), make_validation(100, loss=0.5, row_accuracy=0.9)]
    samples = [make_sample(step, answer="word " * 40) for step in (0, 50, 100)]
    write_page(tmp_path, make_history(validations=validations, samples=samples))
    problems = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM_PATH, args=CHROMIUM_FLAGS)
        page = browser.new_page(viewport=size)
        page.on("console", lambda message: problems.append(message.text))
        page.on("requestfailed", lambda request: problems.append(request.url))
        page.goto((tmp_path / "report.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
        lines = page.locator("polyline").evaluate_all(
            "all => all.map(one => one.getBoundingClientRect().width)"
        )
        edges = page.locator("figure").evaluate_all(
            "all => all.map(one => one.getBoundingClientRect().right - one.querySelector('polyline:last-of-type')"
            ".getBoundingClientRect().right)"
        )
        browser.close()
    assert problems == []
    assert len(lines) == 7 and min(lines) > 100
    assert min(edges) > 0, "no curve is cut off"
