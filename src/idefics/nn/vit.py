"""Vision transformers: the encoder, and the patch embeddings of CLIP and of SigLIP with NaViT positions.

P frames, S patches of a frame, D width. The frames of one call have the same size and no padding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, linear

from idefics.config import VisionConfig
from idefics.nn.activation import ACTIVATIONS
from idefics.nn.attention_backends import HasAttentionBackend
from idefics.nn.native_kernels import can_use_native_inputs
from idefics.nn.native_layers import find_native_layers, native_vision_encode

CPU_CHUNK_PATCHES = 1024  # patches of one batch on a CPU: 12 MiB of hidden units in an MLP


class VisionAttention(HasAttentionBackend):
    """Attention of every patch to every patch of its frame."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Attends from every patch to all patches of its frame: (P, S, D) -> (P, S, D)."""
        q, k, v = (
            p(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = self.attention_backend(q, k, v)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return out


class VisionMLP(nn.Module):
    """Two linear layers with an activation between them: fc2(act(fc1(x)))."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.act = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        """Applies the MLP to each patch: (P, S, D) -> (P, S, D)."""
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class VisionLayer(nn.Module):
    """Pre-norm attention, then pre-norm MLP, each added to the residual stream."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.self_attn = VisionAttention(config)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.norm_epsilon)
        self.mlp = VisionMLP(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.norm_epsilon)

    def forward(self, x: Tensor) -> Tensor:
        """Runs the layer on the patches of P frames: (P, S, D) -> (P, S, D)."""
        x = x + self.self_attn(self.layer_norm1(x))
        out: Tensor = x + self.mlp(self.layer_norm2(x))
        return out


class VisionEncoder(nn.Module):
    """The layers of a vision transformer.

    On a CPU a few frames pass through all layers before the next ones, so that activations stay in its cache. Where
    they can be used, C kernels compute all layers at once.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(VisionLayer(config) for _ in range(config.num_layers))

    def forward(self, x: Tensor) -> Tensor:
        """Runs all layers on the embedded patches of P frames: (P, S, D) -> (P, S, D)."""
        if x.device.type != "cpu":
            return self._forward_layers(x)
        if can_use_native_inputs(x) and (native_layers := find_native_layers(self.config, self.layers)):
            return native_vision_encode(self.config, native_layers, x)
        frames_per_chunk = max(1, CPU_CHUNK_PATCHES // x.shape[1])
        return torch.cat([self._forward_layers(chunk) for chunk in x.split(frames_per_chunk)])

    def _forward_layers(self, x: Tensor) -> Tensor:
        """Runs some frames through all layers, one layer after another: (P, S, D) -> (P, S, D)."""
        for layer in self.layers:
            x = layer(x)
        return x


class PatchEmbedding(nn.Conv2d):
    """A convolution whose kernels do not overlap (the stride is their size, without padding): a map of each patch.

    Computed as a linear layer, whose results lie patch by patch in memory. Otherwise it is the convolution of its
    arguments: peft makes the factors of a patch embedding's adapter as layers of the same class.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Embeds the whole patches of P frames: (P, 3, h, w) pixels -> (P, D, rows, columns)."""
        height, width = self.kernel_size
        rows, columns = input.shape[2] // height, input.shape[3] // width
        whole = input[:, :, : rows * height, : columns * width].to(self.weight.dtype)
        patches = whole.unflatten(3, (columns, width)).unflatten(2, (rows, height)).permute(0, 2, 4, 1, 3, 5)
        return linear(patches.flatten(3), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class ClipEmbeddings(nn.Module):
    """Embeddings of CLIP (arXiv 2103.00020): patches without bias, a class embedding first, learned positions.

    Positions are interpolated for frames of another size than the trained one.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.patches_per_side = config.patches_per_side
        self.class_embedding = nn.Parameter(torch.randn(config.hidden_size))
        self.patch_embedding = PatchEmbedding(
            3, config.hidden_size, config.patch_size, config.patch_size, bias=False
        )
        self.position_embedding = nn.Embedding(config.patches_per_side**2 + 1, config.hidden_size)

    def forward(self, frames: Tensor) -> Tensor:
        """Embeds the patches of P frames, the class embedding first: (P, 3, h, w) pixels -> (P, 1 + S, D)."""
        patches: Tensor = self.patch_embedding(frames)  # (P, D, rows, columns)
        # A lookup of all rows: an offloaded weight is only on the device while its module is called.
        positions = self.position_embedding(torch.arange(self.patches_per_side**2 + 1, device=patches.device))
        rows, columns = patches.shape[2:]
        if (rows, columns) != (self.patches_per_side, self.patches_per_side):
            resized = interpolate_positions(positions[1:], self.patches_per_side, rows, columns)
            positions = torch.cat((positions[:1], resized))
        classes = self.class_embedding.expand(len(frames), 1, -1)
        out: Tensor = torch.cat((classes, patches.flatten(2).transpose(1, 2)), dim=1) + positions
        return out


def interpolate_positions(positions: Tensor, patches_per_side: int, rows: int, columns: int) -> Tensor:
    """Learned positions of a square of patches, resized to a grid: (patches_per_side^2, D) -> (rows * columns, D).

    Bicubic, as in DINO (arXiv 2104.14294). Like there, 0.1 is added to the size, so that rounding never loses a row;
    the values depend on it.
    """
    table = (
        positions.float().unflatten(0, (patches_per_side, patches_per_side)).permute(2, 0, 1)[None]
    )  # (1, D, grid, grid)
    scale = ((rows + 0.1) / patches_per_side, (columns + 0.1) / patches_per_side)
    table = interpolate(table, scale_factor=scale, mode="bicubic", align_corners=False)
    return table[0].permute(1, 2, 0).flatten(0, 1).to(positions.dtype)


class SiglipEmbeddings(nn.Module):
    """Embeddings of SigLIP (arXiv 2303.15343): patches with bias, positions looked up in a square grid (NaViT)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.patches_per_side = config.patches_per_side
        self.patch_embedding = PatchEmbedding(3, config.hidden_size, config.patch_size, config.patch_size)
        self.position_embedding = nn.Embedding(config.patches_per_side**2, config.hidden_size)

    def forward(self, frames: Tensor) -> Tensor:
        """Embeds the patches of P frames: (P, 3, h, w) pixels -> (P, S, D).

        Pixels beyond the last whole patch are ignored.
        """
        patches: Tensor = self.patch_embedding(frames)  # (P, D, rows, columns)
        rows, columns = patches.shape[2:]
        ids = position_ids(rows, columns, self.patches_per_side, frames.device)
        out: Tensor = patches.flatten(2).transpose(1, 2) + self.position_embedding(ids)
        return out


def position_ids(rows: int, columns: int, patches_per_side: int, device: torch.device) -> Tensor:
    """The ids of the positions of a grid of patches in SigLIP's square position table: (rows * columns,), row by row.

    Fractional coordinates fall into `patches_per_side` buckets (NaViT, arXiv 2307.06304). Computed in float32, since in
    bfloat16 a third of the rows would get the wrong bucket (transformers issue 41190), and on the CPU, so that all
    devices round alike.
    """
    boundaries = torch.arange(
        1 / patches_per_side, 1.0, 1 / patches_per_side, dtype=torch.float32, device="cpu"
    )

    def buckets(count: int) -> Tensor:
        # index * (1 / count), in this order: index * grid // count gives other buckets for four counts at grid 70.
        coordinates = torch.arange(count, dtype=torch.float32, device="cpu") * (1 / count)
        return torch.bucketize(coordinates.clamp(max=1.0 - 1e-6), boundaries, right=True)

    return (buckets(rows)[:, None] * patches_per_side + buckets(columns)[None]).flatten().to(device)
