"""`help` of the public calls documents every option with its type."""

import inspect
import pydoc
import typing
from dataclasses import fields

import pytest

import idefics
from idefics import Idefics, Options, Sampling, Stream
from idefics.options import DEFAULT_OPTIONS, GenerationOptions, MapOptions

CALLS = ["caption", "ask", "complete", "write", "read", "generate", "chat"]


def test_the_options_are_the_fields_of_sampling_and_some():
    assert {field.name for field in fields(Sampling)} <= set(typing.get_type_hints(Options))
    assert (
        set(typing.get_type_hints(Options)) < set(typing.get_type_hints(MapOptions)) == set(DEFAULT_OPTIONS)
    )


@pytest.mark.parametrize(
    ("name", "kind"),
    [*((name, Options) for name in CALLS), ("submit", GenerationOptions)],
    ids=[*CALLS, "submit"],
)
def test_help_shows_every_option(name, kind):
    call = getattr(Idefics, name)
    text = pydoc.plain(pydoc.render_doc(call))
    parameters = inspect.signature(call).parameters
    for option, hint in typing.get_type_hints(kind, include_extras=True).items():
        type_, line = typing.get_args(hint)
        parameter = parameters[option]
        assert parameter.annotation == type_ and parameter.kind is parameter.KEYWORD_ONLY
        assert f"\n        {option} (" in text or f"\n    {option} (" in text
        assert f"{parameter.default!r}): {line}." in text
    assert not [one for one in parameters.values() if one.kind is one.VAR_KEYWORD]


def test_defaults_are_those_that_hold():
    """Each task shows its own default, and passing the shown defaults changes no answer."""
    assert inspect.signature(Idefics.ask).parameters["max_new_tokens"].default == 64
    assert inspect.signature(Idefics.write).parameters["max_new_tokens"].default == 256
    vlm = idefics.load("demo")
    shown = {
        name: inspect.signature(vlm.generate).parameters[name].default
        for name in typing.get_type_hints(Options)
    }
    assert vlm.generate(["The"], **shown).tokens == vlm.generate(["The"]).tokens


@pytest.mark.parametrize(
    "name", [*CALLS, "classify", "score", "load", "submit", "prompt", "cost", "embed", "with_shots"]
)
def test_every_own_argument_is_documented(name):
    text = inspect.getdoc(getattr(Idefics, name))
    own = [one for one in inspect.signature(getattr(Idefics, name)).parameters if one not in ("self", "cls")]
    assert not [
        one for one in own if f"{one}:" not in text and f"{one} (" not in text and f"{one}," not in text
    ]
    assert len(text.splitlines()) > 3


def test_help_of_a_stream_says_how_to_read_it():
    assert "answer" in inspect.getdoc(Stream)
