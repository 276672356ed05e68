"""A checkpoint in few bits as a folder of its own, which `load` takes like any other."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from torch import Tensor, nn

from idefics import models, quant, weights
from idefics.config import QuantizationConfig
from idefics.demo import pictures
from idefics.errors import BadSetting
from idefics.generation.pipeline import Pipeline
from idefics.models import Checkpoint
from idefics.quant.int4_kernels import GROUP_SIZE
from idefics.quant.linear import Int4Linear, Int8Linear
from idefics.weights.files import weight_files

COPIED_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.md", "LICENSE*")  # what goes with weights
MAX_SHARD_SIZE = "2GB"  # a file of weights is no larger
CHECK_PROMPT = "Describe this picture."  # what --check reads after each picture


@dataclass(frozen=True, slots=True)
class QuantizedCheckpoint:
    """What `quantise` has made.

    Attributes:
        folder: where it is.
        is_new: whether it was written now, and not found as it should be.
        group_size: weights that share a scale in four bits; None in eight, where each output has one.
        num_layers_by_bits: how many are quantised, by their number of bits.
        skipped_layers: those that are not, with n in place of a layer's number.
        bytes_before, bytes_after: bytes of all files of weights.
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
    """Of a quantised layer, the root of the mean square relative to the original's.

    Attributes:
        weight_error: of the weights.
        output_error: of what it makes of the same inputs, those of prompts about the bundled pictures; None if the layer
            had none.
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
    """Writes a checkpoint in few bits into a folder, all or nothing. One that is there already is left as it is.

    Raises:
        ModelError: as `load`.
        BadSetting: the folder holds something else; the checkpoint is in few bits already.
    """
    folder = weights.find(model, revision=revision, offline=offline, progress=progress)
    checkpoint = models.read_checkpoint(folder)
    if checkpoint.quantization is not None:
        raise BadSetting(f"{folder} is kept in {checkpoint.quantization.kind} already: give the original")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = models.quantization_config_dict(quantization)
    is_new = not _is_already_written(out, config)
    bytes_before = sum(file.stat().st_size for file in weight_files(folder))
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
        _write_checkpoint(module, checkpoint, config, out)
    else:
        quant.replace_with_empty_quantized(module, quantization)
    return QuantizedCheckpoint(
        folder=out,
        is_new=is_new,
        group_size=GROUP_SIZE if quantization.kind == "int4" else None,
        num_layers_by_bits=Counter(
            _bits(layer) for layer in module.modules() if isinstance(layer, (Int8Linear, Int4Linear))
        ),
        skipped_layers=_unquantized_layer_names(module),
        bytes_before=bytes_before,
        bytes_after=sum(file.stat().st_size for file in weight_files(out)),
    )


@torch.inference_mode()
def measure_layer_errors(
    model: str | os.PathLike[str],
    quantized_folder: Path,
    *,
    revision: str | None = None,
    offline: bool | None = None,
) -> list[LayerError]:
    """Every quantised layer's error, the worst first.

    Each layer is given what it is given in the original: errors do not add up from layer to layer.
    """
    original_pipeline = Pipeline.load(model, device="cpu", revision=revision, offline=offline)
    quantized_model: nn.Module = Pipeline.load(quantized_folder, device="cpu").engine.model  # type: ignore[assignment]
    original_model: nn.Module = original_pipeline.engine.model  # type: ignore[assignment]
    quantized_layers = {
        name: layer
        for name, layer in quantized_model.named_modules()
        if isinstance(layer, (Int8Linear, Int4Linear))
    }
    squared_sums: dict[str, tuple[float, float]] = {}

    def make_hook(name: str) -> Any:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            error, size = squared_sums.get(name, (0.0, 0.0))
            squared_sums[name] = (
                error + _sum_of_squares(quantized_layers[name](*inputs) - output),
                size + _sum_of_squares(output),
            )

        return hook

    handles = [
        original_model.get_submodule(name).register_forward_hook(make_hook(name)) for name in quantized_layers
    ]
    for picture in pictures()[:2]:
        prompt_items: list[str | Path] = [picture, CHECK_PROMPT]
        original_pipeline.logits(original_pipeline.prompt(prompt_items))
    for handle in handles:
        handle.remove()
    layer_errors = []
    for name, layer in quantized_layers.items():
        original_weight = original_model.get_parameter(f"{name}.weight").float()
        weight_error = (
            _sum_of_squares(layer.dequantize(torch.float32) - original_weight)
            / (_sum_of_squares(original_weight) or 1.0)
        ) ** 0.5
        error, size = squared_sums.get(name, (0.0, 0.0))
        layer_errors.append(LayerError(name, weight_error, (error / size) ** 0.5 if size else None))
    return sorted(layer_errors, key=lambda row: (row.output_error or 0.0, row.weight_error), reverse=True)


def _sum_of_squares(values: Tensor) -> float:
    return float(values.float().square().sum(dtype=torch.float64))


def _bits(layer: nn.Module) -> int:
    return 8 if isinstance(layer, Int8Linear) else 4


def _unquantized_layer_names(module: nn.Module) -> tuple[str, ...]:
    names = (
        re.sub(r"\.\d+\.", ".n.", name)
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and not isinstance(layer, (Int8Linear, Int4Linear))
    )
    return tuple(dict.fromkeys(names))


def _is_already_written(out: Path, config: Mapping[str, Any]) -> bool:
    """Whether the folder holds this very checkpoint; an error where it holds anything else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if (out / "config.json").is_file():
        try:
            existing_config = json.loads((out / "config.json").read_text(encoding="utf-8"))
        except ValueError:
            existing_config = None
        if existing_config == config and weight_files(out):
            return True
    raise BadSetting(f"{out} holds something else already: give a new folder, or empty it")


def _write_checkpoint(
    module: nn.Module, checkpoint: Checkpoint, config: Mapping[str, Any], out: Path
) -> None:
    """Beside its place first, then there at once: a run that breaks off leaves nothing under that name."""
    from huggingface_hub import save_torch_state_dict

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary_folder = Path(mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise BadSetting(f"{out} cannot be written ({error.strerror}): give another folder") from None
    try:
        for pattern in COPIED_FILES:
            for file in checkpoint.folder.glob(pattern):
                if file.is_file() and not file.name.endswith(".safetensors.index.json"):
                    shutil.copyfile(file, temporary_folder / file.name)
        (temporary_folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
        first_name_by_id = {id(weight): name for name, weight in module.named_parameters()}
        named_parameters = module.named_parameters(remove_duplicate=False)
        tied_names = [name for name, weight in named_parameters if first_name_by_id[id(weight)] != name]
        save_torch_state_dict(
            module.state_dict(),
            temporary_folder,
            max_shard_size=MAX_SHARD_SIZE,
            shared_tensors_to_discard=tied_names,
        )
        temporary_folder.chmod(0o755)  # both were made for nobody else to read
        for file in temporary_folder.iterdir():
            file.chmod(0o644)
        temporary_folder.replace(out)
    except OSError as error:
        raise BadSetting(f"{out} cannot be written ({error.strerror}): give another folder") from None
    finally:
        shutil.rmtree(temporary_folder, ignore_errors=True)
