"""The tokenizer as the guides call it, compared with the reference's generic one for the same file."""

import warnings

import numpy as np
import pytest
import torch
from tokenizers import processors

from compat.processors_tiny import (
    BYTE_LEVEL_SPECIAL_TOKENS,
    LLAMA_SPECIAL_TOKENS,
    make_llama_tokenizer,
    make_smolvlm_tokenizer,
)
from idefics.compat.tokenization import PreTrainedTokenizer
from idefics.errors import BadPrompt, BadSetting, ModelNotFound, UnsupportedModel
from idefics.processing.tokenizer import Tokenizer
from processing.tokenizers_tiny import (
    END_OF_UTTERANCE,
    FAKE_IMAGE_TOKEN,
    IMAGE_TOKEN,
    train_byte_level_tokenizer,
    train_llama_tokenizer,
)

TEXTS = [
    "What is on the table?",
    "A cat.",
    f"User:{FAKE_IMAGE_TOKEN}{IMAGE_TOKEN}{FAKE_IMAGE_TOKEN}Can you{END_OF_UTTERANCE}\nAssistant: 日本",
]


def with_leading_token(tokenizer, token):
    """As a released file whose post-processor begins each text with `token`."""
    id = tokenizer.token_to_id(token)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{token} $A", special_tokens=[(token, id)]
    )
    return tokenizer


TOKENIZER_BY_KIND = {
    "llama": (lambda: with_leading_token(train_llama_tokenizer(), "<s>"), LLAMA_SPECIAL_TOKENS),
    "bytes": (train_byte_level_tokenizer, BYTE_LEVEL_SPECIAL_TOKENS),
}


@pytest.fixture(scope="module", params=TOKENIZER_BY_KIND)
def pair(request):
    """Ours and the reference's."""
    make, tokens = TOKENIZER_BY_KIND[request.param]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("transformers")
        from transformers import PreTrainedTokenizerFast
    theirs = PreTrainedTokenizerFast(tokenizer_object=make(), padding_side="left", **tokens)
    return PreTrainedTokenizer(Tokenizer(make().to_str()), **tokens), theirs


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"add_special_tokens": False},
        {"padding": True},
        {"padding": "max_length", "max_length": 40},
        {"padding": "longest", "padding_side": "right", "pad_to_multiple_of": 8},
        {"max_length": 3, "truncation": True},
        {"max_length": 3, "truncation": True, "padding": "max_length"},
        {"max_length": 100, "truncation": True},
        {"max_length": 3, "truncation": False},
        {"padding": True, "return_tensors": "pt"},
        {"return_attention_mask": False},
    ],
)
def test_calls_are_the_references(pair, options):
    ours, theirs = pair
    for text in (TEXTS, TEXTS[2]):
        mine, reference = ours(text, **options), theirs(text, **options)
        reference.pop("token_type_ids", None)
        assert list(mine) == list(reference)
        for name, value in mine.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, reference[name])
            else:
                assert value == reference[name]


@pytest.mark.parametrize("side", ["left", "right"])
def test_either_side_is_cut(pair, side):
    ours, theirs = pair
    ours.truncation_side = theirs.truncation_side = side
    mine = ours(TEXTS, max_length=4, truncation=True)
    assert mine.input_ids == theirs(TEXTS, max_length=4, truncation=True).input_ids
    ours.truncation_side = theirs.truncation_side = "right"


def test_decoding_is_the_references(pair):
    ours, theirs = pair
    rows = ours(TEXTS, padding=True, return_tensors="pt").input_ids
    for skips in (True, False):
        assert ours.batch_decode(rows, skip_special_tokens=skips) == theirs.batch_decode(
            rows, skip_special_tokens=skips, clean_up_tokenization_spaces=False
        )
    assert ours.decode(rows[2].tolist()) == ours.decode(rows[2]) == ours.decode(rows[2].numpy())
    assert ours.decode(int(rows[1, -1])) == theirs.decode(int(rows[1, -1]))


def test_names_and_numbers_are_the_references(pair):
    ours, theirs = pair
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        assert getattr(ours, name) == getattr(theirs, name)
        assert getattr(ours, f"{name}_id") == getattr(theirs, f"{name}_id")
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert len(ours) == len(theirs)
    assert ours.vocab_size == theirs.vocab_size
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.tokenize(TEXTS[2]) == theirs.tokenize(TEXTS[2])
    assert ours.convert_tokens_to_ids([IMAGE_TOKEN, END_OF_UTTERANCE]) == theirs.convert_tokens_to_ids(
        [IMAGE_TOKEN, END_OF_UTTERANCE]
    )
    assert ours.convert_tokens_to_ids(IMAGE_TOKEN) == theirs.convert_tokens_to_ids(IMAGE_TOKEN)
    assert ours.convert_ids_to_tokens([5, 6]) == theirs.convert_ids_to_tokens([5, 6])
    assert ours.encode(TEXTS[0]) == theirs.encode(TEXTS[0])
    assert set(theirs.all_special_tokens) <= set(ours.all_special_tokens)


def test_words_that_the_guides_forbid_and_stop_at():
    ours = make_llama_tokenizer()
    words = ours([IMAGE_TOKEN, FAKE_IMAGE_TOKEN], add_special_tokens=False).input_ids
    assert words == [
        [ours.convert_tokens_to_ids(IMAGE_TOKEN)],
        [ours.convert_tokens_to_ids(FAKE_IMAGE_TOKEN)],
    ]
    assert ours(END_OF_UTTERANCE, add_special_tokens=False).input_ids == [
        ours.convert_tokens_to_ids(END_OF_UTTERANCE)
    ]
    assert ours(["", ""], add_special_tokens=False).input_ids == [[], []]
    assert ours("", return_tensors="pt").input_ids.dtype == torch.int64


def test_spaces_before_punctuation_go_on_request():
    ours = make_smolvlm_tokenizer()
    ids = ours("They 're here , are n't they ?").input_ids
    assert ours.decode(ids) == "They 're here , are n't they ?"
    assert ours.decode(ids, clean_up_tokenization_spaces=True) == "They're here, aren't they?"


def test_generation_needs_padding_on_the_left():
    assert make_smolvlm_tokenizer()(["a b c", "a"], padding=True).attention_mask[1][0] == 0


def test_a_token_to_pad_with_may_be_named_later():
    ours = PreTrainedTokenizer(Tokenizer(train_byte_level_tokenizer().to_str()))
    assert ours(["a"], return_tensors="pt").input_ids.shape == (1, 1)
    with pytest.raises(BadSetting, match="no token to pad with"):
        ours(["a", "b c d"], return_tensors="pt")
    ours.pad_token = "<|im_end|>"
    assert ours(["a", "b c d"], return_tensors="np").input_ids[0, 0] == ours.pad_token_id


def test_mistakes_are_told():
    ours = make_smolvlm_tokenizer()
    with pytest.raises(BadPrompt, match="a text is an int"):
        ours(["a", 3])
    with pytest.raises(BadPrompt, match="use batch_decode"):
        ours.decode(np.zeros((2, 3), int))
    with pytest.raises(BadPrompt, match="-100 is not the id of a token"):
        ours.decode([1, -100])
    with pytest.raises(BadSetting, match="padding_side is 'middle'"):
        ours(["a"], padding_side="middle")
    with pytest.raises(BadSetting, match="truncation is 'only_second'"):
        ours(["a"], truncation="only_second")
    with pytest.raises(BadSetting, match="max_length is 0"):
        ours(["a"], max_length=0)
    with pytest.raises(TypeError, match="paddding"):
        ours(["a"], paddding=True)


def test_what_is_saved_is_read_again(tmp_path):
    ours = PreTrainedTokenizer(
        Tokenizer(train_byte_level_tokenizer().to_str()),
        **BYTE_LEVEL_SPECIAL_TOKENS,
        padding_side="right",
        model_max_length=7,
        chat_template="{{ 1 }}",
    )
    ours.save_pretrained(tmp_path / "new")
    again = PreTrainedTokenizer.from_pretrained(tmp_path / "new")
    assert (again.padding_side, again.model_max_length, again.chat_template) == ("right", 7, "{{ 1 }}")
    assert again.special_tokens_map == BYTE_LEVEL_SPECIAL_TOKENS
    assert again(TEXTS).input_ids == ours(TEXTS).input_ids
    assert len(again("a b c d e f g h i", truncation=True).input_ids) == 7
    other = PreTrainedTokenizer.from_pretrained(tmp_path / "new", padding_side="left", pad_token=IMAGE_TOKEN)
    assert (other.padding_side, other.pad_token) == ("left", IMAGE_TOKEN)
    with pytest.raises(TypeError, match="side"):
        PreTrainedTokenizer.from_pretrained(tmp_path / "new", side="left")


def test_the_reference_reads_what_is_saved(tmp_path, pair):
    ours, theirs = pair
    ours.save_pretrained(tmp_path)
    again = type(theirs).from_pretrained(tmp_path)
    assert again.special_tokens_map == theirs.special_tokens_map
    assert again.padding_side == "left"
    assert again(TEXTS).input_ids == ours(TEXTS).input_ids


def test_files_say_the_special_tokens_in_many_ways(tmp_path):
    train_llama_tokenizer().save(str(tmp_path / "tokenizer.json"))
    bare = PreTrainedTokenizer.from_pretrained(tmp_path)
    assert bare.special_tokens_map == LLAMA_SPECIAL_TOKENS
    (tmp_path / "special_tokens_map.json").write_text('{"pad_token": {"content": "</s>", "special": true}}')
    assert PreTrainedTokenizer.from_pretrained(tmp_path).pad_token == "</s>"
    (tmp_path / "tokenizer_config.json").write_text('{"pad_token": "<s>", "padding_side": "right"}')
    written = PreTrainedTokenizer.from_pretrained(tmp_path)
    assert (written.pad_token, written.padding_side) == ("<s>", "right")


def test_what_is_no_checkpoint(tmp_path):
    with pytest.raises(ModelNotFound):
        PreTrainedTokenizer.from_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(UnsupportedModel, match=r"no tokenizer\.json"):
        PreTrainedTokenizer.from_pretrained(tmp_path)


def test_a_conversation_of_text():
    assert make_smolvlm_tokenizer().apply_chat_template(
        [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
        add_generation_prompt=True,
        tokenize=False,
    ) == (f"<|im_start|>User: Hi{END_OF_UTTERANCE}\nAssistant:")
