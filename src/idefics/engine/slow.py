"""The slow twin: one prompt, every picture by itself, everything read again for each token, nothing kept.

What the fast engine must equal, token for token.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from idefics.engine.contract import VLM
from idefics.engine.encode import encode_frames, first_weight
from idefics.nn.attention import DenseAttn, LayerMemory
from idefics.prompt import Prompt


class SlowTwin:
    """A prompt and its pictures, read anew with every call. N prompt tokens, T tokens after it, D width."""

    def __init__(self, model: VLM, prompt: Prompt) -> None:
        self.model, self.prompt = model, prompt
        self.device = first_weight(model).device
        # For each picture its (F*M, D') feature rows.
        self.features = [
            torch.cat(encode_frames(model, tiles.frames, at_once=1)) for tiles in prompt.pictures
        ]

    def hidden(self, after: tuple[int, ...] = ()) -> Tensor:
        """(N+T, D): hidden states of the prompt and of tokens `after` it, which see what its last sees."""
        x = self.model.embed(self._tensor(self.prompt.ids + after))
        sees = self._tensor(self.prompt.sees + self.prompt.sees[-1:] * len(after))
        if self.model.layout.cross_layers:
            memory = self._memory()
            attn = DenseAttn(1, memory, sees, window=self.model.layout.window, kernel=self.model.kernel)
        else:
            attn = DenseAttn(1, window=self.model.layout.window, kernel=self.model.kernel)
            for places, features in zip(self.prompt.places, self.features, strict=True):
                x[self._tensor(places)] = features.to(x.device)
        return self.model.forward(x, torch.arange(len(x), device=x.device), attn)

    def _memory(self) -> list[LayerMemory]:
        """(P, M, H, K) keys and values for each cross layer; nothing where there is no picture."""
        each = [self.model.memory(features[None]) or () for features in self.features]
        return [LayerMemory(*map(torch.cat, zip(*layer, strict=True))) for layer in zip(*each, strict=True)]

    def _tensor(self, numbers: tuple[int, ...]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.long, device=self.device)


@torch.inference_mode()
def slow_greedy(
    model: VLM,
    prompt: Prompt,
    max_new_tokens: int,
    *,
    stop_ids: Collection[int] = (),
    banned_ids: Collection[int] = (),
) -> list[int]:
    """The most likely continuation, one token at a time: the ids before a stop id or a limit."""
    twin = SlowTwin(model, prompt)
    ids: list[int] = []
    for _ in range(min(max_new_tokens, model.layout.max_positions - len(prompt))):
        logits = model.logits(twin.hidden(tuple(ids))[-1:])[0].float()  # (V,)
        logits[list(banned_ids)] = -torch.inf
        token = int(logits.argmax())
        if token in stop_ids:
            break
        ids.append(token)
    return ids
