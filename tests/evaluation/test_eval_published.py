"""Published figures: each has a suite, a source and what is known of its settings; no word of a report claims more."""

import json
from pathlib import Path

import pytest

import idefics
from idefics.catalog import CATALOG
from idefics.evaluate.report import PUBLISHED_FILE, figures_of_model, published_figures
from idefics.evaluate.suites import SUITES

PACKAGE = Path(idefics.__file__).parent


def test_figures_of_the_paper_and_the_card():
    found = {(one.model, one.shots): one for one in published_figures("vqav2") if "OBELICS" in one.source}
    assert found["idefics-9b", 8].value == 56.4
    assert found["idefics-80b", 0].value == 60.0
    assert "not known: the seed" in found["idefics-9b", 8].settings
    (imagenet,) = [one for one in published_figures("imagenet") if one.model == "idefics-80b"]
    assert (imagenet.shots, imagenet.value) == (16, 72.9)
    assert "RICES" in imagenet.settings


def test_every_figure_has_a_suite_a_model_and_a_source():
    content = json.loads(PUBLISHED_FILE.read_text())
    names = {name for entry in CATALOG for name in entry.short_names}
    assert len(content["figures"]) > 120
    for one in content["figures"]:
        assert one["suite"] in SUITES
        assert one["model"] in names
        assert content["sources"][one["source"]]
        assert 0 < one["value"] < 125


@pytest.mark.parametrize("suite", SUITES)
def test_they_are_in_order(suite):
    figures = published_figures(suite)
    assert list(figures) == sorted(figures, key=lambda one: (one.model, one.shots))


@pytest.mark.parametrize(
    ("model", "published"),
    [
        ("9b", "idefics-9b"),
        ("HuggingFaceM4/idefics-80b", "idefics-80b"),
        ("HuggingFaceM4/Idefics3-8B-Llama3", "idefics3-8b"),
        ("models/idefics-9b/", "idefics-9b"),
        ("demo", None),
        ("9b-instruct", None),
    ],
)
def test_the_figures_of_a_checkpoint(model, published):
    figures = figures_of_model(published_figures("textvqa"), model)
    assert {one.model for one in figures} == ({published} if published else set())


def test_nothing_claims_that_a_figure_was_reproduced():
    files = [
        *PACKAGE.glob("evaluate/**/*.py"),
        *PACKAGE.glob("evaluate/*.json"),
        *PACKAGE.glob("cli/eval*.py"),
    ]
    assert len(files) > 20
    assert not [path.name for path in files if "reproduced" in path.read_text(encoding="utf-8").lower()]
