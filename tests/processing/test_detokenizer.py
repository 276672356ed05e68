"""`Detokenizer`: the streamed text is the whole text up to the first stop string, and never half a character."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idefics.errors import BadSetting
from idefics.processing.detokenizer import Detokenizer
from idefics.processing.tokenizer import Tokenizer
from processing.tokenizers_tiny import END_OF_UTTERANCE, train_byte_level_tokenizer, train_llama_tokenizer

TOKENIZERS = {
    "byte-level": Tokenizer(train_byte_level_tokenizer().to_str()),
    "legacy": Tokenizer(train_llama_tokenizer().to_str()),
}
both = pytest.mark.parametrize("kind", TOKENIZERS)
QUICK = settings(max_examples=150, deadline=None, derandomize=True)


def stream_text(tokenizer, ids, stop=()):
    """(what each push gave, what finish gave, the detokenizer)"""
    detokenizer = Detokenizer(tokenizer, stop)
    pushed = [detokenizer.push_token(id) for id in ids]
    return pushed, detokenizer.finish(), detokenizer


def expected_text(tokenizer, ids, stop=()):
    """The expected text by definition: without one leading space, up to the stop string that is complete first."""
    text = tokenizer.decode_bytes(ids).decode("utf-8", "replace").removeprefix(" ")
    ends = [(text.find(s) + len(s), text.find(s)) for s in stop if s in text]
    return text[: min(ends)[1]] if ends else text


def encode(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


@both
@QUICK
@given(
    ids=st.lists(st.integers(0, 500), max_size=30),
    stop=st.lists(st.text(alphabet="ate \n\ufffd", min_size=1, max_size=3), max_size=3),
)
def test_random_ids_and_stops(kind, ids, stop):
    """Random ids are mostly invalid UTF-8."""
    tokenizer = TOKENIZERS[kind]
    pushed, rest, detokenizer = stream_text(tokenizer, ids, stop)
    assert "".join(pushed) + rest == expected_text(tokenizer, ids, stop) == detokenizer.text
    if not stop:
        assert detokenizer.text == tokenizer.decode(ids).removeprefix("" if kind == "legacy" else " ")


@both
@QUICK
@given(text=st.text(alphabet="aé日🙂 \n", max_size=12))
def test_characters_come_whole(kind, text):
    tokenizer = TOKENIZERS[kind]
    pushed, rest, _ = stream_text(tokenizer, encode(tokenizer, "a" + text))
    assert "\ufffd" not in "".join(pushed)
    assert rest == ""
    assert "".join(pushed) == "a" + text


@both
def test_a_character_appears_with_its_last_byte(kind):
    """Not only when the run of bytes ends: a long Chinese answer is streamed."""
    tokenizer = TOKENIZERS[kind]
    detokenizer = Detokenizer(tokenizer)
    shown = [detokenizer.push_token(id) for id in encode(tokenizer, "日本語")]
    assert [text for text in shown if text.strip()] == ["日", "本", "語"]


@both
def test_half_a_character_at_the_end_is_one_replacement(kind):
    tokenizer = TOKENIZERS[kind]
    ids = encode(tokenizer, "ab🙂")[:-1]
    pushed, rest, _ = stream_text(tokenizer, ids)
    assert "".join(pushed) == "ab"
    assert rest == "\ufffd"


@both
def test_the_first_blank_belongs_to_the_token_bytes(kind):
    """After "Assistant:" both kinds of tokenizer begin with a token like " It"."""
    tokenizer = TOKENIZERS[kind]
    ids = encode(tokenizer, "x It is")[1:] if kind == "byte-level" else encode(tokenizer, "It is")
    pushed, rest, _ = stream_text(tokenizer, ids)
    assert "".join(pushed) + rest == "It is"


@both
def test_only_one_blank_is_dropped_and_only_at_the_start(kind):
    tokenizer = TOKENIZERS[kind]
    text = "  a  b" if kind == "byte-level" else " a  b"
    pushed, rest, _ = stream_text(tokenizer, encode(tokenizer, text))
    assert "".join(pushed) + rest == " a  b"


def tokenizer_with_tokens(*contents):
    """A tokenizer that has these texts as single tokens, and their ids."""
    library = train_byte_level_tokenizer()
    library.add_tokens(list(contents))
    return Tokenizer(library.to_str()), [library.token_to_id(content) for content in contents]


def test_only_one_blank_of_a_token_of_blanks_is_dropped():
    tokenizer, ids = tokenizer_with_tokens("   three")
    pushed, _, _ = stream_text(tokenizer, ids)
    assert pushed == ["  three"]


@both
def test_special_tokens_are_not_shown(kind):
    tokenizer = TOKENIZERS[kind]
    ids = [*encode(tokenizer, "a cat"), tokenizer.token_to_id(END_OF_UTTERANCE)]
    _, _, detokenizer = stream_text(tokenizer, ids)
    assert detokenizer.text == "a cat"


@both
def test_text_that_may_become_a_stop_string_is_held_back(kind):
    tokenizer = TOKENIZERS[kind]
    detokenizer = Detokenizer(tokenizer, ["\nUser:"])
    shown = "".join(map(detokenizer.push_token, encode(tokenizer, "a cat\nUse")))
    assert shown == "a cat"
    assert not detokenizer.is_stopped
    assert detokenizer.finish() == "\nUse"
    assert detokenizer.text == "a cat\nUse"


@both
def test_a_stop_string_ends_the_text_before_itself(kind):
    tokenizer = TOKENIZERS[kind]
    pushed, rest, detokenizer = stream_text(
        tokenizer, encode(tokenizer, "a cat\nUser: and more"), ["\nUser:"]
    )
    assert detokenizer.is_stopped
    assert "".join(pushed) + rest == detokenizer.text == "a cat"
    assert detokenizer.push_token(encode(tokenizer, "more")[0]) == ""


def test_the_stop_string_that_is_complete_first_decides():
    """However many characters a token holds: "abc" ends with its "b", though "abc" begins earlier."""
    tokenizer = TOKENIZERS["byte-level"]
    _, _, detokenizer = stream_text(tokenizer, encode(tokenizer, "x abc"), ["abc", "b"])
    assert detokenizer.text == "x a"
    _, _, detokenizer = stream_text(tokenizer, encode(tokenizer, "x abc"), ["c", "bc"])
    assert detokenizer.text == "x a"


def test_stop_strings_inside_one_token():
    tokenizer, ids = tokenizer_with_tokens("xabcy")
    for stop, expected in ((["abc", "b"], "xa"), (["abc", "bc"], "x"), (["z", "c"], "xab")):
        assert stream_text(tokenizer, ids, stop)[0] == [expected]


def test_an_empty_stop_string_is_refused():
    with pytest.raises(BadSetting, match="empty"):
        Detokenizer(TOKENIZERS["legacy"], ["", "a"])
