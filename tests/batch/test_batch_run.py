"""The loop of a batch run: every row once, errors as rows, equal pictures once, and going on after any end."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from batch_fakes import SETTINGS, FakeAnswerer, FakeSource, file_row, run_batch

from idefics.batch.ledger import Ledger
from idefics.batch.rows import BatchRow
from idefics.batch.run_settings import RowSelection
from idefics.errors import BadSetting, ModelClosed, OutputError

ROOT = Path(__file__).parents[2]


def read_lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.fixture
def folder(tmp_path):
    """Twelve pictures, two of them equal and one of them bad."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(10):
        (pictures / f"{number}.png").write_bytes(b"picture %d" % number)
    (pictures / "copy.png").write_bytes(b"picture 3")
    (pictures / "bad.png").write_bytes(b"bad one")
    return pictures


@pytest.fixture
def source(folder):
    return FakeSource(lambda: map(file_row, sorted(folder.iterdir())), 12)


@pytest.mark.parametrize("window", [1, 5, 100])
def test_every_row_is_written_once(source, folder, tmp_path, window):
    out, answerer = tmp_path / "out.jsonl", FakeAnswerer(window)
    run = run_batch(source, tmp_path / "ledger", out=out, answerer=answerer)
    rows = read_lines(out)
    assert sorted(row["path"] for row in rows) == sorted(map(str, folder.iterdir()))
    assert (run.counts.num_written, run.counts.num_failed, run.counts.num_reused) == (11, 1, 1)
    assert len(answerer.calls) == 11  # equal pictures are computed once
    by_name = {Path(row["path"]).stem: row for row in rows}
    assert by_name["copy"]["text"] == by_name["3"]["text"] != by_name["4"]["text"]
    assert by_name["bad"]["error_type"] == "BadPicture"
    assert by_name["bad"]["text"] == ""
    assert {row["revision"] for row in rows} == {"r1"}


def test_the_second_run_computes_and_reads_nothing(source, tmp_path, monkeypatch):
    out = tmp_path / "out.jsonl"
    run_batch(source, tmp_path / "ledger", out=out)
    written = out.read_bytes()
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail(f"{self} was read"))
    answerer = FakeAnswerer()
    run = run_batch(source, tmp_path / "ledger", out=out, answerer=answerer)
    monkeypatch.undo()
    assert answerer.calls == []
    assert (run.counts.num_done_before, run.counts.num_failed_before) == (11, 1)
    assert out.read_bytes() == written


def test_another_prompt_or_model_is_another_answer(source, tmp_path):
    out = tmp_path / "out.jsonl"
    for settings in (
        SETTINGS,
        replace(SETTINGS, fingerprint="0" * 64),
        replace(SETTINGS, options={"seed": 1}),
    ):
        run = run_batch(source, tmp_path / "ledger", out=out, settings=settings)
        assert run.counts.num_written == 11
    ask = replace(SETTINGS, task="ask", prompt="What?")
    assert (
        run_batch(source, tmp_path / "ledger", out=out, settings=ask, prompt="What?").counts.num_written == 11
    )
    assert len(read_lines(out)) == 48


def test_a_prefix_is_written_without_computing_again(source, tmp_path):
    out = tmp_path / "out.jsonl"
    run_batch(source, tmp_path / "ledger")
    answerer = FakeAnswerer()
    run_batch(
        source, tmp_path / "ledger", out=out, answerer=answerer, settings=replace(SETTINGS, prefix="sks, ")
    )
    assert answerer.calls == []
    rows = [row for row in read_lines(out) if row["text"]]
    assert sum(row["text"].startswith("sks, ") for row in rows) == 11
    assert len(rows) == 22


def test_prompts_are_filled_in_for_each_row(folder, tmp_path):
    rows = [
        replace(file_row(folder / f"{number}.png", item=f"hat {number}"), id=f"sku{number}")
        for number in range(3)
    ]
    rows.append(file_row(folder / "4.png"))  # without the column
    settings = replace(SETTINGS, task="ask", prompt="What colour is the {item}?")
    out = tmp_path / "out.jsonl"
    run = run_batch(
        FakeSource(lambda: rows), tmp_path / "l", settings=settings, prompt=settings.prompt, out=out
    )
    written = {row["id"]: row for row in read_lines(out)}
    assert written["sku1"]["prompt"] == "What colour is the hat 1?"
    assert written["sku1"]["text"].endswith("What colour is the hat 1?")
    assert written[str(folder / "4.png")]["error_type"] == "BadPrompt"
    assert run.counts.num_failed == 1


def test_a_changed_picture_is_computed_again_and_replaces_its_row(source, folder, tmp_path):
    out = tmp_path / "out.jsonl"
    run_batch(source, tmp_path / "ledger", out=out)
    (folder / "5.png").write_bytes(b"another picture")
    run = run_batch(source, tmp_path / "ledger", out=out)
    assert (run.counts.num_written, run.counts.num_done_before) == (1, 10)
    rows = read_lines(out)
    assert len(rows) == 12
    assert len({row["path"] for row in rows}) == 12


def test_a_touched_or_moved_picture_is_not_computed_again(source, folder, tmp_path):
    run_batch(source, tmp_path / "ledger")
    os.utime(folder / "5.png", (1, 1))
    (folder / "6.png").rename(folder / "moved.png")
    answerer = FakeAnswerer()
    run = run_batch(source, tmp_path / "ledger", answerer=answerer)
    assert answerer.calls == []
    assert run.counts.num_reused == 1


def test_failed_rows_stay_failed_until_they_are_retried(source, folder, tmp_path):
    out = tmp_path / "out.jsonl"
    rows = lambda: [*map(file_row, sorted(folder.iterdir())), file_row(folder / "missing.png")]  # noqa: E731
    source = FakeSource(rows)
    run = run_batch(source, tmp_path / "ledger", out=out)
    assert run.counts.num_failed == 2
    assert "missing.png" in run.counts.first_error or "bad.png" in run.counts.first_error
    assert run_batch(source, tmp_path / "ledger", out=out).counts.num_failed_before == 2
    answerer = FakeAnswerer()
    run = run_batch(source, tmp_path / "ledger", out=out, answerer=answerer, retry_failed=True)
    assert len(answerer.calls) == 1
    assert len(read_lines(out)) == 13
    (folder / "missing.png").write_bytes(b"it is there now")  # tried again without being told
    assert run_batch(source, tmp_path / "ledger", out=out).counts.num_written == 1
    lines = read_lines(out)
    assert len(lines) == 13
    assert sum(line["error"] != "" for line in lines) == 1


def test_a_malformed_row_is_an_error_until_it_is_mended(folder, tmp_path):
    out = tmp_path / "out.jsonl"
    broken = BatchRow(name="rows.csv#2", media=None, error="line 3 has 2 cells")
    run_batch(FakeSource(lambda: [broken]), tmp_path / "ledger", out=out)
    assert read_lines(out)[0]["error"] == "line 3 has 2 cells"
    mended = replace(file_row(folder / "1.png"), name="rows.csv#2")
    run_batch(FakeSource(lambda: [mended]), tmp_path / "ledger", out=out)
    (line,) = read_lines(out)
    assert line["error"] == ""


def test_overwrite_computes_all_rows_again(source, tmp_path):
    out, answerer = tmp_path / "out.jsonl", FakeAnswerer()
    run_batch(source, tmp_path / "ledger", out=out)
    run_batch(source, tmp_path / "ledger", out=out, answerer=answerer, overwrite=True)
    assert len(answerer.calls) == 11
    assert len(read_lines(out)) == 12


def test_shards_are_disjoint_stable_and_complete(source, folder, tmp_path):
    names = []
    for shard in (1, 2, 3):
        out = tmp_path / f"{shard}.jsonl"
        run_batch(source, tmp_path / f"{shard}", out=out, selection=RowSelection(shard=shard, num_shards=3))
        names.append({row["path"] for row in read_lines(out)})
    assert sum(map(len, names)) == len(set.union(*names)) == 12
    (folder / "new.png").write_bytes(b"new")
    selection = RowSelection(shard=1, num_shards=3)
    kept = {row.name for row in selection.select(source)} - {str(folder / "new.png")}
    assert kept == names[0]
    for wrong in ({"shard": 0}, {"shard": 3, "num_shards": 2}, {"limit": 0}):
        with pytest.raises(BadSetting):
            RowSelection(**wrong)


def test_limit_and_max_errors(source, tmp_path):
    run = run_batch(source, tmp_path / "a", selection=RowSelection(limit=3))
    assert run.counts.num_done == run.counts.num_expected == 3
    many_bad = FakeSource(lambda: [file_row(tmp_path / f"no{number}.png") for number in range(50)])
    run = run_batch(many_bad, tmp_path / "b", max_errors=5)
    assert 5 <= run.counts.num_failed <= 6
    assert run.counts.has_too_many_errors


def test_an_error_of_the_answerer_ends_the_run_and_keeps_what_was_done(source, tmp_path):
    def fail(number):
        if number == 6:
            raise ModelClosed("the model is closed")

    out = tmp_path / "out.jsonl"
    with pytest.raises(ModelClosed):
        run_batch(source, tmp_path / "ledger", out=out, answerer=FakeAnswerer(on_answer=fail))
    assert len(read_lines(out)) == 5
    answerer = FakeAnswerer()
    run_batch(source, tmp_path / "ledger", out=out, answerer=answerer)
    assert len(answerer.calls) == 6
    assert len({row["path"] for row in read_lines(out)}) == 12


def test_the_output_is_cut_back_to_what_the_ledger_has_exported(source, tmp_path):
    out, ledger = tmp_path / "out.jsonl", tmp_path / "ledger"
    run_batch(source, ledger, out=out, selection=RowSelection(limit=5))
    with out.open("ab") as file:
        file.write(b'{"id": "half a li')  # as a killed process leaves it
    run_batch(source, ledger, out=out)
    assert len(read_lines(out)) == 12
    out.unlink()
    run_batch(source, ledger, out=out)
    assert len(read_lines(out)) == 12
    with pytest.raises(OutputError, match="was not written from the ledger"):
        run_batch(source, tmp_path / "other", out=out)


def test_an_edited_output_is_not_cut(source, tmp_path):
    out, ledger = tmp_path / "out.jsonl", tmp_path / "ledger"
    run_batch(source, ledger, out=out, selection=RowSelection(limit=5))
    edited = out.read_bytes().replace(b'"caption"', b'"a longer caption"', 1)
    for content in (edited, edited[:-40], b"1\n" * 10_000):
        out.write_bytes(content)
        with pytest.raises(OutputError, match="was changed since it was written: move it away"):
            run_batch(source, ledger, out=out)
        assert out.read_bytes() == content
    out.rename(tmp_path / "edited.jsonl")
    run_batch(source, ledger, out=out)
    assert len(read_lines(out)) == 12


def test_an_output_that_another_run_writes_is_left_to_it(source, tmp_path):
    out = tmp_path / "out.jsonl"

    def write_other(number):
        if number == 4:
            out.write_bytes(b"rows of another run\n")

    with pytest.raises(OutputError, match="changed by another program during the run"):
        run_batch(source, tmp_path / "ledger", out=out, answerer=FakeAnswerer(on_answer=write_other))
    assert out.read_bytes() == b"rows of another run\n"
    with Ledger(tmp_path / "ledger") as ledger:
        assert sum(ledger.count_rows()[0][1:]) == 12


def test_another_file_of_the_same_size_and_time_is_not_the_same(source, folder, tmp_path):
    status = (folder / "5.png").stat()
    run_batch(source, tmp_path / "ledger")
    (folder / "5.png").write_bytes(b"picture X")
    os.utime(folder / "5.png", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert run_batch(source, tmp_path / "ledger").counts.num_written == 1


def test_the_id_follows_the_id_column(folder, tmp_path):
    row, out = file_row(folder / "1.png"), tmp_path / "out.jsonl"
    run_batch(FakeSource(lambda: [row]), tmp_path / "ledger", out=out)
    run = run_batch(FakeSource(lambda: [replace(row, id="sku1")]), tmp_path / "ledger", out=out)
    assert run.counts.num_done_before == 1
    assert [line["id"] for line in read_lines(out)] == ["sku1"]


@pytest.mark.parametrize("num_rows", [10_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_memory_is_flat(tmp_path, num_rows):
    """Of many rows only some are alive at any time."""
    alive, most = 0, 0

    class Data(bytes):
        def __new__(cls, value):
            nonlocal alive
            alive += 1
            return super().__new__(cls, value)

        def __del__(self):
            nonlocal alive
            alive -= 1

    def rows():
        nonlocal most
        from idefics.batch.rows import Media

        for number in range(num_rows):
            most = max(most, alive)
            media = Media(path=f"u{number}", read=lambda number=number: Data(b"%d" % number))
            yield BatchRow(name=f"u{number}", media=media)

    run = run_batch(
        FakeSource(rows), tmp_path / "ledger", out=tmp_path / "out.csv", answerer=FakeAnswerer(16)
    )
    assert run.counts.num_written == num_rows
    assert most < 64


KILLED_PROGRAM = """
import sys, time
from batch_fakes import FakeAnswerer, FakeSource, file_row, run_batch
from pathlib import Path

folder = Path(sys.argv[1])

class CountingAnswerer(FakeAnswerer):
    def _answer(self, item):
        with open(folder / "calls", "ab", buffering=0) as file:
            file.write(item.media + b"\\n")
        time.sleep(0.002)
        return super()._answer(item)

source = FakeSource(lambda: map(file_row, sorted((folder / "pictures").iterdir())))
run_batch(source, folder / "ledger", out=folder / sys.argv[2], answerer=CountingAnswerer(4))
"""


@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.slow)])
@pytest.mark.parametrize("out", ["out.jsonl", "out.csv"])
def test_a_killed_run_goes_on_and_loses_nothing(tmp_path, kills, out):
    """`kill -9` at random moments: at the end every row is there once, and little was computed twice."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(400):
        (pictures / f"{number:03}.png").write_bytes(b"picture %d" % number)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(Path(__file__).parent)]),
    }
    command = [sys.executable, "-c", KILLED_PROGRAM, str(tmp_path), out]
    randomness = random.Random(kills)
    killed = 0
    for _ in range(kills):
        calls = tmp_path / "calls"
        before = calls.stat().st_size if calls.exists() else 0
        process = subprocess.Popen(command, env=environment)
        deadline = time.monotonic() + 60
        while process.poll() is None and (not calls.exists() or calls.stat().st_size == before):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(randomness.uniform(0, 1.6 / kills))
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
    assert killed >= min(kills, 2)
    subprocess.run(command, env=environment, check=True)
    text = (tmp_path / out).read_text()
    rows = read_lines(tmp_path / out) if out.endswith("jsonl") else text.splitlines()[1:]
    assert len(rows) == 400
    assert all(text.count(f"{number:03}.png") == 2 for number in range(400))  # its id and its path
    num_calls = len((tmp_path / "calls").read_bytes().splitlines())
    assert num_calls <= 400 + killed * (4 + 32 + 1)  # the rows in hand, and those that were not committed
    with Ledger(tmp_path / "ledger") as ledger:
        assert [counts[1:] for counts in ledger.count_rows()] == [(400, 0)]
