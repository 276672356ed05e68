"""`generate` of every family against transformers': pictures, padding, every kind of search; what is read how often."""

import functools

import pytest
import torch

from compat import models_tiny
from compat.models_tiny import CONFIG_BY_FAMILY, FAMILIES
from idefics.errors import UnknownArgument

SETTINGS_BY_SEARCH = {
    "greedy": {},
    "drawn": {"do_sample": True, "top_p": 0.9, "temperature": 1.3, "num_return_sequences": 2},
    "beams": {"num_beams": 3, "num_return_sequences": 3, "length_penalty": 0.5, "early_stopping": True},
    "drawn beams": {"num_beams": 3, "do_sample": True, "top_k": 12},
    "constrained": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "bad_words_ids": [[5], [9, 11]]},
}
SCENES = ("1tt", "t1t1ttt", "tttt", "1tt11t")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def reference_and_model(family, tmp_path_factory):
    return models_tiny.make_reference_and_model(tmp_path_factory.mktemp(family), CONFIG_BY_FAMILY[family])


def generate_with_seed(model, seed=0, **arguments):
    torch.manual_seed(seed)
    return model.generate(max_new_tokens=8, pad_token_id=0, **arguments)


def vocab_size(model):
    return models_tiny.PromptModel(model).layout.vocab_size


@pytest.mark.parametrize("settings", SETTINGS_BY_SEARCH.values(), ids=SETTINGS_BY_SEARCH)
@pytest.mark.parametrize("stop", [None, [3, 7, 20, 31, 40]], ids=["no stop", "stops"])
def test_equal_to_the_reference(reference_and_model, settings, stop):
    inputs = models_tiny.make_batch(reference_and_model[1], *SCENES)
    theirs, ours = (
        generate_with_seed(model, **inputs, **settings, eos_token_id=stop, use_cache=True)
        for model in reference_and_model
    )
    if stop and "num_beams" in settings:  # the reference pads beams with the first stop id
        theirs, ours = (x[:, inputs["input_ids"].shape[1] :].tolist() for x in (theirs, ours))
        theirs = [row[: next((i + 1 for i, id in enumerate(row) if id in stop), None)] for row in theirs]
        ours = [row[: next((i + 1 for i, id in enumerate(row) if id in stop), None)] for row in ours]
        assert ours == theirs
    else:
        assert ours.tolist() == theirs.tolist()


@pytest.mark.parametrize("settings", SETTINGS_BY_SEARCH.values(), ids=SETTINGS_BY_SEARCH)
def test_the_slow_way_is_the_same(reference_and_model, settings):
    """It reads its answer anew, in which no new picture may stand."""
    inputs, picture = (
        models_tiny.make_batch(reference_and_model[1], *SCENES),
        vocab_size(reference_and_model[1]) - 1,
    )
    settings = {**settings, "bad_words_ids": [[picture], *settings.get("bad_words_ids", [])]}
    fast, slow = (
        generate_with_seed(reference_and_model[1], **inputs, **settings, use_cache=kept)
        for kept in (True, False)
    )
    assert fast.tolist() == slow.tolist()


@pytest.mark.parametrize("settings", [{}, SETTINGS_BY_SEARCH["beams"]], ids=["greedy", "beams"])
def test_text_alone(reference_and_model, family, settings):
    ids = torch.tensor([[4, 9, 8], [5, 12, 30]])
    settings = {**settings, "eos_token_id": None}
    ours = generate_with_seed(reference_and_model[1], inputs=ids, **settings)
    assert ours.shape[1] == 3 + 8
    if family != "idefics":  # the reference wants a picture there
        assert ours.tolist() == generate_with_seed(reference_and_model[0], inputs=ids, **settings).tolist()


def test_a_row_does_not_feel_its_neighbours(reference_and_model):
    inputs = models_tiny.make_batch(reference_and_model[1], *SCENES)
    length = inputs["input_ids"].shape[1]
    together = generate_with_seed(reference_and_model[1], **inputs, eos_token_id=-1)[:, length:]
    for row, scene in enumerate(SCENES):
        alone = models_tiny.make_batch(reference_and_model[1], scene)
        own = generate_with_seed(reference_and_model[1], **alone, eos_token_id=-1)[
            :, alone["input_ids"].shape[1] :
        ]
        assert own.tolist() == together[row : row + 1].tolist()


def test_pictures_are_encoded_once_whatever_the_beams(reference_and_model, monkeypatch):
    ours = reference_and_model[1]
    inputs = models_tiny.make_batch(ours, "1tt", "t1t")
    calls, forward = [], ours.forward
    watched = functools.wraps(forward)(lambda **given: calls.append(given) or forward(**given))
    monkeypatch.setattr(ours, "forward", watched)
    generate_with_seed(ours, **inputs, num_beams=3, eos_token_id=-1)
    first, *later = calls
    assert len(first["pixel_values"]) == len(first["input_ids"]) == 2
    assert len(later) == 7
    for given in later:
        assert given["input_ids"].shape == (6, 1)
        assert "pixel_values" not in given


def test_an_unknown_argument_names_the_familys_own(reference_and_model, family):
    known = "image_attention_mask" if family == "idefics" else "pixel_attention_mask"
    with pytest.raises(UnknownArgument, match=rf"'pictures'.*{known}"):
        reference_and_model[1].generate(torch.tensor([[4]]), pictures=1)
