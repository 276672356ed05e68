"""`TrainSettings`: all that determines a training."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args

from idefics.errors import BadSetting
from idefics.validation import (
    describe_type,
    reject_unknown_fields,
    validate_bool,
    validate_choice,
    validate_range,
    validate_text,
)

Method = Literal["lora", "full"]
Optimizer = Literal["adamw", "adamw8bit"]
TooLong = Literal["refuse", "skip"]
TrainDtype = Literal["auto", "float32", "bfloat16"]


@reject_unknown_fields
@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """All that determines a training; `idefics.train.run` takes it.

    Attributes:
        data: rows to learn: a folder with metadata.jsonl or with a text file for each picture, a .jsonl, .csv, .parquet
            or .tar file, "hf:owner/name:split", or a suite of `idefics eval`: "easy-vqa" is its training split,
            "easy-vqa:test" another, "coco:FOLDER" a suite in a folder.
        model: a short name, a hub id or a folder.
        out: the folder to write: an adapter, or a checkpoint with `method` "full".
        val: rows to validate with, in the same forms.
        method: "lora" learns factors of low rank (arXiv 2106.09685); "full" changes the weights themselves.
        quantize: "nf4" keeps the frozen weights in 4 bits (QLoRA, arXiv 2305.14314), double quantisation included.
        targets: which modules learn: "text" (the decoder, with Idefics 1's gated cross-attention and its gates),
            "text+connector", "all", or a regular expression of their full names. None: "text", and "all" with "full".
        modules_to_save: with "lora", modules that are learned wholly and stored in the adapter, by the ends of their
            names: "lm_head", "embed_tokens", "norm".
        rank, alpha, dropout: of the factors: their product is scaled by alpha / rank.
        epochs: how many times all rows are seen; `steps` counts optimizer steps instead.
        batch_size: rows of one optimizer step.
        micro_batch_tokens: tokens that are computed at once; a row with more is computed alone.
        learning_rate: the peak; None: 2e-4 for "lora", 2e-5 for "full".
        warmup_steps: steps of linear warm-up, before a cosine to zero.
        weight_decay, max_gradient_norm: of AdamW (arXiv 1711.05101), and of clipping.
        optimizer: "adamw", or "adamw8bit" of bitsandbytes.
        dtype: "auto": bfloat16 where the device computes it, else float32; learned weights are always float32.
        device, threads: as for `idefics.load`.
        gradient_checkpointing: activations of layers are computed again instead of kept (arXiv 1604.06174).
        seed: of the order of rows, the factors and dropout.
        max_tokens: the longest row; None: the model's own limit.
        too_long: what happens to a longer row: "refuse" ends before training, "skip" leaves it out and counts it.
        max_tiles: the most tiles of a picture; None: as the checkpoint says.
        validate_every, sample_every: in steps; 0: before training and at the end only.
        save_every: in steps; 0: a checkpoint is written every ten minutes.
        num_samples: rows whose answers are shown, of `val` if given.

    Raises:
        BadSetting: a value is out of range, or two do not go together.
    """

    data: str
    model: str
    out: Path
    val: str | None = None
    method: Method = "lora"
    quantize: Literal["nf4"] | None = None
    targets: str | None = None
    modules_to_save: tuple[str, ...] = ()
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    epochs: float = 1.0
    steps: int | None = None
    batch_size: int = 16
    micro_batch_tokens: int = 4096
    learning_rate: float | None = None
    warmup_steps: int = 20
    weight_decay: float = 0.01
    max_gradient_norm: float = 1.0
    optimizer: Optimizer = "adamw"
    dtype: TrainDtype = "auto"
    device: str = "auto"
    threads: int | None = None
    gradient_checkpointing: bool = False
    seed: int = 0
    max_tokens: int | None = None
    too_long: TooLong = "refuse"
    max_tiles: int | None = None
    validate_every: int = 0
    save_every: int = 0
    sample_every: int = 0
    num_samples: int = 4

    def __post_init__(self) -> None:
        object.__setattr__(self, "out", Path(self.out))
        for name in ("data", "val", "model"):
            if isinstance(value := getattr(self, name), os.PathLike):
                object.__setattr__(self, name, os.fspath(value))
        if not self.out.name:
            raise BadSetting(f"out is {str(self.out)!r}; give the name of a new folder")
        if not isinstance(self.data, str):
            raise BadSetting(
                f"data is {describe_type(self.data)}; write its rows into a .jsonl file, and give the path"
            )
        validate_text("data", self.data, "photos/")
        validate_text("model", self.model, "smolvlm-500m")
        validate_choice("method", self.method, get_args(Method))
        validate_choice("optimizer", self.optimizer, get_args(Optimizer))
        validate_choice("dtype", self.dtype, get_args(TrainDtype))
        validate_choice("too_long", self.too_long, get_args(TooLong))
        validate_bool("gradient_checkpointing", self.gradient_checkpointing)
        if self.quantize not in (None, "nf4"):
            raise BadSetting(f"quantize is {self.quantize!r}; training knows nf4 only")
        object.__setattr__(self, "modules_to_save", tuple(self.modules_to_save))
        for name, (low, high) in RANGES.items():
            if (value := getattr(self, name)) is not None:
                validate_range(name, value, low, high)
        self._check_combinations()

    def _check_combinations(self) -> None:
        """Raises BadSetting if a setting has no effect with another."""
        if self.modules_to_save and self.method == "full":
            raise BadSetting("modules_to_save is for adapters: training all weights learns whole modules")
        if self.method == "full":
            for name in ("rank", "alpha", "dropout"):
                if (value := getattr(self, name)) != (default := FIELD_DEFAULTS[name]):
                    raise BadSetting(
                        f"{name}={value} is for adapters: leave it at {default} to train all weights"
                    )
        if self.steps is not None and self.epochs != FIELD_DEFAULTS["epochs"]:
            raise BadSetting(
                f"steps={self.steps} and epochs={self.epochs} are both given: leave one of them out"
            )
        if self.validate_every and self.val is None:
            raise BadSetting(
                f"validate_every={self.validate_every} needs rows to validate with: give val=ROWS"
            )
        if self.quantize is not None and self.method == "full":
            raise BadSetting(
                f"quantize={self.quantize} keeps the weights fixed in 4 bits, and full training changes them: "
                "leave one of the two out"
            )

    @property
    def training_folder(self) -> Path:
        """The folder next to `out` that holds what a training writes on its way: checkpoints, the log, the report."""
        return self.out.with_name(f"{self.out.name}.training")


FIELD_DEFAULTS = {field.name: field.default for field in fields(TrainSettings)}
# The values of numbers, ends included; where the lowest is an int, a whole number is required.
RANGES: dict[str, tuple[float, float]] = {
    "threads": (1, 1024),
    "rank": (1, 1024),
    "alpha": (1e-6, 1e6),
    "dropout": (0.0, 0.95),
    "epochs": (1e-6, 1e6),
    "steps": (1, 10**9),
    "batch_size": (1, 10**6),
    "micro_batch_tokens": (1, 10**7),
    "learning_rate": (1e-12, 10.0),
    "warmup_steps": (0, 10**9),
    "weight_decay": (0.0, 10.0),
    "max_gradient_norm": (1e-6, 1e6),
    "seed": (0, 2**63 - 1),
    "max_tokens": (1, 10**7),
    "max_tiles": (1, 1000),
    "validate_every": (0, 10**9),
    "save_every": (0, 10**9),
    "sample_every": (0, 10**9),
    "num_samples": (0, 100),
}
