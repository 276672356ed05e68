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
from idefics.models import Checkpoint
from idefics.pipeline.pipeline import Pipeline
from idefics.quant.integers import Int4Linear, Int8Linear
from idefics.quant.passes import GROUP
from idefics.weights.files import weight_files

SMALL_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.md", "LICENSE*")  # what goes with weights
SHARD = "2GB"  # a file of weights is no larger
ASKED = "Describe this picture."  # what --check reads after each picture


@dataclass(frozen=True, slots=True)
class Written:
    """What `quantise` has made.

    Attributes:
        folder: where it is.
        new: whether it was written now, and not found as it should be.
        group: weights that share a scale in four bits; None in eight, where each output has one.
        layers: how many are quantised, by their number of bits.
        skipped: those that are not, with n in place of a layer's number.
        before, after: bytes of all files of weights.
    """

    folder: Path
    new: bool
    group: int | None
    layers: Mapping[int, int]
    skipped: tuple[str, ...]
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class LayerError:
    """Of a quantised layer, the root of the mean square relative to the original's.

    Attributes:
        weights: of the weights.
        outputs: of what it makes of the same inputs, those of prompts about the bundled pictures; None if the layer
            had none.
    """

    name: str
    weights: float
    outputs: float | None


def quantise(
    model: str | os.PathLike[str],
    quantisation: QuantizationConfig,
    out: Path,
    *,
    revision: str | None = None,
    offline: bool | None = None,
    progress: weights.Progress | None = None,
) -> Written:
    """Writes a checkpoint in few bits into a folder, all or nothing. One that is there already is left as it is.

    Raises:
        ModelError: as `load`.
        BadSetting: the folder holds something else; the checkpoint is in few bits already.
    """
    folder = weights.find(model, revision=revision, offline=offline, progress=progress)
    checkpoint = models.read_checkpoint(folder)
    if checkpoint.quantisation is not None:
        raise BadSetting(f"{folder} is kept in {checkpoint.quantisation.kind} already: give the original")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = models.quantisation_block(quantisation)
    new = not _is_there(out, config)
    before = sum(file.stat().st_size for file in weight_files(folder))
    module = models.build(checkpoint)
    if new:
        models.fill(
            module,
            folder,
            checkpoint.family.keys,
            dtype=torch.float32,
            device=torch.device("cpu"),
            storage="file",
            quantisation=quantisation,
        )
        _write(module, checkpoint, config, out)
    else:
        quant.hollow(module, quantisation)
    return Written(
        folder=out,
        new=new,
        group=GROUP if quantisation.kind == "int4" else None,
        layers=Counter(
            _bits(layer) for layer in module.modules() if isinstance(layer, (Int8Linear, Int4Linear))
        ),
        skipped=_skipped(module),
        before=before,
        after=sum(file.stat().st_size for file in weight_files(out)),
    )


@torch.inference_mode()
def errors(
    model: str | os.PathLike[str], written: Path, *, revision: str | None = None, offline: bool | None = None
) -> list[LayerError]:
    """Every quantised layer's error, the worst first.

    Each layer is given what it is given in the original: errors do not add up from layer to layer.
    """
    before = Pipeline.load(model, device="cpu", revision=revision, offline=offline)
    after: nn.Module = Pipeline.load(written, device="cpu").engine.model  # type: ignore[assignment]
    original: nn.Module = before.engine.model  # type: ignore[assignment]
    small = {
        name: layer for name, layer in after.named_modules() if isinstance(layer, (Int8Linear, Int4Linear))
    }
    squares: dict[str, tuple[float, float]] = {}

    def watch(name: str) -> Any:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            error, size = squares.get(name, (0.0, 0.0))
            squares[name] = error + _square(small[name](*inputs) - output), size + _square(output)

        return hook

    handles = [original.get_submodule(name).register_forward_hook(watch(name)) for name in small]
    for picture in pictures()[:2]:
        shown: list[str | Path] = [picture, ASKED]
        before.logits(before.prompt(shown))
    for handle in handles:
        handle.remove()
    found = []
    for name, layer in small.items():
        whole = original.get_parameter(f"{name}.weight").float()
        by_weights = (_square(layer.dequantised(torch.float32) - whole) / (_square(whole) or 1.0)) ** 0.5
        error, size = squares.get(name, (0.0, 0.0))
        found.append(LayerError(name, by_weights, (error / size) ** 0.5 if size else None))
    return sorted(found, key=lambda row: (row.outputs or 0.0, row.weights), reverse=True)


def _square(values: Tensor) -> float:
    return float(values.float().square().sum(dtype=torch.float64))


def _bits(layer: nn.Module) -> int:
    return 8 if isinstance(layer, Int8Linear) else 4


def _skipped(module: nn.Module) -> tuple[str, ...]:
    names = (
        re.sub(r"\.\d+\.", ".n.", name)
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and not isinstance(layer, (Int8Linear, Int4Linear))
    )
    return tuple(dict.fromkeys(names))


def _is_there(out: Path, config: Mapping[str, Any]) -> bool:
    """Whether the folder holds this very checkpoint; an error where it holds anything else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if (out / "config.json").is_file():
        try:
            found = json.loads((out / "config.json").read_text(encoding="utf-8"))
        except ValueError:
            found = None
        if found == config and weight_files(out):
            return True
    raise BadSetting(f"{out} holds something else already: give a new folder, or empty it")


def _write(module: nn.Module, checkpoint: Checkpoint, config: Mapping[str, Any], out: Path) -> None:
    """Beside its place first, then there at once: a run that breaks off leaves nothing under that name."""
    from huggingface_hub import save_torch_state_dict

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        made = Path(mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise BadSetting(f"{out} cannot be written ({error.strerror}): give another folder") from None
    try:
        for pattern in SMALL_FILES:
            for file in checkpoint.folder.glob(pattern):
                if file.is_file() and not file.name.endswith(".safetensors.index.json"):
                    shutil.copyfile(file, made / file.name)
        (made / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
        first = {id(weight): name for name, weight in module.named_parameters()}
        every = module.named_parameters(remove_duplicate=False)
        tied = [name for name, weight in every if first[id(weight)] != name]
        save_torch_state_dict(module.state_dict(), made, max_shard_size=SHARD, shared_tensors_to_discard=tied)
        made.chmod(0o755)  # both were made for nobody else to read
        for file in made.iterdir():
            file.chmod(0o644)
        made.replace(out)
    except OSError as error:
        raise BadSetting(f"{out} cannot be written ({error.strerror}): give another folder") from None
    finally:
        shutil.rmtree(made, ignore_errors=True)
