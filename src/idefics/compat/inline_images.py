"""Pictures that are read in the text, as `forward` is given them: padded frames, and the tokens whose places they take.

B rows, P pictures a row, M vectors of one in the text, D width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from idefics.compat.reading import Rows
from idefics.errors import BadPrompt

Size = tuple[int, int]  # height and width in pixels


@dataclass(frozen=True, slots=True)
class Frames:
    """The pictures of a batch, those of one row after those of another.

    Attributes:
        pixels: (B*P, 3, h, w), padded below and on the right.
        by_size: the size of a picture -> the indices of all that have it; pictures of zeros alone are padding and
            are left out.
        counts: how many pictures each row has.
    """

    pixels: Tensor
    by_size: dict[Size, list[int]]
    counts: list[int]

    @classmethod
    def of(cls, pixels: Tensor, mask: Tensor | None, *, squares: bool) -> Self:
        """The pictures of `pixel_values` (B, P, 3, h, w) and `pixel_attention_mask` (B, P, h, w).

        Raises:
            BadPrompt: of another shape, or a picture that is no square though the model reads `squares`.
        """
        if pixels.dim() != 5:
            raise BadPrompt(
                f"pixel_values are of {tuple(pixels.shape)}: give (rows, pictures, 3, height, width)"
            )
        frames = pixels.flatten(0, 1)  # (B*P, 3, h, w)
        if mask is None:
            sizes = [(frames.shape[2], frames.shape[3])] * len(frames)
        else:  # pictures are padded below and on the right
            stands = mask.flatten(0, 1).bool()
            sizes = list(zip(stands.any(2).sum(1).tolist(), stands.any(1).sum(1).tolist(), strict=True))
        by_size: defaultdict[Size, list[int]] = defaultdict(list)
        is_real = (frames != 0).flatten(1).any(dim=1)
        for index in is_real.nonzero()[:, 0].tolist():
            by_size[sizes[index]].append(index)
        if squares and (odd := next((size for size in by_size if size[0] != size[1]), None)):
            raise BadPrompt(f"a frame is {odd[0]} x {odd[1]} pixels, and this model reads squares: resize it")
        return cls(frames, dict(by_size), is_real.view(pixels.shape[:2]).sum(1).tolist())

    def encoded(
        self, encode: Callable[[Tensor], Tensor], device: torch.device, dtype: torch.dtype
    ) -> Tensor | None:
        """(pictures, M, D) of all pictures in their order; None where there are none. `encode` takes one size."""
        vectors: dict[int, Tensor] = {}
        for (height, width), indices in self.by_size.items():
            some = self.pixels[indices, :, :height, :width].to(device, dtype)
            vectors.update(zip(indices, encode(some), strict=True))
        return torch.stack([vectors[index] for index in sorted(vectors)]) if vectors else None


def with_pictures(
    rows: Rows, features: Tensor | None, image_token: int, embed: Callable[[Tensor], Tensor]
) -> Rows:
    """Vectors of pictures, (pictures, M, D), take the places of their tokens.

    Raises:
        BadPrompt: there are more or fewer places than vectors.
    """
    if features is None:
        return rows
    if rows.ids is not None:
        places = rows.ids == image_token
    else:
        places = (rows.x == embed(torch.tensor(image_token, device=rows.x.device))).all(dim=-1)
    vectors = features.flatten(0, -2).to(rows.x.device, rows.x.dtype)
    if (wanted := int(places.sum())) != len(vectors):
        raise BadPrompt(
            f"the rows have {wanted} places for pictures and the pictures fill {len(vectors)}: "
            f"give a picture for every {features.shape[-2]} tokens of id {image_token}"
        )
    return replace(rows, x=rows.x.masked_scatter(places.to(rows.x.device)[..., None], vectors))
