"""VQA accuracy: how many of about ten people gave the same answer, after all were brought into one spelling."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

from idefics.evaluate.metrics.vqa_words import ARTICLES, CONTRACTIONS, NUMBERS

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_FULL_STOP = re.compile(r"\.(?!\d)")
_MAX_FULL_STOPS = 32
_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")

# Spaces of Unicode, and two characters that are none, as the authors list them.
_M4_SPACES = "\n\t\x84\xa0\u2002\u2003\u2005\u2008\u2009\u200a\u202f\u3000\ufffc"
_M4_CHARACTERS = (
    {"-": None}
    | dict.fromkeys(string.punctuation.replace("'", "").replace("-", ""), " ")
    | dict.fromkeys(_M4_SPACES, " ")
)
_M4_TABLE = str.maketrans(_M4_CHARACTERS)


def normalize_vqa_answer(text: str) -> str:
    """Brings an answer into the spelling of the official VQA script.

    Source: `processPunctuation` and `processDigitArticle` in github.com/GT-Vision-Lab/VQA,
    PythonEvaluationTools/vqaEvaluation/vqaEval.py.

    What is odd about it:
        - A punctuation mark becomes a space, "red/blue" "red blue"; but it is deleted everywhere if a space stands
          next to it anywhere, "red/blue / grey" "redblue grey". All marks are deleted if a comma stands between two
          digits.
        - A full stop is deleted unless a digit follows, "u.s." "us", but only the first 32: the script passes a
          flag of the regular expression as the number of replacements. Apostrophes, colons and other marks stay.
        - "none" is the number 0.
        - Contractions get their apostrophe back, "dont" "don't", but "somebody'd" loses it, and "Im" and "Ive" are
          not found, since the text is in lower case by then.
    """
    text = _replace_punctuation(text.replace("\n", " ").replace("\t", " ").strip())
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def _replace_punctuation(text: str) -> str:
    """Replaces punctuation marks by spaces or nothing, and removes full stops."""
    deletes_all = _DIGIT_COMMA_DIGIT.search(text) is not None
    replaced = text
    for mark in _PUNCTUATION:
        deletes = deletes_all or f"{mark} " in text or f" {mark}" in text
        replaced = replaced.replace(mark, "" if deletes else " ")
    return _FULL_STOP.sub("", replaced, count=_MAX_FULL_STOPS)


def normalize_vqa_answer_m4(text: str) -> str:
    """Brings an answer into the simpler spelling that the authors of Idefics defined next to the official one.

    Source: `vqa_normalize_text` in github.com/huggingface/smollm, vision/m4/evaluation/custom_metrics/utils.py.

    What is odd about it: hyphens are deleted, while all other marks but the apostrophe become spaces, the full stop
    of "1.5" too. "none" is the number 0. Some Unicode spaces are spaces and some, such as U+2004, are not.
    """
    words = text.lower().translate(_M4_TABLE).split(" ")
    words = [NUMBERS.get(word) or CONTRACTIONS.get(word, word) for word in words]
    return " ".join(word for word in words if word and word not in ARTICLES).strip()


def vqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """The share of people's answers that an answer agrees with, as the authors of Idefics computed it.

    Each reference is left out in turn; the answer gets min(1, n / 3), where n of the others equal it; the score is
    the mean. So an answer that ten references have 1, 2, 3 or 4 times scores 0.3, 0.6, 0.9 or 1.

    Source: Antol et al., "VQA: Visual Question Answering" (arXiv 1505.00468), as `gt_vision_lab_oe_vqa_accuracy` in
    github.com/huggingface/smollm, vision/m4/evaluation/custom_metrics/open_ended_vqa_metrics.py.

    What is odd about it: answer and references are always normalised, while `official_vqa_accuracy` does it only if
    the references differ. With a single reference the score is 1 if the normalised texts are equal and 0 otherwise.
    """
    return _leave_one_out(normalize_vqa_answer(answer), [normalize_vqa_answer(text) for text in references])


def vqa_accuracy_m4(answer: str, references: Sequence[str]) -> float:
    """`vqa_accuracy` with `normalize_vqa_answer_m4`, which the authors' code reports as `oe_vqa_accuracy`."""
    return _leave_one_out(
        normalize_vqa_answer_m4(answer), [normalize_vqa_answer_m4(text) for text in references]
    )


def official_vqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """The share of people's answers that an answer agrees with, as the official VQA script computes it.

    Source: `evaluate` in github.com/GT-Vision-Lab/VQA, PythonEvaluationTools/vqaEvaluation/vqaEval.py.

    What is odd about it: if all references are equal, nothing is normalised but spaces at both ends, so that "Yes"
    and "yes." score 0 where ten people said "yes". The script gives 0 for any answer to a question with a single
    reference; that is not imitated, and an equal text scores 1.
    """
    answer, *texts = (text.replace("\n", " ").replace("\t", " ").strip() for text in (answer, *references))
    if len(set(texts)) > 1:
        answer, *texts = map(normalize_vqa_answer, (answer, *texts))
    return _leave_one_out(answer, texts)


def _leave_one_out(answer: str, references: Sequence[str]) -> float:
    """The mean of min(1, n / 3) over all ways to leave out one reference, where n of the others equal the answer."""
    matches, total = references.count(answer), len(references)
    if total <= 1:
        return float(matches)
    scores = matches * min(1.0, (matches - 1) / 3) + (total - matches) * min(1.0, matches / 3)
    return scores / total
