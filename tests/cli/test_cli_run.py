"""`idefics run` and `idefics ledger` with the demo model."""

import csv
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from idefics.cli.main import run
from idefics.demo import pictures

TOWER = "A large tower in the middle, on blue ground at night."


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder, with the demo's pictures and a broken one in `photos`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IDEFICS_MODEL", "demo")
    (tmp_path / "photos").mkdir()
    for path in pictures():
        shutil.copy(path, tmp_path / "photos")
    (tmp_path / "photos" / "broken.png").write_bytes(b"nothing")
    return tmp_path


@pytest.fixture
def call(capsys):
    """Runs a command line: its exit code, and the lines on standard output and on standard error."""

    def call(*words):
        code = run(list(words))
        printed = capsys.readouterr()
        return code, printed.out.splitlines(), printed.err.splitlines()

    return call


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_folder_becomes_a_file_and_the_second_run_does_nothing(folder, call, monkeypatch):
    command = ["run", "photos", "--out", "out.jsonl"]
    monkeypatch.setattr(sys, "argv", ["idefics", *command])
    code, out, err = call(*command)
    assert (code, out) == (1, [])
    assert err[0] == "7 written, 1 failed"
    assert err[1].startswith("first error: photos/broken.png: ")
    assert err[2] == "to try them again: idefics run photos --out out.jsonl --retry-failed"
    rows = {row["path"]: row for row in read_lines(folder / "out.jsonl")}
    assert len(rows) == 8
    assert rows["photos/tower.png"]["text"] == TOWER
    assert rows["photos/tower.png"]["model"] == "demo"
    assert rows["photos/broken.png"]["error_type"] == "BadPicture"
    before = (folder / "out.jsonl").read_bytes()
    code, _, err = call(*command)
    assert code == 1
    assert err[0] == "0 written, 7 done before, 1 failed before"
    assert (folder / "out.jsonl").read_bytes() == before
    shutil.copy(folder / "photos" / "tower.png", folder / "photos" / "broken.png")
    code, _, err = call(*command)
    assert code == 0
    assert err[0] == "1 written (1 of them known from equal pictures), 7 done before"


def test_questions_labels_and_columns(folder, call):
    (folder / "goods.csv").write_text(
        "image,item,sku\nphotos/shapes.png,circle,s1\nphotos/shapes.png,star,s2\nphotos/door.png,,s3\n"
    )
    prompt = "What color is the {item}?"
    code, _, _ = call(
        "run", "goods.csv", "--task", "ask", "--prompt", prompt, "--id-column", "sku", "--out", "colours.csv"
    )
    with (folder / "colours.csv").open(newline="") as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    assert (rows["s1"]["text"], rows["s2"]["text"]) == ("Red.", "Green.")
    assert rows["s1"]["prompt"] == "What color is the circle?"
    assert rows["s3"]["error_type"] == "BadPrompt"
    assert code == 1
    code, _, _ = call(
        *("run", "photos/tower.png", "photos/puppy.png", "--task", "classify", "--labels", "tower,puppy"),
        *("--calibrated", "--out", "places.parquet"),
    )
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(folder / "places.parquet").to_pylist()
    assert {row["path"]: row["text"] for row in rows} == {
        "photos/tower.png": "tower",
        "photos/puppy.png": "puppy",
    }
    assert json.loads(rows[0]["settings"])["calibrated"] is True
    assert sum(one["probability"] for one in rows[0]["probabilities"]) == pytest.approx(1)
    assert code == 0


def test_texts_next_to_pictures_and_in_them(folder, call):
    photos = folder / "photos"
    (photos / "broken.png").unlink()
    (photos / "tower.txt").write_text("mine\n")
    times = (photos / "puppy.png").stat().st_mtime_ns
    code, _, err = call("run", "photos", "--sidecar", "txt", "--write-metadata", "--prefix", "sks, ")
    assert code == 0
    assert err[-1] == "6 written, 1 left alone, as they have a text, 12 sidecars or descriptions written"
    assert (photos / "tower.txt").read_text() == "mine\n"
    assert (photos / "statue.txt").read_text().startswith("sks, A large statue")
    from idefics.batch.xmp import read_description

    assert read_description(photos / "statue.png").startswith("sks, A large statue")
    assert read_description(photos / "tower.png") is None
    assert (photos / "puppy.png").stat().st_mtime_ns == times
    # Its bytes are others now; it is the same picture.
    code, _, err = call("run", "photos", "--sidecar", "txt", "--write-metadata", "--prefix", "sks, ")
    assert err[-1] == "0 written, 6 done before, 1 left alone, as they have a text"
    (photos / "statue.txt").unlink()  # a sidecar that is gone is written again from the ledger
    _, _, err = call("run", "photos", "--sidecar", "txt", "--write-metadata", "--prefix", "sks, ")
    assert err[-1].endswith("1 sidecars or descriptions written")
    assert (photos / "statue.txt").read_text().startswith("sks, A large statue")
    call("run", "photos", "--sidecar", "txt", "--existing", "append", "--ledger", "other.ledger")
    assert (photos / "tower.txt").read_text() == f"mine, {TOWER}\n"
    call("run", "photos", "--sidecar", "txt", "--existing", "append", "--ledger", "other.ledger")
    assert (photos / "tower.txt").read_text() == f"mine, {TOWER}\n"


def test_a_run_that_is_killed_after_a_text_was_written_does_not_append_twice(folder, call, monkeypatch):
    from idefics.batch.ledger import Ledger

    photos = folder / "photos"
    (photos / "tower.txt").write_text("mine\n")
    command = ["run", "photos/tower.png", "--sidecar", "txt", "--existing", "append", "--ledger", "l"]
    with monkeypatch.context() as killed:
        killed.setattr(Ledger, "mark_text_written", lambda *_: None)
        call(*command)
    assert (photos / "tower.txt").read_text() == f"mine, {TOWER}\n"
    call(*command)
    assert (photos / "tower.txt").read_text() == f"mine, {TOWER}\n"


def test_two_pictures_of_one_sidecar_are_told(folder, call):
    shutil.copy(folder / "photos" / "tower.png", folder / "photos" / "puppy.jpg")
    code, _, err = call("run", "photos/puppy.png", "photos/puppy.jpg", "--sidecar", "txt", "--ledger", "l")
    assert code == 1
    assert any("1 of them could not be written" in line for line in err)
    assert any(
        "its text would be written to photos/puppy.txt, which is that of photos/puppy" in line for line in err
    )


def test_an_answer_out_of_time_is_an_error_row(folder, call):
    code, _, err = call("run", "photos/tower.png", "--out", "out.jsonl", "--timeout", "0.000001")
    assert code == 1
    assert read_lines(folder / "out.jsonl")[0]["error_type"] == "RequestTimeout"
    # Another time limit changes no answer, so it is the same row.
    code, _, err = call("run", "photos/tower.png", "--out", "out.jsonl", "--timeout", "50")
    assert err[0] == "0 written, 1 failed before"
    code, _, _ = call("run", "photos/tower.png", "--out", "out.jsonl", "--timeout", "50", "--retry-failed")
    assert code == 0
    assert [row["text"] for row in read_lines(folder / "out.jsonl")] == [TOWER]


def test_the_ledger_says_what_there_is_and_writes_it_again(folder, call):
    call("run", "photos", "--out", "out.jsonl")
    call("run", "photos", "--out", "out.jsonl", "--task", "ask", "--prompt", "Is it day or night?")
    code, out, _ = call("ledger", "out.jsonl.ledger")
    assert code == 0
    assert out[0] == "run 1: caption"
    assert out[3] == "run 2: ask 'Is it day or night?'"
    assert out[2] == out[5] == "  7 answered, 1 failed"
    assert sum("broken.png: BadPicture" in line for line in out) == 2
    code, out, _ = call("ledger", "out.jsonl.ledger", "--json")
    assert [json.loads(line)["answered"] for line in out[:2]] == [7, 7]
    call("ledger", "out.jsonl.ledger", "--out", "again.jsonl")
    assert (folder / "again.jsonl").read_bytes() == (folder / "out.jsonl").read_bytes()
    code, _, err = call("ledger", "out.jsonl.ledger", "--out", "again.jsonl")
    assert (code, err) == (2, ["idefics ledger: again.jsonl exists: name a new file"])
    assert not list(folder.glob("*.ledger-*"))  # SQLite's own files are gone


def test_the_report_has_the_rows_and_thumbnails(folder, call):
    import zipfile

    with zipfile.ZipFile("photos.zip", "w") as archive:
        for path in sorted((folder / "photos").iterdir()):
            archive.write(path, path.name)
    code, _, _ = call("run", "photos.zip", "--out", "out.csv", "--report", "report.html")
    assert code == 1
    page = (folder / "report.html").read_text()
    assert TOWER in page
    assert "photos.zip/broken.png" in page
    assert len(re.findall("/9j/", page)) == 7  # a thumbnail of each picture that can be read


MISTAKES = [
    (["run"], "no input given"),
    (["run", "photos"], "nothing says where the answers go: give --out answers.jsonl"),
    (["run", "missing", "--out", "a.jsonl"], "missing: no such file"),
    (["run", "photos", "--out", "a.txt"], "does not end in .jsonl, .csv or .parquet"),
    (["run", "photos", "--out", "no/a.csv"], "there is no folder no"),
    (["run", "photos", "--out", "a.csv", "--task", "paint"], "task is 'paint'"),
    (["run", "photos", "--out", "a.csv", "--task", "ask"], "no question given: --prompt"),
    (["run", "photos", "--out", "a.csv", "--prompt", "Hi"], "caption takes no prompt"),
    (["run", "photos", "--out", "a.csv", "--labels", "a,b"], "labels are for --task classify"),
    (["run", "photos", "--out", "a.csv", "--task", "classify"], "no labels given"),
    (["run", "photos", "--out", "a.csv", "--shard", "5/4"], "shard is 5/4; give i/n"),
    (["run", "photos", "--out", "a.csv", "--limit", "0"], "--limit is 0; give a number"),
    (["run", "photos", "--out", "a.csv", "--temperature", "-1"], "--temperature is -1"),
    (["run", "photos", "--out", "a.csv", "--report", "no/r.html"], "there is no folder no"),
    (["run", "photos", "--out", "a.csv", "--task", "ask", "--prompt", "{x.y}?"], "an attribute"),
    (
        ["run", "photos", "--out", "a.csv", "--task", "ask", "--prompt", "Is it {nosuch}?"],
        "it has no columns",
    ),
    (["ledger"], "0 ledgers given"),
    (["ledger", "photos/tower.png"], "file is not a database"),
]


@pytest.mark.parametrize(
    ("words", "message"), MISTAKES, ids=lambda one: " ".join(one) if isinstance(one, list) else ""
)
def test_mistakes_are_one_line_before_the_model_is_loaded(folder, call, words, message):
    code, out, err = call(*words)
    assert (code, out) == (2, [])
    assert len(err) == 1
    assert message in err[0]
    assert err[0].startswith(f"idefics {words[0]}: ")


def test_outputs_replace_no_input_and_no_other_file(folder, call):
    (folder / "in.csv").write_text("image\nphotos/tower.png\n")
    for words, message in (
        (["--out", "in.csv", "--overwrite"], "in.csv is an input of this run too"),
        (["--out", "out.csv", "--report", "in.csv"], "in.csv is an input of this run too"),
        (["--out", "out.csv", "--report", "photos/tower.png"], "ends in .html"),
        (["--out", "out.csv", "--report", "page.html"], "page.html exists and is no report"),
    ):
        (folder / "page.html").write_text("<!doctype html> mine")
        code, _, err = call("run", "in.csv", *words)
        assert (code, len(err)) == (2, 1)
        assert message in err[0]
    assert (folder / "in.csv").read_text() == "image\nphotos/tower.png\n"
    (folder / "page.html").unlink()
    for _ in range(2):  # a report replaces an earlier one
        assert call("run", "in.csv", "--out", "out.csv", "--report", "page.html")[0] == 0


def test_an_input_without_a_picture_is_an_error(folder, call):
    (folder / "empty.csv").write_text("image\n")
    code, _, err = call("run", "empty.csv", "--out", "out.csv")
    assert (code, err) == (2, ["idefics run: the input has no picture; skipped: nothing"])


def test_an_output_of_other_origin_is_not_replaced(folder, call):
    (folder / "out.csv").write_text("precious\n")
    code, _, err = call("run", "photos", "--out", "out.csv")
    assert code == 2
    assert "out.csv exists and was not written from the ledger" in err[0]
    assert (folder / "out.csv").read_text() == "precious\n"
    assert call("run", "photos", "--out", "out.csv", "--overwrite")[0] == 1
    assert (folder / "out.csv").read_text().startswith("id,path,task")


def start_run_of(photos):
    """A process that writes about many pictures, which takes it some seconds."""
    program = "import sys; from idefics.__main__ import main; sys.argv[0] = 'idefics'; main()"
    words = ["run", photos.name, "--task", "write", "--max-new-tokens", "40", "--out", "out.jsonl"]
    return subprocess.Popen(
        [sys.executable, "-c", program, *words],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def count_rows(ledger):
    """The rows that have an answer; 0 while there is no ledger yet."""
    try:
        with sqlite3.connect(f"file:{ledger}?mode=ro", uri=True) as connection:
            return connection.execute("SELECT count(*) FROM rows").fetchone()[0]
    except sqlite3.OperationalError:
        return 0


@pytest.mark.parametrize("signals", [[signal.SIGINT], [signal.SIGTERM], [signal.SIGINT, signal.SIGINT]])
def test_an_interrupted_run_says_how_to_go_on(tmp_path, monkeypatch, signals):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IDEFICS_MODEL", "demo")
    photos = tmp_path / "photos"
    photos.mkdir()
    import PIL.Image

    for number in range(400):
        PIL.Image.new("RGB", (64, 64), (number % 256, 7 * number % 256, 90)).save(photos / f"{number}.png")
    process = start_run_of(photos)
    ledger = tmp_path / "out.jsonl.ledger"
    deadline = time.monotonic() + 60
    while count_rows(ledger) < 20 and time.monotonic() < deadline:
        time.sleep(0.02)
    for number in signals:
        process.send_signal(number)
        time.sleep(0.05)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "to go on: idefics run photos --task write --max-new-tokens 40 --out out.jsonl" in err
    assert "Traceback" not in err
    done = len((tmp_path / "out.jsonl").read_text().splitlines())
    assert 20 <= done < 400
    assert count_rows(ledger) == done
