"""`idefics eval` with the demo models, on small tables and on easy-VQA."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from idefics.cli.main import run
from idefics.demo import pictures
from models.tiny_adapters import write_demo_adapter

# What the demo answers about its pictures; one right answer is left out.
TABLE = """image,question,answer
shapes.png,What color is the circle?,red
shapes.png,What color is the star?,Green.
tower.png,Is it day or night?,Day
broken.png,Is it day or night?,night
"""


TABLE_WORDS = ("folder", "--data", "answers.csv", "--out", "r.json")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder, with the demo's pictures, a broken one and a table of right answers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IDEFICS_MODEL", "demo")
    for path in pictures():
        shutil.copy(path, tmp_path)
    (tmp_path / "broken.png").write_bytes(b"nothing")
    (tmp_path / "answers.csv").write_text(TABLE)
    return tmp_path


@pytest.fixture
def call(capsys):
    """Runs `idefics eval` with some words: its exit code, and the lines on standard output and on standard error."""

    def call(*words):
        code = run(["eval", *map(str, words)])
        printed = capsys.readouterr()
        return code, printed.out.splitlines(), printed.err.splitlines()

    return call


def read(path):
    return json.loads(path.read_text())


def test_a_table_gives_a_score_an_interval_and_the_wrong_ones(folder, call):
    code, out, _ = call("folder", "--data", "answers.csv", "--out", "r.json")
    assert code == 1  # a row failed
    assert out[0] == "exact match: 50.0 (95 % interval 0.0 to 100.0)"
    assert out[1] == "4 rows, 1 failed; r.json has all of them"
    assert out[2] == "2 rows have the score 0: answers.csv#3, answers.csv#4"
    report = read(folder / "r.json")
    assert [row["score"] for row in report["rows"]] == [1, 1, 0, 0]
    first, _, wrong, failed = report["rows"]
    assert (first["answer"], first["references"], first["question"]) == (
        "Red.",
        ["red"],
        "What color is the circle?",
    )
    assert (wrong["answer"], wrong["references"]) == ("Night.", ["Day"])
    assert "is not a picture that can be read" in failed["error"]
    assert failed["path"] == "broken.png"
    assert "answer" not in failed
    assert report["num_failed"] == 1
    assert report["settings"]["prompts"] == "those of `idefics ask`"
    assert report["example"] == "[user] <image>What color is the circle?"
    assert report["versions"]["idefics"]


def test_a_second_run_computes_nothing_and_a_new_option_everything(folder, call):
    words = ("folder", "--data", "answers.csv", "--out", "r.json")
    call(*words)
    first = read(folder / "r.json")["rows"]
    _, _, err = call(*words)
    assert err[0] == "0 written, 3 done before, 1 failed before"
    assert read(folder / "r.json")["rows"] == first
    _, _, err = call(*words, "--max-new-tokens", "1")
    assert err[0] == "3 written, 1 failed"
    assert read(folder / "r.json")["settings"]["max_new_tokens"] == 1


def test_an_adapter_is_another_model_and_in_the_report(folder, call):
    write_demo_adapter(folder / "adapter")
    words = ("folder", "--data", "answers.csv", "--out", "r.json")
    call(*words)
    base = read(folder / "r.json")
    assert "adapter" not in base["settings"]
    _, _, err = call(*words, "--adapter", "adapter")
    assert err[0] == "3 written, 1 failed"
    report = read(folder / "r.json")
    assert report["settings"]["adapter"] == "adapter"
    assert report["fingerprint"] != base["fingerprint"]


def test_new_right_answers_are_scored_without_the_model(folder, call):
    words = ("folder", "--data", "answers.csv", "--out", "r.json")
    call(*words)
    (folder / "answers.csv").write_text(TABLE.replace("Day\n", "Night\n"))
    _, out, err = call(*words)
    assert err[0] == "0 written, 3 done before, 1 failed before"
    assert out[0].startswith("exact match: 75.0 ")


def test_labels_are_ranked(folder, call):
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [("image", "label"), ("tower.png", "tower"), ("puppy.png", "puppy"), ("picnic.png", "door")]
        )
    code, out, _ = call("folder", "--data", "labels.csv", "--out", "r.json")
    assert code == 0
    report = read(folder / "r.json")
    assert out[0].startswith("accuracy: 66.7 ")
    assert [row["answer"] for row in report["rows"][:2]] == ["tower", "puppy"]
    for row in report["rows"]:
        labels = ["door", "puppy", "tower"]
        assert row["answer"] == labels[row["label_scores"].index(max(row["label_scores"]))]
    assert report["settings"]["answers"] == "labels ranked by the sum of their log-probabilities"
    assert "labels: 'door', 'puppy', 'tower'" in report["example"]


def test_the_scores_of_labels_are_those_of_the_model(folder, call, demo_model):
    labels = ["a puppy on green ground", "a tower at night"]
    (folder / "labels.csv").write_text(f"image,label\ntower.png,{labels[1]}\npuppy.png,{labels[0]}\n")
    call("folder", "--data", "labels.csv", "--out", "r.json")
    row = read(folder / "r.json")["rows"][0]
    ranking = demo_model.classify(folder / "tower.png", labels)
    expected = {one.label: one.logprob for one in ranking}
    assert row["label_scores"] == pytest.approx([expected[one] for one in labels], abs=1e-4)


def test_captions_and_few_rows(folder, call):
    (folder / "c.jsonl").write_text(
        json.dumps({"image": "tower.png", "captions": ["A large tower in the middle.", "a tower at night"]})
        + "\n"
        + json.dumps({"image": "puppy.png", "captions": ["A puppy."]})
        + "\n"
    )
    _, out, _ = call("folder", "--data", "c.jsonl", "--out", "r.json")
    assert out[0].startswith("CIDEr-D: ")
    assert "CIDEr-D of 2 pictures says little" in out[-1]
    report = read(folder / "r.json")
    assert report["rows"][0]["references"] == ["A large tower in the middle.", "a tower at night"]
    assert report["metrics"][0]["value"] == pytest.approx(
        100 * sum(row["score"] for row in report["rows"]) / 2
    )


def test_several_answers_of_a_cell(folder, call):
    (folder / "a.csv").write_text(
        "image,question,answers\nshapes.png,What color is the circle?,red|red|red|crimson\n"
    )
    _, out, _ = call("folder", "--data", "a.csv", "--out", "r.json")
    assert out[0].startswith("VQA accuracy: 75.0 ")  # (3 * 2 / 3 + 1 * 3 / 3) / 4


@pytest.mark.parametrize(("model", "least"), [("demo", 90), ("demo-idefics1", 90)])
def test_the_demo_suite(folder, call, model, least):
    code, out, _ = call("demo", "--model", model, "--out", "r.json")
    assert code == 0
    assert out[1].startswith("120 rows, 0 failed")
    assert read(folder / "r.json")["metrics"][0]["value"] > least


def test_the_page_has_scores_and_right_answers(folder, call):
    call("folder", "--data", "answers.csv", "--out", "r.json", "--report", "r.html")
    page = (folder / "r.html").read_text()
    assert "<h1>Evaluation: folder</h1>" in page
    assert "50.0 (95 % interval 0.0 to 100.0)" in page
    rows = json.loads(
        page.partition('<script id="rows" type="application/json">')[2].partition("</script>")[0]
    )
    assert [(row[3], row[12], row[13]) for row in rows] == [
        ("Red.", 1, ["red"]),
        ("Green.", 1, ["Green."]),
        ("Night.", 0, ["Day"]),
        (None, 0, ["night"]),
    ]
    assert all(row[11] for row in rows[:3])  # thumbnails


@pytest.mark.parametrize("model", ["demo", "demo-idefics1"])
def test_easy_vqa(folder, call, model):
    pytest.importorskip("easy_vqa")
    _, out, _ = call("easy-vqa", "--model", model, "--limit", 60, "--out", "r.json")
    assert out[1].startswith("60 rows, 0 failed")
    report = read(folder / "r.json")
    assert report["rows"][0]["question"] == "what is the red shape?"
    assert report["rows"][0]["references"] == ["triangle"]
    mean = sum(row["score"] for row in report["rows"]) / 60
    assert report["metrics"][0]["value"] == pytest.approx(100 * mean, abs=1e-3)
    assert report["metrics"][0]["low"] < report["metrics"][0]["value"] < report["metrics"][0]["high"]


def test_shots_are_the_same_for_a_row_whatever_the_limit(folder, call):
    pytest.importorskip("easy_vqa")
    words = ("easy-vqa", "--shots", 2, "--seed", 5)
    call(*words, "--limit", 6, "--out", "a.json")
    call(*words, "--limit", 3, "--out", "b.json")
    first, second = read(folder / "a.json"), read(folder / "b.json")
    assert first["rows"][:3] == second["rows"]
    assert first["example"].count("<image>") == 3
    assert "random, drawn for each row, seed 5" in first["settings"]["selection"]


def test_a_file_of_another_kind_is_replaced_on_demand_only(folder, call):
    (folder / "r.json").write_text("precious")
    code, _, err = call(*TABLE_WORDS, "--limit", 1)
    assert code == 2
    assert (
        "r.json is no report of `idefics eval --out`: name another file, or replace it with --over" in err[-1]
    )
    assert (folder / "r.json").read_text() == "precious"
    code, out, _ = call(*TABLE_WORDS, "--limit", 1, "--overwrite")
    assert (code, out[1]) == (0, "1 row, 0 failed; r.json has all of them")


def test_a_column_of_another_name_and_addresses_that_may_not_be_fetched(folder, call):
    (folder / "t.csv").write_text("foto,question,answer\nhttp://localhost/x.png,Is it day or night?,night\n")
    words = ("folder", "--data", "t.csv", "--out", "r.json")
    _, _, err = call(*words)
    assert "name the one with the pictures with --image-column" in err[-1]
    code, out, err = call(*words, "--image-column", "foto", "--remote-images", "off")
    assert (code, out[2]) == (1, "1 row has the score 0: t.csv#1")
    assert "--remote-images" in read(folder / "r.json")["rows"][0]["error"]


@pytest.mark.parametrize("name", ["answers.csv", "labels.csv"])
def test_a_row_that_takes_too_long_has_failed(folder, call, name):
    (folder / "labels.csv").write_text("image,label\ntower.png,tower\ndoor.png,door\n")
    words = ("folder", "--data", name, "--limit", 2, "--out", "r.json", "--timeout", "0.00001")
    code, out, _ = call(*words)
    assert (code, out[1]) == (1, "2 rows, 2 failed; r.json has all of them")
    assert "was not finished after 1e-05 seconds" in read(folder / "r.json")["rows"][0]["error"]


def test_beams_with_the_authors_prompts(folder, call):
    """Beam search cannot ban texts: a line break ends an answer instead."""
    (folder / "c.csv").write_text("image,caption\ntower.png,a tower\n")
    code, out, _ = call(
        "coco", "--data", "c.csv", "--num-beams", 2, "--out", "r.json", "--model", "demo-idefics1"
    )
    assert code == 0
    settings = read(folder / "r.json")["settings"]
    assert settings["num_beams"] == 2
    assert "\n" in settings["stop_words"]
    assert "banned" not in settings
    assert "published figures are in the report" in out[-1]


def test_a_run_that_was_stopped_reports_no_row_of_older_data(folder, call):
    lines = TABLE.splitlines(keepends=True)
    call(*TABLE_WORDS)
    (folder / "answers.csv").write_text("".join([lines[0], lines[4], *lines[1:4]]))
    _, out, _ = call(*TABLE_WORDS, "--max-errors", 1)
    report = read(folder / "r.json")
    assert [row["name"] for row in report["rows"]] == ["answers.csv#1"]
    assert not report["is_complete"]
    assert "the run was stopped: these are the rows so far" in out
    (folder / "answers.csv").write_text(TABLE)
    call(*TABLE_WORDS)
    assert read(folder / "r.json")["is_complete"]


def test_a_changed_picture_of_an_example_is_another_request(folder, call):
    (folder / "two.csv").write_text(
        "image,question,answer\ntower.png,Is it day or night?,night\ndoor.png,Is it day or night?,night\n"
    )
    words = ("folder", "--data", "two.csv", "--shots", "1", "--out", "r.json")
    call(*words)
    shutil.copy("shapes.png", "door.png")
    _, _, err = call(*words)
    assert err[0] == "2 written"
    _, _, err = call(*words)
    assert err[0] == "0 written, 2 done before"


def test_it_goes_on_after_it_was_killed(folder, call):
    pytest.importorskip("easy_vqa")
    words = ["eval", "easy-vqa", "--limit", "3000", "--out", "r.json"]
    process = subprocess.Popen([sys.executable, "-m", "idefics", *words], stderr=subprocess.DEVNULL)
    ledger = folder / "r.json.ledger"
    wal = folder / "r.json.ledger-wal"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (wal.exists() and wal.stat().st_size > 500_000):
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert ledger.exists()
    _, out, err = call("easy-vqa", "--limit", 40, "--out", "r.json")
    done_before = int(err[0].split(" done before")[0].split()[-1])
    assert done_before > 0
    assert out[1].startswith("40 rows, 0 failed")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("folder", "--out", "r.json"), "no data given: name a table or a folder with --data for folder"),
        (("nonsense", "--out", "r.json"), "suite is 'nonsense'; give coco, "),
        (("folder", "--data", "answers.csv"), "nothing says where the report goes: give --out report.json"),
        ((), "give the name of one suite"),
        (
            ("folder", "--data", "answers.csv", "--shots", "40", "--out", "r.json"),
            "shots is 40; give a whole number from 0 to 32",
        ),
        (("folder", "--data", "bare.csv", "--out", "r.json"), "has no column question"),
        (("folder", "--data", "none.csv", "--out", "r.json"), "no column of right answers"),
        (("answers.csv", "--out", "r.json"), "suite is 'answers.csv'; give"),
        (("coco", "--out", "r.json"), "no data given: name the folder of coco with --data"),
        (("coco", "--data", ".", "--out", "r.json"), "captions_val2014.json"),
        ((*TABLE_WORDS, "--seed", "-1"), "--seed is -1; give a whole number from 0"),
        ((*TABLE_WORDS, "--max-new-tokens", "0"), "--max-new-tokens is 0; give a whole number from 1"),
        ((*TABLE_WORDS, "--num-beams", "0"), "--num-beams is 0; give a whole number from 1 to 64"),
        ((*TABLE_WORDS, "--question", " "), "question is blank"),
        ((*TABLE_WORDS, "--selection", "rices"), "selection is about few-shot examples, and shots is 0"),
        ((*TABLE_WORDS, "--support", "answers.csv"), "support is about few-shot examples, and shots is 0"),
        ((*TABLE_WORDS, "--split", "test"), "split is 'test', but answers.csv is a table"),
        (("demo", "--question", "What?", "--out", "r.json"), "question is for tables"),
        (("demo", "--image-column", "image", "--out", "r.json"), "--image-column is for tables"),
        ((*TABLE_WORDS, "--metric", "accuracy"), "metric is 'accuracy', which needs choices or labels"),
        ((*TABLE_WORDS, "--metric", "roc-auc"), "metric is 'roc-auc', which needs two labels"),
        ((*TABLE_WORDS, "--metric", "ndcg"), "metric is 'ndcg', which is for its own suite"),
        (("visdial", "--data", "answers.csv", "--out", "r.json"), "a table has not all that visdial needs"),
        (("folder", "--data", "latin.csv", "--out", "r.json"), "the header is not text in UTF-8: save"),
        (("folder", "--data", "a.json", "--out", "r.json"), "a.json is JSON: give JSON lines (.jsonl)"),
        (("coco", "--data", "a.json", "--out", "r.json"), "data is a.json, which is no folder, no table"),
        (("folder", "--data", ".", "--out", "r.json"), ". has pictures, but no right answers: give a table"),
        ((*TABLE_WORDS, "--report", "tower.png"), "the report tower.png is a page of HTML"),
        ((*TABLE_WORDS, "--report", "r.json"), "r.json is named twice"),
        (("folder", "--data", "answers.csv", "--out", "answers.csv"), "is an input of this evaluation too"),
        (
            ("folder", "--data", "answers.csv", "--out", "tower.png"),
            "tower.png is no report of `idefics eval",
        ),
    ],
)
def test_mistakes_are_said_before_anything_is_made(folder, call, words, message):
    (folder / "bare.csv").write_text("image,answer\ntower.png,x\n")
    (folder / "none.csv").write_text("image,title\ntower.png,x\n")
    (folder / "latin.csv").write_text("image,question,r\xe9ponse\ntower.png,x,y\n", encoding="latin-1")
    (folder / "a.json").write_text("[]")
    code, _, err = call(*words)
    assert code == 2
    assert message in err[-1], err
    assert not (folder / "r.json").exists()
    assert not (folder / "r.json.ledger").exists()


def test_a_table_for_a_suite_with_labels(folder, call):
    """The numbers of labels count those of the suite; a row that lacks a field of the prompt has failed."""
    lines = [{"image": "tower.png", "text": "hi", "label": 1}, {"image": "door.png", "label": 0}]
    (folder / "memes.jsonl").write_text("\n".join(map(json.dumps, lines)))
    code, _, _ = call("hateful-memes", "--data", "memes.jsonl", "--out", "r.json")
    assert code == 1
    first, second = read(folder / "r.json")["rows"]
    assert first["references"] == ["yes"]
    assert first["answer"] in ("yes", "no")
    assert second["error"] == "memes.jsonl#2 has no text, which the prompt needs"
    (folder / "memes.jsonl").write_text(json.dumps(lines[0]))
    call("hateful-memes", "--data", "memes.jsonl", "--out", "r.json")
    figure = read(folder / "r.json")["metrics"][0]  # of rows that all have one label
    assert (figure["value"], figure["low"], figure["high"]) == (None, None, None)


def test_one_question_for_all_rows(folder, call):
    (folder / "bare.csv").write_text("image,answer\ntower.png,Night\n")
    _, out, _ = call("folder", "--data", "bare.csv", "--question", "Is it day or night?", "--out", "r.json")
    assert out[0].startswith("exact match: 100.0 ")


def test_the_list_has_all_suites(call):
    from idefics.evaluate.suites import SUITES

    code, out, _ = call("--list")
    assert code == 0
    assert [line.split()[0] for line in out] == list(SUITES)
    assert all(". --data: " in line for line in out)
