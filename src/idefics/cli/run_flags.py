"""The flags of `idefics run` and `idefics eval`: input, outputs, how a run goes on, and a Ray cluster."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from idefics.batch.run_settings import RowSelection
from idefics.cli.flags import PositionalArguments, flag, flag_group, input_flag, output_flag
from idefics.errors import BadSetting
from idefics.validation import validate_range

if TYPE_CHECKING:
    from idefics import Idefics
    from idefics.batch.answerers import Answerer
    from idefics.batch.ledger import Ledger
    from idefics.batch.ray_engine import EngineSpec
    from idefics.batch.run_settings import RunSettings


run_flag = partial(flag, "Going on")
SHARD = re.compile(r"(\d+)/(\d+)")


@flag_group
class RunInputFlags:
    """The flags for the input of a run, and its task."""

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


eval_flag = partial(flag, "Evaluation")


@flag_group
class EvalFlags:
    """The flags for what is evaluated, and how."""

    arguments: PositionalArguments
    list: bool = eval_flag("List the suites, with their data and metrics.", default=False)
    data: str = eval_flag(
        "A folder in the layout of the suite's download, a table (.csv, .jsonl, .parquet), or hf:owner/name:split.",
        default="",
        metavar="DATA",
    )
    split: str = eval_flag("The part of the data; else the suite's own.", default="", metavar="NAME")
    image_column: str | None = eval_flag("Column of a table that names the pictures.", metavar="COLUMN")
    shots: int = eval_flag("Few-shot examples of each row, 0 to 32.", default=0)
    selection: Literal["random", "rices"] = eval_flag(
        "How examples are chosen: random, or rices, those with the nearest pictures.",
        default="random",
        metavar="HOW",
    )
    embeddings: Path | None = eval_flag(
        "For rices: vectors in FILE.npy, with an id a line in FILE.ids.txt; else the model's own vision features."
    )
    support: str = eval_flag(
        "Where examples are taken from, as --data; else the suite's training split, or the table itself.",
        default="",
        metavar="DATA",
    )
    prompts: Literal["auto", "base", "instruct", "chat"] = eval_flag(
        "The authors' prompts for base or instruct checkpoints, or the plain question in the chat template (chat); "
        "auto goes by the checkpoint.",
        default="auto",
        metavar="WHICH",
    )
    by: Literal["ranking", "generation"] = eval_flag(
        "How multiple-choice questions are answered: ranking their choices, or generation of text.",
        default="ranking",
        metavar="HOW",
    )
    num_beams: int = eval_flag("Beams of generated answers.", default=1)
    max_new_tokens: int | None = eval_flag("Longest generated answer, in tokens; else the suite's own.")
    question: str | None = eval_flag("The question of all rows of a table that has none.")
    metric: str | None = eval_flag(
        "Another metric than the suite's, or the table's columns', own.", metavar="NAME"
    )
    seed: int = eval_flag("Seed of the drawn examples and of the intervals.", default=0)


@flag_group
class EvalOutputFlags:
    """The flags for the reports."""

    out: Path | None = output_flag("The report as JSON, with all rows.")
    report: Path | None = output_flag(
        "One HTML page with all rows: pictures, answers, right answers and scores; wrong ones can be filtered."
    )
    compare: bool = output_flag("Compare two reports: `idefics eval --compare a.json b.json`.", default=False)


ray_flag = partial(flag, "Ray")


@flag_group
class RayFlags:
    """The flags that have engines on a Ray cluster answer the rows."""

    ray: str | None = ray_flag(
        "Have engines on a Ray cluster answer: auto (the cluster that this machine is a node of), HOST:PORT of its "
        "head node, or local (this machine).",
        metavar="ADDRESS",
    )
    ray_engines: int | None = ray_flag("Number of engines; as many as there are GPUs, else nodes.")
    num_gpus: float | None = ray_flag("GPUs of each engine, such as 1 or 0.5.", metavar="X")
    num_cpus: float | None = ray_flag("CPUs of each engine; as many as its node has for it.", metavar="X")

    def create_answerer(self, spec: EngineSpec, load_model: Callable[[], Idefics]) -> Answerer:
        """What answers the rows: engines on the cluster that `--ray` names, else a model in this process.

        Args:
            spec: what each engine loads and computes.
            load_model: loads the model in this process.

        Raises:
            BadSetting: a flag belongs to `--ray`, which is not given, or its value is not allowed.
            MissingExtra: Ray is not installed.
        """
        from idefics.batch.ray_engine import RayOptions
        from idefics.batch.ray_pool import RayAnswerer

        if self.ray is None:
            for name in ("ray_engines", "num_gpus", "num_cpus"):
                if getattr(self, name) is not None:
                    raise BadSetting(
                        f"--{name.replace('_', '-')} is for runs on a Ray cluster: give --ray too"
                    )
            return spec.create_answerer(load_model)
        cluster = RayOptions(
            address=self.ray, num_engines=self.ray_engines, num_gpus=self.num_gpus, num_cpus=self.num_cpus
        )
        return RayAnswerer(cluster, spec)
