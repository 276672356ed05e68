"""Writes a quantized copy of a checkpoint into a folder that `load` reads like any other checkpoint."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from idefics import models, quant, weights
from idefics.config import QuantizationConfig
from idefics.demo import pictures
from idefics.errors import BadSetting, UnsupportedModel
from idefics.generation.load_settings import LoadSettings
from idefics.generation.loading import load_model
from idefics.native.structures import GROUP_SIZE
from idefics.processing.checkpoint_settings import read_json_object
from idefics.quant.linear import Int8Linear
from idefics.quant.quantized_linear import QuantizedLinear
from idefics.weights.files import copy_small_files, num_weight_bytes, safetensors_files
from idefics.weights.tensors import save_weights
from idefics.weights.whole_folder import write_whole_folder

MAX_SHARD_SIZE = "2GB"  # of one file of weights
CHECK_PROMPT = "Describe this picture."  # follows each picture in `measure_layer_errors`


@dataclass(frozen=True, slots=True)
class QuantizedCheckpoint:
    """What `quantize_checkpoint` wrote or found.

    Attributes:
        folder: the quantized checkpoint.
        is_new: whether it was written by this call; False if the folder already held the same checkpoint.
        group_size: the number of 4-bit weights that share a scale; None for 8 bits, with one scale for each output.
        num_layers_by_bits: number of bits -> number of layers quantized to it.
        skipped_layers: names of linear layers that are not quantized, "n" standing for a layer's number.
        bytes_before: size of the original's weight files in bytes.
        bytes_after: size of the quantized checkpoint's weight files in bytes.
    """

    folder: Path
    is_new: bool
    group_size: int | None
    num_layers_by_bits: Mapping[int, int]
    skipped_layers: tuple[str, ...]
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True, slots=True)
class LayerError:
    """The error of a quantized layer: root mean square of the difference, divided by that of the original's values.

    Attributes:
        name: the layer's module name.
        weight_error: error of the weights.
        output_error: error of the outputs for the original layer's inputs, in prompts about the bundled pictures; None
            if these prompts do not reach the layer.
    """

    name: str
    weight_error: float
    output_error: float | None


def quantize_checkpoint(
    model: str | os.PathLike[str],
    quantization: QuantizationConfig,
    out: Path,
    *,
    revision: str | None = None,
    offline: bool | None = None,
    progress: weights.ProgressCallback | None = None,
) -> QuantizedCheckpoint:
    """Writes a quantized copy of a checkpoint into a folder; on an error the folder is not created.

    If the folder already holds the same checkpoint, quantized in the same way, nothing is written: `config.json` has a
    digest of the weights that were quantized.

    Args:
        model: a short name, folder or hub id.
        quantization: the number format and which modules to leave out.
        out: the folder to write.
        revision, offline, progress: as for `load`.

    Raises:
        ModelError: the model is not found or not supported, as for `load`.
        BadSetting: the folder holds something else or cannot be written, or the checkpoint is already quantized.
    """
    folder = weights.find_checkpoint(model, revision=revision, offline=offline, progress=progress)
    checkpoint = models.read_checkpoint(folder)
    if checkpoint.quantization is not None:
        raise BadSetting(
            f"{folder} is already quantized ({checkpoint.quantization.kind}): give the original checkpoint"
        )
    config = _quantized_config(folder, quantization)
    is_new = not _is_already_written(out, config)
    module = models.build_on_meta_device(checkpoint)
    if is_new:
        models.load_weights(
            module,
            folder,
            checkpoint.family.key_rules,
            dtype=torch.float32,
            device=torch.device("cpu"),
            storage="file",
            quantization=quantization,
        )
        with write_whole_folder(out) as temporary:
            copy_small_files(folder, temporary)
            (temporary / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
            save_weights(module, temporary, MAX_SHARD_SIZE)
    else:
        quant.replace_with_empty_quantized(module, quantization)
    return QuantizedCheckpoint(
        folder=out,
        is_new=is_new,
        group_size=GROUP_SIZE if quantization.kind == "int4" else None,
        num_layers_by_bits=_count_layers_by_bits(module),
        skipped_layers=_unquantized_layer_name_patterns(module),
        bytes_before=num_weight_bytes(folder),
        bytes_after=num_weight_bytes(out),
    )


def _count_layers_by_bits(module: nn.Module) -> Counter[int]:
    """Counts the quantized layers of a module: bits of a weight -> number of layers."""
    layers = (layer for layer in module.modules() if isinstance(layer, QuantizedLinear))
    return Counter(8 if isinstance(layer, Int8Linear) else 4 for layer in layers)


@torch.inference_mode()
def measure_layer_errors(
    model: str | os.PathLike[str],
    quantized_folder: Path,
    *,
    revision: str | None = None,
    offline: bool | None = None,
) -> list[LayerError]:
    """Compares each quantized layer with the original layer, on prompts about two bundled pictures.

    Both get the original model's inputs, so that errors do not accumulate from layer to layer.

    Args:
        model: the original: a short name, folder or hub id.
        quantized_folder: the quantized checkpoint, as written by `quantize_checkpoint`.
        revision: branch, tag or commit of the original on the hub.
        offline: never use the network.

    Returns:
        One record for each quantized layer, the largest output error first.

    Raises:
        ModelError: one of the two models cannot be loaded.
    """
    original = load_model(model, LoadSettings(device="cpu", revision=revision, offline=offline))
    quantized = load_model(quantized_folder, LoadSettings(device="cpu"))
    original_model: nn.Module = original.engine.model  # type: ignore[assignment]
    quantized_model: nn.Module = quantized.engine.model  # type: ignore[assignment]
    quantized_layers = {
        name: layer for name, layer in quantized_model.named_modules() if isinstance(layer, QuantizedLinear)
    }
    output_sums = {name: torch.zeros(2, dtype=torch.float64) for name in quantized_layers}

    def compare_outputs(
        name: str, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor
    ) -> None:  # a hook of the original layer
        output_sums[name] += _squared_sums(quantized_layers[name](*inputs) - output, output)

    hooks = [
        original_model.get_submodule(name).register_forward_hook(partial(compare_outputs, name))
        for name in quantized_layers
    ]
    for picture in pictures()[:2]:
        original.engine.logits(original.processor.encode_raw([picture, CHECK_PROMPT]))
    for hook in hooks:
        hook.remove()
    layer_errors = []
    for name, layer in quantized_layers.items():
        weight = original_model.get_parameter(f"{name}.weight").float()
        weight_error = _relative_error(_squared_sums(layer.dequantize(torch.float32) - weight, weight))
        layer_errors.append(LayerError(name, weight_error or 0.0, _relative_error(output_sums[name])))
    return sorted(layer_errors, key=lambda row: (row.output_error or 0.0, row.weight_error), reverse=True)


def _squared_sums(difference: Tensor, original: Tensor) -> Tensor:
    """(2,) float64: the sums of the squares of two tensors' elements."""
    return torch.stack([x.float().square().sum(dtype=torch.float64) for x in (difference, original)])


def _relative_error(squared_sums: Tensor) -> float | None:
    """RMS of the differences divided by that of the original values; None if all original values are zero."""
    difference, original = squared_sums.tolist()
    return (difference / original) ** 0.5 if original else None


def _quantized_config(folder: Path, quantization: QuantizationConfig) -> dict[str, Any]:
    """config.json of the quantized copy of the checkpoint in a folder, with a digest of its weights."""
    digest = {"source_sha256": weights.digest_files(safetensors_files(folder))}
    return {
        **read_json_object(folder / "config.json"),
        "quantization_config": models.quantization_config_dict(quantization) | digest,
    }


def _unquantized_layer_name_patterns(module: nn.Module) -> tuple[str, ...]:
    """Names of linear layers that are not quantized, each once, with "n" for a layer's number."""
    names = (
        re.sub(r"\.\d+\.", ".n.", name)
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and not isinstance(layer, QuantizedLinear)
    )
    return tuple(dict.fromkeys(names))


def _is_already_written(out: Path, config: Mapping[str, Any]) -> bool:
    """Whether the folder holds a checkpoint with this config; False if it is empty or missing.

    Raises:
        BadSetting: the folder holds anything else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    with suppress(UnsupportedModel):  # no JSON object
        if read_json_object(out / "config.json") == config and safetensors_files(out):
            return True
    raise BadSetting(f"{out} already holds other files: give a new folder, or empty it")
