"""The flags of all commands that generate. They are named as the Python keywords, with the same ranges and defaults."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from idefics.cli.flags import LookFlags, number
from idefics.cli.text_files import read_text_file
from idefics.config import Sampling
from idefics.errors import BadSetting
from idefics.form import Form

if TYPE_CHECKING:
    from idefics.pipeline import Options

_sampling = partial(typer.Option, rich_help_panel="Sampling")
_form = partial(typer.Option, rich_help_panel="Structured output")


@dataclass(frozen=True, kw_only=True)
class SamplingFlags(LookFlags):
    """How the next token is chosen; what is not given is left to the call."""

    max_new_tokens: Annotated[
        int | None,
        _sampling(
            "--max-new-tokens",
            metavar="N",
            parser=number("--max-new-tokens", int),
            help="Longest answer, in tokens.",
        ),
    ] = None
    temperature: Annotated[
        float | None,
        _sampling(
            "--temperature",
            metavar="T",
            parser=number("--temperature", float),
            help="0, the default, always takes the most likely token.",
        ),
    ] = None
    top_k: Annotated[
        int | None,
        _sampling(
            "--top-k",
            metavar="K",
            parser=number("--top-k", int),
            help="Sample from the K most likely tokens; 0 means all.",
        ),
    ] = None
    top_p: Annotated[
        float | None,
        _sampling(
            "--top-p",
            metavar="P",
            parser=number("--top-p", float),
            help="Sample from the most likely tokens whose probabilities add up to P.",
        ),
    ] = None
    min_p: Annotated[
        float | None,
        _sampling(
            "--min-p",
            metavar="P",
            parser=number("--min-p", float),
            help="Drop tokens less likely than P times the most likely.",
        ),
    ] = None
    repetition_penalty: Annotated[
        float | None,
        _sampling(
            "--repetition-penalty",
            metavar="X",
            parser=number("--repetition-penalty", float),
            help="Above 1 discourages repetition.",
        ),
    ] = None
    presence_penalty: Annotated[
        float | None,
        _sampling(
            "--presence-penalty",
            metavar="X",
            parser=number("--presence-penalty", float),
            help="Above 0 discourages tokens already in the answer; -2 to 2.",
        ),
    ] = None
    frequency_penalty: Annotated[
        float | None,
        _sampling(
            "--frequency-penalty",
            metavar="X",
            parser=number("--frequency-penalty", float),
            help="The same, once for each time a token occurs; -2 to 2.",
        ),
    ] = None
    num_beams: Annotated[
        int | None,
        _sampling(
            "--num-beams",
            metavar="N",
            parser=number("--num-beams", int),
            help="Number of beams; 1 turns beam search off.",
        ),
    ] = None
    seed: Annotated[
        int | None,
        _sampling(
            "--seed",
            metavar="N",
            parser=number("--seed", int),
            help="Random seed: the same seed gives the same answer.",
        ),
    ] = None
    logprobs: Annotated[
        bool, _sampling("--logprobs", help="Give each token's log-probability; needs --json.")
    ] = False
    top_logprobs: Annotated[
        int | None,
        _sampling(
            "--top-logprobs",
            metavar="N",
            parser=number("--top-logprobs", int),
            help="And those of the N most likely tokens in its place, 1 to 20; implies --logprobs.",
        ),
    ] = None
    stop: Annotated[
        list[str] | None,
        _sampling("--stop", metavar="TEXT", help="End the answer before TEXT; repeatable."),
    ] = None
    banned: Annotated[
        list[str] | None,
        _sampling("--banned", metavar="TEXT", help="Never write TEXT; repeatable."),
    ] = None
    skip_special_tokens: Annotated[
        bool | None,
        _sampling(
            "--skip-special-tokens/--no-skip-special-tokens",
            help="Leave all special tokens out of answers, or show all; default: tags such as DocTags are shown.",
        ),
    ] = None
    regex: Annotated[
        str | None,
        _form("--regex", metavar="REGEX", help="The whole answer matches this regular expression."),
    ] = None
    choices: Annotated[
        str | None,
        _form("--choices", metavar="TEXT,TEXT", help="The answer is one of these, separated by commas."),
    ] = None
    choice: Annotated[
        list[str] | None,
        _form("--choice", metavar="TEXT", help="One choice, which may contain a comma; repeatable."),
    ] = None
    schema: Annotated[
        Path | None,
        _form(
            "--schema",
            metavar="FILE",
            help="The answer is JSON that matches the schema in FILE; - is standard input.",
        ),
    ] = None

    def options(self, *, as_json: bool) -> Options:
        """The keywords of a call. Raises BadSetting for what is out of range, before any model is loaded.

        Args:
            as_json: answers are printed as JSON, which log-probabilities need.
        """
        self.looking()
        given = {name: value for name, value in asdict(self).items() if value not in (None, [])}
        wants_logprobs = given.pop("logprobs") or self.top_logprobs is not None
        if wants_logprobs and not as_json:
            raise BadSetting("--logprobs needs --json: plain answers have no place for log-probabilities")
        if wants_logprobs:
            given["logprobs"] = True
        listed = [choice.strip() for choice in given.pop("choices", "").split(",")] if self.choices else []
        if choices := [*listed, *given.pop("choice", ())]:
            given["choices"] = choices
        if self.schema is not None:
            given["schema"] = _read_schema(self.schema)
        Sampling(**{field.name: given[field.name] for field in fields(Sampling) if field.name in given})
        Form.of(*(given.get(name) for name in ("regex", "choices", "schema")))
        return given  # type: ignore[return-value]  # the fields are the options' names


def _read_schema(path: Path) -> Any:
    """What a file of JSON holds."""
    text = read_text_file("--schema", path, "a JSON schema")
    try:
        return json.loads(text)
    except ValueError as error:
        raise BadSetting(f"--schema {path} is not JSON: {error}") from None
