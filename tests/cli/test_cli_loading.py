"""Loading a model: flags, errors and the progress of a download."""

import re
import sys

import pytest
from cli_fakes import FakeIdefics, FakeTerminal

import idefics
from idefics.cli.main import run

pytestmark = pytest.mark.usefixtures("photo_folder")


@pytest.fixture
def fake_load(monkeypatch):
    """Replaces `idefics.load`: records its arguments and reports the progress of a download."""
    calls = []

    def load(model, *, progress, **options):
        calls.append((model, options))
        for done in load.reports:
            progress(done, 1_015_025_832)
        return FakeIdefics()

    load.reports, load.calls = [], calls
    monkeypatch.setattr(idefics, "load", load, raising=False)
    return load


def test_the_keywords_are_those_of_load(fake_load, capsys):
    assert run(["caption", "a.png", "--device", "cpu", "--revision", "v1", "--remote-images", "public"]) == 0
    assert capsys.readouterr() == ("caption a\n", "")
    options = {
        "adapter": None,
        "device": "cpu",
        "dtype": "auto",
        "threads": None,
        "device_map": None,
        "quantize": None,
        "kv_cache": None,
        "batch_rows": None,
        "kernels": "auto",
        "revision": "v1",
        "offline": None,
        "feature_cache": None,
        "remote_images": "public",
    }
    assert fake_load.calls == [("smolvlm-500m", options)]
    run(["caption", "a.png", "--offline"])
    assert fake_load.calls[1][1]["offline"] is True


def test_placement_and_bits_are_flags(fake_load):
    assert (
        run(
            [
                "caption",
                "a.png",
                "--device-map",
                "auto",
                "--quantize",
                "nf4",
                "--dtype",
                "bfloat16",
                "--threads",
                "3",
            ]
        )
        == 0
    )
    [(_, options)] = fake_load.calls
    assert options["threads"] == 3
    assert (options["device_map"], options["quantize"], options["dtype"]) == ("auto", "nf4", "bfloat16")


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--quantize", "int3", "--quantize is 'int3': give int8, int4, fp8, nf4 or fp4"),
        ("--threads", "many", "--threads is 'many': give a whole number"),
        ("--device-map", "all", "--device-map is 'all': give auto, balanced, balanced_low_0 or sequential"),
    ],
)
def test_invalid_choices_are_refused(fake_load, capsys, flag, value, said):
    assert run(["caption", "a.png", flag, value]) == 2
    assert said in capsys.readouterr().err
    assert not fake_load.calls


def test_a_flag_reaches_the_model(capsys):
    assert run(["caption", "a.png", "--model", "demo", "--device-map", "auto", "--quantize", "int8"]) == 0
    assert capsys.readouterr().out


def test_a_device_that_is_not_there_is_one_line(capsys):
    assert run(["caption", "a.png", "--model", "demo", "--device", "cuda:99"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "cuda:99" in err


def test_a_download_is_announced_once_before_it_begins(fake_load, capsys):
    fake_load.reports = [0, 10**6, 10**9, 1_015_025_832]
    assert run(["caption", "a.png", "--json"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith('{"image"')
    assert err == "smolvlm-500m is not on this machine yet: downloading 1.0 GB, once\n"


def test_a_download_has_a_bar_on_a_terminal(fake_load, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "stderr", terminal := FakeTerminal())
    fake_load.reports = [0, 507_512_916]
    assert run(["caption", "a.png"]) == 0
    seen = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", terminal.getvalue())
    assert "Loading smolvlm-500m" in seen
    assert "downloading 1.0 GB, once\n" in seen
    assert re.search(r"smolvlm-500m [━╸╺]+ 0\.5/1\.0 GB", seen)
