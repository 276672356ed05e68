"""The uncached reference implementation: one prompt at a time, recomputed as a whole for each token.

Tests compare the engine's tokens with it.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from idefics.engine.decode import concatenate_cross_kvs
from idefics.engine.encoder_cache import encode_frames, first_float_parameter
from idefics.engine.model_interface import VLM
from idefics.nn.attention import DenseAttn
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
        x = self.model.embed(self._long_tensor(self.prompt.ids + continuation))
        image_index = self._long_tensor(
            self.prompt.image_index + self.prompt.image_index[-1:] * len(continuation)
        )
        cross_kvs = [self.model.compute_cross_kv(features[None]) or () for features in self.features]
        attn = DenseAttn(
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


@torch.inference_mode()
def reference_greedy(
    model: VLM,
    prompt: Prompt,
    max_new_tokens: int,
    *,
    stop_ids: Collection[int] = (),
    banned_ids: Collection[int] = (),
) -> list[int]:
    """Greedy decoding without a cache: the ids up to a stop id, `max_new_tokens` or the model's last position."""
    reference = ReferenceModel(model, prompt)
    ids: list[int] = []
    for _ in range(min(max_new_tokens, model.layout.max_positions - len(prompt))):
        logits = model.logits(reference.hidden_states(tuple(ids))[-1:])[0].float()  # (V,)
        logits[list(banned_ids)] = -torch.inf
        token = int(logits.argmax())
        if token in stop_ids:
            break
        ids.append(token)
    return ids
