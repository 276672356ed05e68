"""Pictures beside the text, as `forward` is given them.

B rows, T new tokens, P pictures a row, S patches and M feature rows of one, D' their width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from idefics.compat.reading import Rows
from idefics.errors import BadPrompt
from idefics.models.idefics1 import Idefics1Model
from idefics.nn.padded import Beside, by_rows
from idefics.nn.resampler import Resampler


@dataclass(frozen=True, slots=True)
class PictureArguments:
    """Pictures at one of three stages, and what each token sees of them.

    Attributes:
        pixel_values: (B, P, 3, h, w).
        image_encoder_embeddings: (B, P, S, D'), patches as the vision tower gives them.
        perceiver_embeddings: (B, P, M, D'), as the resampler gives them.
        image_attention_mask: (B, T, P), 1 where a token sees a picture; None: every token sees all.
        interpolate_pos_encoding: whether pictures may have another size than the trained one.
    """

    pixel_values: Tensor | None
    image_encoder_embeddings: Tensor | None
    perceiver_embeddings: Tensor | None
    image_attention_mask: Tensor | None
    interpolate_pos_encoding: bool | None

    def features(self, body: Idefics1Model, side: int) -> Tensor | None:
        """(B, P, M, D'), the last stage; None where no pictures are given. `side` is the trained size in pixels."""
        stages = self.pixel_values, self.image_encoder_embeddings, self.perceiver_embeddings
        match [stage for stage in stages if stage is not None]:
            case []:
                return None
            case [stage]:
                weight = body.embed_tokens.weight
                pictures = stage.flatten(0, 1).to(weight.device, weight.dtype)  # (B*P, ...)
            case _:
                raise BadPrompt(
                    "give one of pixel_values, image_encoder_embeddings and perceiver_embeddings: "
                    "they are the same pictures at three stages"
                )
        if self.pixel_values is not None:
            self._check_size(pictures, side)
            pictures = body.encode(pictures)
        elif self.image_encoder_embeddings is not None:
            pictures = body.perceiver_resampler(pictures)
        elif not isinstance(body.perceiver_resampler, Resampler):
            raise BadPrompt(
                "perceiver_embeddings are given, but use_resampler is False: give image_encoder_embeddings"
            )
        out: Tensor = pictures.unflatten(0, stage.shape[:2])
        return out

    def beside(self, body: Idefics1Model, features: Tensor, rows: Rows) -> Beside:
        """Keys and values of pictures that are new to the rows, and what tokens see of them."""
        (batch, pictures), new = features.shape[:2], rows.x.shape[1]
        if batch != len(rows.x):
            raise BadPrompt(f"pictures are given for {batch} rows and tokens for {len(rows.x)}: give as many")
        if self.image_attention_mask is None:
            sees = torch.ones(batch, new, pictures, dtype=torch.bool, device=rows.x.device)
        else:
            sees = self.image_attention_mask[:, -new:].to(rows.x.device).bool()
        if sees.shape != (batch, new, pictures):
            raise BadPrompt(
                f"image_attention_mask is of {tuple(sees.shape)}: give {(batch, new, pictures)}, "
                "one number for each row, new token and picture"
            )
        return Beside(by_rows(body.memory(features.flatten(0, 1)), batch), sees)

    def still_seen(self, rows: Rows) -> Beside | None:
        """Pictures that the past has read: new tokens see what the last one saw, unless a mask for them says else."""
        before, new, mask = rows.past.beside, rows.x.shape[1], self.image_attention_mask
        if before is None:
            return None
        if mask is not None and mask.shape[1] in (new, rows.past.get_seq_length() + new):
            return Beside(before.memory, mask[:, -new:].to(before.sees.device).bool())
        return Beside(before.memory, before.sees.expand(-1, new, -1))

    def _check_size(self, pictures: Tensor, side: int) -> None:
        height, width = pictures.shape[2:]
        if (height, width) != (side, side) and not self.interpolate_pos_encoding:
            raise BadPrompt(
                f"pixel_values are {height} x {width} pixels and the model reads {side} x {side}: "
                "resize them, or give interpolate_pos_encoding=True"
            )
