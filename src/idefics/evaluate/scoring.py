"""Scores of the rows of an evaluation, and the figures of a suite with their 95 % intervals."""

from __future__ import annotations

import string
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from idefics.errors import format_count
from idefics.evaluate.bootstrap import (
    LEVEL,
    UNDEFINED,
    FloatArray,
    Interval,
    bootstrap_mean,
    bootstrap_statistic,
)
from idefics.evaluate.metrics import ranking
from idefics.evaluate.metrics.accuracy import exact_match, most_likely
from idefics.evaluate.metrics.anls import anls
from idefics.evaluate.metrics.cider import cider_d
from idefics.evaluate.metrics.mmmu import mmmu_open_accuracy, mmmu_open_accuracy_m4, parse_mmmu_choice
from idefics.evaluate.metrics.vqa import official_vqa_accuracy, vqa_accuracy
from idefics.evaluate.scores import EvaluatedRow, Figure, Metric, Scores

MIN_CIDER_ROWS = 50


Score = Callable[[str, Sequence[str]], float]  # answer, references -> 0 to 1


def _percent(interval: Interval) -> Interval:
    return Interval(100 * interval.value, 100 * interval.low, 100 * interval.high)


def _mean(name: str, scores: Sequence[float], seed: int, note: str = "") -> Figure:
    return Figure(name, _percent(bootstrap_mean(scores, seed=seed)), note)


def _score_texts(rows: Sequence[EvaluatedRow], score: Score) -> list[float]:
    return [0.0 if row.error else score(row.answer, row.references) for row in rows]


def _uncut_figure(name: str, rows: Sequence[EvaluatedRow], score: Score, seed: int) -> list[Figure]:
    """The figure of answers that are not cut at the authors' stop words, if that cuts any."""
    if not any(row.uncut_answer != row.answer for row in rows):
        return []
    scores = [0.0 if row.error else score(row.uncut_answer, row.references) for row in rows]
    return [
        _mean(
            f"{name}, answers not cut",
            scores,
            seed,
            "the authors cut answers at stop words; here they are whole",
        )
    ]


def _vqa(rows: Sequence[EvaluatedRow], seed: int) -> Scores:
    scores = _score_texts(rows, vqa_accuracy)
    note = "as the authors computed it: answers and references are always normalised"
    figures = [_mean("VQA accuracy", scores, seed, note)]
    if any(len(row.references) > 1 for row in rows):
        official = _score_texts(rows, official_vqa_accuracy)
        note = "normalised only where references differ"
        figures.append(_mean("VQA accuracy, official script", official, seed, note))
    figures += _uncut_figure("VQA accuracy", rows, vqa_accuracy, seed)
    return Scores(tuple(scores), tuple(figures))


def _exact_match(rows: Sequence[EvaluatedRow], seed: int) -> Scores:
    scores = _score_texts(rows, exact_match)
    note = "case, repeated spaces and full stops at the end do not count"
    return Scores(tuple(scores), (_mean("exact match", scores, seed, note),))


def _anls(rows: Sequence[EvaluatedRow], seed: int) -> Scores:
    scores = _score_texts(rows, anls)
    return Scores(tuple(scores), (_mean("ANLS", scores, seed), *_uncut_figure("ANLS", rows, anls, seed)))


def _cider(rows: Sequence[EvaluatedRow], seed: int) -> Scores:
    references = [row.references for row in rows]
    scores = cider_d([row.answer for row in rows], references)
    figures = [
        _mean(
            "CIDEr-D", scores, seed, "times 100, as published; the weights of n-grams are those of these rows"
        )
    ]
    if any(row.uncut_answer != row.answer for row in rows):
        uncut = cider_d([row.uncut_answer for row in rows], references)
        figures.append(
            _mean("CIDEr-D, captions not cut", uncut, seed, "the authors cut captions at stop words")
        )
    few = (
        f"CIDEr-D of {format_count(len(rows), 'picture')} says little: its weights come from the pictures that are "
        "scored, and one alone scores 0"
    )
    return Scores(tuple(scores), tuple(figures), notes=(few,) if len(rows) < MIN_CIDER_ROWS else ())


def _choices(rows: Sequence[EvaluatedRow], seed: int) -> Scores:
    """Accuracy of labels, and of multiple choice and open questions that were answered with text."""
    scores, open_scores = [], []
    for row in rows:
        if row.error:
            scores.append(0.0)
        elif row.label_scores:
            scores.append(_label_accuracy(row))
        elif row.labels:
            options = dict(zip(string.ascii_uppercase, row.labels, strict=False))
            chosen = options.get(parse_mmmu_choice(row.answer, options) or "")
            scores.append(float(chosen in row.references) or exact_match(row.answer, row.references))
        else:
            scores.append(mmmu_open_accuracy_m4(row.answer, row.references))
            open_scores.append(mmmu_open_accuracy(row.answer, row.references))
    figures = [_mean("accuracy", scores, seed)]
    if open_scores:
        figures.append(
            _mean(
                "accuracy of open questions, official script", open_scores, seed, f"{len(open_scores)} rows"
            )
        )
    return Scores(tuple(scores), tuple(figures))


def _label_accuracy(row: EvaluatedRow) -> float:
    """1 if the most likely label is a right one, 0 otherwise."""
    return float(row.labels[most_likely(row.label_scores)] in row.references)


def _hateful(rows: Sequence[EvaluatedRow], seed: int) -> Scores:
    """ROC-AUC of decisions, as the authors computed it, and of scores; the second label is the positive one."""
    decisions, numbers, scores = [], [], []
    for row in rows:
        label = float(row.references[0] == row.labels[1])
        difference = 0.0 if row.error else row.label_scores[1] - row.label_scores[0]
        decision = 1.0 - label if row.error else float(difference > 0)  # a failed row is wrong
        decisions.append((decision, label))
        numbers.append((difference, label))
        scores.append(float(decision == label))
    hard = bootstrap_statistic(decisions, _roc_auc_of_decisions, seed=seed)
    soft = bootstrap_statistic(numbers, lambda drawn: ranking.roc_auc(drawn[:, 0], drawn[:, 1]), seed=seed)
    figures = (
        Figure(
            "ROC-AUC of decisions",
            _percent(hard),
            "as the authors' code computes it, from the most likely label instead of its score",
        ),
        Figure("ROC-AUC", _percent(soft), "from log p(yes) - log p(no)"),
        _mean("accuracy", scores, seed),
    )
    return Scores(tuple(scores), figures, tuple(decisions))


def _roc_auc_of_decisions(rows: FloatArray) -> float:
    return ranking.roc_auc_of_decisions(rows[:, 0], rows[:, 1])


def _ndcg(rows: Sequence[EvaluatedRow], seed: int) -> Scores:
    scores = [0.0 if row.error else ranking.ndcg(row.relevance, row.label_scores) for row in rows]
    official = [
        0.0 if row.error else ranking.ndcg_at_relevant(row.relevance, row.label_scores) for row in rows
    ]
    figures = (
        _mean("NDCG", scores, seed, "as the authors computed it: over all candidates, without a cut"),
        _mean("NDCG, official", official, seed, "cut at the number of relevant candidates"),
    )
    return Scores(tuple(scores), figures)


def _winoground(rows: Sequence[EvaluatedRow], seed: int) -> Scores:
    """The three scores of Winoground, of pairs of rows: a row is a picture, its labels are the two captions."""
    row_scores = [0.0 if row.error else _label_accuracy(row) for row in rows]
    groups: dict[str, list[EvaluatedRow]] = defaultdict(list)
    for row in rows:
        groups[row.group].append(row)
    pairs = {name: pair for name, pair in groups.items() if len(pair) == 2}
    tables = [
        None
        if first.error or second.error
        else [(first.label_scores[caption], second.label_scores[caption]) for caption in (0, 1)]
        for first, second in pairs.values()
    ]
    figures, group_scores = [], dict[str, float]()
    note = "equal scores are wrong"
    for compute, suffix in ((ranking.winoground, ""), (ranking.winoground_m4, ", the authors' code")):
        results = [None if table is None else compute(table) for table in tables]
        for kind in ("group", "text", "image"):
            values = [
                0.0 if one is None else {"group": one.group, "text": one.text, "image": one.image}[kind]
                for one in results
            ]
            group_scores = group_scores or dict(zip(pairs, values, strict=True))  # of the first figure
            name = f"{kind} score{suffix}"
            figures.append(_mean(name, values, seed, note) if values else Figure(name, UNDEFINED, note))
        note = "text and image have changed places in it, and equal scores are right"
    lost = len(groups) - len(pairs)
    verb = "is" if lost == 1 else "are"
    notes = (f"{format_count(lost, 'example')} with one picture only {verb} left out",) if lost else ()
    numbers = tuple((group_scores[row.group],) if row.group in pairs else () for row in rows)
    return Scores(tuple(row_scores), tuple(figures), numbers, notes)


def score_rows(metric: str, rows: Sequence[EvaluatedRow], seed: int) -> Scores:
    """The scores of rows by a key of `METRICS`, with a note if all are equal, of which a bootstrap knows no interval.

    Source of its bound: Hanley and Lippman-Hand, "If Nothing Goes Wrong, Is Everything All Right?" (JAMA 249, 1983).
    """
    scores = METRICS[metric].compute(rows, seed)
    if len(set(scores.rows)) > 1:
        return scores
    share = 1 - (1 - LEVEL) ** (1 / len(rows))
    note = (
        f"all scores are the same, so that the interval has no width: with {format_count(len(rows), 'row')}, up to "
        f"{100 * share:.1f} % of rows like these may have another score"
    )
    return replace(scores, notes=(*scores.notes, note))


METRICS: Mapping[str, Metric] = {
    "cider": Metric("CIDEr-D", _cider),
    "vqa": Metric("VQA accuracy", _vqa),
    "exact-match": Metric("exact match", _exact_match),
    "anls": Metric("ANLS", _anls),
    "accuracy": Metric("accuracy", _choices),
    "roc-auc": Metric("ROC-AUC", _hateful, _roc_auc_of_decisions),
    "ndcg": Metric("NDCG", _ndcg),
    "winoground": Metric("text, image and group score", _winoground),
}
