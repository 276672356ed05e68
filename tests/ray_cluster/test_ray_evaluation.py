"""Evaluation on a Ray cluster: engines answer as a model in this process does, shots and labels included."""

import pytest

from idefics import weights
from idefics.batch.answerers import WorkItem
from idefics.batch.ray_engine import RayOptions
from idefics.batch.ray_pool import RayAnswerer
from idefics.batch.run_settings import fingerprint_checkpoint
from idefics.demo import pictures
from idefics.evaluate.answerer import EvaluationAnswerer, EvaluationEngineSpec
from idefics.evaluate.request import EvaluationRequest, PictureRef

pytestmark = pytest.mark.ray
LABELS = ("tower", "puppy", "door")
PICTURES = [path.read_bytes() for path in pictures()]


def make_items():
    """Requests that generate, and others that rank the labels of the suite; each has one example."""
    turns = (
        ("user", (PictureRef("shot"), "What is it?")),
        ("assistant", ("A thing.",)),
        ("user", (PictureRef(""), "What is it?")),
    )
    items = []
    for number, data in enumerate(PICTURES):
        request = EvaluationRequest(turns=turns, labels=LABELS if number % 2 else ())
        more = (PICTURES[number - 1],)
        items.append(WorkItem(b"%d" % number, data, request.to_text(LABELS), more))
    return items


def test_engines_answer_as_a_model_here_does(three_nodes, demo_model):
    folder = weights.find_checkpoint("demo")
    options = {"max_new_tokens": 6}
    spec = EvaluationEngineSpec(
        load_keywords={"model": "demo", "feature_cache": False},
        fingerprint=fingerprint_checkpoint(folder, weights.safetensors_files(folder)),
        shots=(),
        task="eval",
        options=options,
        labels=LABELS,
        is_length_normalized=False,
    )
    local = EvaluationAnswerer(lambda: demo_model, options, labels=LABELS, is_length_normalized=False)
    expected = dict(local.answer(iter(make_items())))
    pool = RayAnswerer(RayOptions(address=three_nodes.address), spec)
    try:
        answers = dict(pool.answer(iter(make_items())))
    finally:
        pool.close()
    assert answers.keys() == expected.keys()
    for key, answer in answers.items():
        assert answer["text"] == expected[key]["text"]
        scores = expected[key].get("label_scores")
        assert answer.get("label_scores") == (None if scores is None else pytest.approx(scores, abs=1e-4))
    assert len(expected[b"1"]["label_scores"]) == 3
