"""Forms and banned words with the tokens of both kinds of checkpoint, whatever a model would like to say."""

import json
import random
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import idefics.demo
from idefics.errors import BadSetting, MissingExtra
from idefics.form import Form
from idefics.processing import closing
from idefics.processing.guides import BannedWords, Shape
from idefics.processing.spelling import Spelling
from idefics.processing.tokenizer import Tokenizer

pytest.importorskip("llguidance")

STOP = frozenset({1, 2})
FOLDERS = {kind: Path(idefics.demo.__file__).parent / kind for kind in ("idefics1", "idefics3")}
TOKENIZERS = {kind: Tokenizer.load(folder) for kind, folder in FOLDERS.items()}
SPELLINGS = {
    kind: Spelling(tokenizer, max(tokenizer.vocabulary().values()) + 9, STOP, {5, 300})
    for kind, tokenizer in TOKENIZERS.items()
}
KINDS = pytest.mark.parametrize("kind", SPELLINGS)

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "home": {"$ref": "#/$defs/place"},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
    "$defs": {
        "place": {
            "type": "object",
            "properties": {"town": {"enum": ["Köln", "Łódź", "Rome"]}, "in": {"$ref": "#/$defs/place"}},
            "required": ["town"],
            "additionalProperties": False,
        }
    },
}


def is_place(value):
    return (
        value["town"] in ("Köln", "Łódź", "Rome")
        and value.keys() <= {"town", "in"}
        and ("in" not in value or is_place(value["in"]))
    )


def is_person(text):
    value = json.loads(text)
    return (
        isinstance(value["name"], str)
        and isinstance(value["age"], int)
        and value.keys() <= {"name", "age", "tags", "home"}
        and all(isinstance(tag, str) for tag in value.get("tags", []))
        and ("home" not in value or is_place(value["home"]))
    )


def matches(regex):
    return lambda text: re.fullmatch(regex, text) is not None


CHOICES = ["yes", "no", "yes, sir", "été 🦊", "它是红色的", 'a "b"\\', "two\nlines", "/x/", " blank"]
FORMS = {
    "choices": (Form(choices=CHOICES), CHOICES.__contains__),
    "number": (Form(regex=r"-?\d+(\.\d{2})?"), matches(r"-?[0-9]+(\.[0-9]{2})?")),
    "counted": (Form(regex=r"[a-z]{7}|[A-Z]{3}\d{2}"), matches(r"[a-z]{7}|[A-Z]{3}\d{2}")),
    "late": (Form(regex=r".*because.*[.!?]"), matches(r".*because.*[.!?]")),
    "foreign": (Form(regex=r"[α-ω]{3} (é|ü|🦊)+"), matches(r"[α-ω]{3} (é|ü|🦊)+")),
    "blank": (Form(regex=r"\s[a-z]+"), matches(r"\s[a-z]+")),
    "anchored": (Form(regex=r"^(red|green)$"), matches(r"red|green")),
    "object": (Form(schema={"type": "object"}), lambda text: isinstance(json.loads(text), dict)),
    "person": (Form(schema=PERSON), is_person),
    "list": (
        Form(schema={"type": "array", "items": {"enum": [1, "á", None]}, "minItems": 2}),
        lambda text: len(json.loads(text)) >= 2 and set(json.loads(text)) <= {1, "á", None},
    ),
    "pattern": (
        Form(schema={"type": "string", "pattern": "^[A-F]{4}-[0-9]+$"}),
        lambda text: re.fullmatch("[A-F]{4}-[0-9]+", json.loads(text)),
    ),
}


def shape_of(kind, form):
    return Shape(form, SPELLINGS[kind])


def ids_of(guide):
    """What may follow; the bits after the last id are none."""
    bits = np.unpackbits(np.frombuffer(guide.allowed(), np.uint8), bitorder="little")
    return bits.nonzero()[0].tolist()


def said(shape, room, choose):
    """An answer as the engine makes it: -> its text, its ids, and whether it ended by itself."""
    guide, ids = shape.guide(room), []
    while len(ids) < room:
        may = ids_of(guide)
        id = guide.settle(choose(may), room - len(ids) - 1)
        assert id in may or id in STOP
        if id in STOP:
            return text_of(shape, ids), ids, True
        ids.append(id)
        if guide.is_over:
            return text_of(shape, ids), ids, True
    return text_of(shape, ids), ids, False


def text_of(shape, ids):
    text = b"".join(shape.spelling.bytes_of[id] for id in ids).decode()
    return text.removeprefix(" ") if shape.is_spaced else text


def talkative(seed):
    """Somebody who never wants to end."""
    draw = random.Random(seed)
    return lambda may: draw.choice([id for id in may if id not in STOP] or may)


@KINDS
@pytest.mark.parametrize("name", FORMS)
def test_whatever_is_chosen_the_text_has_its_form(kind, name):
    form, is_right = FORMS[name]
    shape = shape_of(kind, form)
    for room in (*range(shape.length, shape.length + 7), 40):
        for seed in range(3):
            text, ids, _ = said(shape, room, talkative(1000 * room + seed))
            assert is_right(text), (room, seed, text)
            assert len(ids) <= room


@KINDS
@pytest.mark.parametrize("name", FORMS)
def test_what_has_no_room_is_refused_at_once(kind, name):
    shape = shape_of(kind, FORMS[name][0])
    with pytest.raises(
        BadSetting, match=f"has {shape.length} tokens, and there is room for {shape.length - 1}"
    ):
        shape.guide(shape.length - 1)


@KINDS
def test_the_shortest_answers_are_found(kind):
    """Room for one token less than the shortest text takes is refused rightly."""
    shortest = {
        "choices": min(map(str.encode, CHOICES), key=SPELLINGS[kind].count),
        "number": b"0",
        "object": b"{}",
        "pattern": b'"AAAA-0"',
        "list": b"[1, 1]",
        "person": b'{"name": "", "age": 0}',
    }
    for name, text in shortest.items():
        shape = shape_of(kind, FORMS[name][0])
        assert len(shape.end) == len(text), name
        assert shape.length == SPELLINGS[kind].count(shape.end) <= SPELLINGS[kind].count(text)
    ends = {
        r"a[0-9]{9}|b[0-9]": 2,
        r"(a|b)*c": 1,
        r".*foo.*bar": 6,
        r"x?": 0,
        r"[a-z]{300}": 300,
        r"é{2}": 4,
        r"(abc|de){3}": 6,
    }
    assert {regex: len(shape_of(kind, Form(regex=regex)).end) for regex in ends} == ends


def test_ends_of_schemas_turn_off_where_it_is_nearer():
    alternatives = {"anyOf": [{"enum": ["a very long word", "b"]}, {"enum": ["an even longer one"]}]}
    assert shape_of("idefics3", Form(schema=alternatives)).end == b'"b"'
    email = {"type": "string", "format": "email"}
    assert len(shape_of("idefics3", Form(schema=email)).end) <= len(b'"a@a.aa"') + 2


@KINDS
def test_somebody_who_wants_to_end_may_as_soon_as_the_form_is_there(kind):
    def choose(may):
        return next((id for id in may if id in STOP), may[0])

    text, _, has_ended = said(shape_of(kind, Form(regex="(ab)+")), 30, choose)
    assert (text, has_ended) == ("ab", True)


@KINDS
def test_an_answer_ends_where_nothing_can_follow(kind):
    text, _, has_ended = said(shape_of(kind, Form(choices=["yes"])), 30, talkative(1))
    assert (text, has_ended) == ("yes", True), "without a step for the stop id"


@KINDS
def test_one_blank_may_come_first_unless_the_form_begins_with_one(kind):
    spelling = SPELLINGS[kind]
    blank = spelling.tokens(b" ")[0]
    spaced, own = shape_of(kind, Form(choices=["yes"])), shape_of(kind, Form(regex=r" ?yes"))
    assert (spaced.is_spaced, own.is_spaced) == (True, False)
    for shape in (spaced, own):
        guide = shape.guide(9)
        assert blank in ids_of(guide)
        guide.settle(blank, 8)
        assert blank not in ids_of(guide)


@KINDS
def test_silent_tokens_are_never_allowed(kind):
    spelling, tokenizer = SPELLINGS[kind], TOKENIZERS[kind]
    may = ids_of(shape_of(kind, Form(regex=r"(?s).*")).guide(9))
    silent = {id for id, spelled in enumerate(spelling.bytes_of) if not spelled}
    assert silent >= tokenizer.special_ids | {5, 300} | STOP
    assert set(may) & silent == STOP, "an empty answer is one, so it may end"
    assert max(may) < len(spelling.bytes_of)


@KINDS
def test_spelling_takes_the_fewest_tokens(kind):
    spelling, draw = SPELLINGS[kind], random.Random(3)
    known = [spelled for spelled in spelling.bytes_of if spelled]
    for _ in range(200):
        pieces = draw.choices(known, k=draw.randint(1, 6))
        tokens = spelling.tokens(b"".join(pieces))
        assert b"".join(spelling.bytes_of[id] for id in tokens) == b"".join(pieces)
        assert len(tokens) <= len(pieces)
    assert spelling.tokens(b"") == []
    words = "The red square is left of the blue circle."
    usual = TOKENIZERS[kind].encode(words, adds_special=False)
    spelled = b"".join(spelling.bytes_of[id] for id in usual)
    assert spelled.decode().lstrip() == words
    assert len(spelling.tokens(spelled)) <= len(usual)


def test_what_cannot_be_spelled_is_refused():
    spelling = Spelling(TOKENIZERS["idefics3"], 200, STOP, {SPELLINGS["idefics3"].tokens(b"q")[0]})
    assert spelling.tokens(b"aqa") is None
    with pytest.raises(BadSetting, match="no text of the given choices was found"):
        Shape(Form(choices=["aqa"]), spelling)
    shape = Shape(Form(choices=["aqa", "aaaaaaaaa"]), spelling)
    assert {said(shape, 30, talkative(seed))[0] for seed in range(20)} == {"aaaaaaaaa"}


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"regex": "[a-"}, "regex cannot be used: unclosed character class"),
        ({"regex": r"(?=x)y"}, "look-around"),
        ({"regex": r"(a)\1"}, "backreferences are not supported"),
        ({"regex": "a&&[^a]b"}, None),
        ({"schema": {"not": {}}}, "schema cannot be used: Unimplemented keys"),
        ({"schema": {"type": "foo"}}, "Invalid type: foo"),
        ({"schema": {"$ref": "http://example.com/x"}}, "not present"),
        ({"schema": {"enum": []}}, "schema"),
    ],
)
def test_forms_that_cannot_be_held_to_are_told(form, message):
    if message is None:
        assert shape_of("idefics3", Form(**form)).end
        return
    with pytest.raises(BadSetting, match=message) as told:
        shape_of("idefics3", Form(**form))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({}, "an answer has one form, not 0"),
        ({"regex": "a", "choices": ["b"]}, "an answer has one form, not 2"),
        ({"regex": ""}, "regex is ''"),
        ({"regex": 5}, "regex is 5"),
        ({"choices": "yes"}, "choices is 'yes'; give a list"),
        ({"choices": []}, r"choices is \[\]"),
        ({"choices": ["a", ""]}, "give a list of texts"),
        ({"choices": ["a", 1]}, "give a list of texts"),
        ({"schema": "{}"}, "give a JSON schema as a dict"),
        ({"schema": {"a": {1, 2}}}, "schema is not JSON"),
    ],
)
def test_what_is_no_form_is_told(form, message):
    with pytest.raises(BadSetting, match=message):
        Form(**form)


def test_without_llguidance_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    spelling = Spelling(TOKENIZERS["idefics3"], 300, STOP, ())
    with pytest.raises(MissingExtra, match=r"pip install 'idefics\[form\]'"):
        Shape(Form(regex="a"), spelling)


def test_a_walk_gives_up():
    at = closing.matcher("start: /[a-z]{50}/")
    assert closing.walk(at, 49) is None
    assert len(closing.walk(at, 50)) == 50


def banned_text(kind, words, choose, tokens=60):
    spelling = SPELLINGS[kind]
    guide, ids = BannedWords(words, spelling).guide(tokens), []
    for _ in range(tokens):
        ids.append(guide.settle(choose(ids_of(guide)), 0))
    return b"".join(spelling.bytes_of[id] for id in ids)


def letters_of(kind, letters, seed):
    """Somebody who only says tokens of some letters, if he may."""
    allowed, draw = set(letters.encode()), random.Random(seed)
    own = {id for id, spelled in enumerate(SPELLINGS[kind].bytes_of) if spelled and set(spelled) <= allowed}
    return lambda may: draw.choice([id for id in may if id in own] or may)


@KINDS
def test_banned_words_do_not_come_whatever_they_are_made_of(kind):
    words = ["a", "red", "squ", "é", " i"]
    for seed in range(5):
        text = banned_text(kind, words, letters_of(kind, "aredsqué i", seed))
        assert not [word for word in words if word.encode() in text]
        free = banned_text(kind, ["\x00"], letters_of(kind, "aredsqué i", seed))
        assert any(word.encode() in free for word in words)


@KINDS
def test_only_what_completes_a_word_is_left_out(kind):
    spelling = SPELLINGS[kind]
    words = ["red", "dr", "ed ", "it"]
    banned = BannedWords(words, spelling)
    for start in ("", "r", "re", "rre", "xd", "e", "ed", "i", "red"):
        guide = banned.guide(9)
        for id in spelling.tokens(start.encode()):
            guide.settle(id, 0)
        may = set(ids_of(guide))
        for id, spelled in enumerate(spelling.bytes_of):
            before = start.encode()
            completes = any(
                (before + spelled).find(word.encode(), max(0, len(before) - len(word) + 1)) >= 0 and spelled
                for word in words
            )
            assert (id in may) != completes, (start, spelled)


def test_a_banned_word_has_letters():
    with pytest.raises(BadSetting, match="a banned word is empty"):
        BannedWords(["a", ""], SPELLINGS["idefics3"])
