"""The flags of all commands that generate text, named as the Python keywords, with the same ranges and defaults."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from idefics.cli.flags import ImageDetailFlags, number_parser
from idefics.cli.text_files import read_text_file
from idefics.config import Sampling
from idefics.errors import BadSetting
from idefics.structured import OutputConstraint

if TYPE_CHECKING:
    from idefics import Options

_sampling_option = partial(typer.Option, rich_help_panel="Sampling")
_constraint_option = partial(typer.Option, rich_help_panel="Structured output")


@dataclass(frozen=True, kw_only=True)
class SamplingFlags(ImageDetailFlags):
    """How each token is chosen. Where a flag is not given, the task's default holds."""

    max_new_tokens: Annotated[
        int | None,
        _sampling_option(
            "--max-new-tokens",
            metavar="N",
            parser=number_parser("--max-new-tokens", int),
            help="Longest answer, in tokens.",
        ),
    ] = None
    temperature: Annotated[
        float | None,
        _sampling_option(
            "--temperature",
            metavar="T",
            parser=number_parser("--temperature", float),
            help="0, the default, always takes the most likely token.",
        ),
    ] = None
    top_k: Annotated[
        int | None,
        _sampling_option(
            "--top-k",
            metavar="K",
            parser=number_parser("--top-k", int),
            help="Sample from the K most likely tokens; 0 means all.",
        ),
    ] = None
    top_p: Annotated[
        float | None,
        _sampling_option(
            "--top-p",
            metavar="P",
            parser=number_parser("--top-p", float),
            help="Sample from the most likely tokens whose probabilities add up to P.",
        ),
    ] = None
    min_p: Annotated[
        float | None,
        _sampling_option(
            "--min-p",
            metavar="P",
            parser=number_parser("--min-p", float),
            help="Drop tokens less likely than P times the most likely.",
        ),
    ] = None
    repetition_penalty: Annotated[
        float | None,
        _sampling_option(
            "--repetition-penalty",
            metavar="X",
            parser=number_parser("--repetition-penalty", float),
            help="Above 1 discourages repetition.",
        ),
    ] = None
    presence_penalty: Annotated[
        float | None,
        _sampling_option(
            "--presence-penalty",
            metavar="X",
            parser=number_parser("--presence-penalty", float),
            help="Above 0 discourages tokens already in the answer; -2 to 2.",
        ),
    ] = None
    frequency_penalty: Annotated[
        float | None,
        _sampling_option(
            "--frequency-penalty",
            metavar="X",
            parser=number_parser("--frequency-penalty", float),
            help="The same, times the number of its occurrences; -2 to 2.",
        ),
    ] = None
    num_beams: Annotated[
        int | None,
        _sampling_option(
            "--num-beams",
            metavar="N",
            parser=number_parser("--num-beams", int),
            help="Number of beams; 1 turns beam search off.",
        ),
    ] = None
    seed: Annotated[
        int | None,
        _sampling_option(
            "--seed",
            metavar="N",
            parser=number_parser("--seed", int),
            help="Random seed: the same seed gives the same answer.",
        ),
    ] = None
    logprobs: Annotated[
        bool, _sampling_option("--logprobs", help="Give each token's log-probability; needs --json.")
    ] = False
    top_logprobs: Annotated[
        int | None,
        _sampling_option(
            "--top-logprobs",
            metavar="N",
            parser=number_parser("--top-logprobs", int),
            help="Also the N most likely tokens at each position, 1 to 20; implies --logprobs.",
        ),
    ] = None
    stop: Annotated[
        list[str] | None,
        _sampling_option("--stop", metavar="TEXT", help="End the answer before TEXT; repeatable."),
    ] = None
    banned: Annotated[
        list[str] | None,
        _sampling_option("--banned", metavar="TEXT", help="Never write TEXT; repeatable."),
    ] = None
    skip_special_tokens: Annotated[
        bool | None,
        _sampling_option(
            "--skip-special-tokens/--no-skip-special-tokens",
            help="Leave all special tokens out of answers, or show all; default: content tags such as DocTags only.",
        ),
    ] = None
    regex: Annotated[
        str | None,
        _constraint_option(
            "--regex", metavar="REGEX", help="The whole answer matches this regular expression."
        ),
    ] = None
    choices: Annotated[
        str | None,
        _constraint_option(
            "--choices", metavar="TEXT,TEXT", help="The answer is one of these, separated by commas."
        ),
    ] = None
    choice: Annotated[
        list[str] | None,
        _constraint_option(
            "--choice", metavar="TEXT", help="One choice, which may contain a comma; repeatable."
        ),
    ] = None
    schema: Annotated[
        Path | None,
        _constraint_option(
            "--schema",
            metavar="FILE",
            help="The answer is JSON that matches the schema in FILE; - is standard input.",
        ),
    ] = None

    def options(self, *, as_json: bool) -> Options:
        """The flags as keywords of `Idefics.generate` and the tasks; those not given are left out.

        Args:
            as_json: whether answers are printed as JSON; log-probabilities are printed nowhere else.

        Raises:
            BadSetting: a value is out of range, or flags contradict each other; found before any model is loaded.
        """
        self.image_detail_options()
        options = {name: value for name, value in asdict(self).items() if value not in (None, [])}
        wants_logprobs = options.pop("logprobs") or self.top_logprobs is not None
        if wants_logprobs and not as_json:
            raise BadSetting("--logprobs needs --json: plain output has no column for log-probabilities")
        if wants_logprobs:
            options["logprobs"] = True
        comma_separated = (
            [choice.strip() for choice in options.pop("choices", "").split(",")] if self.choices else []
        )
        if choices := [*comma_separated, *options.pop("choice", ())]:
            options["choices"] = choices
        if self.schema is not None:
            options["schema"] = _read_schema(self.schema)
        Sampling(**{field.name: options[field.name] for field in fields(Sampling) if field.name in options})
        OutputConstraint.from_options(*(options.get(name) for name in ("regex", "choices", "schema")))
        return options  # type: ignore[return-value]  # the fields are the options' names


def _read_schema(path: Path) -> Any:
    """The parsed content of a JSON file."""
    text = read_text_file("--schema", path, "a JSON schema")
    try:
        return json.loads(text)
    except ValueError as error:
        raise BadSetting(f"--schema {path} is not JSON: {error}") from None
