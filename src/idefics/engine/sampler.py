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
from idefics.engine.token_masks import forbidden_token_mask

TOP_P_CANDIDATES = 4096  # tokens among which the nucleus of nearly every row ends


class SampledTokens(NamedTuple):
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
        vocab_size: V, the number of logits.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        ids: Sequence[Sequence[int]],
        generators: Sequence[torch.Generator | None],
        vocab_size: int,
        device: torch.device,
    ) -> None:
        self.requests, self.generators = requests, generators
        self.vocab_size, self.device = vocab_size, device
        self.present_mask: Tensor | None = None  # (R, V) ids of prompt and answer, where a penalty needs them
        if any(request.sampling.repetition_penalty != 1 for request in requests):
            self.present_mask = self._stack_token_masks(ids)
        self.output_counts: Tensor | None = (
            None  # (R, V) how often an answer has an id, where a penalty needs it
        )
        if any(_needs_output_counts(request.sampling) for request in requests):
            self.output_counts = self._count_output_tokens(ids)
        self._prepare_settings()

    def sample(self, logits: Tensor) -> SampledTokens:
        """(R, V) in any dtype -> the next token of each row. A greedy row costs an argmax and no softmax."""
        forbidden_mask = (
            self._compute_forbidden_mask() if self.constraints else None
        )  # first: only this may fail
        model_logits = logits = self._mask_banned_ids(logits)
        if self.present_mask is not None:
            logits = apply_repetition_penalty(logits, self.present_mask, self.repetition_penalty)
        if self.output_counts is not None:
            logits = (
                logits
                - self.presence_penalty * (self.output_counts > 0)
                - self.frequency_penalty * self.output_counts
            )
        if self.logit_bias is not None:
            logits = logits + self.logit_bias
        if forbidden_mask is not None:
            rows = self.constrained_rows
            logits = logits.index_copy(0, rows, logits[rows].masked_fill(forbidden_mask, -torch.inf))
        ids = argmax_ids(logits)
        if self.sampled_generators:
            ids[self.sampled_rows] = self._draw_tokens(self.warp_logits(logits[self.sampled_rows]))
        if self.present_mask is not None:
            self.present_mask.scatter_(1, ids[:, None], True)
        if self.output_counts is not None:
            self.output_counts.scatter_add_(1, ids[:, None], torch.ones_like(self.output_counts[:, :1]))
        return SampledTokens(ids, *self._gather_logprobs(model_logits, ids))

    def token_logprob(self, logits: Tensor, row: int, id: int) -> float:
        """What the model thought, (R, V) of an id that a row takes although another was chosen."""
        return float(self._mask_banned_ids(logits)[row].log_softmax(-1)[id])

    def _mask_banned_ids(self, logits: Tensor) -> Tensor:
        """The model's distribution, banned ids left out."""
        logits = logits.float()
        return logits if self.banned_mask is None else logits.masked_fill(self.banned_mask, -torch.inf)

    def _compute_forbidden_mask(self) -> Tensor:
        """(G, V) what may not follow in the rows that have a guide."""
        return forbidden_token_mask(
            [constraint.compute_token_bitmask() for constraint in self.constraints],
            self.vocab_size,
            self.device,
        )

    def _gather_logprobs(self, logits: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        """Log-probabilities of ids, of the most likely ones, or of none."""
        if not self.needs_logprobs:
            return ()
        logprobs = logits.log_softmax(-1)
        token_logprobs = logprobs.gather(1, ids[:, None])[:, 0]
        if not self.max_top_logprobs:
            return (token_logprobs,)
        top = logprobs.topk(min(self.max_top_logprobs, self.vocab_size))
        return token_logprobs, top.indices, top.values

    def warp_logits(self, logits: Tensor) -> Tensor:
        """Temperature, top-k, top-p and min-p of the rows that sample: (S, V) -> (S, V), -inf where dropped."""
        for warp in self.warpers:
            logits = warp(logits)
        return logits

    def _draw_tokens(self, logits: Tensor) -> Tensor:
        """One sample of each row's softmax, (S, V) -> (S,): the first token where the cumulated sum is above a point.

        One number a row is drawn, not one a token. A token at minus infinity can never win: it adds nothing to the sum,
        and the point is below the sum of all.
        """
        cumulated = logits.softmax(-1).double().cumsum(-1)
        points = cumulated.new_empty(len(logits), 1)
        for point, generator in zip(points, self.sampled_generators, strict=True):
            point.uniform_(generator=generator)
        total = cumulated[:, -1:]
        points = torch.minimum(points * total, total.nextafter(torch.zeros_like(total)))
        tokens = torch.searchsorted(cumulated, points, right=True)[:, 0]
        return tokens.clamp(
            max=self.vocab_size - 1
        )  # a broken model's logits are no numbers, and nothing is above one

    def _prepare_settings(self) -> None:
        """Turns the rows' settings into tensors and picks the steps that some row needs."""
        settings = [request.sampling for request in self.requests]
        self.banned_mask: Tensor | None = None  # (R, V)
        if any(request.banned_ids for request in self.requests):
            self.banned_mask = self._stack_token_masks(request.banned_ids for request in self.requests)
        self.needs_logprobs = any(setting.logprobs for setting in settings)
        self.max_top_logprobs = max((setting.top_logprobs for setting in settings), default=0)
        self.repetition_penalty = self._column(setting.repetition_penalty for setting in settings)
        self.presence_penalty = self._column(setting.presence_penalty for setting in settings)
        self.frequency_penalty = self._column(setting.frequency_penalty for setting in settings)
        self.logit_bias: Tensor | None = None  # (R, V)
        if any(setting.logit_bias for setting in settings):
            biases = torch.zeros(len(settings), self.vocab_size)
            for row, setting in zip(biases, settings, strict=True):
                for id, bias in setting.logit_bias.items():
                    row[id] = bias
            self.logit_bias = biases.to(self.device)

        self.constraints = [request.constraint for request in self.requests if request.constraint is not None]
        rows = [row for row, request in enumerate(self.requests) if request.constraint is not None]
        self.constrained_rows = torch.tensor(
            rows, device=self.device, dtype=torch.long
        )  # (G,) the rows that have one

        rows = [row for row, setting in enumerate(settings) if setting.temperature > 0]
        self.sampled_rows = torch.tensor(
            rows, device=self.device, dtype=torch.long
        )  # (S,) the rows that sample
        self.sampled_generators = [self.generators[row] for row in rows]
        self.warpers = self._build_warpers([settings[row] for row in rows])

    def _build_warpers(self, settings: Sequence[Sampling]) -> list[Callable[[Tensor], Tensor]]:
        warpers: list[Callable[[Tensor], Tensor]] = []
        if any(setting.temperature != 1 for setting in settings):
            temperature = self._column(setting.temperature for setting in settings)
            warpers.append(lambda logits: logits / temperature)
        if max_top_k := max((setting.top_k for setting in settings), default=0):
            top_k = self._column(setting.top_k for setting in settings).long()
            warpers.append(partial(keep_top_k, top_k=top_k, max_top_k=max_top_k))
        if any(setting.top_p < 1 for setting in settings):
            warpers.append(
                partial(keep_top_p, tail_probability=self._column(1 - setting.top_p for setting in settings))
            )
        if any(setting.min_p > 0 for setting in settings):
            warpers.append(partial(keep_min_p, min_p=self._column(setting.min_p for setting in settings)))
        return warpers

    def _column(self, values: Iterable[float]) -> Tensor:  # (R, 1)
        return torch.tensor(list(values), dtype=torch.float32, device=self.device)[:, None]

    def _count_output_tokens(self, ids: Sequence[Sequence[int]]) -> Tensor:  # (R, V)
        counts = torch.zeros(len(ids), self.vocab_size)
        for row, sequence_ids, request in zip(counts, ids, self.requests, strict=True):
            answer = torch.tensor(sequence_ids[len(request.prompt) :], dtype=torch.long)
            row.scatter_add_(0, answer, torch.ones(len(answer)))
        return counts.to(self.device)

    def _stack_token_masks(self, rows: Iterable[Collection[int]]) -> Tensor:  # (R, V)
        return torch.stack([token_mask(ids, self.vocab_size, self.device) for ids in rows])


def _needs_output_counts(setting: Sampling) -> bool:
    return setting.presence_penalty != 0 or setting.frequency_penalty != 0


def argmax_ids(logits: Tensor) -> Tensor:
    """(R, V) -> (R,) the first of each row's largest. NumPy finds it in a tenth of the time of torch on a CPU."""
    if logits.device.type == "cpu":
        return torch.from_numpy(logits.numpy().argmax(-1))
    return logits.argmax(-1)


def token_mask(ids: Collection[int], vocab_size: int, device: torch.device) -> Tensor:
    """(V,) whether an id is among `ids`."""
    mask = torch.zeros(vocab_size, dtype=torch.bool, device=device)
    mask[torch.tensor(list(ids), dtype=torch.long, device=device)] = True
    return mask


def apply_repetition_penalty(scores: Tensor, present_mask: Tensor, penalty: Tensor | float) -> Tensor:
    """Makes ids that are `present_mask` (R, V) less likely: (R, V) -> (R, V); penalty (R, 1) or one number.

    Positive scores are divided by the penalty and negative ones multiplied (CTRL, arXiv 1909.05858).
    """
    return torch.where(present_mask, torch.where(scores < 0, scores * penalty, scores / penalty), scores)


def keep_top_k(logits: Tensor, top_k: Tensor, max_top_k: int) -> Tensor:
    """Keeps each row's `top_k` (S, 1) largest logits and those that tie with the last; 0 keeps all.

    `max_top_k` is the largest of the counts, known to the host.
    """
    largest = logits.topk(min(max_top_k, logits.shape[1])).values
    threshold = largest.gather(1, (top_k - 1).clamp(0, largest.shape[1] - 1))
    return logits.masked_fill(logits < threshold.masked_fill(top_k == 0, -torch.inf), -torch.inf)


def keep_top_p(logits: Tensor, tail_probability: Tensor | float, min_tokens_to_keep: int = 1) -> Tensor:
    """Keeps each row's smallest set of most likely tokens whose probability reaches p, or `min_tokens_to_keep` tokens.

    Nucleus sampling, arXiv 1904.09751. `tail_probability` is 1 - p, (S, 1) or one number.
    """
    ascending, order, probability = _sort_by_cumulative_probability(logits, tail_probability)
    drop = probability <= tail_probability
    drop[:, -min_tokens_to_keep:] = False
    filtered = ascending.masked_fill(drop, -torch.inf)
    return torch.full_like(logits, -torch.inf).scatter(1, order, filtered)


def _sort_by_cumulative_probability(
    logits: Tensor, tail_probability: Tensor | float
) -> tuple[Tensor, Tensor, Tensor]:
    """Each row's largest logits ascending, their ids, and the probability of each with all that are below it.

    Those that are not among them are less likely than `tail_probability` together. A sort of 49,000 tokens takes a CPU as long as
    a small model's whole step, and `topk` nothing. On a GPU the sort is quick, and the host must not wait for `others`.
    """
    if logits.device.type == "cpu" and logits.shape[1] > TOP_P_CANDIDATES:
        largest, ids = (x.flip(-1) for x in logits.topk(TOP_P_CANDIDATES))
        probabilities = (largest - logits.logsumexp(-1, keepdim=True)).exp()
        remaining_probability = 1 - probabilities.sum(-1, keepdim=True)
        if (remaining_probability <= tail_probability).all():
            return largest, ids, remaining_probability + probabilities.cumsum(-1)
    ascending, order = logits.sort()
    return ascending, order, ascending.softmax(-1).cumsum(-1)


def keep_min_p(logits: Tensor, min_p: Tensor | float, min_tokens_to_keep: int = 1) -> Tensor:
    """Drops each row's tokens less likely than p times its most likely one, but keeps the best `min_tokens_to_keep`.

    arXiv 2407.01082. `min_p` is (S, 1) or one number.
    """
    probabilities = logits.softmax(-1)
    drop = probabilities < min_p * probabilities.amax(-1, keepdim=True)
    drop.scatter_(1, probabilities.topk(min(min_tokens_to_keep, logits.shape[1])).indices, False)
    return logits.masked_fill(drop, -torch.inf)


def keep_typical(logits: Tensor, p: float, min_tokens_to_keep: int = 1) -> Tensor:
    """Keeps each row's tokens of most typical information until their probability reaches p.

    Locally typical sampling, arXiv 2202.00666: first come those whose information is nearest to the entropy.
    Whatever p is, the `min_tokens_to_keep` most typical are kept.
    """
    logprobs = logits.log_softmax(-1)
    entropy = -(logprobs.exp() * logprobs).nansum(-1, keepdim=True)
    entropy_distance, order = (-logprobs - entropy).abs().sort()
    cumulative = logits.gather(1, order).softmax(-1).cumsum(-1)
    last_index = (cumulative < p).sum(-1, keepdim=True).clamp(max=logits.shape[1] - 1)
    drop = entropy_distance > entropy_distance.gather(1, last_index)
    drop[:, :min_tokens_to_keep] = False
    return logits.masked_fill(drop.scatter(1, order, drop), -torch.inf)


def make_generator(seed: int | None, device: torch.device) -> torch.Generator:
    """What a row draws from: repeatable with a seed."""
    new_generator = torch.Generator(device)
    if seed is None:
        new_generator.seed()
    else:
        new_generator.manual_seed(seed)
    return new_generator
