"""Greedy decoding by the uncached reference implementation, with which fast decoding is compared."""

from __future__ import annotations

from collections.abc import Collection

import torch

from idefics.engine.model_interface import VLM
from idefics.engine.reference import ReferenceModel
from idefics.prompt import Prompt


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
