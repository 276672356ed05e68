"""More calls of the tokenizer compared with the reference's: new tokens, pairs, offsets, padding, conversations."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from tokenizers import AddedToken

from compat.processors_tiny import BYTE_LEVEL_SPECIAL_TOKENS, make_smolvlm_tokenizer
from compat.test_compat_tokenization import TEXTS, TOKENIZER_BY_KIND, pair
from idefics.compat import BatchFeature, LlamaTokenizerFast, PreTrainedTokenizerFast
from idefics.compat.tokenization import PreTrainedTokenizer
from idefics.errors import BadPrompt, BadSetting
from processing.tokenizers_tiny import IMAGE_TOKEN

__all__ = ["TOKENIZER_BY_KIND", "pair"]

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: "
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<end_of_utterance>{% endgeneration %}"
    "{% else %}{{ m.content }}{% endif %}\n{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}{{ mood }}{% if add_generation_prompt %}assistant: {% endif %}"
)
MESSAGES = [
    {"role": "user", "content": "What is on the table?"},
    {"role": "assistant", "content": "A red ball"},
]


def test_new_tokens_are_the_references(pair):
    ours, theirs = pair
    for token in (["<point>", "<line>"], "plain words", AddedToken("<|x|>", special=True)):
        assert ours.add_tokens(token) == theirs.add_tokens(token)
    parts = {"pad_token": "<fill>", "cls_token": "<c>", "additional_special_tokens": ["<action_7>"]}
    assert ours.add_special_tokens(parts) == theirs.add_special_tokens(parts) == 3
    assert (ours.cls_token, ours.sep_token) == (theirs.cls_token, theirs.sep_token) == ("<c>", None)
    assert len(ours) == len(theirs)
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.get_added_vocab() == theirs.get_added_vocab()
    assert ours.pad_token_id == theirs.pad_token_id
    text = "A <point> of plain words<action_7>"
    ids = ours(text).input_ids
    assert ids == theirs(text).input_ids
    for skips in (True, False):
        assert ours.decode(ids, skip_special_tokens=skips) == theirs.decode(ids, skip_special_tokens=skips)
    assert "<action_7>" in ours.additional_special_tokens
    with pytest.raises(BadSetting, match="'mood_token' is not the name of a special token"):
        ours.add_special_tokens({"mood_token": "x"})


def test_new_tokens_are_saved(tmp_path):
    ours = make_smolvlm_tokenizer()
    ours.add_tokens("<point>")
    files = ours.save_pretrained(tmp_path)
    assert {name.rsplit("/")[-1] for name in files} == {
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }
    again = PreTrainedTokenizer.from_pretrained(tmp_path, pad_token="<fill>")
    assert again.get_vocab() == ours.get_vocab() | {"<fill>": len(ours)}
    assert again.pad_token_id == len(ours)


def test_ids_of_parts_may_be_set(pair):
    ours, theirs = pair
    before = ours.pad_token
    ours.pad_token_id = theirs.pad_token_id = 5
    assert ours.pad_token == theirs.pad_token
    ours.pad_token_id = None
    assert ours.pad_token is None
    with pytest.raises(BadSetting, match="no token of id 99999"):
        ours.pad_token_id = 99999
    ours.pad_token = theirs.pad_token = before


@pytest.mark.parametrize(
    "options",
    [
        {"return_offsets_mapping": True, "return_special_tokens_mask": True, "padding": True},
        {"return_token_type_ids": True, "return_length": True, "stride": 0, "verbose": False},
        {"return_offsets_mapping": True, "max_length": 4, "truncation": "only_first"},
    ],
)
def test_entries_other_than_ids_equal_the_references(pair, options):
    ours, theirs = pair
    mine, reference = ours(TEXTS, **options), theirs(TEXTS, **options)
    assert set(mine) == set(reference) - ({"token_type_ids"} - set(mine))
    for name, value in mine.items():
        assert list(value) == list(reference[name]), name


def test_pairs_are_the_references(pair):
    ours, theirs = pair
    for texts, others in ((TEXTS[0], TEXTS[1]), (TEXTS[:2], TEXTS[1:])):
        mine = ours(texts, others, return_token_type_ids=True)
        reference = theirs(texts, others, return_token_type_ids=True)
        assert dict(mine) == {name: reference[name] for name in mine}
    assert ours.encode(TEXTS[0], TEXTS[1]) == theirs.encode(TEXTS[0], TEXTS[1])
    with pytest.raises(BadPrompt, match="2 texts and 1 in text_pair"):
        ours(TEXTS[:2], TEXTS[:1])
    with pytest.raises(BadSetting, match="pairs are not truncated"):
        ours(TEXTS[0], TEXTS[1], max_length=3, truncation=True)


def test_padding_later_is_the_references(pair):
    ours, theirs = pair
    rows = [ours(text) for text in TEXTS]
    for options in ({}, {"padding": "max_length", "max_length": 40}, {"pad_to_multiple_of": 8}):
        mine = ours.pad(rows, return_tensors="pt", **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it advises to call the tokenizer
            reference = theirs.pad([dict(row) for row in rows], return_tensors="pt", **options)
        assert set(mine) == set(reference)
        assert all(mine[name].equal(reference[name]) for name in mine)
    both = ours.pad({"input_ids": [row.input_ids for row in rows], "labels": [1, 2, 3]}, return_tensors="np")
    assert both.attention_mask[1].sum() == len(rows[1].input_ids)
    assert both.labels.tolist() == [1, 2, 3]
    with pytest.raises(BadPrompt, match="no input_ids among labels"):
        ours.pad({"labels": [1]})


@pytest.mark.parametrize("options", [{}, {"return_dict": False}, {"return_tensors": "pt"}])
@pytest.mark.parametrize("turns", [MESSAGES, [MESSAGES, MESSAGES[:1]]])
def test_conversations_are_the_references(pair, turns, options):
    ours, theirs = pair
    ours.chat_template = theirs.chat_template = TEMPLATE
    words = {
        "tools": [{"name": "é<b>", "a": None}],
        "mood": "glad",
        "add_generation_prompt": True,
        "padding": True,
    }
    mine, reference = (each.apply_chat_template(turns, **words, **options) for each in (ours, theirs))
    if options.get("return_dict") is False:
        assert mine == reference
    else:
        for name in mine:
            assert np.array_equal(np.asarray(mine[name]), np.asarray(reference[name]))
    text = ours.apply_chat_template(turns, tokenize=False, **words)
    assert text == theirs.apply_chat_template(turns, tokenize=False, **words)
    assert '[{"name": "é<b>", "a": null}]glad' in (text if isinstance(text, str) else text[0])


@pytest.mark.parametrize("turns", [MESSAGES, [MESSAGES, MESSAGES * 2]])
def test_what_the_assistant_says_is_marked_as_the_reference_does(pair, turns):
    ours, theirs = pair
    ours.chat_template = theirs.chat_template = TEMPLATE
    options = {"return_assistant_tokens_mask": True, "return_dict": True}
    mine, reference = (each.apply_chat_template(turns, **options) for each in (ours, theirs))
    assert mine["assistant_masks"] == reference["assistant_masks"]
    said = (
        mine["assistant_masks"][0]
        if len(turns[0]) == 2 and turns is not MESSAGES
        else mine["assistant_masks"]
    )
    assert 0 < np.sum(said) < np.size(said)
    tensors = ours.apply_chat_template(turns, padding=True, return_tensors="pt", **options)
    assert tensors.assistant_masks.shape == tensors.input_ids.shape


def test_an_answer_may_be_begun(pair):
    ours, theirs = pair
    ours.chat_template = theirs.chat_template = TEMPLATE
    options = {"tokenize": False, "continue_final_message": True}
    text = ours.apply_chat_template(MESSAGES, **options)
    assert text == theirs.apply_chat_template(MESSAGES, **options)
    assert text.endswith("A red ball")


def test_names_of_the_guides_are_one_class():
    assert LlamaTokenizerFast is PreTrainedTokenizerFast is PreTrainedTokenizer


def test_words_that_ask_for_what_is_not_here():
    ours = make_smolvlm_tokenizer()
    with pytest.raises(BadSetting, match="stride is 3"):
        ours("a", stride=3)
    with pytest.raises(TypeError, match="padd"):
        ours("a", padd=True)
    with pytest.raises(TypeError, match="sid"):
        PreTrainedTokenizer(ours.codec, sid="left", **BYTE_LEVEL_SPECIAL_TOKENS)


def test_tokens_and_text():
    ours = make_smolvlm_tokenizer()
    ids = ours(f"A cat.{IMAGE_TOKEN}").input_ids
    assert ours.convert_tokens_to_string(ours.convert_ids_to_tokens(ids)) == f"A cat.{IMAGE_TOKEN}"
    assert IMAGE_TOKEN not in ours.convert_ids_to_tokens(ids, skip_special_tokens=True)
    assert ours.vocab == ours.get_vocab()


def test_batches_are_made_moved_and_kept():
    batch = BatchFeature(data={"input_ids": [[1, 2]], "pixel_values": np.zeros((1, 2))}, tensor_type="pt")
    assert batch.input_ids.equal(torch.tensor([[1, 2]]))
    assert batch.data["input_ids"] is batch["input_ids"]
    moved = batch.to("cpu", torch.float16, non_blocking=True)
    assert moved is batch
    assert (batch.input_ids.dtype, batch.pixel_values.dtype) == (torch.int64, torch.float16)
    assert batch.to("meta").input_ids.device.type == "meta"
    again = pickle.loads(pickle.dumps(BatchFeature(input_ids=[[1]])))
    assert again.convert_to_tensors("np").input_ids.tolist() == [[1]]
    with pytest.raises(AttributeError, match="labels"):
        batch.labels  # noqa: B018


def test_the_mask_of_special_tokens_is_the_references(pair):
    ours, theirs = pair
    for tokenizer in pair:
        tokenizer.add_special_tokens({"pad_token": "<fill>"})
    words = ours("A red ball", add_special_tokens=False).input_ids
    ids = [ours.pad_token_id, *words, ours.pad_token_id]
    mask = ours.get_special_tokens_mask(ids, already_has_special_tokens=True)
    assert mask == theirs.get_special_tokens_mask(ids, already_has_special_tokens=True)
    assert mask == [1, *[0] * len(words), 1]
    with pytest.raises(BadSetting, match="give already_has_special_tokens=True"):
        ours.get_special_tokens_mask(ids, already_has_special_tokens=False)


def test_a_tokenizer_knows_where_it_was_loaded_from(pair, tmp_path):
    ours, _ = pair
    ours.save_pretrained(tmp_path)
    assert type(ours).from_pretrained(tmp_path).name_or_path == str(tmp_path)
