"""The flags of `idefics run`: its input, its outputs, and how a run goes on."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from idefics.batch.run_settings import RowSelection
from idefics.batch.text_settings import TextSettings
from idefics.cli.flags import PositionalArguments, flag, flag_group, input_flag, output_flag
from idefics.errors import BadSetting
from idefics.validation import validate_range

if TYPE_CHECKING:
    from idefics.batch.ledger import Ledger
    from idefics.batch.run_settings import RunSettings

run_flag = partial(flag, "Going on")
SHARD = re.compile(r"(\d+)/(\d+)")


@flag_group
class RunInputFlags:
    """The flags for the input of a run."""

    inputs: PositionalArguments
    list_file: Path | None = input_flag(
        "A list of files and addresses, one per line; - is standard input.", names="--from"
    )
    recursive: bool = input_flag(
        "Search the subfolders of folders too, as by default.",
        default=True,
        names="--recursive/--no-recursive",
    )
    image_column: str | None = input_flag("Column of a table that names the pictures.", metavar="COLUMN")
    prompt_column: str | None = input_flag("Column that holds each row's prompt.", metavar="COLUMN")
    id_column: str | None = input_flag("Column that identifies the rows in the output.", metavar="COLUMN")
    prompt: str | None = input_flag(
        "The question or text; {name}, {folder}, {caption} and {any column} are filled in for each row."
    )


@flag_group
class RunTaskFlags:
    """The flag that names the task of a run."""

    task: str = input_flag(
        "caption, complete, ask, classify, write or read.", default="caption", metavar="TASK"
    )


@flag_group
class RunOutputFlags:
    """The flags for the outputs of a run."""

    out: Path | None = output_flag("Output file: .jsonl, .csv or .parquet.")
    sidecar: Literal["txt", "json", "xmp"] | None = output_flag(
        "Write each text next to its picture: photo.txt, photo.json or photo.jpg.xmp.", metavar="KIND"
    )
    write_metadata: bool = output_flag(
        "Write each text into the picture's own XMP metadata (JPEG, PNG, WebP); no pixel changes.",
        default=False,
    )
    existing: Literal["skip", "overwrite", "append", "prepend"] = output_flag(
        "What happens to a picture that has such a text: skip, overwrite, append or prepend.",
        default="skip",
        metavar="HOW",
    )
    prefix: str = output_flag("Text before each answer.", default="")
    suffix: str = output_flag("Text after each answer.", default="")
    report: Path | None = output_flag("One HTML page with all rows: thumbnails, answers, errors, charts.")

    @property
    def affixes(self) -> tuple[str, str]:
        """The texts before and after each answer."""
        return self.prefix, self.suffix

    @property
    def text_settings(self) -> TextSettings:
        """The settings of the texts next to pictures and in them."""
        return TextSettings(self.sidecar, self.write_metadata, self.existing)


@flag_group
class LedgerControlFlags:
    """The flags for the ledger of a run."""

    ledger: Path | None = run_flag("The ledger; else the output file's name with .ledger at its end.")
    overwrite: bool = run_flag(
        "Compute all rows again, and replace an output file of other origin.", default=False
    )
    retry_failed: bool = run_flag("Try rows again that failed before.", default=False)

    def prepare_ledger(self, ledger: Ledger, settings: RunSettings) -> int:
        """Deletes the rows of the run that are to be computed again; returns the number of its settings."""
        run_number = ledger.run_number(settings.to_json())
        if self.overwrite:
            ledger.forget_run(run_number)
        elif self.retry_failed:
            ledger.forget_errors(run_number)
        return run_number


@flag_group
class RunControlFlags(LedgerControlFlags):
    """The flags for the ledger, and for which rows a run takes."""

    limit: int | None = run_flag("Take the first N rows only.")
    shard: str | None = run_flag("Take one of n equal parts of the rows, such as 1/4.", metavar="I/N")
    max_errors: int | None = run_flag("Stop after N rows that failed.")
    timeout: float | None = run_flag("A row fails that has no answer after so many seconds.")

    def selection(self) -> RowSelection:
        """Which rows are taken. Raises BadSetting if a flag is wrong."""
        if self.max_errors is not None and self.max_errors < 1:
            raise BadSetting(f"max_errors is {self.max_errors}; give a number above 0")
        if self.timeout is not None:
            validate_range("timeout", self.timeout, 1e-6, 1e9)
        if self.shard is None:
            return RowSelection(limit=self.limit)
        match = SHARD.fullmatch(self.shard)
        if match is None:
            raise BadSetting(f"--shard is {self.shard!r}; give i/n with i from 1 to n, such as 1/4")
        return RowSelection(shard=int(match[1]), num_shards=int(match[2]), limit=self.limit)

    def timeout_option(self) -> dict[str, float]:
        """The time limit of each row as an option of the task; no part of the settings, as it changes no answer."""
        return {} if self.timeout is None else {"timeout": self.timeout}
