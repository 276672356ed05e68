"""The uncached reference implementation: one prompt at a time, recomputed as a whole for each token.

Tests compare the engine's tokens with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from idefics.engine.decode import concatenate_cross_kvs
from idefics.engine.encoder_cache import encode_frames, first_float_parameter
from idefics.engine.model_interface import VLM
from idefics.nn.attention import DenseAttn, causal_window_mask
from idefics.prompt import Prompt


class ReferenceModel:
    """Computes a model's hidden states for one prompt without a cache: every call starts at its first token.

    N prompt tokens, T tokens after the prompt, D width.
    """

    def __init__(self, model: VLM, prompt: Prompt) -> None:
        self.model, self.prompt = model, prompt
        self.device = first_float_parameter(model).device
        # (F*M, D') for each picture of F frames
        self.features = [
            torch.cat(encode_frames(model, image.frames, max_batch_frames=1)) for image in prompt.pictures
        ]

    def hidden_states(self, continuation: tuple[int, ...] = ()) -> Tensor:
        """(N+T, D) hidden states of the prompt and of `continuation`, which attends to the prompt's last picture."""
        return self._run(continuation, DenseAttn)

    def attention(self, continuation: tuple[int, ...], keys: Sequence[int]) -> Tensor:
        """The self-attention to some tokens of the prompt by all that follow them: mean of all layers and heads.

        Args:
            continuation: ids after the prompt.
            keys: the positions of L prompt tokens, in their order.

        Returns:
            (N+T-1-keys[-1], L) float32: shares of 1, a row for each token after the last of `keys`.
        """
        per_layer: list[Tensor] = []
        self._run(continuation, partial(RecordedAttn, keys, per_layer))
        return torch.stack(per_layer).mean(dim=0)

    def _run(self, continuation: tuple[int, ...], make_attn: Callable[..., DenseAttn]) -> Tensor:
        """(N+T, D) hidden states, computed with the attention that `make_attn` makes."""
        x = self.model.embed(self._long_tensor(self.prompt.ids + continuation))
        image_index = self._long_tensor(
            self.prompt.image_index + self.prompt.image_index[-1:] * len(continuation)
        )
        cross_kvs = [self.model.compute_cross_kv(features[None]) or () for features in self.features]
        attn = make_attn(
            1,
            concatenate_cross_kvs(cross_kvs),
            image_index,
            sliding_window=self.model.layout.sliding_window,
            backend=self.model.attention_backend,
        )
        if not self.model.layout.num_cross_attention_layers:
            for positions, features in zip(self.prompt.image_token_positions, self.features, strict=True):
                x[self._long_tensor(positions)] = features.to(x.device)
        return self.model.forward(x, torch.arange(len(x), device=x.device), attn)

    def _long_tensor(self, numbers: tuple[int, ...]) -> Tensor:
        """The numbers as an int64 tensor on the model's device."""
        return torch.tensor(numbers, dtype=torch.long, device=self.device)


class RecordedAttn(DenseAttn):
    """`DenseAttn` of one sequence that collects how much tokens attend to some earlier ones, layer by layer.

    Args:
        keys: the positions that are attended to; recorded is the attention of all tokens after the last one.
        per_layer: gets (tokens after the last key, keys) float32 for each layer.
        args, options: of `DenseAttn`.
    """

    def __init__(self, keys: Sequence[int], per_layer: list[Tensor], *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.keys, self.start, self.per_layer = list(keys), keys[-1] + 1, per_layer

    def self_attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As `DenseAttn.self_attention`."""
        queries = q[self.start :].transpose(0, 1).float()  # (H, n, K)
        keys = k.transpose(0, 1).float().repeat_interleave(q.shape[1] // k.shape[1], dim=0)  # (H, N, K)
        scores = queries @ keys.transpose(1, 2) * q.shape[-1] ** -0.5
        positions = torch.arange(len(k), device=q.device)
        mask = causal_window_mask(positions[self.start :], positions, self.sliding_window or len(k))
        weights = scores.masked_fill(~mask, -torch.inf).softmax(dim=-1).mean(dim=0)
        self.per_layer.append(weights[:, self.keys].cpu())
        return super().self_attention(layer, q, k, v)
