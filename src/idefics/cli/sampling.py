"""The flags of all commands that generate text, named as the Python keywords, with the same ranges and defaults."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idefics.cli.flags import ImageDetailFlags, flag, flag_group, read_text_file
from idefics.config import Sampling
from idefics.errors import BadSetting
from idefics.structured import OutputConstraint

if TYPE_CHECKING:
    from idefics import Options

sampling_flag = partial(flag, "Sampling")
constraint_flag = partial(flag, "Structured output")


@flag_group
class SamplingFlags(ImageDetailFlags):
    """How each token is chosen. Where a flag is not given, the task's default holds."""

    max_new_tokens: int | None = sampling_flag("Longest answer, in tokens.")
    temperature: float | None = sampling_flag(
        "0, the default, always takes the most likely token.", metavar="T"
    )
    top_k: int | None = sampling_flag("Sample from the K most likely tokens; 0 means all.", metavar="K")
    top_p: float | None = sampling_flag(
        "Sample from the most likely tokens whose probabilities add up to P.",
        metavar="P",
    )
    min_p: float | None = sampling_flag("Drop tokens less likely than P times the most likely.", metavar="P")
    repetition_penalty: float | None = sampling_flag("Above 1 discourages repetition.", metavar="X")
    presence_penalty: float | None = sampling_flag(
        "Above 0 discourages tokens already in the answer; -2 to 2.", metavar="X"
    )
    frequency_penalty: float | None = sampling_flag(
        "The same, times the number of its occurrences; -2 to 2.", metavar="X"
    )
    num_beams: int | None = sampling_flag("Number of beams; 1 turns beam search off.")
    seed: int | None = sampling_flag("Random seed: the same seed gives the same answer.")
    logprobs: bool = sampling_flag("Give each token's log-probability; needs --json.", default=False)
    top_logprobs: int | None = sampling_flag(
        "Also the N most likely tokens at each position, 1 to 20; implies --logprobs."
    )
    stop: list[str] | None = sampling_flag("End the answer before TEXT; repeatable.")
    banned: list[str] | None = sampling_flag("Never write TEXT; repeatable.")
    skip_special_tokens: bool | None = sampling_flag(
        "Leave all special tokens out of answers, or show all; default: content tags such as DocTags only.",
        names="--skip-special-tokens/--no-skip-special-tokens",
    )
    regex: str | None = constraint_flag("The whole answer matches this regular expression.", metavar="REGEX")
    choices: str | None = constraint_flag(
        "The answer is one of these, separated by commas.", metavar="TEXT,TEXT"
    )
    choice: list[str] | None = constraint_flag("One choice, which may contain a comma; repeatable.")
    schema: Path | None = constraint_flag(
        "The answer is JSON that matches the schema in FILE; - is standard input."
    )

    def options(self, *, as_json: bool) -> Options:
        """The flags as keywords of `Idefics.generate` and the tasks; those not given are left out.

        Args:
            as_json: whether answers are printed as JSON; log-probabilities are printed nowhere else.

        Raises:
            BadSetting: a value is out of range, or flags contradict each other; found before any model is loaded.
        """
        self.image_detail_options()
        if (wants_logprobs := self.logprobs or self.top_logprobs is not None) and not as_json:
            raise BadSetting("--logprobs needs --json: plain output has no column for log-probabilities")
        comma_separated = [] if self.choices is None else self.choices.split(",")
        given = asdict(self) | {
            "logprobs": wants_logprobs or None,
            "choices": [*(one.strip() for one in comma_separated), *(self.choice or ())],
            "choice": None,
            "schema": None if self.schema is None else _read_schema(self.schema),
        }
        options = {name: value for name, value in given.items() if value not in (None, [])}
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
