"""`TextSettings`: which texts a batch run writes next to pictures and into them. Plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SidecarKind = Literal["txt", "json", "xmp"]
TextKind = Literal["txt", "json", "xmp", "metadata"]  # metadata: written into the picture itself
ExistingText = Literal["skip", "overwrite", "append", "prepend"]


@dataclass(frozen=True, slots=True)
class TextSettings:
    """Which texts a run writes next to pictures and into them.

    Attributes:
        sidecar: the kind of the file next to each picture; None: no file.
        write_metadata: whether each text is written into the picture's own XMP metadata.
        existing: what happens to a picture that has a text already: "skip" leaves it alone.
    """

    sidecar: SidecarKind | None = None
    write_metadata: bool = False
    existing: ExistingText = "skip"

    @property
    def kinds(self) -> tuple[TextKind, ...]:
        """The kinds of text that are written for each picture."""
        return (*((self.sidecar,) if self.sidecar else ()), *(("metadata",) if self.write_metadata else ()))
