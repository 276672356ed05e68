"""What happens to scores before an id is chosen: the caller's processors, and those that settings ask for.

R rows, T ids so far, V vocabulary. The mathematics lives in `engine.sampler` and `engine.constraints`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from idefics.compat.generation_config import GenerationConfig
from idefics.compat.generation_reader import Model
from idefics.compat.logits_constraints import (
    AllowedIds,
    AllowedPrefix,
    GrowingStop,
    Guidance,
    OnlyAt,
    SequenceBias,
    known_ids,
)
from idefics.engine.constraints import BannedWords, present_ids, repeated_ngrams
from idefics.engine.sampler import (
    ids_mask,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    keep_typical,
    penalise,
)
from idefics.errors import BadSetting

Processor = Callable[[Tensor, Tensor], Tensor]  # (R, T) ids, (R, V) scores -> (R, V) scores


class LogitsProcessor:
    """Changes the scores of the next id. Inherit from it, or write any function with these arguments."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(R, T) ids so far, (R, V) logits, or log-probabilities in a beam search -> (R, V)."""
        raise NotImplementedError(f"{type(self).__name__} has no __call__(input_ids, scores)")


class LogitsProcessorList(list[Processor]):
    """Processors, one after another."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(R, T), (R, V) -> (R, V)."""
        for process in self:
            scores = process(input_ids, scores)
        return scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What of a call of `generate` its processors need beside settings.

    Attributes:
        model: for guidance.
        prompts: (R, P) ids of the prompts; P is 0 where embeddings were given.
        starts: (R,) where the padding of each row ends.
        vocabulary: V.
        length: T of the longest answer.
        least: T before which no answer ends.
        allowed: `prefix_allowed_tokens_fn`.
        negative, negative_mask: (R, P') ids of the other prompt for guidance, and which are no padding.
    """

    model: Model
    prompts: Tensor
    starts: Tensor
    vocabulary: int
    length: int
    least: int
    allowed: AllowedIds | None = None
    negative: Tensor | None = None
    negative_mask: Tensor | None = None


def processors(config: GenerationConfig, own: Sequence[Processor], call: Generation) -> LogitsProcessorList:
    """What `config` asks for and the caller's `own`, in the order of transformers 5."""
    warpers = _warpers(config, call.starts.device) if config.do_sample else ()
    last = [lambda ids, scores: scores.log_softmax(-1)] if config.renormalize_logits else []
    return LogitsProcessorList(
        [
            *_of_prompt(config, call),
            *_constraints(config, call),
            *_forced(config, call),
            *own,
            *warpers,
            *last,
        ]
    )


def _of_prompt(config: GenerationConfig, call: Generation) -> Iterator[Processor]:
    """Guidance, biases, and what speaks of the prompt."""
    if (scale := config.guidance_scale) != 1:
        cached = config.use_cache and config.num_beams == 1
        yield Guidance(call.model, scale, call.negative, call.negative_mask, use_cache=cached)
    if config.sequence_bias:
        pairs = [(ids, bias) for ids, bias in config.sequence_bias]
        yield SequenceBias(pairs, call.vocabulary, call.starts.device)
    if (penalty := config.encoder_repetition_penalty) != 1:
        prompts = _ids_of_prompt("encoder_repetition_penalty", call)
        found = present_ids(prompts, call.vocabulary, call.starts)
        yield lambda ids, scores: penalise(scores, found, 1 / penalty)


def _ids_of_prompt(name: str, call: Generation) -> Tensor:
    if not call.prompts.shape[1]:
        raise BadSetting(f"{name} is about the ids of the prompt, and embeddings are given: give input_ids")
    return call.prompts


def _constraints(config: GenerationConfig, call: Generation) -> Iterator[Processor]:
    """What repeats, what is forbidden, and what must not end yet."""
    vocabulary, device = call.vocabulary, call.starts.device
    if (penalty := config.repetition_penalty) != 1:
        yield lambda ids, scores: penalise(scores, present_ids(ids, vocabulary, call.starts), penalty)
    if size := config.no_repeat_ngram_size:
        yield lambda ids, scores: scores.masked_fill(repeated_ngrams(ids, size, vocabulary), -torch.inf)
    if size_ := config.encoder_no_repeat_ngram_size:
        prompts = _ids_of_prompt("encoder_no_repeat_ngram_size", call)
        yield lambda ids, scores: scores.masked_fill(
            repeated_ngrams(ids, size_, vocabulary, prompts), -torch.inf
        )
    if config.bad_words_ids:
        allowed = [[id] for id in config.stop_ids]  # ending is never forbidden
        words = [word for word in config.bad_words_ids if word not in allowed]
        known_ids("bad_words_ids", [id for word in words for id in word], vocabulary)
        banned = BannedWords(words, vocabulary, device)
        yield lambda ids, scores: scores.masked_fill(banned.mask(ids), -torch.inf)
    if config.stop_ids:
        within = [id for id in config.stop_ids if 0 <= id < vocabulary]
        stops = ids_mask(within, vocabulary, device)  # (V,)
        yield (
            lambda ids, scores: scores.masked_fill(stops, -torch.inf) if ids.shape[1] < call.least else scores
        )


def _forced(config: GenerationConfig, call: Generation) -> Iterator[Processor]:
    """What must come, what must end, and what never comes."""
    vocabulary, device, prompt = call.vocabulary, call.starts.device, call.prompts.shape[1]
    if call.allowed is not None:
        yield AllowedPrefix(call.allowed, config.num_beams)
    if (first := config.forced_bos_token_id) is not None:
        yield OnlyAt(1, [first], vocabulary, device, forces=True)
    if (last := config.forced_eos_token_id) is not None:
        ids = [last] if isinstance(last, int) else last
        yield OnlyAt(call.length - 1, ids, vocabulary, device, forces=True)
    if (decay := config.exponential_decay_length_penalty) is not None:
        if not config.stop_ids:
            raise BadSetting(
                "exponential_decay_length_penalty acts on stop ids, and there are none: give eos_token_id"
            )
        yield GrowingStop(prompt + int(decay[0]), decay[1], config.stop_ids)
    if config.suppress_tokens:
        never = ids_mask(known_ids("suppress_tokens", config.suppress_tokens, vocabulary), vocabulary, device)
        yield lambda ids, scores: scores.masked_fill(never, -torch.inf)
    if config.begin_suppress_tokens:
        begin = prompt + 1 if prompt <= 1 and first is not None else prompt
        yield OnlyAt(begin, config.begin_suppress_tokens, vocabulary, device, forces=False)


def _warpers(config: GenerationConfig, device: torch.device) -> Iterator[Processor]:
    """How a drawn id is drawn. A beam must be able to go on whatever ends it: one id more than can end is kept."""
    at_least = 1 if config.num_beams == 1 else max(2, 1 + len(config.stop_ids))
    if (temperature := config.temperature) != 1:
        yield lambda ids, scores: scores / temperature
    if (top_h := config.top_h) is not None:
        yield lambda ids, scores: keep_top_h(scores, top_h)
    if config.top_k:
        most = max(config.top_k, at_least)
        yield lambda ids, scores: keep_top_k(scores, torch.full((len(scores), 1), most, device=device), most)
    if (top_p := config.top_p) < 1:
        yield lambda ids, scores: keep_top_p(scores, 1 - top_p, at_least)
    if (min_p := config.min_p) is not None:
        yield lambda ids, scores: keep_min_p(scores, min_p, at_least)
    if (typical_p := config.typical_p) < 1:
        yield lambda ids, scores: keep_typical(scores, typical_p, at_least)
    if 0 < (epsilon := config.epsilon_cutoff) < 1:
        yield lambda ids, scores: keep_above(scores, torch.full_like(scores[:, :1], epsilon), at_least)
    if 0 < (eta := config.eta_cutoff) < 1:
        yield lambda ids, scores: keep_above(scores, eta_bound(scores, eta), at_least)


def keep_above(scores: Tensor, bound: Tensor, at_least: int) -> Tensor:
    """Drops ids whose probability is below the bound (R, 1), but for the `at_least` most likely."""
    best = scores.topk(min(at_least, scores.shape[1])).values[:, -1:]
    return scores.masked_fill((scores.softmax(-1) < bound) & (scores < best), -torch.inf)


def eta_bound(scores: Tensor, epsilon: float) -> Tensor:
    """(R, 1) min(epsilon, sqrt(epsilon) exp(-entropy)) (arXiv 2210.15191)."""
    bound: Tensor = (-_entropy(scores)).exp() * epsilon**0.5
    return bound.clamp(max=epsilon)


def keep_top_h(scores: Tensor, part: float, most: int = 100) -> Tensor:
    """Keeps the likeliest of `most` ids while their sum of -p log p is at most `part` of it all (arXiv 2509.02510)."""
    best, order = scores.topk(min(most, scores.shape[1]))
    logarithms = best.log_softmax(-1)
    shares = -(logarithms.exp() * logarithms.clamp(min=torch.finfo(scores.dtype).min)).cumsum(-1)
    keep = shares <= _entropy(best) * part
    keep[:, 0] = True
    return scores.masked_fill(~torch.zeros_like(scores, dtype=torch.bool).scatter(1, order, keep), -torch.inf)


def _entropy(scores: Tensor) -> Tensor:
    """(R, V) -> (R, 1)."""
    logarithms = scores.log_softmax(-1).clamp(min=torch.finfo(scores.dtype).min)
    return -(logarithms.exp() * logarithms).sum(-1, keepdim=True)
