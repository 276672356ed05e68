"""Loads a model to be trained: `load_trainee`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import nn

from idefics import models, weights
from idefics.config import QuantizationConfig
from idefics.errors import BadSetting
from idefics.generation.load_settings import ComputePlan, LoadSettings, plan_computation
from idefics.generation.loading import create_processor
from idefics.models import Checkpoint
from idefics.models.vision_language_model import VisionLanguageModel
from idefics.nn.attention_backends import set_attention_backend
from idefics.nn.checkpointing import checkpointable_blocks, enable_checkpointing
from idefics.placement.devices import allocation_errors_as_out_of_memory, get_available_device
from idefics.processing.fetch import Fetcher
from idefics.processing.processor import Processor
from idefics.quant.autotune import KernelChoice, kernel_choice_by_processor
from idefics.train.settings import TrainSettings
from idefics.train.trainable import LearnedParameters, Part, make_trainable, part_of


@dataclass(frozen=True, slots=True)
class Trainee:
    """A model that is ready to learn.

    Attributes:
        checkpoint: its configs and its folder.
        model: its weights, frozen but for what learns.
        learned: what learns.
        weights: SHA-256 (hex) of the files of its weights; see `weights.digest_files`.
    """

    checkpoint: Checkpoint
    model: VisionLanguageModel
    learned: LearnedParameters
    weights: str


def find_trainable_checkpoint(settings: TrainSettings) -> Checkpoint:
    """Finds the checkpoint to train, and downloads it if necessary.

    Raises:
        ModelError: it is not found or not supported.
        BadSetting: its weights are quantised in the files.
    """
    checkpoint = models.read_checkpoint(weights.find_checkpoint(settings.model))
    if checkpoint.quantization is not None:
        raise BadSetting(
            f"{settings.model} is stored in {checkpoint.quantization.kind}, which cannot be trained: give the original "
            'model, with quantize="nf4" if it is to be small'
        )
    if settings.method == "full" and settings.quantize is not None:
        raise BadSetting(
            f'method is "full" and quantize {settings.quantize!r}: 4-bit weights learn factors only'
        )
    return checkpoint


def make_processor(checkpoint: Checkpoint) -> Processor:
    """The processor of a checkpoint, for training rows."""
    return create_processor(checkpoint, Fetcher())


def load_trainee(checkpoint: Checkpoint, settings: TrainSettings) -> Trainee:
    """Loads a checkpoint's weights and makes them learn as the settings say.

    Frozen weights are stored in 16 bits if they are in the checkpoint, or in 4 bits; learned ones are float32.

    Raises:
        BadSetting: a setting that this model or machine does not support.
        OutOfMemory: the weights do not fit.
        MissingExtra: `quantize` without bitsandbytes.
    """
    device = get_available_device(settings.device)
    module = models.build_on_meta_device(checkpoint)
    plan = plan_training_computation(module, checkpoint, settings, device)
    quantization = settings.quantize and QuantizationConfig(
        kind=settings.quantize, double=True, compute_dtype=str(plan.dtype).removeprefix("torch.")
    )
    load_dtype = torch.float32 if device.type == "cpu" else plan.dtype
    files = weights.safetensors_files(checkpoint.folder)
    num_bytes = sum(path.stat().st_size for path in files)
    with allocation_errors_as_out_of_memory("the model", num_bytes, device):
        models.load_weights(
            module,
            checkpoint.folder,
            checkpoint.family.key_rules,
            dtype=load_dtype,
            device=device,
            storage=plan.storage,
            quantization=quantization,
            kernel_choice=_with_fast_gradients(plan.kernel_choice, device),
            mmap=settings.method != "full",
        )
        set_attention_backend(module, plan.attention_backend)
        model = cast(VisionLanguageModel, module)
        learned = make_trainable(model, settings, plan.dtype)
        if plan.dtype != load_dtype:
            _cast_around_frozen_tower(model, plan.dtype)
    if settings.gradient_checkpointing:
        for block in checkpointable_blocks(model):
            enable_checkpointing(block)
    return Trainee(checkpoint, model, learned, weights.digest_files(files))


def plan_training_computation(
    module: nn.Module, checkpoint: Checkpoint, settings: TrainSettings, device: torch.device
) -> ComputePlan:
    """Chooses the number formats and kernels of a training.

    Args:
        module: the checkpoint's, on the meta device.
        device: where it is trained.

    Raises:
        BadSetting: an unknown dtype.
    """
    dtype = _training_dtype(checkpoint, settings, device)
    is_stored = device.type == "cpu" and settings.dtype == "auto" and settings.method == "lora"
    load_settings = LoadSettings(dtype="auto" if is_stored else dtype, device=device)
    return replace(plan_computation(module, device, None, load_settings), dtype=dtype)


def _cast_around_frozen_tower(model: VisionLanguageModel, dtype: torch.dtype) -> None:
    """Casts what does not learn to a dtype, apart from a vision tower and a connector that only encode pictures.

    These stay as `idefics.load` has them, in float32 with weights in 16 bits: its kernels are the fastest. If one
    of them learns, both are cast, since one reads what the other computes.
    """
    learns = {part_of(name) for name, weight in model.named_parameters() if weight.requires_grad}
    encoder: set[Part] = {"vision", "connector"}
    frozen = encoder if encoder.isdisjoint(learns) else set()
    for name, weight in model.named_parameters():
        if not weight.requires_grad and weight.dtype == torch.float32 and part_of(name) not in frozen:
            weight.data = weight.data.to(dtype)


def _training_dtype(checkpoint: Checkpoint, settings: TrainSettings, device: torch.device) -> torch.dtype:
    """The dtype of activations in training; weights that learn are float32 in any case.

    "auto" is bfloat16 on a GPU, and on a processor that multiplies it if the checkpoint is stored in 16 bits.
    """
    if settings.method == "full" or settings.dtype == "float32":
        return torch.float32
    if settings.dtype == "bfloat16":
        return torch.bfloat16
    if device.type == "cpu":
        is_fast = checkpoint.config.dtype in ("bfloat16", "float16") and kernel_choice_by_processor().bfloat16
    else:
        is_fast = device.type != "cuda" or torch.cuda.is_bf16_supported()
    return torch.bfloat16 if is_fast else torch.float32


def _with_fast_gradients(choice: KernelChoice | None, device: torch.device) -> KernelChoice | None:
    """The kernels of a model, with oneDNN's float32 products also where the model is so small that `load` has none."""
    if choice is None or device.type != "cpu":
        return choice
    return replace(choice, onednn=kernel_choice_by_processor().onednn)
