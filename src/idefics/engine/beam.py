"""Beam search for one prompt, which is read once; beams are rows of the cache that trade places.

The search is that of transformers 5 (`generate(num_beams=n)` with its defaults early_stopping=False and
length_penalty=1), token for token. Its rules, n beams and s stop ids:

- Every step looks at the best max(2, 1 + s) * n continuations of all beams. Their score is the sum of their
  log-probabilities; a repetition penalty acts on log-probabilities, and banned ids lose theirs afterwards.
- Those among the best n that end (with a stop id, or at the length limit) compete for n places by their mean
  log-probability, the stop id counted; those beyond the best n that end are lost.
- The best n that do not end go on.
- The search is over at the length limit, or when n have ended and the mean of the best that goes on is no
  better than the worst of them.
"""

from __future__ import annotations

from itertools import compress
from typing import NamedTuple

import torch
from torch import Tensor

from idefics.engine.contract import VLM
from idefics.engine.encode import Pictures
from idefics.engine.request import Request, Sequence
from idefics.engine.runner import decode, prefill
from idefics.engine.sampler import ids_mask, log_probabilities, penalise


class Beam(NamedTuple):
    """A hypothesis: ids, the sum of their scores, their log-probabilities if asked for, the parent's row."""

    ids: tuple[int, ...] = ()
    score: float = 0.0
    logprobs: tuple[float, ...] = ()
    parent: int = 0

    @property
    def mean(self) -> float:
        """The score by which ended beams compete."""
        return self.score / len(self.ids)


def beam_search(model: VLM, sequence: Sequence, room: int, pictures: Pictures) -> None:
    """Answers `sequence` with the best of its `num_beams` beams, of `room` tokens at most.

    Its `logprobs` are, as in sampling, of the model's own distribution with banned ids left out.
    """
    request = sequence.request
    width = request.sampling.num_beams
    cache, h = prefill(model, [request.prompt], pictures)
    logits = model.logits(h)
    search = Search(request, model.layout.vocabulary, logits.device)
    ended: list[Beam] = []
    for length in range(1, room + 1):
        beams = search.extend(logits)
        ends = [length == room or beam.ids[-1] in request.stop_ids for beam in beams]
        ended += compress(beams[:width], ends)
        ended = sorted(ended, key=lambda beam: beam.mean, reverse=True)[:width]
        going = [beam for beam, it_ends in zip(beams, ends, strict=True) if not it_ends][:width]
        if not going or (len(ended) == width and going[0].mean <= ended[-1].mean):
            break
        cache.select([beam.parent for beam in going])
        logits = model.logits(decode(model, cache, search.follow(going)))
    _answer(sequence, ended[0])


def _answer(sequence: Sequence, best: Beam) -> None:
    stopped = best.ids[-1] in sequence.request.stop_ids
    kept = slice(len(best.ids) - stopped)
    sequence.ids, sequence.logprobs = list(best.ids[kept]), list(best.logprobs[kept])
    sequence.finish("stop" if stopped else "length")


class Search:
    """The beams that go on, B of them, one a cache row. V vocabulary."""

    def __init__(self, request: Request, vocabulary: int, device: torch.device) -> None:
        self.sampling, self.device = request.sampling, device
        self.beams = [Beam()]
        self.present = ids_mask(request.prompt.ids, vocabulary, device)[None]  # (B, V)
        self.banned = ids_mask(request.banned_ids, vocabulary, device)  # (V,)
        self.breadth = max(2, 1 + len(request.stop_ids)) * request.sampling.num_beams

    def extend(self, logits: Tensor) -> list[Beam]:
        """(B, V) -> the best continuations of all beams, the best first."""
        logits = logits.float()
        scores = penalise(logits.log_softmax(-1), self.present, self.sampling.repetition_penalty)
        scores = scores.masked_fill(self.banned, -torch.inf)
        scores += torch.tensor([beam.score for beam in self.beams], device=self.device)[:, None]
        top = scores.flatten().topk(min(self.breadth, scores.numel()))
        parents, ids = top.indices // scores.shape[1], top.indices % scores.shape[1]
        thoughts: list[tuple[float, ...]] = [()] * len(ids)
        if self.sampling.logprobs:
            model_logits = logits.masked_fill(self.banned, -torch.inf)
            thoughts = [(thought,) for thought in log_probabilities(model_logits[parents], ids).tolist()]
        return [
            Beam((*self.beams[parent].ids, id), score, self.beams[parent].logprobs + thought, parent)
            for id, score, thought, parent in zip(
                ids.tolist(), top.values.tolist(), thoughts, parents.tolist(), strict=True
            )
            if score > -torch.inf  # fewer continuations than asked for: the rest are banned
        ]

    def follow(self, beams: list[Beam]) -> Tensor:
        """These go on: -> (B,) their last ids."""
        self.beams = beams
        ids = torch.tensor([beam.ids[-1] for beam in beams], device=self.device)
        parents = torch.tensor([beam.parent for beam in beams], device=self.device)
        self.present = self.present[parents].scatter_(1, ids[:, None], True)
        return ids
