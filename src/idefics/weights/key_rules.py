"""Rules that map the tensor names of a checkpoint to those of the model; each family defines its own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from idefics.errors import BrokenCheckpoint

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRules:
    """Which tensors of a checkpoint to ignore, concatenate and rename; one rule at most applies to a name.

    Regular expressions match anywhere in the checkpoint's name: anchor them.

    Attributes:
        ignore: regular expressions of tensors that are not read. Tried first.
        concat: the model's name -> the checkpoint's names, in order, of the tensors that are concatenated to it along
            dimension 0. Those that exist are concatenated: a checkpoint with one tensor, under the first of the names
            or under the model's, needs no rule of its own. Tried second.
        rename: (regular expression, replacement as in `re.sub`). Tried last; the first that matches applies. A new
            name must not match again, so that names that are already the model's stay as they are.
    """

    ignore: tuple[str, ...] = ()
    concat: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    rename: tuple[tuple[str, str], ...] = ()

    def source_names_by_target(self, names: Iterable[str]) -> Mapping[str, tuple[str, ...]]:
        """For each of the model's names, the checkpoint's names that are concatenated to it, in order.

        Args:
            names: the checkpoint's names; ignored ones are left out.

        Raises:
            BrokenCheckpoint: two names are the same weight, an old name and a new one.
        """
        target_by_source = {
            part: (target, part_index)
            for target, parts in self.concat.items()
            for part_index, part in enumerate(parts)
        }
        parts_by_target: dict[str, dict[int, str]] = {}
        for name in names:
            if any(re.search(pattern, name) for pattern in self.ignore):
                continue
            target, part_index = target_by_source.get(name) or (self._new_name(name), 0)
            parts = parts_by_target.setdefault(target, {})
            if part_index in parts:
                raise BrokenCheckpoint(
                    f"the checkpoint holds {parts[part_index]} and {name}, which are the same weight"
                )
            parts[part_index] = name
        return {
            target: tuple(name for _, name in sorted(parts.items()))
            for target, parts in parts_by_target.items()
        }

    def sources_by_target(self, tensors: Mapping[str, T]) -> dict[str, list[T]]:
        """As `source_names_by_target`, with the tensors of these names."""
        return {
            target: [tensors[name] for name in names]
            for target, names in self.source_names_by_target(tensors).items()
        }

    def _new_name(self, name: str) -> str:
        """The model's name for a checkpoint's name, by the first rule of `rename` that matches; else the same name."""
        for pattern, replacement in self.rename:
            new_name, count = re.subn(pattern, replacement, name)
            if count:
                return new_name
        return name
