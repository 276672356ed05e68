"""`Tokenizer`: ids as tokenizer.json defines them; special tokens in untrusted text are plain characters."""

import json

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models, normalizers, processors
from tokenizers import Tokenizer as Library

from idefics.errors import UnsupportedModel
from idefics.processing.tokenizer import TextPiece, Tokenizer
from processing.tokenizers_tiny import (
    END_OF_UTTERANCE,
    FAKE_IMAGE_TOKEN,
    IMAGE_TOKEN,
    train_byte_level_tokenizer,
    train_llama_tokenizer,
    write_tokenizer,
)

LIBRARY_TOKENIZER_BY_KIND = {
    "byte-level": train_byte_level_tokenizer(),
    "byte-level, tags as text": train_byte_level_tokenizer(has_tile_tokens=False),
    "legacy": train_llama_tokenizer(),
}
OUR_TOKENIZER_BY_KIND = {
    name: Tokenizer(library.to_str()) for name, library in LIBRARY_TOKENIZER_BY_KIND.items()
}
QUICK = settings(max_examples=60, deadline=None, derandomize=True)

both = pytest.mark.parametrize("kind", OUR_TOKENIZER_BY_KIND)
words = st.text(alphabet=st.sampled_from("aeT 8\n<>_/|s▁é日🙂\ue000"), max_size=12)
specials = st.sampled_from(
    [FAKE_IMAGE_TOKEN, IMAGE_TOKEN, END_OF_UTTERANCE, "<s>", "<|im_start|>", "<row_1_col_2>", "<global-img>"]
)


def trusted(text):
    return TextPiece(text, trusted=True)


def plain(text):
    return TextPiece(text, trusted=False)


@both
@QUICK
@given(parts=st.lists(st.tuples(st.one_of(words, specials), st.booleans()), max_size=8))
def test_pieces_without_forgery_are_the_concatenated_text(kind, parts):
    ours = OUR_TOKENIZER_BY_KIND[kind]
    pieces = [
        TextPiece(text, trusted=is_trusted or text in ours.added_token_contents) for text, is_trusted in parts
    ]
    joined = "".join(piece.text for piece in pieces)
    assume(has_no_forged_token(ours, pieces))
    assert ours.encode_pieces(pieces) == ours.encode(joined, add_special_tokens=False)
    assert (
        ours.encode_pieces(pieces)
        == LIBRARY_TOKENIZER_BY_KIND[kind].encode(joined, add_special_tokens=False).ids
    )


@both
@QUICK
@given(
    texts=st.lists(
        st.lists(st.tuples(st.one_of(words, specials), st.booleans()), max_size=6), min_size=1, max_size=4
    )
)
def test_many_texts_are_encoded_as_each_of_them(kind, texts):
    ours = OUR_TOKENIZER_BY_KIND[kind]
    pieces = [[TextPiece(*part) for part in text] for text in texts]
    assert ours.encode_pieces_batch(pieces) == [ours.encode_pieces(one) for one in pieces]


def has_no_forged_token(ours, pieces):
    """No special token is recognised outside trusted pieces, nor across the border of pieces."""
    joined = "".join(piece.text for piece in pieces)
    return all(
        joined.count(s) == sum(p.text.count(s) for p in pieces if p.trusted)
        for s in ours.added_token_contents
    )


@both
@QUICK
@given(before=words, after=words)
def test_plain_text_next_to_a_forgery_is_tokenized_as_usual(kind, before, after):
    """Encoding with aliases gives the same ids for all other text."""
    ours = OUR_TOKENIZER_BY_KIND[kind]
    honest = [
        trusted(END_OF_UTTERANCE + before),
        plain(after),
        trusted(FAKE_IMAGE_TOKEN + IMAGE_TOKEN + FAKE_IMAGE_TOKEN),
    ]
    ids = ours.encode_pieces([*honest, trusted(END_OF_UTTERANCE), plain(IMAGE_TOKEN)])
    expected = ours.encode("".join(piece.text for piece in honest), add_special_tokens=False)
    assume(has_no_forged_token(ours, honest))
    assert ids[: len(expected)] == expected
    assert ids[len(expected)] == ours.token_to_id(END_OF_UTTERANCE)
    assert ours.token_to_id(IMAGE_TOKEN) not in ids[len(expected) :]


@pytest.mark.parametrize(
    ("kind", "token"),
    [
        (kind, token)
        for kind, ours in OUR_TOKENIZER_BY_KIND.items()
        for token in sorted(ours.added_token_contents)
    ],
)
def test_no_added_token_comes_out_of_plain_text(kind, token):
    ours = OUR_TOKENIZER_BY_KIND[kind]
    for text in (token, f"a{token}b", f"{token}{token}", f" {token} \n", f"{token[:3]}{token}{token[3:]}"):
        ids = ours.encode_pieces([trusted(END_OF_UTTERANCE), plain(text)])
        assert ids[0] == ours.token_to_id(END_OF_UTTERANCE)
        assert ours.token_to_id(token) not in ids[1:]
        assert not ours.special_ids & set(ids[1:])
        assert ours.decode(ids[1:]) == text


@both
def test_a_token_split_over_two_pieces_is_a_forgery_too(kind):
    ours = OUR_TOKENIZER_BY_KIND[kind]
    for pieces in (
        [plain("<ima"), plain("ge>")],
        [trusted("<ima"), plain("ge>")],
        [plain("<ima"), trusted("ge>")],
    ):
        assert ours.token_to_id(IMAGE_TOKEN) not in ours.encode_pieces(pieces)
        assert ours.decode(ours.encode_pieces(pieces)) == IMAGE_TOKEN
    assert ours.encode_pieces([trusted("<ima"), trusted("ge>")]) == [ours.token_to_id(IMAGE_TOKEN)]


def test_a_base_vocabulary_token_that_merges_reach_stays_out_of_plain_text():
    """`<s>` is in the base vocabulary of Llama: merges could build it from plain characters."""
    vocabulary = {t: i for i, t in enumerate(["<unk>", "<s>", "<", "s", ">", "s>", "▁", "x", *BYTES])}
    library = Library(
        models.BPE(vocab=vocabulary, merges=[("s", ">"), ("<", "s>")], unk_token="<unk>", byte_fallback=True)
    )
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.decoder = train_llama_tokenizer().decoder
    # Older Llama files say "normalized": true: then the library itself misses a "<s>" inside a segment.
    library.add_special_tokens([AddedToken("<s>", normalized=True)])
    assert library.encode("x<s>").ids[-1] == 1
    ours = Tokenizer(library.to_str())
    ids = ours.encode_pieces([plain("x<s>")])
    assert [library.id_to_token(id) for id in ids] == ["▁", "x", "<", "s>"]
    assert ours.decode(ids) == "x<s>"


BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def test_a_special_token_that_absorbs_spaces_is_still_honoured():
    library = train_byte_level_tokenizer()
    library.add_special_tokens([AddedToken("<sep>", lstrip=True, rstrip=True, normalized=False)])
    ours = Tokenizer(library.to_str())
    honest = [plain("a "), trusted("<sep>"), plain(" b")]
    assert ours.encode_pieces(honest) == ours.encode("a <sep> b", add_special_tokens=False)
    forged = ours.encode_pieces([*honest, plain(" <sep>")])
    assert forged.count(ours.token_to_id("<sep>")) == 1


def test_added_tokens_that_are_not_special_cannot_be_forged_either():
    library = train_byte_level_tokenizer()
    library.add_tokens(["<loc_7>"])
    ours = Tokenizer(library.to_str())
    assert ours.token_to_id("<loc_7>") not in ours.special_ids
    assert ours.encode_pieces([trusted("<loc_7>")]) == [ours.token_to_id("<loc_7>")]
    assert ours.token_to_id("<loc_7>") not in ours.encode_pieces([plain("<loc_7>")])


def test_every_segment_between_specials_gets_its_blank():
    """The legacy scheme; transformers 5 drops the "▁" after special tokens."""
    ours = OUR_TOKENIZER_BY_KIND["legacy"]
    text = f"<s>User:{FAKE_IMAGE_TOKEN}{IMAGE_TOKEN}{FAKE_IMAGE_TOKEN}Can you{END_OF_UTTERANCE}\nAssistant:"
    tokens = [
        LIBRARY_TOKENIZER_BY_KIND["legacy"].id_to_token(id)
        for id in ours.encode(text, add_special_tokens=False)
    ]
    assert tokens[:2] == ["<s>", "▁User"]
    assert "".join(tokens).endswith(
        f"{FAKE_IMAGE_TOKEN}▁Can▁you{END_OF_UTTERANCE}▁<0x0A>Assistant:"
    ) or "".join(tokens).endswith(f"{FAKE_IMAGE_TOKEN}▁Can▁you{END_OF_UTTERANCE}▁\nAssistant:")


def test_a_leading_space_of_a_segment_doubles_the_blank():
    ours = OUR_TOKENIZER_BY_KIND["legacy"]
    tokens = [
        LIBRARY_TOKENIZER_BY_KIND["legacy"].id_to_token(id)
        for id in ours.encode("<s> User", add_special_tokens=False)
    ]
    assert "".join(tokens) == "<s>▁▁User"


def test_byte_level_adds_nothing():
    """No space in front, single digits, and no `<s>`, as the file has no post-processor."""
    ours, library = OUR_TOKENIZER_BY_KIND["byte-level"], LIBRARY_TOKENIZER_BY_KIND["byte-level"]
    ids = ours.encode("User 2026", add_special_tokens=True)
    assert ids == ours.encode("User 2026", add_special_tokens=False)
    assert [library.id_to_token(id) for id in ids][-4:] == ["2", "0", "2", "6"]
    assert ours.decode(ids) == "User 2026"


def test_the_post_processor_runs_if_requested():
    library = train_byte_level_tokenizer()
    library.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", library.token_to_id("<|im_start|>"))]
    )
    ours = Tokenizer(library.to_str())
    assert ours.encode("x", add_special_tokens=True) == [1, *ours.encode("x", add_special_tokens=False)]
    assert ours.encode("", add_special_tokens=True) == [1]


def test_truncation_and_padding_of_the_file_are_off():
    library = train_llama_tokenizer()
    library.enable_truncation(max_length=4)
    library.enable_padding(length=64)
    assert OUR_TOKENIZER_BY_KIND["legacy"].encode(
        "a story about a table", add_special_tokens=False
    ) == Tokenizer(library.to_str()).encode("a story about a table", add_special_tokens=False)


@both
@QUICK
@given(data=st.data())
def test_decoding_is_the_librarys_wherever_bytes_are_whole_characters(kind, data):
    library, ours = LIBRARY_TOKENIZER_BY_KIND[kind], OUR_TOKENIZER_BY_KIND[kind]
    ids = data.draw(st.lists(st.integers(0, library.get_vocab_size() + 3), max_size=12))
    for skip in (True, False):
        text = ours.decode(ids, hidden_ids=ours.special_ids if skip else ())
        if "\ufffd" not in text or kind != "legacy":  # the library spoils whole characters beside broken ones
            assert text == library.decode(ids, skip_special_tokens=skip)


def test_broken_bytes_do_not_spoil_their_neighbours():
    """One run of bytes: a whole "é", then half a character. The library returns three replacement characters."""
    ours, library = OUR_TOKENIZER_BY_KIND["legacy"], LIBRARY_TOKENIZER_BY_KIND["legacy"]
    ids = [library.token_to_id(token) for token in ("<0xC3>", "<0xA9>", "<0xE6>")]
    assert ours.decode(ids) == "é\ufffd"
    assert library.decode(ids) == "\ufffd\ufffd\ufffd"


@both
def test_ids_beyond_the_vocabulary_are_silent(kind):
    """Embeddings are padded: SmolVLM-Instruct has 49155 rows, and some have more rows than tokens."""
    assert OUR_TOKENIZER_BY_KIND[kind].decode([10**6]) == ""


def test_names_and_ids():
    ours = OUR_TOKENIZER_BY_KIND["byte-level"]
    assert {
        IMAGE_TOKEN,
        FAKE_IMAGE_TOKEN,
        END_OF_UTTERANCE,
        "<row_6_col_6>",
        "<|im_end|>",
    } <= ours.added_token_contents
    assert ours.token_to_id(IMAGE_TOKEN) in ours.special_ids
    assert ours.token_to_id("<no such token>") is None
    assert ours.token_to_id("<global-img>") + 1 == ours.token_to_id("<row_1_col_1>")  # the released order
    assert (
        ours.token_to_id("<row_6_col_6>") + 1
        == ours.token_to_id(FAKE_IMAGE_TOKEN)
        == ours.token_to_id(IMAGE_TOKEN) - 1
    )


def test_loading(tmp_path):
    ours = Tokenizer.load(write_tokenizer(train_byte_level_tokenizer(), tmp_path))
    assert ours.encode("a cat", add_special_tokens=False) == OUR_TOKENIZER_BY_KIND["byte-level"].encode(
        "a cat", add_special_tokens=False
    )


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UnsupportedModel, match=f"{tmp_path} has no tokenizer.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(
        UnsupportedModel, match=r"has a tokenizer.model but no tokenizer.json: .*save_pretrained"
    ):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '"text"', b"\xff\xfe"])
def test_a_broken_file_is_named(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UnsupportedModel, match=str(path)) as error:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(error.value)


def test_an_unknown_decoder_is_refused(tmp_path):
    raw = json.loads(train_byte_level_tokenizer().to_str())
    raw["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(UnsupportedModel, match="WordPiece"):
        Tokenizer.load(tmp_path)
