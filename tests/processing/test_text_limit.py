"""`TextLimit`: texts that cannot fit are refused by their characters; texts that could fit are not."""

import json
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers, pre_tokenizers

import idefics
from idefics.errors import PromptTooLong, TextTooLong
from idefics.messages import Picture, user
from idefics.processing import aliased_tokenizer
from idefics.processing.aliased_tokenizer import HUGE_TEXT_CHARACTERS, LONG_TEXT_CHARACTERS
from idefics.processing.text_limit import TextLimit
from idefics.processing.tokenizer import TextPiece, Tokenizer
from processing.tokenizers_tiny import IMAGE_TOKEN, train_byte_level_tokenizer, train_llama_tokenizer

TOKENIZER_BY_KIND = {
    "byte-level": Tokenizer(train_byte_level_tokenizer().to_str()),
    "legacy": Tokenizer(train_llama_tokenizer().to_str()),
}
QUICK = settings(max_examples=100, deadline=None, derandomize=True)
MEGABYTE = 1_000_000

both = pytest.mark.parametrize("kind", TOKENIZER_BY_KIND)
words = st.lists(
    st.sampled_from(
        ["The picture", " ", "   ", "table", "é", "日本", "🙂", "\n\n", "0", "<image>", "\u3000", "\ue000"]
    ),
    max_size=40,
).map("".join)


def is_refused(tokenizer, texts, max_tokens):
    try:
        TextLimit(tokenizer, max_tokens).check(texts)
    except TextTooLong:
        return True
    return False


@both
@QUICK
@given(texts=st.lists(words, min_size=1, max_size=3), trusted=st.booleans())
def test_a_text_that_fits_is_never_refused(kind, texts, trusted):
    ids = TOKENIZER_BY_KIND[kind].encode_pieces([TextPiece(text, trusted=trusted) for text in texts])
    assert not is_refused(TOKENIZER_BY_KIND[kind], texts, max(len(ids), 1))


@both
@pytest.mark.parametrize("text", ["a", "The ", " ", "\n", "日", "🙂", "-"])
def test_a_megabyte_of_anything_is_refused_where_256_tokens_are_read(kind, text):
    many = "x" + text * (MEGABYTE // len(text.encode())) + "x"
    assert is_refused(TOKENIZER_BY_KIND[kind], [many], 256)
    assert is_refused(TOKENIZER_BY_KIND[kind], [many[:500_000], many[500_000:]], 256)


def test_the_limit_is_the_longest_token_for_each_place():
    """`<fake_token_around_image>` has 25 bytes: a text of such tokens alone has the most characters that fit."""
    ours, token = TOKENIZER_BY_KIND["byte-level"], "<fake_token_around_image>"
    assert ours.encode(token * 40, add_special_tokens=False) == [ours.token_to_id(token)] * 40
    assert not is_refused(ours, [token * 40], 40)
    assert is_refused(ours, [token * 42], 40)


def test_blanks_that_a_token_absorbs_cost_nothing():
    library = train_byte_level_tokenizer()
    library.add_special_tokens([AddedToken("<wide>", lstrip=True, rstrip=True, normalized=False)])
    ours = Tokenizer(library.to_str())
    text = "<wide>" + " \u3000" * 5_000 + "<wide>"
    assert len(ours.encode(text, add_special_tokens=False)) == 2
    assert not is_refused(ours, [text], 2)
    assert is_refused(ours, [text + "a" * 100], 2)


@pytest.mark.parametrize(
    "change",
    [
        lambda library: setattr(library, "normalizer", normalizers.NFKC()),
        lambda library: setattr(library, "normalizer", normalizers.Replace("b", "")),
        lambda library: setattr(
            library,
            "pre_tokenizer",
            pre_tokenizers.Sequence([pre_tokenizers.Split("b", "removed"), pre_tokenizers.ByteLevel(False)]),
        ),
    ],
)
def test_where_a_tokenizer_drops_characters_nothing_is_refused_by_them(change):
    library = train_byte_level_tokenizer()
    change(library)
    assert not is_refused(Tokenizer(library.to_str()), ["b" * MEGABYTE], 256)


def test_nor_where_unknown_characters_become_one_token():
    file = json.loads(train_llama_tokenizer().to_str())
    file["model"]["byte_fallback"] = False
    ours = Tokenizer(json.dumps(file))
    assert len(ours.encode("日" * 1000, add_special_tokens=False)) < 10
    assert not is_refused(ours, ["日" * 1000], 10)


def test_bytes_that_no_token_spells_cost_nothing():
    library = train_byte_level_tokenizer()
    file = json.loads(library.to_str())
    known = {token: id for token, id in file["model"]["vocab"].items() if "T" not in token}
    file["model"] |= {"vocab": known, "merges": [m for m in file["model"]["merges"] if "T" not in "".join(m)]}
    ours = Tokenizer(json.dumps(file))
    assert ours.encode("T" * 1000, add_special_tokens=False) == []
    assert not is_refused(ours, ["T" * 1000 + "a"], 1)


@pytest.fixture(scope="module")
def vlm():
    return idefics.load("demo", remote_images="off")


@pytest.fixture
def forbid_tokenizing(vlm, monkeypatch):
    monkeypatch.setattr(Tokenizer, "encode_pieces", lambda *_, **__: pytest.fail("it was tokenized"))


MEGABYTE_TEXT = "word " * (MEGABYTE // 5)


@pytest.mark.parametrize(
    "call",
    [
        lambda vlm: vlm.generate([MEGABYTE_TEXT]),
        lambda vlm: vlm.generate([Picture("missing.png"), MEGABYTE_TEXT]),  # before a picture is opened
        lambda vlm: vlm.chat([user(MEGABYTE_TEXT)]),
        lambda vlm: vlm.chat([user("Hi")], answer_start=MEGABYTE_TEXT),
        lambda vlm: vlm.score(["Hi"], [MEGABYTE_TEXT, "a"]),
        lambda vlm: vlm.score([user("Hi")], ["a", MEGABYTE_TEXT]),
    ],
)
def test_every_call_refuses_it_before_it_is_tokenized(vlm, forbid_tokenizing, call):
    with pytest.raises(
        TextTooLong, match=r"1,000,0\d\d characters.*1,024 tokens.*25,600 characters.*send less"
    ):
        call(vlm)


def test_what_has_too_many_tokens_is_told_with_their_number(vlm):
    with pytest.raises(
        PromptTooLong, match=r"has \d{4} tokens \(0 pictures included\); this model reads 1024"
    ):
        vlm.prompt(["word " * 1200])


@both
@pytest.mark.parametrize("forged", ["", IMAGE_TOKEN])
def test_other_threads_run_while_a_long_text_is_tokenized(kind, forged):
    ours, ticks, is_done = TOKENIZER_BY_KIND[kind], [], threading.Event()

    def tick():
        while not is_done.wait(0.001):
            ticks.append(time.perf_counter())

    thread = threading.Thread(target=tick)
    thread.start()
    began = time.perf_counter()
    ours.encode_pieces([TextPiece("The table" * 60_000 + forged, trusted=False)])
    ended = time.perf_counter()
    is_done.set()
    thread.join()
    pauses = [later - earlier for earlier, later in zip([began, *ticks], [*ticks, ended], strict=False)]
    assert max(pauses) < (ended - began) / 3


@both
def test_long_texts_have_the_ids_of_short_ones(kind):
    text = "This is an image of a tower at night. 日本 🙂\n" * 200
    assert len(text) > 4096
    library = {"byte-level": train_byte_level_tokenizer, "legacy": train_llama_tokenizer}[kind]()
    expected = library.encode(text, add_special_tokens=False).ids
    assert TOKENIZER_BY_KIND[kind].encode_pieces([TextPiece(text, trusted=False)]) == expected
    forged = TOKENIZER_BY_KIND[kind].encode_pieces(
        [TextPiece(IMAGE_TOKEN, trusted=True), TextPiece(IMAGE_TOKEN + text, trusted=False)]
    )
    assert forged.count(TOKENIZER_BY_KIND[kind].token_to_id(IMAGE_TOKEN)) == 1
    assert (
        TOKENIZER_BY_KIND[kind].decode(forged, hidden_ids=()).replace("> <", "><") == IMAGE_TOKEN * 2 + text
    )


@both
def test_of_a_huge_text_only_the_beginning_is_tokenized_before_it_is_refused(kind, monkeypatch):
    """A large encoding takes tens of milliseconds to free, during which the GIL is held."""
    tokenizer, encoded = TOKENIZER_BY_KIND[kind], []
    encode = aliased_tokenizer.encode_without_gil
    monkeypatch.setattr(
        aliased_tokenizer,
        "encode_without_gil",
        lambda library, text: encoded.append(len(text)) or encode(library, text),
    )
    monkeypatch.setattr(
        "idefics.processing.tokenizer.encode_without_gil", lambda *_: pytest.fail("it was tokenized whole")
    )
    text = "a cat sat " * 100_000
    with pytest.raises(
        TextTooLong, match=r"the text has 1,000,000 characters, .* the 1,024 tokens"
    ) as caught:
        tokenizer.encode_pieces(
            [TextPiece("A: ", trusted=True), TextPiece(text, trusted=False)], max_tokens=1024
        )
    assert caught.value.characters == len(text)
    assert 1024 < sum(encoded) <= 20 * 1024
    assert max(encoded) == LONG_TEXT_CHARACTERS


@both
def test_a_huge_text_that_fits_is_not_refused_and_one_that_nearly_fits_is_counted_exactly(kind):
    tokenizer = TOKENIZER_BY_KIND[kind]
    piece = TextPiece("a cat sat " * 7_000, trusted=True)
    assert len(piece.text) > HUGE_TEXT_CHARACTERS
    ids = tokenizer.encode_pieces([piece])
    assert tokenizer.encode_pieces([piece], max_tokens=len(ids)) == ids
    with pytest.raises(PromptTooLong) as caught:
        tokenizer.encode_pieces([piece], max_tokens=len(ids) - 1)
    assert type(caught.value) is PromptTooLong
    assert caught.value.length == len(ids)
