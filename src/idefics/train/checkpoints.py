"""Checkpoints of a training, from which it continues exactly: whole folders of safetensors and JSON.

They are in a folder next to the result, `OUT.training`, which is removed when the result is written.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from idefics.errors import BadSetting
from idefics.train.rows import RowsDigest
from idefics.train.settings import TrainSettings
from idefics.train.trainable import LearnedParameters, assign_learned, learned_tensors
from idefics.weights.whole_folder import write_whole_folder

LEARNED_FILE, OPTIMIZER_FILE, STATE_FILE = "learned.safetensors", "optimizer.safetensors", "state.json"
FOLDER_NAME = re.compile(r"step-(\d+)")
# Settings that may differ when a training continues: they do not change what is learned.
FREE_SETTINGS = frozenset(
    {"out", "val", "device", "threads", "validate_every", "save_every", "sample_every", "num_samples"}
)

# May differ where it is given, not left to its default: after a loss that is no number, a smaller one goes on.
CHOSEN_SETTING = "learning_rate"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingState:
    """What a checkpoint has in addition to tensors.

    Attributes:
        step: optimizer steps that are done.
        rows: the training data.
        weights: SHA-256 (hex) of the files of the model's weights; see `weights.digest_files`.
        settings: of the training, as JSON has them.
    """

    step: int
    rows: RowsDigest
    weights: str
    settings: Mapping[str, Any]


def settings_to_json(settings: TrainSettings) -> dict[str, Any]:
    """The settings that determine what is learned, as JSON has them."""
    return {name: value for name, value in asdict(settings).items() if name not in FREE_SETTINGS}


def save_checkpoint(
    folder: Path, state: TrainingState, learned: LearnedParameters, optimizer: torch.optim.Optimizer
) -> Path:
    """Writes a checkpoint under another name, renames it, and then removes older ones.

    Args:
        folder: of the training.

    Raises:
        BadSetting: it cannot be written.
    """
    from safetensors.torch import save_file

    path = folder / f"step-{state.step:08d}"
    if path.exists():  # it was loaded, and nothing has been learned since
        return path
    older = _checkpoints(folder)
    tensors, numbers = _optimizer_state(learned, optimizer)
    kept = f"{max(older)} is kept" if older else "there is no other checkpoint"
    with write_whole_folder(path, f"make room, then continue with resume=True; {kept}") as temporary:
        save_file(
            {name: tensor.contiguous() for name, tensor in learned_tensors(learned).items()},
            temporary / LEARNED_FILE,
        )
        save_file(tensors, temporary / OPTIMIZER_FILE)
        text = json.dumps({**asdict(state), "optimizer": numbers}, indent=2)
        (temporary / STATE_FILE).write_text(text + "\n", encoding="utf-8")
    for old in older:
        shutil.rmtree(old)
    return path


def checkpoint_step(path: Path) -> int:
    """How many optimizer steps were done when a checkpoint was written."""
    return int(path.name.removeprefix("step-"))


def remove_checkpoints(folder: Path) -> None:
    """Removes all checkpoints of a training, and what was left of one that was being written."""
    for path in (*_checkpoints(folder), *folder.glob(".step-*")):
        shutil.rmtree(path)


def find_checkpoint(folder: Path) -> Path | None:
    """The latest checkpoint of a training; None if there is none."""
    return max(_checkpoints(folder), default=None)


def load_checkpoint(
    path: Path,
    expected: TrainingState,
    learned: LearnedParameters,
    optimizer: torch.optim.Optimizer,
) -> TrainingState:
    """Sets the learned parameters and the optimizer as they were.

    Args:
        expected: of the training that is to continue; its step is not read.

    Raises:
        BadSetting: the settings, the data or the weights are others; all that differs is listed.
    """
    from safetensors.torch import load_file

    content = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
    numbers = content.pop("optimizer")
    state = TrainingState(**{**content, "rows": RowsDigest(**content["rows"])})
    _check_unchanged(path, state, expected)
    assign_learned(learned, load_file(path / LEARNED_FILE))
    for key, value in {**load_file(path / OPTIMIZER_FILE), **numbers}.items():
        name, _, field = key.rpartition("/")
        parameter = learned.by_name[name]
        optimizer.state[parameter][field] = value.to(parameter.device) if isinstance(value, Tensor) else value
    return state


def _checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a training."""
    return [path for path in folder.glob("step-*") if FOLDER_NAME.fullmatch(path.name)]


def _optimizer_state(
    learned: LearnedParameters, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, and the numbers, that an optimizer keeps of each parameter, by "NAME/FIELD"."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for name, parameter in learned.by_name.items():
        for field, value in optimizer.state[parameter].items():
            if isinstance(value, Tensor):
                tensors[f"{name}/{field}"] = value.detach().cpu().clone().contiguous()
            else:
                numbers[f"{name}/{field}"] = value
    return tensors, numbers


def _check_unchanged(path: Path, state: TrainingState, now: TrainingState) -> None:
    """Raises BadSetting if a training cannot continue from a checkpoint, since something else is to be trained."""
    settings = json.loads(json.dumps(now.settings))
    changes = [
        f"{name} was {state.settings.get(name)!r} and is {value!r}"
        for name, value in settings.items()
        if state.settings.get(name) != value and not (name == CHOSEN_SETTING and value is not None)
    ]
    changes += state.rows.changes_to(now.rows)
    if state.weights != now.weights:
        changes.append("the model has other weights")
    if changes:
        raise BadSetting(
            f"{path} is of another training: {'; '.join(changes)}: give the same settings, data and model, or "
            "another out"
        )
