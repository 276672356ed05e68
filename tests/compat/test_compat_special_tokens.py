"""`skip_special_tokens` of `compat` is that of transformers, whichever tokens `idefics.load` hides."""

import warnings

import pytest

from idefics.compat.tokenization import PreTrainedTokenizer
from idefics.processing.tokenizer import Tokenizer
from models import doctags

TOKENS = {"eos_token": doctags.END_OF_TEXT, "pad_token": doctags.END_OF_TEXT}


@pytest.fixture(scope="module")
def ours_and_reference():
    """Ours and the reference's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("transformers")
        from transformers import PreTrainedTokenizerFast
    theirs = PreTrainedTokenizerFast(tokenizer_object=doctags.make_tokenizer(), **TOKENS)
    return PreTrainedTokenizer(Tokenizer(doctags.make_tokenizer().to_str()), **TOKENS), theirs


@pytest.mark.parametrize(
    "text", [doctags.PAGE_TEXT, f"<|start_of_role|>user<|end_of_role|>Hi{doctags.END_OF_TEXT}<image>"]
)
@pytest.mark.parametrize("options", [{}, {"skip_special_tokens": True}, {"skip_special_tokens": False}])
def test_texts_are_decoded_as_the_reference_does(ours_and_reference, text, options):
    ours, theirs = ours_and_reference
    ids = theirs(text, add_special_tokens=False).input_ids
    expected = theirs.decode(ids, clean_up_tokenization_spaces=False, **options)
    assert ours.decode(ids, **options) == expected
    if options != {"skip_special_tokens": True}:
        assert expected == text


def test_the_page_is_shown_or_hidden_as_asked(ours_and_reference):
    ours, _ = ours_and_reference
    ids = ours(doctags.PAGE_TEXT, add_special_tokens=False).input_ids
    ids = ids[0] if isinstance(ids[0], list) else ids
    assert ours.decode(ids, skip_special_tokens=True) == doctags.ORDINARY_CHARACTERS
    assert ours.batch_decode([ids], skip_special_tokens=False) == [doctags.PAGE_TEXT]
