"""`generate` of the model classes with images and a cache, compared with transformers."""

import pytest
import torch

from compat.models_tiny import (
    CONFIG_BY_FAMILY,
    FAMILIES,
    make_batch,
    make_our_model,
    make_reference_and_model,
)

SCENES = ("tt1ttttt1tt", "tttt", "t1ttt")


@pytest.fixture(scope="module", params=FAMILIES)
def reference_and_model(request, tmp_path_factory):
    return make_reference_and_model(tmp_path_factory.mktemp(request.param), CONFIG_BY_FAMILY[request.param])


SETTINGS = [
    {},
    {"num_beams": 3, "num_return_sequences": 2},
    {"num_beams": 2, "length_penalty": 2.0, "early_stopping": True},
    {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
    {"bad_words_ids": [[5], [9, 11]]},
    {"do_sample": True, "temperature": 0.8, "top_k": 20, "num_return_sequences": 2},
    {"use_cache": False},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(s) or "greedy")
def test_ids_are_the_references(reference_and_model, settings):
    reference, model = reference_and_model
    inputs = make_batch(model, *SCENES)
    answers = []
    for one in (reference, model):
        torch.manual_seed(0)
        answers.append(one.generate(**inputs, max_new_tokens=8, pad_token_id=0, eos_token_id=2, **settings))
    theirs, mine = (
        [answer_ids(row, inputs["input_ids"].shape[1]) for row in ids.tolist()] for ids in answers
    )
    assert mine == theirs


def answer_ids(row, prompt):
    """What was generated, up to the stop id: behind it stands padding."""
    ids = row[prompt:]
    return ids[: ids.index(2) + 1] if 2 in ids else ids


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cache_changes_no_answer_and_rows_do_not_mind_each_other(family):
    model = make_our_model(family)
    inputs = make_batch(model, *SCENES)
    length = inputs["input_ids"].shape[1]
    settings = {"max_new_tokens": 8, "eos_token_id": None, "pad_token_id": 0}
    cached = model.generate(**inputs, **settings)[:, length:]
    assert torch.equal(cached, model.generate(**inputs, **settings, use_cache=False)[:, length:])
    for row, scene in enumerate(SCENES):
        alone = make_batch(model, scene)
        assert torch.equal(model.generate(**alone, **settings)[0, alone["input_ids"].shape[1] :], cached[row])
