"""The flags of `idefics train`: the data, what learns, how, and what is written on the way."""

from __future__ import annotations

from dataclasses import MISSING
from functools import partial
from pathlib import Path
from typing import Any, Literal

from idefics.catalog import DEFAULT_MODEL
from idefics.cli.flags import flag, flag_group, input_flag, model_flag, model_name_flag, output_flag

learn_flag = partial(flag, "What learns")
steps_flag = partial(flag, "Steps")


def number_flag(section: str, help: str, default: float, **option: Any) -> Any:
    """A flag for a number, whose help names the default."""
    return flag(section, f"{help}; else {default:g}.", default=default, **option)


watch_flag = partial(flag, "On the way")


@flag_group
class TrainDataFlags:
    """The flags for the rows."""

    data: str = input_flag(
        "Rows to learn: a folder with metadata.jsonl, a .jsonl, .csv or .parquet file, or a suite of `idefics eval` "
        "with a training split, such as easy-vqa.",
        default=MISSING,
        metavar="DATA",
    )
    val: str | None = input_flag("Rows to validate with, in the same forms.", metavar="DATA")
    max_tokens: int | None = input_flag("The longest row; else the model's own limit.")
    too_long: Literal["refuse", "skip"] = input_flag(
        "A longer row: refuse ends before training, skip leaves it out and counts it. None is ever cut.",
        default="refuse",
        metavar="HOW",
    )
    max_tiles: int | None = input_flag("At most N tiles per picture; give `idefics ask` the same number.")
    show: int | None = input_flag(
        "Print N rows as the model sees them, learned tokens in colour; no training."
    )


@flag_group
class TrainModelFlags:
    """The flags for the model."""

    model: str = model_name_flag("Short name, folder or hub id", DEFAULT_MODEL)
    device: str = model_flag("auto, cpu, cuda, cuda:1 or mps.", default="auto", metavar="DEVICE")
    threads: int | None = model_flag("Number of CPU threads.")
    dtype: Literal["auto", "float32", "bfloat16"] = model_flag(
        "Of frozen weights and activations: auto is bfloat16 where the device computes it.",
        default="auto",
        metavar="DTYPE",
    )
    quantize: Literal["nf4"] | None = model_flag(
        "nf4 keeps the frozen weights in 4 bits (QLoRA).", metavar="BITS"
    )
    gradient_checkpointing: bool = model_flag(
        "Compute activations again instead of keeping them: less memory, a third slower.", default=False
    )


@flag_group
class LearnFlags:
    """The flags for what learns."""

    full: bool = learn_flag("Train the weights themselves, for small models; else an adapter.", default=False)
    targets: str | None = learn_flag(
        "text, text+connector, all, or a regular expression of modules; else text, and all with --full.",
        metavar="WHICH",
    )
    modules_to_save: str = learn_flag(
        "Modules that an adapter stores wholly, such as lm_head,embed_tokens for new words; larger files.",
        default="",
        metavar="NAMES",
    )
    rank: int = number_flag("What learns", "Rank of the adapter's factors", 16)
    alpha: float = number_flag("What learns", "Their product is scaled by alpha / rank", 32.0, metavar="X")
    dropout: float = number_flag("What learns", "Share of their inputs that is dropped", 0.0, metavar="X")


@flag_group
class StepsFlags:
    """The flags for the steps of the optimizer."""

    epochs: float = number_flag("Steps", "How many times all rows are seen", 1.0, metavar="X")
    steps: int | None = steps_flag("Number of optimizer steps, instead of --epochs.")
    batch_size: int = number_flag("Steps", "Rows of one step", 16)
    micro_batch_tokens: int = number_flag(
        "Steps", "Tokens computed at once, of which fewer take less memory", 4096
    )
    learning_rate: float | None = steps_flag(
        "The highest; else 2e-4, and 2e-5 with --full. With --resume, another one may be given.", metavar="X"
    )
    warmup_steps: int = number_flag(
        "Steps", "Steps in which the learning rate rises, at most half of all, before it falls to 0", 20
    )
    weight_decay: float = number_flag("Steps", "Of AdamW", 0.01, metavar="X")
    max_gradient_norm: float = number_flag(
        "Steps", "Larger gradients are scaled down to it", 1.0, metavar="X"
    )
    optimizer: Literal["adamw", "adamw8bit"] = steps_flag(
        "adamw, or adamw8bit, which needs the extra 'quant'.", default="adamw", metavar="NAME"
    )
    seed: int = number_flag("Steps", "Of the order of rows, the factors and dropout", 0)


@flag_group
class WatchFlags:
    """The flags for what happens on the way."""

    validate_every: int = watch_flag(
        "Validate after every N steps too; else before training and at the end.", default=0
    )
    save_every: int = watch_flag("Write a checkpoint after every N steps; else every ten minutes.", default=0)
    sample_every: int = watch_flag(
        "Answer the sample rows after every N steps too; else before training and at the end.", default=0
    )
    num_samples: int = number_flag("On the way", "Sample rows, of --val if given", 4)
    resume: bool = watch_flag("Go on from the last checkpoint of the same --out.", default=False)
    dry_run: bool = watch_flag("Forecast memory and time, compute one batch, and stop.", default=False)
    tensorboard: bool = watch_flag("Log for TensorBoard too, which needs the extra 'train'.", default=False)


@flag_group
class TrainOutputFlags:
    """The flag for the result."""

    out: Path | None = output_flag(
        "The folder to write: an adapter, or with --full a model. Log, report and checkpoints are in DIR.training.",
        metavar="DIR",
    )
