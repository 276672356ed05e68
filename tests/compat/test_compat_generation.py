"""`generate` against transformers': the same model behind both, the same ids, scores and draws."""

import itertools

import pytest
import torch

from compat.generation_fakes import WrappedReferenceModel, make_random_prompts, make_reference_llama

LENGTHS = {"max_new_tokens": 10}
STOPS = ({}, {"eos_token_id": 12}, {"eos_token_id": [3, 7, 11]})


# The reference warns of its own default length.
pytestmark = pytest.mark.filterwarnings("ignore:Using the model-agnostic default:UserWarning")


@pytest.fixture(scope="module")
def reference_and_model():
    transformers = pytest.importorskip("transformers")
    theirs = make_reference_llama(transformers)
    return theirs, WrappedReferenceModel(theirs, transformers.DynamicCache)


def cut_at_stop_ids(ids, stops, prompt):
    """Rows until their first stop id: what stands behind it is padding."""
    rows = []
    for row in ids.tolist():
        answer = row[prompt:]
        end = next((place for place, id in enumerate(answer) if id in stops), len(answer))
        rows.append(row[:prompt] + answer[: end + 1])
    return rows


def generate_with_both(pair, ids, mask, *, seed=0, **settings):
    """What both give, as objects, from the same seed."""
    settings = {
        "pad_token_id": 2,
        "return_dict_in_generate": True,
        "output_scores": True,
        "output_logits": True,
        **LENGTHS,
        **settings,
    }
    outs = []
    for model in pair:
        torch.manual_seed(seed)
        outs.append(model.generate(ids, attention_mask=mask, **settings))
    return outs


def assert_same_outputs(theirs, ours):
    assert ours.sequences.tolist() == theirs.sequences.tolist()
    for name in ("scores", "logits"):
        expected, got = getattr(theirs, name), getattr(ours, name)
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


SETTINGS = (
    {},
    {"repetition_penalty": 1.7},
    {"repetition_penalty": 0.6},
    {"no_repeat_ngram_size": 1, "max_new_tokens": 9},
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 3, "repetition_penalty": 0.5},
    {"bad_words_ids": [[5], [9], [12, 4], [7, 8, 9], [20, 20]]},
    {"bad_words_ids": [[], []]},
    {"min_new_tokens": 6},
    {"min_length": 9},
    {"min_length": 30, "min_new_tokens": 1},
)
SAMPLING_SETTINGS = (
    {"top_k": 0},
    {},
    {"temperature": 0.4},
    {"temperature": 1.9, "top_k": 5},
    {"top_p": 0.7},
    {"top_p": 0.05, "top_k": 0},
    {"min_p": 0.2},
    {"typical_p": 0.6},
    {"typical_p": 0.2, "min_p": 0.01, "top_p": 0.95, "top_k": 20, "temperature": 0.8},
)


def with_stops(cases):
    """Each case with one of `STOPS`, in turns."""
    return pytest.mark.parametrize(("settings", "stop"), list(zip(cases, itertools.cycle(STOPS))), ids=str)


@pytest.mark.parametrize("padding", [0, 1])
@with_stops(SETTINGS)
def test_greedy(reference_and_model, settings, stop, padding):
    assert_same_outputs(
        *generate_with_both(reference_and_model, *make_random_prompts(padding=padding), **settings, **stop)
    )


@with_stops(SAMPLING_SETTINGS)
def test_drawn(reference_and_model, settings, stop):
    assert_same_outputs(
        *generate_with_both(
            reference_and_model, *make_random_prompts(padding=1), do_sample=True, **settings, **stop
        )
    )


@with_stops(SETTINGS[1:])
def test_drawn_with_constraints(reference_and_model, settings, stop):
    assert_same_outputs(
        *generate_with_both(
            reference_and_model, *make_random_prompts(padding=1), do_sample=True, **settings, **stop
        )
    )


def test_several_draws_of_each_prompt(reference_and_model):
    theirs, ours = generate_with_both(
        reference_and_model,
        *make_random_prompts(2, padding=1),
        do_sample=True,
        num_return_sequences=4,
        eos_token_id=[3, 12],
    )
    assert_same_outputs(theirs, ours)
    assert len(ours.sequences) == 8
    assert len({tuple(row) for row in ours.sequences.tolist()}) > 2


WIDTHS = ((2, 1), (4, 4), (3, 2))
BEAMS = (
    {},
    {"length_penalty": 2.0},
    {"length_penalty": -1.0},
    {"length_penalty": 0.0},
    {"early_stopping": True},
    {"early_stopping": "never"},
    {"early_stopping": "never", "length_penalty": 0.3},
    {"early_stopping": "never", "length_penalty": -0.5},
    {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
    {"bad_words_ids": [[5], [9], [12, 4]], "min_new_tokens": 4},
)


def assert_same_beams(theirs, ours, stops):
    prompt = 6
    assert cut_at_stop_ids(ours.sequences, stops, prompt) == cut_at_stop_ids(theirs.sequences, stops, prompt)
    torch.testing.assert_close(ours.sequences_scores, theirs.sequences_scores, atol=1e-4, rtol=1e-4)
    assert torch.equal(ours.beam_indices, theirs.beam_indices)
    assert len(ours.scores) == len(theirs.scores) == len(ours.logits)
    for one, other in zip(ours.scores + ours.logits, theirs.scores + theirs.logits, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-4)


def beam_search_with_both(pair, seed, **settings):
    stops = settings.get("eos_token_id", [])
    outs = generate_with_both(pair, *make_random_prompts(2, padding=1, seed=seed), seed=seed, **settings)
    assert_same_beams(*outs, [stops] if isinstance(stops, int) else stops)


@pytest.mark.parametrize(("width", "count"), WIDTHS)
@with_stops(BEAMS)
def test_beams(reference_and_model, settings, stop, width, count):
    beam_search_with_both(
        reference_and_model, width, num_beams=width, num_return_sequences=count, **settings, **stop
    )


@pytest.mark.parametrize("early_stopping", [True, False])
@with_stops(SAMPLING_SETTINGS)
def test_drawn_beams(reference_and_model, settings, stop, early_stopping):
    search = {"num_beams": 3, "num_return_sequences": 2, "do_sample": True, "early_stopping": early_stopping}
    beam_search_with_both(reference_and_model, 0, **search, **settings, **stop)


def test_beams_are_padded_by_the_padding_id(reference_and_model):
    """The reference pads with the first stop id where the padding id is 0, as it is in Idefics."""
    theirs, ours = (
        model.generate(
            make_random_prompts(1)[0],
            num_beams=4,
            num_return_sequences=4,
            eos_token_id=12,
            pad_token_id=0,
            **LENGTHS,
        )
        for model in reference_and_model
    )
    ends = [row[6:].index(12) + 7 for row in ours.tolist() if 12 in row[6:-1]]
    assert ends
    for row, end in zip((row for row in ours.tolist() if 12 in row[6:-1]), ends, strict=True):
        assert set(row[end:]) == {0}
    assert ours.tolist() != theirs.tolist()
    assert cut_at_stop_ids(ours, [12], 6) == cut_at_stop_ids(theirs, [12], 6)


@pytest.mark.parametrize(
    "search", [{}, {"num_beams": 3, "num_return_sequences": 2}, {"do_sample": True}], ids=str
)
def test_without_a_cache(reference_and_model, search):
    ids, mask = make_random_prompts(padding=1)
    outs = []
    for settings in ({}, {"use_cache": False}):
        torch.manual_seed(0)
        outs.append(
            reference_and_model[1].generate(ids, attention_mask=mask, pad_token_id=2, **search, **settings)
        )
    assert outs[0].tolist() == outs[1].tolist()
    out = reference_and_model[1].generate(ids, use_cache=False, return_dict_in_generate=True)
    assert out.past_key_values is None


@pytest.mark.parametrize(
    "search", [{}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}], ids=str
)
def test_from_embeddings(reference_and_model, search):
    """Only generated ids come back, and `max_length` counts the embeddings."""
    theirs, _ = reference_and_model
    ids, mask = make_random_prompts(2, padding=1)
    for length in ({"max_new_tokens": 7}, {"max_length": 11}, {}):
        outs = []
        for model in reference_and_model:
            torch.manual_seed(0)
            embeddings = theirs.get_input_embeddings()(ids)
            outs.append(
                model.generate(
                    inputs_embeds=embeddings, attention_mask=mask, pad_token_id=2, **length, **search
                )
            )
        assert outs[1].tolist() == outs[0].tolist()


def test_ids_given_with_embeddings_come_back(reference_and_model):
    theirs, _ = reference_and_model
    ids, _ = make_random_prompts(2)
    embeddings = theirs.get_input_embeddings()(ids.flip(1))
    outs = [
        model.generate(ids, inputs_embeds=embeddings, max_length=12, pad_token_id=2)
        for model in reference_and_model
    ]
    assert outs[1].tolist() == outs[0].tolist()


@pytest.mark.parametrize("search", [{}, {"num_beams": 3}], ids=str)
def test_states_and_weights_of_every_step(reference_and_model, search):
    ids, _ = make_random_prompts(2)
    asked = {"output_hidden_states": True, "output_attentions": True}
    theirs, ours = generate_with_both(reference_and_model, ids, None, max_new_tokens=4, **asked, **search)
    for name in ("hidden_states", "attentions"):
        expected, got = getattr(theirs, name), getattr(ours, name)
        assert len(got) == len(expected) == 4
        for one, other in zip(got, expected, strict=True):
            for layer, layer_expected in zip(one, other, strict=True):
                torch.testing.assert_close(layer, layer_expected, atol=1e-4, rtol=1e-4)


def test_a_conversation_goes_on_with_its_cache(reference_and_model):
    _, ours = reference_and_model
    ids, _ = make_random_prompts(1)
    first = ours.generate(ids, max_new_tokens=5, return_dict_in_generate=True)
    longer = torch.cat((first.sequences, torch.tensor([[8, 9, 10]])), dim=1)
    expected = ours.generate(longer, max_new_tokens=5)
    ours.calls.clear()
    got = ours.generate(longer, past_key_values=first.past_key_values, max_new_tokens=5)
    assert got.tolist() == expected.tolist()
    assert ours.calls[0][0] == (1, 4)  # the last id chosen had not been read, and three are new


def test_draws_come_from_torchs_seed(reference_and_model):
    _, ours = reference_and_model
    ids, _ = make_random_prompts(1)
    draw = lambda: ours.generate(ids, do_sample=True, max_new_tokens=12).tolist()  # noqa: E731
    torch.manual_seed(3)
    first, second = draw(), draw()
    torch.manual_seed(3)
    assert draw() == first != second
