"""Tables with right answers: what their cells say, and the suite that their columns make."""

import json

import pytest

from idefics.batch.rows import BatchRow, Media
from idefics.batch.sources.settings import SourceSettings
from idefics.errors import BadSetting
from idefics.evaluate.layouts.table import TableSettings, to_evaluation_row
from idefics.evaluate.suite_data import SuiteData
from idefics.evaluate.suites import SUITES

CHOICES = ["day", "night"]
PLAIN = TableSettings()


def row(settings=PLAIN, **columns):
    media = Media(path="a.png", read=bytes)
    return to_evaluation_row(BatchRow(name="t#1", media=media, columns=columns), settings)


@pytest.mark.parametrize(
    ("columns", "references"),
    [
        ({"answer": 4}, ("4",)),
        ({"answer": 4.0}, ("4",)),
        ({"answers": "red | crimson||"}, ("red", "crimson")),
        ({"answers": '["a|b", 2]'}, ("a|b", "2")),
        ({"answer": "red|crimson"}, ("red|crimson",)),
        ({"label": "cat "}, ("cat",)),
        ({"label": 0}, ("0",)),
        ({"choices": CHOICES, "answer": 1}, ("night",)),
        ({"choices": CHOICES, "label": 1}, ("night",)),
        ({"choices": "day|night", "answer": "1"}, ("night",)),
        ({"choices": CHOICES, "answer": "B"}, ("night",)),
        ({"choices": CHOICES, "answer": "Night."}, ("night",)),
        ({"choices": CHOICES, "answers": ["noon", "night"]}, ("noon", "night")),
        ({"choices": ["2", "1"], "answer": "1"}, ("1",)),
        ({"choices": CHOICES, "answer": "7"}, ("7",)),
    ],
)
def test_right_answers(columns, references):
    assert row(**columns).references == references
    assert not row(**columns).error


def test_numbers_of_a_suites_labels():
    settings = TableSettings(suite_labels=("no", "yes"))
    assert [row(settings, label=one).references for one in (1, "1", "Yes")] == [("yes",)] * 3


def test_questions():
    assert row(question="Where?", answer="x").fields["question"] == "Where?"
    assert row(query="Where?", answer="x").fields["question"] == "Where?"
    empty = row(question=" ", answer="x")
    assert (empty.error, empty.media) == ("t#1 has no question: its cell is empty", None)
    one_for_all = TableSettings(question="What?")
    assert row(one_for_all, question=" ", answer="x").fields["question"] == "What?"
    listed = TableSettings(lists_choices=True)
    assert row(listed, question="When?", choices=CHOICES, answer="B").fields["question"] == (
        "When?\nA. day\nB. night\nAnswer with the letter."
    )


def test_cells_without_a_right_answer():
    assert row(answer=" ").error == "t#1 has no right answer: its cell is empty"
    assert row(answers={"text": ["a"]}).error.startswith(
        "t#1: a right answer is {'text': ['a']}: give a text"
    )


def suite_of(path, lines):
    path.write_text("\n".join(map(json.dumps, lines)))
    data = SuiteData(SUITES["folder"], str(path), "", None, SourceSettings())
    return data.resolve_suite(data.rows())


def test_the_first_row_may_lack_a_right_answer(tmp_path):
    lines = [{"image": "a.png", "question": "x?"}, {"image": "a.png", "question": "x?", "answers": "a|b"}]
    assert suite_of(tmp_path / "t.jsonl", lines).metric == "vqa"
    lines[1] = {"image": "a.png", "question": "x?", "answer": "a", "choices": "a|b"}
    assert suite_of(tmp_path / "t.jsonl", lines).answer == "rank"


def test_labels_that_differ_in_case(tmp_path):
    lines = [{"image": "a.png", "label": one} for one in ("cat", "Cat", "dog")]
    with pytest.raises(BadSetting, match="has the labels 'Cat' and 'cat', which differ in case alone"):
        suite_of(tmp_path / "t.jsonl", lines)
    lines[1]["label"] = " cat"
    assert suite_of(tmp_path / "t.jsonl", lines).labels == ("cat", "dog")
