"""Writes what was learned: an adapter, or a whole checkpoint."""

from __future__ import annotations

from pathlib import Path

from idefics.train.trainable import learned_tensors
from idefics.train.trainee import Trainee
from idefics.weights.adapter_files import write_adapter


def write_result(trainee: Trainee, out: Path) -> None:
    """Writes what was learned into a new folder: whole or not at all.

    Raises:
        BadSetting: the folder is not empty, or cannot be written.
    """
    learned = trainee.learned
    if learned.adapter_config is not None:
        write_adapter(out, learned_tensors(learned), learned.adapter_config)
        return
    from idefics.generation.merge import write_changed_checkpoint

    write_changed_checkpoint(trainee.checkpoint, out, learned_tensors(learned))
