"""Image features of the pictures of a batch: what is frozen is computed once for each picture and kept.

F frames, S patches of a frame, M features of a frame, D' width.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from idefics.models.vision_language_model import VisionLanguageModel
from idefics.train.packing import PictureSource
from idefics.weights.whole_folder import nearest_existing

Stage = Literal["frames", "patches", "features"]
Frames = Sequence[np.ndarray]  # of a picture: arrays (3, h, w) of float32
MAX_FROZEN_FRAMES = 8  # of one picture, that go through a frozen tower together
MEMORY_BYTES = 2 << 30
DISK_BYTES = 16 << 30
FEATURES = "features"  # the folder with the files, in that of the training
FILES = "*.safetensors"

log = logging.getLogger(__name__)


class PictureStore:
    """What the learned part of a model reads of each picture, by picture key.

    This is frames if the vision tower learns, patches if only the connector and what follows does, and else features.
    Pictures are kept in memory up to a bound, then patches and features in files up to another; the rest is computed
    again each time. A frozen part computes each picture by itself: its results do not depend on the batch.

    Args:
        model: what learns in it is unfrozen.
        folder: for the files, of this training alone.
        memory_bytes, disk_bytes: the bounds; without bytes on the disk, older files are not read either.

    Attributes:
        stage: what is kept.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        folder: Path,
        memory_bytes: int = MEMORY_BYTES,
        disk_bytes: int = DISK_BYTES,
    ) -> None:
        self.model, self.folder = model, folder
        backbone = model.model
        self.stage: Stage = "features"
        if any(weight.requires_grad for weight in backbone.vision_model.parameters()):
            self.stage = "frames"
        elif any(weight.requires_grad for weight in backbone.connector_module.parameters()):
            self.stage = "patches"
        self._free_memory = memory_bytes
        self._kept: dict[str, list[Tensor]] = {}
        sizes = _file_sizes(folder) if disk_bytes and self.stage != "frames" else {}
        self._files = set(sizes)
        self._free_disk = 0 if self.stage == "frames" else disk_bytes - sum(sizes.values())

    def read_missing(self, pictures: Sequence[PictureSource]) -> dict[str, Frames]:
        """The frames of those pictures that are not kept, by key. May be called in another thread."""
        frames_by_key: dict[str, Frames] = {}
        for one in pictures:
            is_kept = one.key in self._kept or _file_name(one.key) in self._files
            if not is_kept and one.key not in frames_by_key:
                frames_by_key |= _read_frames(one)  # all of the row's at once
        return frames_by_key

    def frame_tensors(self, picture: PictureSource, frames_by_key: Mapping[str, Frames]) -> list[Tensor]:
        """A tensor for each frame of a picture, on the CPU: (3, h, w), (S, D') or (M, D'), as the stage is.

        Args:
            frames_by_key: as `read_missing` gave them.
        """
        key = picture.key
        if key in self._kept:
            return self._kept[key]
        if (name := _file_name(key)) in self._files:
            return _read_tensors(self.folder / name)
        frames = frames_by_key[key] if key in frames_by_key else _read_frames(picture)[key]
        tensors = [torch.from_numpy(frame) for frame in frames]
        if self.stage != "frames":
            tensors = self._compute_frozen(tensors)
        self._keep(key, tensors)
        return tensors

    def encode(self, frame_tensors: Sequence[Tensor]) -> Tensor:
        """The learned rest: tensors of the stage, of F frames -> (F, M, D') features on the model's device."""
        backbone, device = self.model.model, next(self.model.parameters()).device
        modules: dict[Stage, Callable[[Tensor], Tensor]] = {
            "frames": self.model.encode,
            "patches": backbone.connector_module,
            "features": torch.nn.Identity(),
        }
        indices_by_shape: defaultdict[torch.Size, list[int]] = defaultdict(list)
        for index, tensor in enumerate(frame_tensors):
            indices_by_shape[tensor.shape].append(index)
        encoded = [
            modules[self.stage](
                torch.stack([frame_tensors[index] for index in indices]).to(device, self.model.dtype)
            )
            for indices in indices_by_shape.values()
        ]
        if len(encoded) == 1:
            return encoded[0]
        order = [index for indices in indices_by_shape.values() for index in indices]
        return torch.cat(encoded)[torch.tensor(np.argsort(order), device=device)]

    @torch.no_grad()
    def _compute_frozen(self, frames: Sequence[Tensor]) -> list[Tensor]:
        """What the frozen part makes of the frames of one picture."""
        backbone, device = self.model.model, next(self.model.parameters()).device
        compute: Callable[[Tensor], Tensor] = (
            self.model.encode if self.stage == "features" else backbone.vision_model
        )
        tensors: list[Tensor] = []
        start = 0
        while start < len(frames):
            end = start + 1
            while (
                end < min(len(frames), start + MAX_FROZEN_FRAMES) and frames[end].shape == frames[start].shape
            ):
                end += 1
            pixels = torch.stack(list(frames[start:end])).to(device)  # the tower casts them to its dtype
            tensors += compute(pixels).to("cpu", self.model.dtype).unbind()
            start = end
        return tensors

    def _keep(self, key: str, tensors: list[Tensor]) -> None:
        """Keeps a picture in memory or in a file, if there is room."""
        num_bytes = sum(tensor.nbytes for tensor in tensors)
        if num_bytes <= self._free_memory:
            self._free_memory -= num_bytes
            self._kept[key] = tensors
        elif num_bytes <= self._free_disk:
            self._free_disk -= num_bytes
            self._write(self.folder / _file_name(key), tensors)

    def _write(self, path: Path, tensors: Sequence[Tensor]) -> None:
        """Writes a file under another name and renames it, so that it is whole; if that fails, no more are written."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({str(index): tensor.contiguous() for index, tensor in enumerate(tensors)}, temporary)
            temporary.replace(path)
        except (OSError, SafetensorError) as error:
            log.warning(
                "no more features of pictures are kept in %s, but computed again: %s", path.parent, error
            )
            self._free_disk = 0
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            return
        self._files.add(path.name)


class DiskSpace(NamedTuple):
    """Bytes of the disk with the files of a training.

    Attributes:
        usable: for files of features, those that are there included.
        free: for all.
    """

    usable: int
    free: int


def find_disk_space(folder: Path) -> DiskSpace:
    """The disk space for the features of a training in a folder, which need not exist.

    At most half of what is free is used, so that checkpoints and the result can be written.
    """
    free = shutil.disk_usage(nearest_existing(folder)).free
    return DiskSpace(min(DISK_BYTES, sum(_file_sizes(folder).values()) + free // 2), free)


def _file_sizes(folder: Path) -> dict[str, int]:
    """The sizes in bytes of the files of features in a folder, by name."""
    return {path.name: path.stat().st_size for path in folder.glob(FILES)}


def _read_frames(picture: PictureSource) -> dict[str, Frames]:
    """The frames of all pictures of a picture's row, by key."""
    images = picture.row.read_pictures()
    return {key: image.frames for key, image in zip(picture.row.picture_keys, images, strict=True)}


def _file_name(key: str) -> str:
    """The name of a picture's file."""
    return f"{hashlib.sha256(key.encode()).hexdigest()}.safetensors"


def _read_tensors(path: Path) -> list[Tensor]:
    """The tensors of a file of a `PictureStore`."""
    from safetensors.torch import load_file

    tensors = load_file(path)
    return [tensors[str(index)] for index in range(len(tensors))]
