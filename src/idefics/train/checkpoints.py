"""Checkpoints of a training, from which it continues exactly: whole folders of safetensors and JSON.

They are in a folder next to the result, `OUT.training`, which is removed when the result is written.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from idefics.batch.output_file import replace_file
from idefics.errors import BadSetting
from idefics.train.rows import RowsDigest
from idefics.train.settings import TrainSettings
from idefics.train.trainable import LearnedParameters, assign_learned, learned_tensors
from idefics.weights.whole_folder import write_whole_folder

LEARNED_FILE, OPTIMIZER_FILE, STATE_FILE = "learned.safetensors", "optimizer.safetensors", "state.json"
FOLDER_NAME = re.compile(r"step-(\d+)")
# Settings that may differ when a training continues: they change neither what is learned nor what its curves show.
FREE_SETTINGS = frozenset(
    {"out", "device", "threads", "validate_every", "save_every", "sample_every", "num_samples"}
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
    tensors, numbers = _optimizer_state(learned, optimizer)
    text = json.dumps({**asdict(state), "optimizer": numbers}, indent=2) + "\n"
    if path.exists():  # nothing has been learned since, but the rows may be described otherwise
        replace_file(path / STATE_FILE, partial(_write_text, text=text))
        return path
    older = _checkpoints(folder)
    advice = "make room, and begin again"
    if older:
        advice = f"make room, then continue with resume=True; {max(older)} is kept"
    with write_whole_folder(path, advice) as temporary:
        save_file(
            {name: tensor.contiguous() for name, tensor in learned_tensors(learned).items()},
            temporary / LEARNED_FILE,
        )
        save_file(tensors, temporary / OPTIMIZER_FILE)
        (temporary / STATE_FILE).write_text(text, encoding="utf-8")
    for old in older:
        shutil.rmtree(old)
    return path


def _write_text(file: BinaryIO, text: str) -> None:
    file.write(text.encode())


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
        BadSetting: the settings, the data or the weights are others; all that differs is listed. Or it is damaged.
    """
    from safetensors.torch import load_file

    state, numbers = _read_state(path)
    changes = _changed_settings(state, expected.settings) + state.rows.changes_to(expected.rows)
    if state.weights != expected.weights:
        changes.append("the model has other weights")
    _refuse_changes(path, changes)
    with _damage_as_bad_setting(path):
        tensors, moments = load_file(path / LEARNED_FILE), load_file(path / OPTIMIZER_FILE)
    assign_learned(learned, tensors)
    for key, value in {**moments, **numbers}.items():
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


def check_settings(path: Path, settings: TrainSettings) -> None:
    """Raises BadSetting if a training cannot continue from a checkpoint, since other settings are given."""
    _refuse_changes(path, _changed_settings(_read_state(path)[0], settings_to_json(settings)))


def _read_state(path: Path) -> tuple[TrainingState, dict[str, Any]]:
    """The state of a checkpoint, and the numbers of its optimizer."""
    with _damage_as_bad_setting(path):
        content = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
        numbers = content.pop("optimizer")
        return TrainingState(**{**content, "rows": RowsDigest(**content["rows"])}), numbers


@contextmanager
def _damage_as_bad_setting(path: Path) -> Iterator[None]:
    """Context that raises BadSetting if a checkpoint cannot be read."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise BadSetting(
            f"{path} is damaged, or another version wrote it ({type(error).__name__}: {error}): remove {path.parent} "
            "and begin again"
        ) from None


def _changed_settings(state: TrainingState, now: Mapping[str, Any]) -> list[str]:
    """The settings that are others now, for people."""
    return [
        f"{name}={value!r} (was {state.settings.get(name)!r})"
        for name, value in json.loads(json.dumps(now)).items()
        if state.settings.get(name) != value and not (name == CHOSEN_SETTING and value is not None)
    ]


def _refuse_changes(path: Path, changes: Sequence[str]) -> None:
    """Raises BadSetting if something has changed since a checkpoint was written."""
    if changes:
        raise BadSetting(
            f"{path} is of another training: {'; '.join(changes)}: give the same settings, data and model, or "
            "another out"
        )
