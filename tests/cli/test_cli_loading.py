"""Loading a model while somebody waits."""

import re
import sys

import pytest
from cli_fakes import FakeIdefics, Terminal

import idefics
from idefics.cli.main import run

pytestmark = pytest.mark.usefixtures("photos")


@pytest.fixture
def loads(monkeypatch):
    """Stands for `idefics.load`: keeps its arguments, and reports a download where there are bytes to come."""
    calls = []

    def load(model, *, progress, **options):
        calls.append((model, options))
        for done in load.reports:
            progress(done, 1_015_025_832)
        return FakeIdefics()

    load.reports, load.calls = [], calls
    monkeypatch.setattr(idefics, "load", load, raising=False)
    return load


def test_the_keywords_are_those_of_load(loads, capsys):
    assert run(["caption", "a.png", "--device", "cpu", "--revision", "v1", "--remote-images", "public"]) == 0
    assert capsys.readouterr() == ("caption a\n", "")
    options = {"device": "cpu", "dtype": "auto", "revision": "v1", "offline": None, "remote_images": "public"}
    assert loads.calls == [("smolvlm-500m", options)]
    run(["caption", "a.png", "--offline"])
    assert loads.calls[1][1]["offline"] is True


def test_a_download_is_said_once_and_before_it_begins(loads, capsys):
    loads.reports = [0, 10**6, 10**9, 1_015_025_832]
    assert run(["caption", "a.png", "--json"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith('{"image"')
    assert err == "smolvlm-500m is not on this machine yet: downloading 1.0 GB, once\n"


def test_a_download_has_a_bar_for_a_person(loads, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    loads.reports = [0, 507_512_916]
    assert run(["caption", "a.png"]) == 0
    seen = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", terminal.getvalue())
    assert "Loading smolvlm-500m" in seen
    assert "downloading 1.0 GB, once\n" in seen
    assert re.search(r"smolvlm-500m [━╸╺]+ 0\.5/1\.0 GB", seen)
