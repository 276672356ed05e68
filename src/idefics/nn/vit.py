"""Vision transformers: the shared encoder, and the embeddings of CLIP and of SigLIP with NaViT positions.

P frames, S patches of a frame, D width. Frames of one call have one size and no padding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from idefics.config import VisionConfig
from idefics.nn.activation import ACTIVATIONS
from idefics.nn.kernels import Attending

CACHED = (
    1024  # patches that go through a layer together on a processor: 12 MiB between the two halves of its MLP
)


class VisionAttention(Attending):
    """Every patch attends to every patch of its frame."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.q_proj = nn.Linear(config.width, config.width)
        self.k_proj = nn.Linear(config.width, config.width)
        self.v_proj = nn.Linear(config.width, config.width)
        self.out_proj = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:  # (P, S, D) -> (P, S, D)
        q, k, v = (
            p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = self.kernel(q, k, v)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return out


class VisionMLP(nn.Module):
    """fc2(act(fc1(x)))."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.inner)
        self.fc2 = nn.Linear(config.inner, config.width)
        self.act = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class VisionLayer(nn.Module):
    """Pre-norm attention, then pre-norm MLP."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.self_attn = VisionAttention(config)
        self.layer_norm1 = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.mlp = VisionMLP(config)
        self.layer_norm2 = nn.LayerNorm(config.width, eps=config.norm_epsilon)

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
        self.layers = nn.ModuleList(VisionLayer(config) for _ in range(config.layers))

    def forward(self, x: Tensor) -> Tensor:  # (P, S, D) -> (P, S, D)
        x = (
            x.contiguous()
        )  # patches come from a convolution with D before S, and every layer would turn them round
        if x.device.type != "cpu":
            return self._through(x)
        at_once = max(1, CACHED // x.shape[1])
        return torch.cat([self._through(some) for some in x.split(at_once)])

    def _through(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class ClipEmbeddings(nn.Module):
    """CLIP (arXiv 2103.00020): patches without bias, a class vector in front, one learned position each.

    Positions of frames that are not of the trained size are interpolated.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.grid = config.grid
        self.class_embedding = nn.Parameter(torch.randn(config.width))
        self.patch_embedding = nn.Conv2d(3, config.width, config.patch, config.patch, bias=False)
        self.position_embedding = nn.Embedding(config.grid**2 + 1, config.width)

    def forward(self, frames: Tensor) -> Tensor:  # (P, 3, h, w) -> (P, 1 + S, D)
        patches = self.patch_embedding(frames)
        # Looked up though all are wanted: a module's weights may lie elsewhere until it is called.
        positions = self.position_embedding(torch.arange(self.grid**2 + 1, device=patches.device))
        if patches.shape[2:] != (self.grid, self.grid):
            positions = torch.cat((positions[:1], stretched(positions[1:], self.grid, *patches.shape[2:])))
        classes = self.class_embedding.expand(len(frames), 1, -1)
        out: Tensor = torch.cat((classes, patches.flatten(2).transpose(1, 2)), dim=1) + positions
        return out


def stretched(positions: Tensor, grid: int, rows: int, columns: int) -> Tensor:
    """(grid * grid, D) learned positions -> (rows * columns, D), bicubic, as DINO does it (arXiv 2104.14294).

    Its scale has a tenth of a patch added, so that rounding never loses a row; the values depend on it.
    """
    table = positions.float().unflatten(0, (grid, grid)).permute(2, 0, 1)[None]  # (1, D, grid, grid)
    scale = ((rows + 0.1) / grid, (columns + 0.1) / grid)
    table = interpolate(table, scale_factor=scale, mode="bicubic", align_corners=False)
    return table[0].permute(1, 2, 0).flatten(0, 1).to(positions.dtype)


class SiglipEmbeddings(nn.Module):
    """SigLIP (arXiv 2303.15343): patches with bias; positions of any grid are looked up in the square trained one."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.grid = config.grid
        self.patch_embedding = nn.Conv2d(3, config.width, config.patch, config.patch)
        self.position_embedding = nn.Embedding(config.grid**2, config.width)

    def forward(self, frames: Tensor) -> Tensor:  # (P, 3, h, w) -> (P, S, D)
        patches = self.patch_embedding(frames)  # floors: pixels beyond the last patch are not seen
        rows, columns = patches.shape[2:]
        ids = position_ids(rows, columns, self.grid, frames.device)
        out: Tensor = patches.flatten(2).transpose(1, 2) + self.position_embedding(ids)
        return out


def position_ids(rows: int, columns: int, grid: int, device: torch.device) -> Tensor:
    """(rows * columns,) ids into a grid x grid table, row after row (NaViT, arXiv 2307.06304).

    Fractional coordinates fall into `grid` buckets. In float32 whatever the model's dtype: in bfloat16 a third of the
    rows land in the wrong bucket (transformers issue 41190). On the CPU whatever its device: all machines round alike.
    """
    boundaries = torch.arange(1 / grid, 1.0, 1 / grid, dtype=torch.float32, device="cpu")

    def buckets(count: int) -> Tensor:
        # index * (1 / count), in this order: for four counts at grid 70, index * grid // count is another bucket.
        places = torch.arange(count, dtype=torch.float32, device="cpu") * (1 / count)
        return torch.bucketize(places.clamp(max=1.0 - 1e-6), boundaries, right=True)

    return (buckets(rows)[:, None] * grid + buckets(columns)[None]).flatten().to(device)
