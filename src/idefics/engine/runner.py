"""The two passes of generation: a prompt is read once, then one token a row.

Knows the model and the cache; does not choose tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from idefics.engine.attention import DecodeAttn, PrefillAttn
from idefics.engine.cache import Cache
from idefics.engine.contract import VLM
from idefics.engine.encode import Pictures, first_weight
from idefics.nn.attention import Memory
from idefics.prompt import Prompt

NOTHING: Memory = ()  # what a token sees that sees no picture


def prefill(model: VLM, prompts: Sequence[Prompt], pictures: Pictures) -> tuple[Cache, Tensor]:
    """Reads prompts from their beginning, packed, in one pass.

    Returns:
        the cache with a row for each prompt, and (R, D): the hidden state of each prompt's last token.
    """
    device = first_weight(model).device  # of what is looked up; x and h lie where their layers do
    lengths = [len(prompt) for prompt in prompts]
    ends = list(accumulate(lengths))
    x = model.embed(torch.tensor([id for prompt in prompts for id in prompt.ids], device=device))  # (N, D)
    for prompt, end in zip(prompts, ends, strict=True):
        _place(x[end - len(prompt) : end], prompt, pictures)
    positions = torch.cat([torch.arange(length) for length in lengths]).to(x.device)
    looks = [_looks(prompt, pictures) for prompt in prompts]
    cache = Cache(model.layout, lengths, [look[-1] for look in looks], like=x)
    attn = PrefillAttn(cache, [memory for look in looks for memory in look], model.kernel)
    h = model.forward(x, positions, attn)
    return cache, h[torch.tensor(ends, device=h.device) - 1]


def decode(model: VLM, cache: Cache, ids: Tensor) -> Tensor:
    """Reads one more token in each row: (R,) -> (R, D)."""
    positions = cache.advance()
    return model.forward(model.embed(ids), positions, DecodeAttn(cache, positions, model.kernel))


def _place(x: Tensor, prompt: Prompt, pictures: Pictures) -> None:
    """Writes pictures that stand in the text over their places in a prompt's (N, D) embeddings."""
    for tiles, places in zip(prompt.pictures, prompt.places, strict=True):
        if tiles.key in pictures.features:
            x[torch.tensor(places, device=x.device)] = pictures.features[tiles.key].to(x.device)


def _looks(prompt: Prompt, pictures: Pictures) -> list[Memory]:
    """For each token the memory of the picture that it sees."""
    seen = [pictures.memory.get(tiles.key, NOTHING) for tiles in prompt.pictures]
    return [seen[index] if index >= 0 else NOTHING for index in prompt.sees]
