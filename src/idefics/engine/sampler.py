"""Choosing the next token of every row at once, each row by its own settings.

Order, as in transformers: banned ids, repetition penalty, temperature, top-k, top-p, min-p. What is added to logits
(presence and frequency penalties, biases, as OpenAI's API defines them) comes after the repetition penalty, and then
what guides leave out.
R rows, S of them that sample, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from idefics.config import Sampling
from idefics.engine.request import Request
from idefics.engine.token_masks import forbidden_ids

LIKELY = 4096  # tokens among which the nucleus of nearly every row ends


class Chosen(NamedTuple):
    """The next token of each row: ids (R,), and what the model thought, in float32, if any row asked for it.

    Log-probabilities are of the model's own distribution, banned ids left out, before penalties, biases, temperature
    and the rest: they say what the model thought, not how it was sampled.

    Attributes:
        logprobs: (R,) of the ids.
        top_ids, top_logprobs: (R, T) the most likely ids and theirs, as many as the most demanding row asked for.
    """

    ids: Tensor
    logprobs: Tensor | None = None
    top_ids: Tensor | None = None
    top_logprobs: Tensor | None = None


class Sampler:
    """The settings of R rows as tensors, made anew when the rows change.

    A row draws from a generator of its own: a seeded answer does not depend on its neighbours.

    Args:
        ids: each row's so far, prompt and answer.
        generators: what each row draws from, which it keeps while it lives (see `generator`); None for greedy ones.
        vocabulary: V, the number of logits.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        ids: Sequence[Sequence[int]],
        generators: Sequence[torch.Generator | None],
        vocabulary: int,
        device: torch.device,
    ) -> None:
        self.requests, self.generators = requests, generators
        self.vocabulary, self.device = vocabulary, device
        self.present: Tensor | None = None  # (R, V) ids of prompt and answer, where a penalty needs them
        if any(request.sampling.repetition_penalty != 1 for request in requests):
            self.present = self._masks(ids)
        self.counts: Tensor | None = None  # (R, V) how often an answer has an id, where a penalty needs it
        if any(_counts(request.sampling) for request in requests):
            self.counts = self._counted(ids)
        self._settle()

    def choose(self, logits: Tensor) -> Chosen:
        """(R, V) in any dtype -> the next token of each row. A greedy row costs an argmax and no softmax."""
        forbidden = self._forbidden() if self.guides else None  # first: only this may fail
        model_logits = logits = self._own(logits)
        if self.present is not None:
            logits = penalise(logits, self.present, self.penalty)
        if self.counts is not None:
            logits = logits - self.presence * (self.counts > 0) - self.frequency * self.counts
        if self.biases is not None:
            logits = logits + self.biases
        if forbidden is not None:
            rows = self.guided
            logits = logits.index_copy(0, rows, logits[rows].masked_fill(forbidden, -torch.inf))
        ids = most_likely(logits)
        if self.drawing:
            ids[self.drawn] = self._draw(self.warp(logits[self.drawn]))
        if self.present is not None:
            self.present.scatter_(1, ids[:, None], True)
        if self.counts is not None:
            self.counts.scatter_add_(1, ids[:, None], torch.ones_like(self.counts[:, :1]))
        return Chosen(ids, *self._thoughts(model_logits, ids))

    def logprob(self, logits: Tensor, row: int, id: int) -> float:
        """What the model thought, (R, V) of an id that a row takes although another was chosen."""
        return float(self._own(logits)[row].log_softmax(-1)[id])

    def _own(self, logits: Tensor) -> Tensor:
        """The model's distribution, banned ids left out."""
        logits = logits.float()
        return logits if self.banned is None else logits.masked_fill(self.banned, -torch.inf)

    def _forbidden(self) -> Tensor:
        """(G, V) what may not follow in the rows that have a guide."""
        return forbidden_ids([guide.allowed() for guide in self.guides], self.vocabulary, self.device)

    def _thoughts(self, logits: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        """Log-probabilities of ids, of the most likely ones, or of none."""
        if not self.wants_logprobs:
            return ()
        thoughts = logits.log_softmax(-1)
        chosen = thoughts.gather(1, ids[:, None])[:, 0]
        if not self.most_top:
            return (chosen,)
        top = thoughts.topk(min(self.most_top, self.vocabulary))
        return chosen, top.indices, top.values

    def warp(self, logits: Tensor) -> Tensor:
        """Temperature, top-k, top-p and min-p of the rows that sample: (S, V) -> (S, V), -inf where dropped."""
        for warp in self.warpers:
            logits = warp(logits)
        return logits

    def _draw(self, logits: Tensor) -> Tensor:
        """One sample of each row's softmax, (S, V) -> (S,): the first token where the cumulated sum is above a point.

        One number a row is drawn, not one a token. A token at minus infinity can never win: it adds nothing to the sum,
        and the point is below the sum of all.
        """
        cumulated = logits.softmax(-1).double().cumsum(-1)
        points = cumulated.new_empty(len(logits), 1)
        for point, generator in zip(points, self.drawing, strict=True):
            point.uniform_(generator=generator)
        total = cumulated[:, -1:]
        points = torch.minimum(points * total, total.nextafter(torch.zeros_like(total)))
        found = torch.searchsorted(cumulated, points, right=True)[:, 0]
        return found.clamp(
            max=self.vocabulary - 1
        )  # a broken model's logits are no numbers, and nothing is above one

    def _settle(self) -> None:
        """Turns the rows' settings into tensors and picks the steps that some row needs."""
        settings = [request.sampling for request in self.requests]
        self.banned: Tensor | None = None  # (R, V)
        if any(request.banned_ids for request in self.requests):
            self.banned = self._masks(request.banned_ids for request in self.requests)
        self.wants_logprobs = any(setting.logprobs for setting in settings)
        self.most_top = max((setting.top_logprobs for setting in settings), default=0)
        self.penalty = self._column(setting.repetition_penalty for setting in settings)
        self.presence = self._column(setting.presence_penalty for setting in settings)
        self.frequency = self._column(setting.frequency_penalty for setting in settings)
        self.biases: Tensor | None = None  # (R, V)
        if any(setting.logit_bias for setting in settings):
            biases = torch.zeros(len(settings), self.vocabulary)
            for row, setting in zip(biases, settings, strict=True):
                for id, bias in setting.logit_bias.items():
                    row[id] = bias
            self.biases = biases.to(self.device)

        self.guides = [request.guide for request in self.requests if request.guide is not None]
        rows = [row for row, request in enumerate(self.requests) if request.guide is not None]
        self.guided = torch.tensor(rows, device=self.device, dtype=torch.long)  # (G,) the rows that have one

        rows = [row for row, setting in enumerate(settings) if setting.temperature > 0]
        self.drawn = torch.tensor(rows, device=self.device, dtype=torch.long)  # (S,) the rows that sample
        self.drawing = [self.generators[row] for row in rows]
        self.warpers = self._warpers([settings[row] for row in rows])

    def _warpers(self, settings: Sequence[Sampling]) -> list[Callable[[Tensor], Tensor]]:
        warpers: list[Callable[[Tensor], Tensor]] = []
        if any(setting.temperature != 1 for setting in settings):
            temperature = self._column(setting.temperature for setting in settings)
            warpers.append(lambda logits: logits / temperature)
        if most := max((setting.top_k for setting in settings), default=0):
            counts = self._column(setting.top_k for setting in settings).long()
            warpers.append(partial(keep_top_k, counts=counts, most=most))
        if any(setting.top_p < 1 for setting in settings):
            warpers.append(partial(keep_top_p, rest=self._column(1 - setting.top_p for setting in settings)))
        if any(setting.min_p > 0 for setting in settings):
            warpers.append(partial(keep_min_p, p=self._column(setting.min_p for setting in settings)))
        return warpers

    def _column(self, values: Iterable[float]) -> Tensor:  # (R, 1)
        return torch.tensor(list(values), dtype=torch.float32, device=self.device)[:, None]

    def _counted(self, ids: Sequence[Sequence[int]]) -> Tensor:  # (R, V)
        counts = torch.zeros(len(ids), self.vocabulary)
        for row, said, request in zip(counts, ids, self.requests, strict=True):
            answer = torch.tensor(said[len(request.prompt) :], dtype=torch.long)
            row.scatter_add_(0, answer, torch.ones(len(answer)))
        return counts.to(self.device)

    def _masks(self, rows: Iterable[Collection[int]]) -> Tensor:  # (R, V)
        return torch.stack([ids_mask(ids, self.vocabulary, self.device) for ids in rows])


def _counts(setting: Sampling) -> bool:
    return setting.presence_penalty != 0 or setting.frequency_penalty != 0


def most_likely(logits: Tensor) -> Tensor:
    """(R, V) -> (R,) the first of each row's largest. NumPy finds it in a tenth of the time of torch on a CPU."""
    if logits.device.type == "cpu":
        return torch.from_numpy(logits.numpy().argmax(-1))
    return logits.argmax(-1)


def ids_mask(ids: Collection[int], vocabulary: int, device: torch.device) -> Tensor:
    """(V,) whether an id is among `ids`."""
    mask = torch.zeros(vocabulary, dtype=torch.bool, device=device)
    mask[torch.tensor(list(ids), dtype=torch.long, device=device)] = True
    return mask


def penalise(scores: Tensor, present: Tensor, penalty: Tensor | float) -> Tensor:
    """Makes ids that are `present` (R, V) less likely: (R, V) -> (R, V); penalty (R, 1) or one number.

    Positive scores are divided by the penalty and negative ones multiplied (CTRL, arXiv 1909.05858).
    """
    return torch.where(present, torch.where(scores < 0, scores * penalty, scores / penalty), scores)


def keep_top_k(logits: Tensor, counts: Tensor, most: int) -> Tensor:
    """Keeps each row's `counts` (S, 1) largest logits and those that tie with the last; 0 keeps all.

    `most` is the largest of the counts, known to the host.
    """
    largest = logits.topk(min(most, logits.shape[1])).values
    least = largest.gather(1, (counts - 1).clamp(0, largest.shape[1] - 1))
    return logits.masked_fill(logits < least.masked_fill(counts == 0, -torch.inf), -torch.inf)


def keep_top_p(logits: Tensor, rest: Tensor | float, at_least: int = 1) -> Tensor:
    """Keeps each row's smallest set of most likely tokens whose probability reaches p, or `at_least` tokens.

    Nucleus sampling, arXiv 1904.09751. `rest` is 1 - p, (S, 1) or one number.
    """
    ascending, order, probability = _likely(logits, rest)
    drop = probability <= rest
    drop[:, -at_least:] = False
    kept = ascending.masked_fill(drop, -torch.inf)
    return torch.full_like(logits, -torch.inf).scatter(1, order, kept)


def _likely(logits: Tensor, rest: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
    """Each row's largest logits ascending, their ids, and the probability of each with all that are below it.

    Those that are not among them are less likely than `rest` together. A sort of 49,000 tokens takes a CPU as long as
    a small model's whole step, and `topk` nothing. On a GPU the sort is quick, and the host must not wait for `others`.
    """
    if logits.device.type == "cpu" and logits.shape[1] > LIKELY:
        largest, ids = (x.flip(-1) for x in logits.topk(LIKELY))
        probabilities = (largest - logits.logsumexp(-1, keepdim=True)).exp()
        others = 1 - probabilities.sum(-1, keepdim=True)
        if (others <= rest).all():
            return largest, ids, others + probabilities.cumsum(-1)
    ascending, order = logits.sort()
    return ascending, order, ascending.softmax(-1).cumsum(-1)


def keep_min_p(logits: Tensor, p: Tensor | float, at_least: int = 1) -> Tensor:
    """Drops each row's tokens less likely than p times its most likely one, but keeps the best `at_least`.

    arXiv 2407.01082. `p` is (S, 1) or one number.
    """
    probabilities = logits.softmax(-1)
    drop = probabilities < p * probabilities.amax(-1, keepdim=True)
    drop.scatter_(1, probabilities.topk(min(at_least, logits.shape[1])).indices, False)
    return logits.masked_fill(drop, -torch.inf)


def keep_typical(logits: Tensor, p: float, at_least: int = 1) -> Tensor:
    """Keeps each row's tokens of most typical information until their probability reaches p.

    Locally typical sampling, arXiv 2202.00666: first come those whose information is nearest to the entropy.
    Whatever p is, the `at_least` most typical are kept.
    """
    logarithms = logits.log_softmax(-1)
    entropy = -(logarithms.exp() * logarithms).nansum(-1, keepdim=True)
    strangeness, order = (-logarithms - entropy).abs().sort()
    reached = logits.gather(1, order).softmax(-1).cumsum(-1)
    last = (reached < p).sum(-1, keepdim=True).clamp(max=logits.shape[1] - 1)
    drop = strangeness > strangeness.gather(1, last)
    drop[:, :at_least] = False
    return logits.masked_fill(drop.scatter(1, order, drop), -torch.inf)


def generator(seed: int | None, device: torch.device) -> torch.Generator:
    """What a row draws from: repeatable with a seed."""
    made = torch.Generator(device)
    if seed is None:
        made.seed()
    else:
        made.manual_seed(seed)
    return made
