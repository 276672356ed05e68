"""Ids are what tokenizer.json says; special tokens in plain text are characters, whoever forges them."""

import json

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models, normalizers, processors
from tokenizers import Tokenizer as Library

from idefics.errors import UnsupportedModel
from idefics.processing.tokenizer import Piece, Tokenizer
from processing.tokenizers_tiny import FAKE, IMAGE, TURN_END, byte_level, legacy_llama, write

LIBRARY = {
    "byte-level": byte_level(),
    "byte-level, tags as text": byte_level(tags=False),
    "legacy": legacy_llama(),
}
OURS = {name: Tokenizer(library.to_str()) for name, library in LIBRARY.items()}
QUICK = settings(max_examples=60, deadline=None, derandomize=True)

both = pytest.mark.parametrize("kind", OURS)
words = st.text(alphabet=st.sampled_from("aeT 8\n<>_/|s▁é日🙂\ue000"), max_size=12)
specials = st.sampled_from([FAKE, IMAGE, TURN_END, "<s>", "<|im_start|>", "<row_1_col_2>", "<global-img>"])


def trusted(text):
    return Piece(text, trusted=True)


def plain(text):
    return Piece(text, trusted=False)


@both
@QUICK
@given(parts=st.lists(st.tuples(st.one_of(words, specials), st.booleans()), max_size=8))
def test_pieces_without_forgery_are_the_joined_text(kind, parts):
    ours = OURS[kind]
    pieces = [Piece(text, trusted=is_trusted or text in ours.added) for text, is_trusted in parts]
    joined = "".join(piece.text for piece in pieces)
    assume(is_honest(ours, pieces))
    assert ours.encode_pieces(pieces) == ours.encode(joined, adds_special=False)
    assert ours.encode_pieces(pieces) == LIBRARY[kind].encode(joined, add_special_tokens=False).ids


def is_honest(ours, pieces):
    """No special token outside trusted pieces, nor across a border of pieces."""
    joined = "".join(piece.text for piece in pieces)
    return all(joined.count(s) == sum(p.text.count(s) for p in pieces if p.trusted) for s in ours.added)


@both
@QUICK
@given(before=words, after=words)
def test_honest_text_beside_a_forgery_is_tokenised_as_ever(kind, before, after):
    """The way that forged text takes gives the same ids for everything else."""
    ours = OURS[kind]
    honest = [trusted(TURN_END + before), plain(after), trusted(FAKE + IMAGE + FAKE)]
    ids = ours.encode_pieces([*honest, trusted(TURN_END), plain(IMAGE)])
    expected = ours.encode("".join(piece.text for piece in honest), adds_special=False)
    assume(is_honest(ours, honest))
    assert ids[: len(expected)] == expected
    assert ids[len(expected)] == ours.token_id(TURN_END)
    assert ours.token_id(IMAGE) not in ids[len(expected) :]


@pytest.mark.parametrize(
    ("kind", "token"), [(kind, token) for kind, ours in OURS.items() for token in sorted(ours.added)]
)
def test_no_added_token_comes_out_of_plain_text(kind, token):
    ours = OURS[kind]
    for text in (token, f"a{token}b", f"{token}{token}", f" {token} \n", f"{token[:3]}{token}{token[3:]}"):
        ids = ours.encode_pieces([trusted(TURN_END), plain(text)])
        assert ids[0] == ours.token_id(TURN_END)
        assert ours.token_id(token) not in ids[1:]
        assert not ours.special_ids & set(ids[1:])
        assert ours.decode(ids[1:]) == text


@both
def test_a_token_split_over_two_pieces_is_a_forgery_too(kind):
    ours = OURS[kind]
    for pieces in (
        [plain("<ima"), plain("ge>")],
        [trusted("<ima"), plain("ge>")],
        [plain("<ima"), trusted("ge>")],
    ):
        assert ours.token_id(IMAGE) not in ours.encode_pieces(pieces)
        assert ours.decode(ours.encode_pieces(pieces)) == IMAGE
    assert ours.encode_pieces([trusted("<ima"), trusted("ge>")]) == [ours.token_id(IMAGE)]


def test_a_base_vocabulary_token_that_merges_reach_stays_out_of_plain_text():
    """`<s>` stands in the base vocabulary of Llama: merges alone could build it from characters."""
    vocabulary = {t: i for i, t in enumerate(["<unk>", "<s>", "<", "s", ">", "s>", "▁", "x", *BYTES])}
    library = Library(
        models.BPE(vocab=vocabulary, merges=[("s", ">"), ("<", "s>")], unk_token="<unk>", byte_fallback=True)
    )
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.decoder = legacy_llama().decoder
    # Older Llama files say "normalized": true: then the library itself misses a "<s>" inside a segment.
    library.add_special_tokens([AddedToken("<s>", normalized=True)])
    assert library.encode("x<s>").ids[-1] == 1
    ours = Tokenizer(library.to_str())
    ids = ours.encode_pieces([plain("x<s>")])
    assert [library.id_to_token(id) for id in ids] == ["▁", "x", "<", "s>"]
    assert ours.decode(ids) == "x<s>"


BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def test_a_special_token_that_swallows_spaces_is_still_honoured():
    library = byte_level()
    library.add_special_tokens([AddedToken("<sep>", lstrip=True, rstrip=True, normalized=False)])
    ours = Tokenizer(library.to_str())
    honest = [plain("a "), trusted("<sep>"), plain(" b")]
    assert ours.encode_pieces(honest) == ours.encode("a <sep> b", adds_special=False)
    forged = ours.encode_pieces([*honest, plain(" <sep>")])
    assert forged.count(ours.token_id("<sep>")) == 1


def test_added_tokens_that_are_not_special_cannot_be_forged_either():
    library = byte_level()
    library.add_tokens(["<loc_7>"])
    ours = Tokenizer(library.to_str())
    assert ours.token_id("<loc_7>") not in ours.special_ids
    assert ours.encode_pieces([trusted("<loc_7>")]) == [ours.token_id("<loc_7>")]
    assert ours.token_id("<loc_7>") not in ours.encode_pieces([plain("<loc_7>")])


def test_the_last_segment_starts_at_the_last_honoured_token():
    ours = OURS["legacy"]
    end = trusted(f"{IMAGE}b")
    pieces = [
        trusted("<s>a"),
        plain(IMAGE),
        trusted(f"{FAKE}{end.text}"),
        plain(f"c{TURN_END}"),
        trusted("d"),
    ]
    assert ours.last_segment(pieces) == [end, *pieces[3:]]
    assert ours.last_segment(pieces[1:2]) == pieces[1:2]
    assert ours.last_segment([]) == []


def test_every_segment_between_specials_gets_its_blank():
    """The legacy scheme; transformers 5 drops the "▁" after special tokens."""
    ours = OURS["legacy"]
    text = f"<s>User:{FAKE}{IMAGE}{FAKE}Can you{TURN_END}\nAssistant:"
    tokens = [LIBRARY["legacy"].id_to_token(id) for id in ours.encode(text, adds_special=False)]
    assert tokens[:2] == ["<s>", "▁User"]
    assert "".join(tokens).endswith(f"{FAKE}▁Can▁you{TURN_END}▁<0x0A>Assistant:") or "".join(tokens).endswith(
        f"{FAKE}▁Can▁you{TURN_END}▁\nAssistant:"
    )


def test_a_leading_space_of_a_segment_doubles_the_blank():
    ours = OURS["legacy"]
    tokens = [LIBRARY["legacy"].id_to_token(id) for id in ours.encode("<s> User", adds_special=False)]
    assert "".join(tokens) == "<s>▁▁User"


def test_byte_level_adds_nothing():
    """No blank in front, single digits, and no beginning-of-text: the file has no post-processor."""
    ours, library = OURS["byte-level"], LIBRARY["byte-level"]
    ids = ours.encode("User 2026", adds_special=True)
    assert ids == ours.encode("User 2026", adds_special=False)
    assert [library.id_to_token(id) for id in ids][-4:] == ["2", "0", "2", "6"]
    assert ours.decode(ids) == "User 2026"


def test_the_post_processor_is_asked_for():
    library = byte_level()
    library.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", library.token_to_id("<|im_start|>"))]
    )
    ours = Tokenizer(library.to_str())
    assert ours.encode("x", adds_special=True) == [1, *ours.encode("x", adds_special=False)]
    assert ours.encode("", adds_special=True) == [1]


def test_truncation_and_padding_of_the_file_are_off():
    library = legacy_llama()
    library.enable_truncation(max_length=4)
    library.enable_padding(length=64)
    assert OURS["legacy"].encode("a story about a table", adds_special=False) == Tokenizer(
        library.to_str()
    ).encode("a story about a table", adds_special=False)


@both
@QUICK
@given(data=st.data())
def test_decoding_is_the_librarys_wherever_bytes_are_whole_characters(kind, data):
    library, ours = LIBRARY[kind], OURS[kind]
    ids = data.draw(st.lists(st.integers(0, library.get_vocab_size() + 3), max_size=12))
    for skip in (True, False):
        text = ours.decode(ids, hidden=ours.special_ids if skip else ())
        if "\ufffd" not in text or kind != "legacy":  # the library spoils whole characters beside broken ones
            assert text == library.decode(ids, skip_special_tokens=skip)


def test_broken_bytes_do_not_spoil_their_neighbours():
    """One run of bytes: "é" whole, then half a character. The library gives three replacement characters."""
    ours, library = OURS["legacy"], LIBRARY["legacy"]
    ids = [library.token_to_id(token) for token in ("<0xC3>", "<0xA9>", "<0xE6>")]
    assert ours.decode(ids) == "é\ufffd"
    assert library.decode(ids) == "\ufffd\ufffd\ufffd"


@both
def test_ids_beyond_the_vocabulary_are_silent(kind):
    """Embeddings are padded: SmolVLM-Instruct has 49155 rows, and some have more rows than tokens."""
    assert OURS[kind].decode([10**6]) == ""


def test_names_and_ids():
    ours = OURS["byte-level"]
    assert {IMAGE, FAKE, TURN_END, "<row_6_col_6>", "<|im_end|>"} <= ours.added
    assert ours.token_id(IMAGE) in ours.special_ids
    assert ours.token_id("<no such token>") is None
    assert ours.token_id("<global-img>") + 1 == ours.token_id("<row_1_col_1>")  # the released order
    assert ours.token_id("<row_6_col_6>") + 1 == ours.token_id(FAKE) == ours.token_id(IMAGE) - 1


def test_loading(tmp_path):
    ours = Tokenizer.load(write(byte_level(), tmp_path))
    assert ours.encode("a cat", adds_special=False) == OURS["byte-level"].encode("a cat", adds_special=False)


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
    raw = json.loads(byte_level().to_str())
    raw["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(UnsupportedModel, match="WordPiece"):
        Tokenizer.load(tmp_path)
