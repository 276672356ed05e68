"""The forecast of a training: its memory and its size, from the model's shape and the rows' lengths alone.

The terms: weights; 16 bytes for each learned number (10 with 8-bit moments); activations, N (12 D + 4 F) numbers for
each layer, or N D and those of one layer with gradient checkpointing; 12 bytes for each logit, of learned tokens only.
A layer's 12 D + 4 F are the inputs of its norms, products and activation function.

N tokens computed at once, D width, F width of the MLP.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from idefics import quant
from idefics.config import ModelConfig, QuantizationConfig
from idefics.errors import OutOfMemory, OutputError, format_bytes, format_count
from idefics.host_memory import PROCESS_OVERHEAD_BYTES
from idefics.train.forward import MAX_LOGITS_AT_ONCE
from idefics.train.picture_forecast import KeptPictures, forecast_kept_pictures, image_tokens_per_frame
from idefics.train.pictures import MAX_FROZEN_FRAMES, DiskSpace
from idefics.train.rows import RowSizes
from idefics.train.schedule import Schedule
from idefics.train.settings import TrainSettings
from idefics.train.trainable import LearnedParameters, part_of

# Of a weight in nf4 whose scales, one for 64 weights, have 8 bits each and one float32 for 256 of them.
NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)
# Of a learned number: its value and gradient in float32, and the optimizer's two moments.
LEARNED_BYTES = {"adamw": 4 + 4 + 2 * 4, "adamw8bit": 4 + 4 + 2 * 1}
# With fewer steps a model has hardly changed; some tens teach a form of answer.
FEW_STEPS, MANY_STEPS = 20, 50
LOGIT_BYTES = 3 * 4  # logits, their log-probabilities and the gradient, in float32


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a training will need.

    Attributes:
        sizes: of the rows.
        num_steps: optimizer steps.
        num_learned, num_parameters: numbers that are learned, and all of the model's.
        weights: bytes of the weights that do not change.
        learned: bytes of what is learned: values, gradients, moments.
        activations: bytes that are kept until the gradients are computed.
        layer: bytes of the layer that is being computed again; 0 if all activations are kept.
        logits: bytes of the logits of learned tokens.
        pictures: bytes of the layer of the vision tower that is being computed, and on a CPU of what is kept of
            pictures: it is in the memory of the machine.
        process: bytes of Python and torch.
        free: bytes that are free on the device.
        kept: what is kept of pictures, in memory and in files.
        more_epochs: where there are few steps, and their number was not given: epochs that would be `MANY_STEPS`.
    """

    sizes: RowSizes
    num_steps: int
    num_learned: int
    num_parameters: int
    weights: int
    learned: int
    activations: int
    layer: int
    logits: int
    pictures: int
    process: int
    free: int
    kept: KeptPictures
    more_epochs: int | None

    @property
    def needed(self) -> int:
        """Bytes that the training needs on its device, about."""
        return sum(size for _, size in self.terms)

    @property
    def terms(self) -> tuple[tuple[str, int], ...]:
        """What needs memory, for people: (name, bytes)."""
        return (
            ("weights", self.weights),
            ("learned weights", self.learned),
            ("activations", self.activations + self.layer),
            ("logits", self.logits),
            ("pictures", self.pictures),
            ("process", self.process),
        )

    def facts(self) -> dict[str, int]:
        """The sizes, for the log."""
        return {
            "rows": self.sizes.num_rows,
            "rows_left_out": self.sizes.num_left_out,
            "validation_rows": self.sizes.num_validation_rows,
            "validation_rows_left_out": self.sizes.num_validation_left_out,
            "tokens": self.sizes.num_tokens,
            "learned_tokens": self.sizes.num_targets,
            "learned_numbers": self.num_learned,
            "all_numbers": self.num_parameters,
        }

    def lines(self) -> list[str]:
        """The forecast for people, a few lines."""
        sizes, share = self.sizes, self.num_learned / self.num_parameters
        terms = ", ".join(f"{name} {format_bytes(size)}" for name, size in self.terms if size >= 1e6)
        left_out = f"; {sizes.num_left_out:,} too long rows are left out" if sizes.num_left_out else ""
        rows, steps = format_count(sizes.num_rows, "row"), format_count(self.num_steps, "step")
        lines = [
            f"{rows} of {sizes.num_tokens:,} tokens, {sizes.num_targets:,} of them learned{left_out}",
            f"{steps}, {self.num_learned:,} numbers are learned, {share:.1%} of the model's",
            f"memory: at most about {format_bytes(self.needed)} of {format_bytes(self.free)} free ({terms})",
        ]
        if sizes.num_validation_left_out:
            rows = f"{sizes.num_validation_rows:,} validation rows"
            lines.insert(1, f"{rows}; {sizes.num_validation_left_out:,} too long ones are left out")
        if line := self.kept.line():
            lines.append(line)
        if self.more_epochs is not None:
            lines.append(f"{steps} will change little: {self.more_epochs:,} epochs have {MANY_STEPS}")
        return lines


def forecast_training(
    model: nn.Module,
    config: ModelConfig,
    learned: LearnedParameters,
    sizes: RowSizes,
    settings: TrainSettings,
    *,
    schedule: Schedule,
    dtype: torch.dtype,
    weight_dtype: torch.dtype,
    device: torch.device,
    free: int,
    disk: DiskSpace,
) -> Forecast:
    """Forecasts a training.

    Args:
        model: on the meta device, with what is learned chosen (`make_trainable`).
        config: of the model.
        learned: what is learned of it.
        sizes: of the rows.
        settings, schedule: of the training.
        dtype: of activations.
        weight_dtype: in which frozen weights are stored.
        device: where the training runs.
        free: bytes that are free there.
        disk: of the folder with files of pictures.
    """
    num_tokens, num_targets = sizes.micro_batch(settings)
    text, learns_vision = config.text, any(part_of(name) == "vision" for name in learned.by_name)
    num_layers = text.num_layers
    if config.cross_attention is not None:
        num_layers += math.ceil(text.num_layers / config.cross_attention.layer_interval)
    layer_bytes = _layer_bytes(num_tokens, text.hidden_size, text.intermediate_size, dtype)
    vision_bytes = _vision_layer_bytes(config, sizes, dtype, learns_vision)
    if settings.gradient_checkpointing:
        activations = num_tokens * text.hidden_size * dtype.itemsize * num_layers
    else:
        activations, layer_bytes = layer_bytes * num_layers, 0
    if learns_vision:
        activations += vision_bytes * config.vision.num_layers
    kept = forecast_kept_pictures(config, learned, sizes, schedule.num_seen_rows, disk)
    return Forecast(
        sizes=sizes,
        num_steps=schedule.num_steps,
        num_learned=learned.num_parameters,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        weights=_frozen_bytes(model, settings, weight_dtype),
        learned=learned.num_parameters * LEARNED_BYTES[settings.optimizer],
        activations=activations,
        layer=layer_bytes,
        logits=min(num_targets * (text.vocab_size + text.additional_vocab_size), MAX_LOGITS_AT_ONCE)
        * LOGIT_BYTES,
        pictures=vision_bytes + (kept.memory if device.type == "cpu" else 0),
        process=PROCESS_OVERHEAD_BYTES if device.type == "cpu" else 0,
        free=free,
        kept=kept,
        more_epochs=_more_epochs(settings, schedule),
    )


def _more_epochs(settings: TrainSettings, schedule: Schedule) -> int | None:
    """How many epochs have `MANY_STEPS` steps; None if there are enough, or if a number of steps was given."""
    if settings.steps is not None or schedule.num_steps >= FEW_STEPS:
        return None
    return math.ceil(MANY_STEPS * schedule.batch_size / schedule.num_rows)


def _layer_bytes(num_tokens: int, width: int, mlp_width: int, dtype: torch.dtype) -> int:
    """Bytes of the activations of one layer."""
    return num_tokens * (12 * width + 4 * mlp_width) * dtype.itemsize


def _vision_layer_bytes(config: ModelConfig, sizes: RowSizes, dtype: torch.dtype, learns_vision: bool) -> int:
    """Bytes of the activations of one layer of the vision tower, for the frames that pass through it at once."""
    vision, num_frames = config.vision, math.ceil(sizes.most_image_tokens / image_tokens_per_frame(config))
    num_frames = num_frames if learns_vision else min(num_frames, MAX_FROZEN_FRAMES)
    num_patches = num_frames * vision.patches_per_side**2
    return _layer_bytes(num_patches, vision.hidden_size, vision.intermediate_size, dtype)


def _frozen_bytes(model: nn.Module, settings: TrainSettings, weight_dtype: torch.dtype) -> int:
    """Bytes of the weights that are not learned."""
    quantized: set[int] = set()
    if settings.quantize is not None:
        names = quant.quantizable_layer_names(model, QuantizationConfig(kind=settings.quantize, double=True))
        quantized = {id(model.get_submodule(name).weight) for name in names}
    bits = sum(
        weight.numel() * (NF4_BITS if id(weight) in quantized else 8 * weight_dtype.itemsize)
        for weight in model.parameters()
        if not weight.requires_grad
    )
    return math.ceil(bits / 8)


def check_memory(forecast: Forecast, settings: TrainSettings) -> None:
    """Refuses a training that will not fit.

    Raises:
        OutOfMemory: more is needed than is free; the message says what to change.
    """
    if forecast.needed > forecast.free:
        raise out_of_memory(forecast, settings)


def check_disk(forecast: Forecast, settings: TrainSettings) -> None:
    """Refuses a training whose checkpoint and adapter will not fit on the disk.

    Raises:
        OutputError: more is needed than is free.
    """
    # Of a learned number: its value and the optimizer's moments, and its value in the adapter.
    checkpoint = forecast.num_learned * (LEARNED_BYTES[settings.optimizer] - 4)
    result = forecast.num_learned * 4 if settings.method == "lora" else 0
    has_two = 0 < 2 * settings.save_every < forecast.num_steps  # the older one until the new one is whole
    needed = checkpoint + max(result, checkpoint if has_two else 0)
    if needed > forecast.kept.free_disk:
        raise OutputError(
            f"{settings.training_folder} needs {format_bytes(needed)} for checkpoints and the result, "
            f"{format_bytes(forecast.kept.free_disk)} free: make room, or give another out"
        )


def out_of_memory(forecast: Forecast, settings: TrainSettings, what: str = "this training") -> OutOfMemory:
    """The error about a training that does not fit, with settings that make it smaller.

    Args:
        what: the beginning of the message.
    """
    advice = []
    most_tokens, _ = forecast.sizes.micro_batch(settings)
    if forecast.sizes.longest < most_tokens:
        advice.append(f"micro_batch_tokens={max(forecast.sizes.longest, most_tokens // 2)}")
    if not settings.gradient_checkpointing:
        advice.append("gradient_checkpointing=True")
    if settings.method == "full":
        advice.append("an adapter instead of all weights")
    elif settings.quantize is None:
        advice.append("quantize=nf4")
    if settings.max_tiles is None and forecast.sizes.most_image_tokens:
        advice.append("a smaller max_tiles")
    parts = ", ".join(f"{name} {format_bytes(size)}" for name, size in forecast.terms)
    return OutOfMemory(
        f"{what} ({parts})",
        forecast.needed,
        forecast.free,
        f"try {', '.join(advice) or 'a smaller model'}",
    )
