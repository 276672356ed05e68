"""`--adapter` of the commands, and `idefics merge`."""

import json
import re
import shutil

import pytest

from idefics.cli.main import run
from idefics.demo import pictures
from idefics.server.settings import read_settings
from models.tiny_adapters import write_demo_adapter


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder, with two pictures in `photos` and two adapters of the demo model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IDEFICS_MODEL", "demo")
    (tmp_path / "photos").mkdir()
    for path in pictures()[:2]:
        shutil.copy(path, tmp_path / "photos")
    write_demo_adapter(tmp_path / "first", scale=0.3)
    write_demo_adapter(tmp_path / "second", scale=0.3, alpha=4)
    return tmp_path


@pytest.fixture
def call(capsys):
    """Runs a command line: its exit code, and the lines on standard output and on standard error."""

    def call(*words):
        code = run(list(words))
        printed = capsys.readouterr()
        return code, printed.out.splitlines(), printed.err.splitlines()

    return call


def captions(call, *words):
    code, out, err = call("caption", "photos", *words)
    assert (code, err) == (0, [])
    return out


def test_an_adapter_changes_the_answers_of_a_command(folder, call):
    base, first, second = (
        captions(call, *words) for words in ([], ["--adapter", "first"], ["--adapter", "./second"])
    )
    assert len({*map(tuple, (base, first, second))}) == 3


def test_a_merged_folder_answers_as_the_model_with_its_adapter(folder, call):
    code, out, err = call("merge", "demo", "first", "--out", "merged")
    assert (code, err) == (0, [])
    assert out[0].startswith("merged was written: ")
    assert captions(call, "--model", "./merged") == captions(call, "--adapter", "first")
    code, out, _ = call("merge", "demo", "first", "--out", "again", "--json")
    report = json.loads(out[0])
    assert (code, report["folder"], report["untied"]) == (0, "again", False)
    assert 0 < report["changed"] < report["tensors"]
    code, _, err = call("merge", "demo", "first", "--out", "merged")
    assert (code, err) == (
        2,
        ["idefics merge: merged already holds other files: give a new folder, or empty it"],
    )


def test_a_model_is_quantized_with_its_adapter(folder, call):
    assert call("quantize", "demo", "--adapter", "first", "--to", "int8", "--out", "small")[0] == 0
    call("merge", "demo", "first", "--out", "merged")
    call("quantize", "./merged", "--to", "int8", "--out", "expected")
    assert captions(call, "--model", "./small") == captions(call, "--model", "./expected")
    code, out, _ = call("quantize", "demo", "--adapter", "first", "--to", "int8", "--out", "small")
    assert (code, out[0]) == (0, "small exists already and is up to date")
    code, _, err = call("quantize", "demo", "--adapter", "second", "--to", "int8", "--out", "small")
    assert (code, "small already holds other files" in err[0]) == (2, True)


def test_the_key_of_a_batch_run_is_the_adapters_content(folder, call):
    command = ["run", "photos", "--out", "out.jsonl"]
    assert call(*command)[2] == ["2 written"]
    assert call(*command, "--adapter", "first")[2] == ["2 written"]
    shutil.move("first", "moved")
    known = ["2 written (2 of them known from equal pictures)"]  # nothing is computed again
    assert call(*command, "--adapter", "moved")[2] == known
    assert call(*command, "--adapter", "second")[2] == ["2 written"]
    assert call(*command)[2] == ["0 written, 2 done before"]
    call("run", "photos", "--out", "with.jsonl", "--adapter", "second")
    rows = [json.loads(line) for line in (folder / "with.jsonl").read_text().splitlines()]
    assert {row["settings"]["adapter"] for row in rows} == {"second"}
    assert {row["model"] for row in rows} == {"demo"}
    listed = call("ledger", "with.jsonl.ledger")[1]
    assert re.fullmatch(r"  model demo \([0-9a-f]{12}\); adapter second", listed[1])


def test_what_is_no_adapter_is_one_line(folder, call):
    code, out, err = call("caption", "photos", "--adapter", "photos")
    assert (code, out) == (2, [])
    assert len(err) == 1
    assert "the adapter 'photos' has no adapter_config.json: give the folder that" in err[0]
    code, _, err = call("caption", "photos", "--model", "./first")
    assert code == 2
    assert "holds an adapter (LoRA), not a whole model: give its base model" in err[0]
    assert "and --adapter 'first' as its adapter; `idefics merge` makes one model of both" in err[0]


def test_the_server_has_the_setting(folder, monkeypatch):
    assert read_settings({"adapter": "first"}, None).adapter == "first"
    monkeypatch.setenv("IDEFICS_ADAPTER", "second")
    assert read_settings({}, None).adapter == "second"
