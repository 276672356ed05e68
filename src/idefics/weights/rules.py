"""How a checkpoint's tensor names become the model's: data that each family writes down.

Knows names. Does not know tensors, files or families.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from idefics.errors import BrokenCheckpoint


@dataclass(frozen=True, slots=True)
class Join:
    """Several tensors of a checkpoint that are one of ours, one below the other (along dimension 0).

    Attributes:
        whole: our name.
        parts: the checkpoint's names, top first. Those that are there are joined: a checkpoint that keeps the
            whole in one piece, under the first name or under ours, needs no rule of its own.
    """

    whole: str
    parts: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRules:
    """What to ignore, join and rename. All see the checkpoint's own names; a name meets one rule at most.

    Attributes:
        ignore: (regular expression, why): tensors that are never read. Asked first.
        join: tensors that are concatenated. Asked second.
        rename: (regular expression, replacement as in `re.sub`). Asked last; the first that matches wins.
            A new name must not match again, so that names already ours pass untouched.

    Regular expressions are searched for anywhere in the name: anchor them.
    """

    ignore: tuple[tuple[str, str], ...] = ()
    join: tuple[Join, ...] = ()
    rename: tuple[tuple[str, str], ...] = ()

    def sources(self, names: Iterable[str]) -> Mapping[str, tuple[str, ...]]:
        """The checkpoint's names -> for each of our names the checkpoint's names that make it up, top first.

        Ignored names are left out.

        Raises:
            BrokenCheckpoint: two names mean the same weight (an old and a new name side by side).
        """
        places = {part: (join.whole, row) for join in self.join for row, part in enumerate(join.parts)}
        found: dict[str, dict[int, str]] = {}
        for name in names:
            if any(re.search(pattern, name) for pattern, _ in self.ignore):
                continue
            ours, row = places.get(name) or (self._renamed(name), 0)
            parts = found.setdefault(ours, {})
            if row in parts:
                raise BrokenCheckpoint(
                    f"the checkpoint holds {parts[row]} and {name}, which are the same weight"
                )
            parts[row] = name
        return {ours: tuple(parts[row] for row in sorted(parts)) for ours, parts in found.items()}

    def _renamed(self, name: str) -> str:
        for pattern, replacement in self.rename:
            ours, count = re.subn(pattern, replacement, name)
            if count:
                return ours
        return name
