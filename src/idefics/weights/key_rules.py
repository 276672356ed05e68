"""How a checkpoint's tensor names become the model's: data that each family writes down.

Knows names. Does not know tensors, files or families.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from idefics.errors import BrokenCheckpoint


@dataclass(frozen=True, slots=True)
class ConcatRule:
    """Several tensors of a checkpoint that are one of ours, one below the other (along dimension 0).

    Attributes:
        target: our name.
        sources: the checkpoint's names, top first. Those that are there are joined: a checkpoint that keeps the
            whole in one piece, under the first name or under ours, needs no rule of its own.
    """

    target: str
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRules:
    """What to ignore, join and rename. All see the checkpoint's own names; a name meets one rule at most.

    Attributes:
        ignore: (regular expression, why): tensors that are never read. Asked first.
        concat: tensors that are concatenated. Asked second.
        rename: (regular expression, replacement as in `re.sub`). Asked last; the first that matches wins.
            A new name must not match again, so that names already ours pass untouched.

    Regular expressions are searched for anywhere in the name: anchor them.
    """

    ignore: tuple[tuple[str, str], ...] = ()
    concat: tuple[ConcatRule, ...] = ()
    rename: tuple[tuple[str, str], ...] = ()

    def source_names_by_target(self, names: Iterable[str]) -> Mapping[str, tuple[str, ...]]:
        """The checkpoint's names -> for each of our names the checkpoint's names that make it up, top first.

        Ignored names are left out.

        Raises:
            BrokenCheckpoint: two names mean the same weight (an old and a new name side by side).
        """
        target_by_source = {
            part: (join.target, part_index)
            for join in self.concat
            for part_index, part in enumerate(join.sources)
        }
        parts_by_target: dict[str, dict[int, str]] = {}
        for name in names:
            if any(re.search(pattern, name) for pattern, _ in self.ignore):
                continue
            target, part_index = target_by_source.get(name) or (self._rename(name), 0)
            parts = parts_by_target.setdefault(target, {})
            if part_index in parts:
                raise BrokenCheckpoint(
                    f"the checkpoint holds {parts[part_index]} and {name}, which are the same weight"
                )
            parts[part_index] = name
        return {
            target: tuple(parts[part_index] for part_index in sorted(parts))
            for target, parts in parts_by_target.items()
        }

    def _rename(self, name: str) -> str:
        for pattern, replacement in self.rename:
            new_name, count = re.subn(pattern, replacement, name)
            if count:
                return new_name
        return name
