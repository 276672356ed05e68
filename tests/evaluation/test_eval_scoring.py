"""Scores of rows and figures of suites, by hand."""

import pytest

from idefics.evaluate.report import figure_json, figure_text
from idefics.evaluate.scores import EvaluatedRow
from idefics.evaluate.scoring import METRICS, score_rows


def row(name="r", answer="", references=("x",), **changes):
    return EvaluatedRow(
        **{
            "name": name,
            "id": "",
            "path": "p",
            "answer": answer,
            "uncut_answer": answer,
            "references": references,
        }
        | changes
    )


def figures(metric, rows):
    scores = METRICS[metric].compute(rows, 0)
    return list(scores.rows), {one.name: round(one.interval.value, 3) for one in scores.figures}


def test_answers_of_ten_people_and_stop_words():
    people = ("yes",) * 2 + ("no",) * 8
    rows = [
        row(answer="Yes.", references=people),
        row(answer="no", uncut_answer="no Question", references=people),
    ]
    scores, found = figures("vqa", rows)
    assert scores == pytest.approx([0.6, 1])  # yes: (2 * 1/3 + 8 * 2/3) / 10
    assert found["VQA accuracy"] == 80
    assert found["VQA accuracy, official script"] == 80
    assert found["VQA accuracy, answers not cut"] == 30


def test_a_failed_row_is_wrong_even_if_an_empty_answer_were_right():
    scores, _ = figures("vqa", [row(answer="", references=("",), error="broken")])
    assert scores == [0]
    scores, _ = figures("exact-match", [row(answer="", references=("",), error="broken"), row(answer="X. ")])
    assert scores == [0, 1]


def test_choices_ranked_written_and_open():
    rows = [
        row(references=("B",), labels=("A", "B"), label_scores=(-2.0, -1.0)),
        row(references=("A",), labels=("A", "B"), label_scores=(-2.0, -1.0)),
        row(answer="(B)", references=("B",), labels=("A", "B")),
        row(answer="Moon.", references=("moon",), labels=("sun", "moon")),
        row(answer="The answer is 3", references=("3",)),
        row(error="broken", references=("B",), labels=("A", "B")),
    ]
    scores, found = figures("accuracy", rows)
    assert scores == [1, 0, 1, 1, 1, 0]
    assert found["accuracy"] == pytest.approx(66.667)
    assert found["accuracy of open questions, official script"] == 100


def test_several_right_choices_and_more_choices_than_letters():
    labels = tuple(f"c{number}" for number in range(30))
    ranked = {"labels": labels, "label_scores": [-1.0] * 28 + [-0.5, -2.0]}
    rows = [
        row(references=("none", "c28"), **ranked),
        row(references=("c3",), **ranked),
        row(answer="c29", references=("c29",), labels=labels),
        row(answer="B", references=("c7", "c1"), labels=labels),
        row(answer="B", references=("none",), labels=labels),
    ]
    assert figures("accuracy", rows)[0] == [1, 0, 1, 1, 0]


def test_the_first_of_equal_labels_is_chosen():
    rows = [row(references=(label,), labels=("A", "B"), label_scores=(-1.0, -1.0)) for label in "AB"]
    assert figures("accuracy", rows)[0] == [1, 0]


def test_an_interval_without_width_is_explained():
    right, wrong = row(answer="x"), row(answer="y")
    (note,) = score_rows("exact-match", [right] * 20, 0).notes
    assert note.startswith(
        "all scores are the same, so that the interval has no width: with 20 rows, up to 13.9 %"
    )
    assert score_rows("exact-match", [right, wrong], 0).notes == ()


def meme(label, no, yes, error=""):
    return row(
        references=(label,), labels=("no", "yes"), label_scores=() if error else (no, yes), error=error
    )


def test_memes_by_decisions_and_by_scores():
    rows = [meme("no", -1, -9), meme("no", -2, -1), meme("yes", -5, -1), meme("yes", -3, -3.5)]
    scores, found = figures("roc-auc", rows)
    assert scores == [1, 0, 1, 0]
    assert found == {"ROC-AUC of decisions": 50, "ROC-AUC": 75, "accuracy": 50}  # 3 of 4 pairs are in order
    scores, found = figures("roc-auc", [*rows, meme("yes", 0, 0, error="broken")])
    assert scores == [1, 0, 1, 0, 0]
    assert found["ROC-AUC of decisions"] == pytest.approx(41.667)  # (1/2 + 1/3) / 2


def test_candidates_with_and_without_a_cut():
    one = row(references=("b",), labels=("a", "b", "c"), label_scores=(-1, -2, -3), relevance=(0, 1, 0))
    _, found = figures("ndcg", [one])
    assert found == {"NDCG": pytest.approx(63.093), "NDCG, official": 0}  # 1 / log2(3)


def pair(group, *scores):
    captions = ("a b", "b a")
    return [
        row(
            f"{group}/{number}",
            references=(captions[number],),
            labels=captions,
            label_scores=one,
            group=group,
        )
        for number, one in enumerate(scores)
    ]


def test_pairs_of_pictures_and_captions():
    rows = [*pair("1", (-1, -2), (-3, -0.5)), *pair("2", (-1, -5), (-2, -3)), *pair("3", (-1, -2))]
    scores, found = figures("winoground", rows)
    assert scores == [1, 1, 1, 0, 1]
    assert found["text score"] == found["group score"] == 50
    assert found["image score"] == 100
    computed = METRICS["winoground"].compute(rows, 0)
    assert computed.notes == ("1 example with one picture only is left out",)
    assert computed.numbers == ((1,), (1,), (0,), (0,), ())


def test_a_figure_of_no_pair_is_not_defined():
    figure = METRICS["winoground"].compute(pair("3", (-1, -2)), 0).figures[0]
    assert figure_text(figure) == "not defined"
    assert figure_json(figure)["value"] is None


def test_captions():
    rows = [
        row(answer="a red tower", references=("a red tower", "a tower")),
        row(answer="dog", references=("a cat",)),
    ]
    rows[1] = row(answer="a dog", uncut_answer="a dog Image", references=("a cat here",))
    scores, found = figures("cider", rows)
    assert scores[0] > scores[1]
    assert found["CIDEr-D"] == pytest.approx(100 * sum(scores) / 2, abs=1e-3)
    assert "CIDEr-D, captions not cut" in found
