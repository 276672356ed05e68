"""Streams a checkpoint's tensors into a module built on the meta device, one at a time.

Loading is total: names and shapes are compared before the first tensor is read. Knows no families.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from idefics.errors import BrokenCheckpoint, UnsupportedModel, WeightsMismatch
from idefics.weights.adapters import refuse_wrapped
from idefics.weights.files import weight_files
from idefics.weights.gaps import close_gaps
from idefics.weights.rules import KeyRules

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


Places = Mapping[str, "torch.device"]  # a module's name, "" the whole model -> where it lies


def place_of(name: str, places: Places) -> torch.device:
    """Where a tensor or module lies: where the innermost of the modules around it does that `places` names."""
    while name and name not in places:
        name = name.rpartition(".")[0]
    return places[name]


def load(
    model: nn.Module,
    folder: Path,
    rules: KeyRules,
    *,
    dtype: torch.dtype,
    device: torch.device | str | Places,
    storage: Mapping[str, torch.dtype | None] | None = None,
    pack: Mapping[str, Callable[[Tensor], None]] | None = None,
    mapped: bool = False,
    optional: Collection[str] = (),
) -> list[str]:
    """Fills `model` with the checkpoint in `folder`.

    Each tensor goes straight into its final dtype and device: at most one is in memory beside the model.
    Tied weights are one Parameter under several names, of which a checkpoint needs to hold one.

    Args:
        model: built on the meta device; its parameters and persistent buffers are replaced.
        folder: holds safetensors, whole or sharded.
        rules: how the checkpoint's names become the model's.
        dtype: of every floating-point tensor; integers and booleans keep theirs.
        device: of all, or for every part of the model its own.
        storage: for some names another dtype; None: the file's own where that is of sixteen bits, else float32.
        pack: for some names what takes their tensor instead of the model: it quantises it and puts it into its place.
            Where tied weights are packed under one name, they are kept under the others too.
        mapped: leaves in the file what is used as it is stored there: read when it is first needed, and shared with
            other processes. The files must then stay as they are while the model lives.
        optional: names that the checkpoint may lack, and what the model has there stays: such names are returned.

    Raises:
        WeightsMismatch: weights are missing, unused or misshapen: all are listed.
        BrokenCheckpoint: a file is missing, damaged or contradicts another, or all names have a wrapper's prefix.
        UnsupportedModel: an adapter, pickles, integers in place of floating-point weights, or tied weights that differ.
        RuntimeError: the model left a non-persistent buffer on the meta device.
    """
    import torch

    places = device if isinstance(device, Mapping) else {"": torch.device(device)}
    packs, kept = pack or {}, storage or {}
    with ExitStack() as stack:
        files = weight_files(folder)
        stored = _open(files, stack)
        refuse_wrapped(stored, folder)
        maps = _open(files, stack, "mmap") if mapped else {}
        sources = {ours: [stored[name] for name in names] for ours, names in rules.sources(stored).items()}
        slots = _slots(model)
        _compare(slots, sources, optional)
        lacking = [slot.names[0] for slot in slots if sources.keys().isdisjoint(slot.names)]
        for slot in slots:
            place = place_of(slot.names[0], places)
            if slot.names[0] in lacking:
                slot.keep(model, dtype, place)
            else:
                _put_stored(model, slot, sources, dtype, place, packs, kept, maps)
    _refuse_meta(model)
    for name, buffer in model.named_buffers():  # those that are not persistent, the model computed for itself
        _put(model, name, buffer.to(place_of(name, places)))
    return lacking


def _put_stored(
    model: nn.Module,
    slot: _Slot,
    sources: Mapping[str, Sequence[_Stored]],
    dtype: torch.dtype,
    place: torch.device,
    packs: Mapping[str, Callable[[Tensor], None]],
    kept: Mapping[str, torch.dtype | None],
    maps: Mapping[str, _Stored],
) -> None:
    """Reads a slot's value from the files into the model; arguments as in `load`."""
    for name in slot.names:
        if take := packs.get(name):
            take(_read(slot, sources, dtype, place))
            close_gaps()
    if rest := [name for name in slot.names if name not in packs]:
        slot.fill(model, rest, _read(slot, sources, kept.get(rest[0], dtype), place, maps))


@dataclass(frozen=True, slots=True)
class _Stored:
    """A tensor in a file, not read yet."""

    name: str
    file: Path
    handle: Any  # safetensors.safe_open, whose methods have no hints

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.handle.get_slice(self.name).get_shape())

    @property
    def kind(self) -> str:
        """The dtype as the file's header writes it: "BF16", "F32", "I64", "BOOL", ..."""
        return str(self.handle.get_slice(self.name).get_dtype())

    def read(self) -> Tensor:
        with _reading(self.file):
            tensor: Tensor = self.handle.get_tensor(self.name)
            return tensor


@dataclass(frozen=True, slots=True)
class _Slot:
    """A parameter or persistent buffer of the model, with every name it goes by."""

    tensor: Tensor
    names: list[str]

    def fill(self, model: nn.Module, names: Sequence[str], value: Tensor) -> None:
        """Puts its value under some of its names."""
        from torch import nn

        if isinstance(self.tensor, nn.Parameter):
            value = nn.Parameter(value, requires_grad=self.tensor.requires_grad)
        for name in names:
            _put(model, name, value)

    def keep(self, model: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
        """Leaves what the model has, in this dtype where it is of floating point, on this device."""
        kind = dtype if self.tensor.is_floating_point() else None
        self.fill(model, self.names, self.tensor.detach().to(device, kind))


def _put(model: nn.Module, name: str, value: Tensor) -> None:
    owner, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(owner), attribute, value)


def _open(
    files: Sequence[Path], stack: ExitStack, way: Literal["pread", "mmap"] = "pread"
) -> dict[str, _Stored]:
    from safetensors import safe_open

    stored: dict[str, _Stored] = {}
    for file in files:
        # "pread" reads one tensor and no more; where it is then cast, pages of a mapped file would stay beside it.
        with _reading(file):
            handle = stack.enter_context(safe_open(file, framework="pt", backend=way))
        for name in handle.keys():  # noqa: SIM118 (a handle is no mapping)
            if name in stored:
                raise BrokenCheckpoint(
                    f"{stored[name].file} and {file} both hold {name}: keep one of the files"
                )
            stored[name] = _Stored(name, file, handle)
    return stored


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, OSError) as error:
        raise BrokenCheckpoint(
            f"{file} cannot be read ({error}): it is damaged or cut short, download or copy it again"
        ) from error


def _slots(model: nn.Module) -> list[_Slot]:
    slots: dict[int, _Slot] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        slots.setdefault(id(tensor), _Slot(tensor, [])).names.append(name)
    return list(slots.values())


def _compare(
    slots: Sequence[_Slot], sources: Mapping[str, Sequence[_Stored]], optional: Collection[str]
) -> None:
    missing: list[str] = []
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    for slot in slots:
        found = [name for name in slot.names if name in sources]
        if not found and slot.names[0] not in optional:
            missing.append(slot.names[0])
        for name in found:
            there, here = _stacked(sources[name], tuple(slot.tensor.shape)), tuple(slot.tensor.shape)
            if there != here:
                shapes[name] = (there, here)
    ours = {name for slot in slots for name in slot.names}
    unused = [part.name for name, parts in sources.items() if name not in ours for part in parts]
    if missing or unused or shapes:
        raise WeightsMismatch(missing, sorted(unused), shapes)
    for slot in slots:
        for part in chain.from_iterable(sources.get(name, ()) for name in slot.names):
            if part.kind.startswith(("F", "BF")) != slot.tensor.is_floating_point():
                raise UnsupportedModel(
                    f"{part.file}: {part.name} is stored as {part.kind}, the model computes with "
                    f"{slot.tensor.dtype}: give the checkpoint in its original precision"
                )


def _stacked(parts: Sequence[_Stored], wanted: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of all parts, one below the other; where they do not stack, one that is not `wanted`."""
    if len(parts) == 1:
        return parts[0].shape
    tails = [part.shape[1:] for part in parts]
    tail = next((tail for tail in tails if tail != wanted[1:]), wanted[1:])
    return (sum(math.prod(part.shape[:1]) for part in parts), *tail)


def _read(
    slot: _Slot,
    sources: Mapping[str, Sequence[_Stored]],
    dtype: torch.dtype | None,
    device: torch.device,
    maps: Mapping[str, _Stored] | None = None,
) -> Tensor:
    """A slot's value, which is the same under each name that the checkpoint has of it."""
    import torch

    first, *others = [name for name in slot.names if name in sources]
    if dtype is None:
        dtype = _sixteen_bits(sources[first]) or torch.float32
    if not slot.tensor.is_floating_point():
        dtype = slot.tensor.dtype
    if maps and device.type == "cpu" and len(sources[first]) == 1 and _as_stored(sources[first][0], dtype):
        value = maps[sources[first][0].name].read()
    else:
        value = _joined(sources[first], slot, dtype, device)
    for other in others:
        if not torch.equal(value, _joined(sources[other], slot, dtype, device)):
            raise UnsupportedModel(
                f"{sources[first][0].file.parent}: {other} differs from {first} although config.json ties them: "
                'set "tie_word_embeddings" to false in it'
            )
    return value


def _joined(parts: Sequence[_Stored], slot: _Slot, dtype: torch.dtype, device: torch.device) -> Tensor:
    import torch

    whole = torch.empty(slot.tensor.shape, dtype=dtype, device=device)
    if len(parts) == 1:
        return whole.copy_(parts[0].read())
    for rows, part in zip(whole.split([part.shape[0] for part in parts]), parts, strict=True):
        rows.copy_(part.read())
    return whole


def _as_stored(part: _Stored, dtype: torch.dtype) -> bool:
    kinds = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "I8": "int8", "U8": "uint8"}
    return str(dtype) == f"torch.{kinds.get(part.kind)}"


def _sixteen_bits(parts: Sequence[_Stored]) -> torch.dtype | None:
    """The dtype in which all parts are stored, if it is one of sixteen bits."""
    import torch

    kinds = {part.kind for part in parts}
    return {"BF16": torch.bfloat16, "F16": torch.float16}.get(kinds.pop()) if len(kinds) == 1 else None


def _refuse_meta(model: nn.Module) -> None:
    named = chain(model.named_parameters(), model.named_buffers())
    if left := [name for name, tensor in named if tensor.is_meta]:
        raise RuntimeError(
            f"the model must compute these buffers itself, off the meta device: {', '.join(left)}"
        )
