"""Structured output and banned strings with both kinds of tokenizer, whatever tokens are sampled."""

import json
import random
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import idefics.demo
from idefics.errors import BadSetting, MissingExtra
from idefics.processing import shortest_completion
from idefics.processing.structured_output import BannedStrings, CompiledGrammar
from idefics.processing.token_bytes import TokenBytes
from idefics.processing.tokenizer import Tokenizer
from idefics.structured import OutputConstraint

pytest.importorskip("llguidance")

STOP_IDS = frozenset({1, 2})
FOLDERS = {kind: Path(idefics.demo.__file__).parent / kind for kind in ("idefics1", "idefics3")}
TOKENIZERS = {kind: Tokenizer.load(folder) for kind, folder in FOLDERS.items()}
TOKEN_BYTES_BY_KIND = {
    kind: TokenBytes(tokenizer, max(tokenizer.get_vocab().values()) + 9, STOP_IDS, {5, 300})
    for kind, tokenizer in TOKENIZERS.items()
}
KINDS = pytest.mark.parametrize("kind", TOKEN_BYTES_BY_KIND)

PERSON_SCHEMA = {
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


def is_valid_place(value):
    return (
        value["town"] in ("Köln", "Łódź", "Rome")
        and value.keys() <= {"town", "in"}
        and ("in" not in value or is_valid_place(value["in"]))
    )


def is_person(text):
    value = json.loads(text)
    return (
        isinstance(value["name"], str)
        and isinstance(value["age"], int)
        and value.keys() <= {"name", "age", "tags", "home"}
        and all(isinstance(tag, str) for tag in value.get("tags", []))
        and ("home" not in value or is_valid_place(value["home"]))
    )


def matches(regex):
    return lambda text: re.fullmatch(regex, text) is not None


CHOICES = ["yes", "no", "yes, sir", "été 🦊", "它是红色的", 'a "b"\\', "two\nlines", "/x/", " blank"]
CONSTRAINT_AND_CHECK_BY_NAME = {
    "choices": (OutputConstraint(choices=CHOICES), CHOICES.__contains__),
    "number": (OutputConstraint(regex=r"-?\d+(\.\d{2})?"), matches(r"-?[0-9]+(\.[0-9]{2})?")),
    "counted": (OutputConstraint(regex=r"[a-z]{7}|[A-Z]{3}\d{2}"), matches(r"[a-z]{7}|[A-Z]{3}\d{2}")),
    "late": (OutputConstraint(regex=r".*because.*[.!?]"), matches(r".*because.*[.!?]")),
    "foreign": (OutputConstraint(regex=r"[α-ω]{3} (é|ü|🦊)+"), matches(r"[α-ω]{3} (é|ü|🦊)+")),
    "blank": (OutputConstraint(regex=r"\s[a-z]+"), matches(r"\s[a-z]+")),
    "anchored": (OutputConstraint(regex=r"^(red|green)$"), matches(r"red|green")),
    "object": (OutputConstraint(schema={"type": "object"}), lambda text: isinstance(json.loads(text), dict)),
    "person": (OutputConstraint(schema=PERSON_SCHEMA), is_person),
    "list": (
        OutputConstraint(schema={"type": "array", "items": {"enum": [1, "á", None]}, "minItems": 2}),
        lambda text: len(json.loads(text)) >= 2 and set(json.loads(text)) <= {1, "á", None},
    ),
    "pattern": (
        OutputConstraint(schema={"type": "string", "pattern": "^[A-F]{4}-[0-9]+$"}),
        lambda text: re.fullmatch("[A-F]{4}-[0-9]+", json.loads(text)),
    ),
}


def compile_constraint(kind, form):
    return CompiledGrammar(form, TOKEN_BYTES_BY_KIND[kind])


def allowed_ids(constraint):
    """The allowed ids; the bits after the last id are zero."""
    bits = np.unpackbits(np.frombuffer(constraint.compute_token_bitmask(), np.uint8), bitorder="little")
    return bits.nonzero()[0].tolist()


def run_constraint(grammar, max_new_tokens, choose):
    """Generates an answer as the engine does; returns its text, its ids, and whether it ended by itself."""
    guide, ids = grammar.create_constraint(max_new_tokens), []
    while len(ids) < max_new_tokens:
        may = allowed_ids(guide)
        id = guide.accept_token(choose(may), max_new_tokens - len(ids) - 1)
        assert id in may or id in STOP_IDS
        if id in STOP_IDS:
            return decode_ids(grammar, ids), ids, True
        ids.append(id)
        if guide.is_finished:
            return decode_ids(grammar, ids), ids, True
    return decode_ids(grammar, ids), ids, False


def decode_ids(grammar, ids):
    text = b"".join(grammar.token_bytes.bytes_by_id[id] for id in ids).decode()
    return text.removeprefix(" ") if grammar.allows_leading_space else text


def choose_longest_answer(seed):
    """Samples any allowed token; a stop id only where nothing else is allowed."""
    draw = random.Random(seed)
    return lambda may: draw.choice([id for id in may if id not in STOP_IDS] or may)


@KINDS
@pytest.mark.parametrize("name", CONSTRAINT_AND_CHECK_BY_NAME)
def test_whatever_is_sampled_the_text_satisfies_its_constraint(kind, name):
    form, is_right = CONSTRAINT_AND_CHECK_BY_NAME[name]
    grammar = compile_constraint(kind, form)
    shortest = grammar.num_shortest_completion_tokens
    for room in (*range(shortest, shortest + 7), 40):
        for seed in range(3):
            text, ids, _ = run_constraint(grammar, room, choose_longest_answer(1000 * room + seed))
            assert is_right(text), (room, seed, text)
            assert len(ids) <= room


@KINDS
@pytest.mark.parametrize("name", CONSTRAINT_AND_CHECK_BY_NAME)
def test_constraints_that_cannot_fit_are_refused_at_once(kind, name):
    grammar = compile_constraint(kind, CONSTRAINT_AND_CHECK_BY_NAME[name][0])
    shortest = grammar.num_shortest_completion_tokens
    with pytest.raises(BadSetting, match=f"has {shortest} tokens, and there is room for {shortest - 1}"):
        grammar.create_constraint(shortest - 1)


@KINDS
def test_the_shortest_answers_are_found(kind):
    """One token fewer than the shortest text takes is refused."""
    shortest = {
        "choices": min(
            map(str.encode, CHOICES), key=lambda text: TOKEN_BYTES_BY_KIND[kind].min_token_counts(text)[0]
        ),
        "number": b"0",
        "object": b"{}",
        "pattern": b'"AAAA-0"',
        "list": b"[1, 1]",
        "person": b'{"name": "", "age": 0}',
    }
    for name, text in shortest.items():
        grammar = compile_constraint(kind, CONSTRAINT_AND_CHECK_BY_NAME[name][0])
        assert len(grammar.shortest_completion) == len(text), name
        assert (
            grammar.num_shortest_completion_tokens
            == TOKEN_BYTES_BY_KIND[kind].min_token_counts(grammar.shortest_completion)[0]
            <= TOKEN_BYTES_BY_KIND[kind].min_token_counts(text)[0]
        )
    ends = {
        r"a[0-9]{9}|b[0-9]": 2,
        r"(a|b)*c": 1,
        r".*foo.*bar": 6,
        r"x?": 0,
        r"[a-z]{300}": 300,
        r"é{2}": 4,
        r"(abc|de){3}": 6,
    }
    assert {
        regex: len(compile_constraint(kind, OutputConstraint(regex=regex)).shortest_completion)
        for regex in ends
    } == ends


def test_completions_of_schemas_are_shortened():
    alternatives = {"anyOf": [{"enum": ["a very long word", "b"]}, {"enum": ["an even longer one"]}]}
    assert compile_constraint("idefics3", OutputConstraint(schema=alternatives)).shortest_completion == b'"b"'
    email = {"type": "string", "format": "email"}
    assert (
        len(compile_constraint("idefics3", OutputConstraint(schema=email)).shortest_completion)
        <= len(b'"a@a.aa"') + 2
    )


@KINDS
def test_a_stop_id_is_allowed_as_soon_as_the_constraint_is_satisfied(kind):
    def choose(may):
        return next((id for id in may if id in STOP_IDS), may[0])

    text, _, has_ended = run_constraint(compile_constraint(kind, OutputConstraint(regex="(ab)+")), 30, choose)
    assert (text, has_ended) == ("ab", True)


@KINDS
def test_an_answer_ends_where_nothing_can_follow(kind):
    text, _, has_ended = run_constraint(
        compile_constraint(kind, OutputConstraint(choices=["yes"])), 30, choose_longest_answer(1)
    )
    assert (text, has_ended) == ("yes", True), "without a step for the stop id"


@KINDS
def test_one_leading_space_is_allowed_unless_the_constraint_begins_with_one(kind):
    token_bytes = TOKEN_BYTES_BY_KIND[kind]
    blank = token_bytes.tokenize(b" ")[0]
    spaced, own = (
        compile_constraint(kind, OutputConstraint(choices=["yes"])),
        compile_constraint(kind, OutputConstraint(regex=r" ?yes")),
    )
    assert (spaced.allows_leading_space, own.allows_leading_space) == (True, False)
    for grammar in (spaced, own):
        guide = grammar.create_constraint(9)
        assert blank in allowed_ids(guide)
        guide.accept_token(blank, 8)
        assert blank not in allowed_ids(guide)


@KINDS
def test_tokens_without_bytes_are_never_allowed(kind):
    token_bytes, tokenizer = TOKEN_BYTES_BY_KIND[kind], TOKENIZERS[kind]
    may = allowed_ids(compile_constraint(kind, OutputConstraint(regex=r"(?s).*")).create_constraint(9))
    silent = {id for id, spelled in enumerate(token_bytes.bytes_by_id) if not spelled}
    assert silent >= tokenizer.special_ids | {5, 300} | STOP_IDS
    assert set(may) & silent == STOP_IDS, "an empty answer is one, so it may end"
    assert max(may) < len(token_bytes.bytes_by_id)


@KINDS
def test_token_bytes_take_the_fewest_tokens(kind):
    token_bytes, draw = TOKEN_BYTES_BY_KIND[kind], random.Random(3)
    known = [spelled for spelled in token_bytes.bytes_by_id if spelled]
    for _ in range(200):
        pieces = draw.choices(known, k=draw.randint(1, 6))
        tokens = token_bytes.tokenize(b"".join(pieces))
        assert b"".join(token_bytes.bytes_by_id[id] for id in tokens) == b"".join(pieces)
        assert len(tokens) <= len(pieces)
    assert token_bytes.tokenize(b"") == []
    words = "The red square is left of the blue circle."
    usual = TOKENIZERS[kind].encode(words, add_special_tokens=False)
    spelled = b"".join(token_bytes.bytes_by_id[id] for id in usual)
    assert spelled.decode().lstrip() == words
    assert len(token_bytes.tokenize(spelled)) <= len(usual)


def test_what_cannot_be_spelled_is_refused():
    token_bytes = TokenBytes(
        TOKENIZERS["idefics3"], 200, STOP_IDS, {TOKEN_BYTES_BY_KIND["idefics3"].tokenize(b"q")[0]}
    )
    assert token_bytes.tokenize(b"aqa") is None
    with pytest.raises(BadSetting, match="no text of the given choices was found"):
        CompiledGrammar(OutputConstraint(choices=["aqa"]), token_bytes)
    grammar = CompiledGrammar(OutputConstraint(choices=["aqa", "aaaaaaaaa"]), token_bytes)
    assert {run_constraint(grammar, 30, choose_longest_answer(seed))[0] for seed in range(20)} == {
        "aaaaaaaaa"
    }


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
def test_unsupported_constraints_are_refused(form, message):
    if message is None:
        assert compile_constraint("idefics3", OutputConstraint(**form)).shortest_completion
        return
    with pytest.raises(BadSetting, match=message) as told:
        compile_constraint("idefics3", OutputConstraint(**form))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({}, "an answer has one constraint, not 0"),
        ({"regex": "a", "choices": ["b"]}, "an answer has one constraint, not 2"),
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
def test_invalid_constraints_are_refused(form, message):
    with pytest.raises(BadSetting, match=message):
        OutputConstraint(**form)


def test_without_llguidance_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    token_bytes = TokenBytes(TOKENIZERS["idefics3"], 300, STOP_IDS, ())
    with pytest.raises(MissingExtra, match=r"pip install 'idefics\[form\]'"):
        CompiledGrammar(OutputConstraint(regex="a"), token_bytes)


def test_a_walk_stops_at_its_limit():
    at = shortest_completion.create_matcher("start: /[a-z]{50}/")
    assert shortest_completion.greedy_completion(at, 49) is None
    assert len(shortest_completion.greedy_completion(at, 50)) == 50


def run_banned_words(kind, words, choose, tokens=60):
    token_bytes = TOKEN_BYTES_BY_KIND[kind]
    guide, ids = BannedStrings(words, token_bytes).create_constraint(tokens), []
    for _ in range(tokens):
        ids.append(guide.accept_token(choose(allowed_ids(guide)), 0))
    return b"".join(token_bytes.bytes_by_id[id] for id in ids)


def choose_tokens_of_letters(kind, letters, seed):
    """Samples tokens of some letters only, as long as one of them is allowed."""
    allowed, draw = set(letters.encode()), random.Random(seed)
    own = {
        id
        for id, spelled in enumerate(TOKEN_BYTES_BY_KIND[kind].bytes_by_id)
        if spelled and set(spelled) <= allowed
    }
    return lambda may: draw.choice([id for id in may if id in own] or may)


@KINDS
def test_banned_strings_do_not_occur_however_they_are_tokenized(kind):
    words = ["a", "red", "squ", "é", " i"]
    for seed in range(5):
        text = run_banned_words(kind, words, choose_tokens_of_letters(kind, "aredsqué i", seed))
        assert not [word for word in words if word.encode() in text]
        free = run_banned_words(kind, ["\x00"], choose_tokens_of_letters(kind, "aredsqué i", seed))
        assert any(word.encode() in free for word in words)


@KINDS
def test_only_tokens_that_complete_a_string_are_banned(kind):
    token_bytes = TOKEN_BYTES_BY_KIND[kind]
    words = ["red", "dr", "ed ", "it"]
    banned = BannedStrings(words, token_bytes)
    for start in ("", "r", "re", "rre", "xd", "e", "ed", "i", "red"):
        guide = banned.create_constraint(9)
        for id in token_bytes.tokenize(start.encode()):
            guide.accept_token(id, 0)
        may = set(allowed_ids(guide))
        for id, spelled in enumerate(token_bytes.bytes_by_id):
            before = start.encode()
            completes = any(
                (before + spelled).find(word.encode(), max(0, len(before) - len(word) + 1)) >= 0 and spelled
                for word in words
            )
            assert (id in may) != completes, (start, spelled)


def test_an_empty_banned_string_is_refused():
    with pytest.raises(BadSetting, match="a banned string is empty"):
        BannedStrings(["a", ""], TOKEN_BYTES_BY_KIND["idefics3"])
