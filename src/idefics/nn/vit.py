"""Vision transformers: the shared encoder, and the embeddings of CLIP and of SigLIP with NaViT positions.

P frames, S patches of a frame, D width. Frames of one call have one size and no padding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from idefics.config import VisionConfig
from idefics.nn.activation import ACTIVATIONS
from idefics.nn.attention_backends import AttentionModule

CPU_CHUNK_PATCHES = (
    1024  # patches that go through a layer together on a processor: 12 MiB between the two halves of its MLP
)


class VisionAttention(AttentionModule):
    """Every patch attends to every patch of its frame."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:  # (P, S, D) -> (P, S, D)
        q, k, v = (
            p(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = self.attention_backend(q, k, v)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return out


class VisionMLP(nn.Module):
    """fc2(act(fc1(x)))."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.act = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class VisionLayer(nn.Module):
    """Pre-norm attention, then pre-norm MLP."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.self_attn = VisionAttention(config)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.norm_epsilon)
        self.mlp = VisionMLP(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.norm_epsilon)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        out: Tensor = x + self.mlp(self.layer_norm2(x))
        return out


class VisionEncoder(nn.Module):
    """The stack of blocks. A processor takes a few frames through all of them before the next, so that what stands
    between two layers is still in its cache.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(VisionLayer(config) for _ in range(config.num_layers))

    def forward(self, x: Tensor) -> Tensor:  # (P, S, D) -> (P, S, D)
        x = (
            x.contiguous()
        )  # patches come from a convolution with D before S, and every layer would turn them round
        if x.device.type != "cpu":
            return self._forward_layers(x)
        frames_per_chunk = max(1, CPU_CHUNK_PATCHES // x.shape[1])
        return torch.cat([self._forward_layers(chunk) for chunk in x.split(frames_per_chunk)])

    def _forward_layers(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class ClipEmbeddings(nn.Module):
    """CLIP (arXiv 2103.00020): patches without bias, a class vector in front, one learned position each.

    Positions of frames that are not of the trained size are interpolated.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.patches_per_side = config.patches_per_side
        self.class_embedding = nn.Parameter(torch.randn(config.hidden_size))
        self.patch_embedding = nn.Conv2d(
            3, config.hidden_size, config.patch_size, config.patch_size, bias=False
        )
        self.position_embedding = nn.Embedding(config.patches_per_side**2 + 1, config.hidden_size)

    def forward(self, frames: Tensor) -> Tensor:  # (P, 3, h, w) -> (P, 1 + S, D)
        patches = self.patch_embedding(frames)
        # Looked up though all are wanted: a module's weights may lie elsewhere until it is called.
        positions = self.position_embedding(torch.arange(self.patches_per_side**2 + 1, device=patches.device))
        if patches.shape[2:] != (self.patches_per_side, self.patches_per_side):
            positions = torch.cat(
                (
                    positions[:1],
                    interpolate_positions(positions[1:], self.patches_per_side, *patches.shape[2:]),
                )
            )
        classes = self.class_embedding.expand(len(frames), 1, -1)
        out: Tensor = torch.cat((classes, patches.flatten(2).transpose(1, 2)), dim=1) + positions
        return out


def interpolate_positions(positions: Tensor, patches_per_side: int, rows: int, columns: int) -> Tensor:
    """(grid * grid, D) learned positions -> (rows * columns, D), bicubic, as DINO does it (arXiv 2104.14294).

    Its scale has a tenth of a patch added, so that rounding never loses a row; the values depend on it.
    """
    table = (
        positions.float().unflatten(0, (patches_per_side, patches_per_side)).permute(2, 0, 1)[None]
    )  # (1, D, grid, grid)
    scale = ((rows + 0.1) / patches_per_side, (columns + 0.1) / patches_per_side)
    table = interpolate(table, scale_factor=scale, mode="bicubic", align_corners=False)
    return table[0].permute(1, 2, 0).flatten(0, 1).to(positions.dtype)


class SiglipEmbeddings(nn.Module):
    """SigLIP (arXiv 2303.15343): patches with bias; positions of any grid are looked up in the square trained one."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.patches_per_side = config.patches_per_side
        self.patch_embedding = nn.Conv2d(3, config.hidden_size, config.patch_size, config.patch_size)
        self.position_embedding = nn.Embedding(config.patches_per_side**2, config.hidden_size)

    def forward(self, frames: Tensor) -> Tensor:  # (P, 3, h, w) -> (P, S, D)
        patches = self.patch_embedding(frames)  # floors: pixels beyond the last patch are not seen
        rows, columns = patches.shape[2:]
        ids = position_ids(rows, columns, self.patches_per_side, frames.device)
        out: Tensor = patches.flatten(2).transpose(1, 2) + self.position_embedding(ids)
        return out


def position_ids(rows: int, columns: int, patches_per_side: int, device: torch.device) -> Tensor:
    """(rows * columns,) ids into a grid x grid table, row after row (NaViT, arXiv 2307.06304).

    Fractional coordinates fall into `patches_per_side` buckets. In float32 whatever the model's dtype: in bfloat16 a third of the
    rows land in the wrong bucket (transformers issue 41190). On the CPU whatever its device: all machines round alike.
    """
    boundaries = torch.arange(
        1 / patches_per_side, 1.0, 1 / patches_per_side, dtype=torch.float32, device="cpu"
    )

    def buckets(count: int) -> Tensor:
        # index * (1 / count), in this order: for four counts at grid 70, index * grid // count is another bucket.
        coordinates = torch.arange(count, dtype=torch.float32, device="cpu") * (1 / count)
        return torch.bucketize(coordinates.clamp(max=1.0 - 1e-6), boundaries, right=True)

    return (buckets(rows)[:, None] * patches_per_side + buckets(columns)[None]).flatten().to(device)
