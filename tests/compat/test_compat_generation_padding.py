"""Prompts padded on the right: `generate` answers as if they were padded on the left, and restores their order."""

import pytest
import torch

from compat import models_tiny
from compat.models_tiny import FAMILIES
from idefics.errors import BadPrompt

SCENES = ("1tt", "t1t1ttt", "tttt", "1tt11t")
SETTINGS_BY_SEARCH = {
    "greedy": {},
    "drawn": {"do_sample": True, "top_k": 8, "num_return_sequences": 2},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "penalised": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    "without a cache": {"use_cache": False},
}
SEQUENCE_INPUTS = ("input_ids", "attention_mask", "image_attention_mask")


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    return models_tiny.make_our_model(request.param).eval()


def pad_on_the_right(inputs):
    """The same rows, the padding of each behind it."""
    starts = inputs["attention_mask"].argmax(1)
    assert starts.any()
    return {
        name: torch.stack([row.roll(-int(start), 0) for row, start in zip(value, starts, strict=True)])
        if name in SEQUENCE_INPUTS
        else value
        for name, value in inputs.items()
    }


def generate_answers(model, inputs, **settings):
    torch.manual_seed(0)
    never = list(model.image_token_ids) or None  # no new picture may stand in an answer
    out = model.generate(
        **inputs, max_new_tokens=6, pad_token_id=0, eos_token_id=None, suppress_tokens=never, **settings
    )
    length = inputs["input_ids"].shape[1]
    prompts = inputs["input_ids"].repeat_interleave(len(out) // len(inputs["input_ids"]), dim=0)
    assert out[:, :length].tolist() == prompts.tolist()
    return out[:, length:].tolist()


@pytest.mark.parametrize("settings", SETTINGS_BY_SEARCH.values(), ids=SETTINGS_BY_SEARCH)
def test_answers_are_those_of_prompts_padded_on_the_left(model, settings):
    left = models_tiny.make_batch(model, *SCENES)
    assert generate_answers(model, pad_on_the_right(left), **settings) == generate_answers(
        model, left, **settings
    )


def test_each_answer_is_that_of_its_prompt_alone(model):
    left = models_tiny.make_batch(model, *SCENES)
    together = generate_answers(model, pad_on_the_right(left))
    for row in range(len(SCENES)):
        alone = models_tiny.make_batch(model, SCENES[row])
        assert generate_answers(model, alone) == [together[row]]


def test_embeddings_and_positions_move_with_their_words(model):
    left = models_tiny.make_batch(model, "ttt", "ttttt")
    right = pad_on_the_right(left)
    rows = []
    for inputs in (left, right):
        mask = inputs["attention_mask"]
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        rows.append(
            model.generate(
                inputs_embeds=model.get_input_embeddings()(inputs["input_ids"]),
                attention_mask=mask,
                position_ids=positions,
                max_new_tokens=5,
                eos_token_id=None,
            ).tolist()
        )
    assert rows[0] == rows[1]


def test_the_padding_id_alone_says_where_the_padding_is(model):
    left = models_tiny.make_batch(model, "ttt", "ttttt")
    right = {"input_ids": pad_on_the_right(left)["input_ids"]}
    assert (right["input_ids"] == 0).sum() == (left["attention_mask"] == 0).sum()
    assert generate_answers(model, right) == generate_answers(model, left)


@pytest.mark.parametrize("settings", [{}, {"num_beams": 2}], ids=["greedy", "beams"])
def test_a_cache_fits_the_sequences_that_are_given_back(model, settings):
    if model.config.model_type == "idefics2":  # a window counts places, those of padding too
        model = models_tiny.make_our_model("idefics2", text_config={"sliding_window": None}).eval()
    right = pad_on_the_right(models_tiny.make_batch(model, *SCENES))
    mask = right["attention_mask"]
    whole = model.generate(**right, max_new_tokens=7, eos_token_id=None)
    first = model.generate(
        **right, max_new_tokens=3, eos_token_id=None, return_dict_in_generate=True, **settings
    )
    if settings:  # rows of the cache are beams: only their order within a prompt differs
        assert len(first.past_key_values[0].keys) == 2 * len(mask)
        return
    seen = {
        name: right[name]
        for name in ("pixel_values", "image_attention_mask")
        if model.config.model_type == "idefics"
    }
    rest = model.generate(
        first.sequences,
        **seen,
        attention_mask=torch.cat((mask, mask.new_ones(len(mask), 3)), dim=1),
        past_key_values=first.past_key_values,
        max_new_tokens=4,
        eos_token_id=None,
    )
    assert rest.tolist() == whole.tolist()


def test_states_and_weights_stand_where_their_words_stand(model):
    left = models_tiny.make_batch(model, *SCENES)
    right = pad_on_the_right(left)
    kinds = {"output_hidden_states": True, "output_attentions": True, "return_dict_in_generate": True}
    one, other = (
        model.generate(**inputs, max_new_tokens=3, eos_token_id=None, **kinds) for inputs in (left, right)
    )
    new = left["input_ids"].shape[1]
    for row, count in enumerate(left["attention_mask"].sum(1).tolist()):
        words, same = slice(new - count, new), slice(0, count)
        for states, moved in zip(one.hidden_states[0], other.hidden_states[0], strict=True):
            models_tiny.assert_close(moved[row, same], states[row, words])
        for weights, moved in zip(one.attentions[0], other.attentions[0], strict=True):
            models_tiny.assert_close(moved[row, :, same, same], weights[row, :, words, words])
        for weights, moved in zip(one.attentions[2], other.attentions[2], strict=True):
            models_tiny.assert_close(moved[row, :, 0, same], weights[row, :, 0, words])
            models_tiny.assert_close(moved[row, :, 0, new:], weights[row, :, 0, new:])


def test_a_negative_prompt_padded_on_the_right(model):
    prompt, left = models_tiny.make_batch(model, "tt", "tt"), models_tiny.make_batch(model, "ttt", "ttttt")
    negative = [
        {
            "negative_prompt_ids": inputs["input_ids"],
            "negative_prompt_attention_mask": inputs["attention_mask"],
        }
        for inputs in (left, pad_on_the_right(left))
    ]
    one, other = (generate_answers(model, prompt, guidance_scale=3.0, **named) for named in negative)
    assert one == other


def test_a_row_of_padding_alone(model):
    ids = torch.tensor([[5, 6], [0, 0]])
    with pytest.raises(BadPrompt, match="row 1 of attention_mask"):
        model.generate(ids, attention_mask=ids.ne(0).long())


def test_padding_before_a_past_is_refused(model):
    ids = torch.tensor([[5, 6], [7, 8]])
    past = model(ids).past_key_values
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    with pytest.raises(BadPrompt, match="past_key_values are given"):
        model.generate(torch.tensor([[5, 6, 9], [7, 8, 9]]), attention_mask=mask, past_key_values=past)


def test_padding_with_the_id_of_pictures_is_refused():
    model = models_tiny.make_our_model("idefics3")
    ids = torch.tensor([[5, model.config.image_token_id]])
    with pytest.raises(BadPrompt, match="the id of image tokens"):
        model.generate(ids, attention_mask=torch.tensor([[1, 0]]))
