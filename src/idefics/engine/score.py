"""How likely each of many endings is after one prompt: the prompt is read once, the endings side by side.

Knows ids; does not know labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from idefics.engine.attention import EndingsAttn
from idefics.engine.cache import Cache
from idefics.engine.contract import VLM
from idefics.engine.encode import Pictures
from idefics.engine.runner import prefill
from idefics.engine.sampler import log_probabilities
from idefics.prompt import Prompt

PASS_TOKENS = 2048  # tokens of endings read at once: hundreds of labels
LOGIT_ROWS = 256  # rows of float32 logits at once: 128 MiB for a vocabulary of 128 Ki

Ending = Sequence[int]


def score_endings(
    model: VLM,
    prompt: Prompt,
    endings: Sequence[Ending],
    pictures: Pictures,
    *,
    pass_tokens: int = PASS_TOKENS,
    logit_rows: int = LOGIT_ROWS,
) -> list[list[float]]:
    """The log-probability of each token of each ending.

    The prompt's last token predicts every ending's first, so an ending's own last token need not be read.
    Endings see the picture that the prompt's last token sees.
    """
    cache, last = prefill(model, [prompt], pictures)
    after_prompt = model.logits(last)[0].float().log_softmax(-1)  # (V,)
    firsts = iter(after_prompt[[ending[0] for ending in endings if ending]].tolist())
    longer = [ending for ending in endings if len(ending) > 1]
    passes = [_read(model, cache, some, logit_rows) for some in _passes(longer, pass_tokens)]
    laters = iter(torch.cat(passes).tolist() if passes else [])
    return [[next(firsts), *islice(laters, len(ending) - 1)] if ending else [] for ending in endings]


def _passes(endings: Sequence[Ending], most: int) -> Iterator[list[Ending]]:
    """Endings in groups whose tokens to be read are `most` or fewer; a longer one alone."""
    some: list[Ending] = []
    tokens = 0
    for ending in endings:
        if some and tokens + len(ending) - 1 > most:
            yield some
            some, tokens = [], 0
        some.append(ending)
        tokens += len(ending) - 1
    if some:
        yield some


def _read(model: VLM, cache: Cache, endings: Sequence[Ending], logit_rows: int) -> Tensor:
    """One packed pass after the prompt: (N,) log-probabilities of all tokens of endings but their first."""
    lengths = [len(ending) - 1 for ending in endings]
    ids = torch.tensor([id for ending in endings for id in ending[:-1]], device=cache.device)
    targets = torch.tensor([id for ending in endings for id in ending[1:]], device=cache.device)
    positions = cache.lengths[0] + torch.cat([torch.arange(length) for length in lengths]).to(cache.device)
    h = model.forward(model.embed(ids), positions, EndingsAttn(cache, lengths, model.kernel))  # (N, D)
    logprobs = []
    for rows, wanted in zip(h.split(logit_rows), targets.split(logit_rows), strict=True):
        logits = model.logits(rows).float()
        logprobs.append(log_probabilities(logits, wanted.to(logits.device)))
    return torch.cat(logprobs)
