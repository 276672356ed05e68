"""Builds the logits processors of a call of `generate`: those of the settings, and the caller's own.

R rows, T ids so far, V vocabulary. The computations are in `engine.sampler` and `engine.logits_processors`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from idefics.compat.generation_config import GenerationConfig
from idefics.compat.generation_runner import GenerativeModel
from idefics.compat.logits_constraints import (
    ClassifierFreeGuidance,
    ExponentialDecayLengthPenalty,
    ForceOrForbidAtLength,
    PrefixAllowedTokensFn,
    PrefixConstrainedProcessor,
    SequenceBiasProcessor,
    check_ids_in_vocabulary,
)
from idefics.engine.logits_processors import (
    BannedIdSequences,
    apply_repetition_penalty,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    keep_typical,
    present_ids_mask,
    repeated_ngrams_mask,
)
from idefics.engine.token_masks import token_mask
from idefics.errors import BadSetting

LogitsProcessorFn = Callable[[Tensor, Tensor], Tensor]  # (R, T) ids, (R, V) scores -> (R, V) scores


class LogitsProcessor:
    """Changes the scores of the next id: a base class for the caller's own; any function will do as well."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Ids (R, T) and scores (R, V), logits or in a beam search log-probabilities -> scores (R, V)."""
        raise NotImplementedError(f"{type(self).__name__} has no __call__(input_ids, scores)")


class LogitsProcessorList(list[LogitsProcessorFn]):
    """Logits processors that are applied one after another."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Ids (R, T) and scores (R, V) -> scores (R, V)."""
        for process in self:
            scores = process(input_ids, scores)
        return scores


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateContext:
    """What logits processors need of a call of `generate`, in addition to the settings.

    Attributes:
        model: for guidance.
        prompt_ids: (R, P) ids of the prompts; P is 0 where embeddings were given.
        prompt_starts: (R,) position of the first token after the padding.
        vocab_size: V.
        max_length: the largest T.
        min_length: T before which no answer ends.
        prefix_allowed_tokens_fn: that of the call.
        negative_prompt_ids, negative_prompt_mask: (R, P') ids of the prompt for guidance, and 0 for its padding.
    """

    model: GenerativeModel
    prompt_ids: Tensor
    prompt_starts: Tensor
    vocab_size: int
    max_length: int
    min_length: int
    prefix_allowed_tokens_fn: PrefixAllowedTokensFn | None = None
    negative_prompt_ids: Tensor | None = None
    negative_prompt_mask: Tensor | None = None


def make_logits_processors(
    config: GenerationConfig, custom_processors: Sequence[LogitsProcessorFn], context: GenerateContext
) -> LogitsProcessorList:
    """The processors of the settings and the caller's, in the order of transformers 5.

    Raises:
        BadSetting: a setting names ids that the model does not have, or needs prompt ids or stop ids that are missing.
    """
    warpers = _sampling_processors(config, context.prompt_starts.device) if config.do_sample else ()
    final_processors = [lambda ids, scores: scores.log_softmax(-1)] if config.renormalize_logits else []
    return LogitsProcessorList(
        [
            *_guidance_and_bias_processors(config, context),
            *_constraint_processors(config, context),
            *_forced_token_processors(config, context),
            *custom_processors,
            *warpers,
            *final_processors,
        ]
    )


def _guidance_and_bias_processors(
    config: GenerationConfig, context: GenerateContext
) -> Iterator[LogitsProcessorFn]:
    """Guidance, biases, and penalties for ids of the prompt."""
    if (scale := config.guidance_scale) != 1:
        use_cache = config.use_cache and config.num_beams == 1
        yield ClassifierFreeGuidance(
            context.model,
            scale,
            context.negative_prompt_ids,
            context.negative_prompt_mask,
            use_cache=use_cache,
        )
    if config.sequence_bias:
        pairs = [(ids, bias) for ids, bias in config.sequence_bias]
        yield SequenceBiasProcessor(pairs, context.vocab_size, context.prompt_starts.device)
    if (penalty := config.encoder_repetition_penalty) != 1:
        prompts = _require_prompt_ids("encoder_repetition_penalty", context)
        is_in_prompt = present_ids_mask(prompts, context.vocab_size, context.prompt_starts)
        yield lambda ids, scores: apply_repetition_penalty(scores, is_in_prompt, 1 / penalty)


def _require_prompt_ids(setting_name: str, context: GenerateContext) -> Tensor:
    if not context.prompt_ids.shape[1]:
        raise BadSetting(
            f"{setting_name} is about the ids of the prompt, and embeddings are given: give input_ids"
        )
    return context.prompt_ids


def _constraint_processors(config: GenerationConfig, context: GenerateContext) -> Iterator[LogitsProcessorFn]:
    """Repetition penalties, forbidden sequences, and the smallest length."""
    vocab_size, device = context.vocab_size, context.prompt_starts.device
    if (penalty := config.repetition_penalty) != 1:
        yield lambda ids, scores: apply_repetition_penalty(
            scores, present_ids_mask(ids, vocab_size, context.prompt_starts), penalty
        )
    if ngram_size := config.no_repeat_ngram_size:
        yield lambda ids, scores: scores.masked_fill(
            repeated_ngrams_mask(ids, ngram_size, vocab_size), -torch.inf
        )
    if encoder_ngram_size := config.encoder_no_repeat_ngram_size:
        prompts = _require_prompt_ids("encoder_no_repeat_ngram_size", context)
        yield lambda ids, scores: scores.masked_fill(
            repeated_ngrams_mask(ids, encoder_ngram_size, vocab_size, prompts), -torch.inf
        )
    if config.bad_words_ids:
        stop_sequences = [[id] for id in config.stop_ids]  # ending is never forbidden
        words = [word for word in config.bad_words_ids if word not in stop_sequences]
        check_ids_in_vocabulary("bad_words_ids", [id for word in words for id in word], vocab_size)
        banned = BannedIdSequences(words, vocab_size, device)
        yield lambda ids, scores: scores.masked_fill(banned.mask(ids), -torch.inf)
    if config.stop_ids:
        stop_ids_in_vocabulary = [id for id in config.stop_ids if 0 <= id < vocab_size]
        stop_mask = token_mask(stop_ids_in_vocabulary, vocab_size, device)  # (V,)
        yield (
            lambda ids, scores: (
                scores.masked_fill(stop_mask, -torch.inf) if ids.shape[1] < context.min_length else scores
            )
        )


def _forced_token_processors(
    config: GenerationConfig, context: GenerateContext
) -> Iterator[LogitsProcessorFn]:
    """Forced ids, length penalties, and suppressed ids."""
    vocab_size, device, prompt_length = (
        context.vocab_size,
        context.prompt_starts.device,
        context.prompt_ids.shape[1],
    )
    if context.prefix_allowed_tokens_fn is not None:
        yield PrefixConstrainedProcessor(context.prefix_allowed_tokens_fn, config.num_beams)
    if (forced_bos_id := config.forced_bos_token_id) is not None:
        yield ForceOrForbidAtLength(1, [forced_bos_id], vocab_size, device, forces=True)
    if (forced_eos_ids := config.forced_eos_token_id) is not None:
        ids = [forced_eos_ids] if isinstance(forced_eos_ids, int) else forced_eos_ids
        yield ForceOrForbidAtLength(context.max_length - 1, ids, vocab_size, device, forces=True)
    if (decay := config.exponential_decay_length_penalty) is not None:
        if not config.stop_ids:
            raise BadSetting(
                "exponential_decay_length_penalty acts on stop ids, and there are none: give eos_token_id"
            )
        yield ExponentialDecayLengthPenalty(prompt_length + int(decay[0]), decay[1], config.stop_ids)
    if config.suppress_tokens:
        suppressed_mask = token_mask(
            check_ids_in_vocabulary("suppress_tokens", config.suppress_tokens, vocab_size), vocab_size, device
        )
        yield lambda ids, scores: scores.masked_fill(suppressed_mask, -torch.inf)
    if config.begin_suppress_tokens:
        begin_length = (
            prompt_length + 1 if prompt_length <= 1 and forced_bos_id is not None else prompt_length
        )
        yield ForceOrForbidAtLength(
            begin_length, config.begin_suppress_tokens, vocab_size, device, forces=False
        )


def _sampling_processors(config: GenerationConfig, device: torch.device) -> Iterator[LogitsProcessorFn]:
    """The processors of sampling. With beams, more ids are kept than can end a beam, so that it can continue."""
    min_tokens_to_keep = 1 if config.num_beams == 1 else max(2, 1 + len(config.stop_ids))
    if (temperature := config.temperature) != 1:
        yield lambda ids, scores: scores / temperature
    if (top_h := config.top_h) is not None:
        yield lambda ids, scores: keep_top_h(scores, top_h)
    if config.top_k:
        top_k = max(config.top_k, min_tokens_to_keep)
        yield lambda ids, scores: keep_top_k(
            scores, torch.full((len(scores), 1), top_k, device=device), top_k
        )
    if (top_p := config.top_p) < 1:
        yield lambda ids, scores: keep_top_p(scores, 1 - top_p, min_tokens_to_keep)
    if (min_p := config.min_p) is not None:
        yield lambda ids, scores: keep_min_p(scores, min_p, min_tokens_to_keep)
    if (typical_p := config.typical_p) < 1:
        yield lambda ids, scores: keep_typical(scores, typical_p, min_tokens_to_keep)
    if 0 < (epsilon := config.epsilon_cutoff) < 1:
        yield lambda ids, scores: keep_above_probability(
            scores, torch.full_like(scores[:, :1], epsilon), min_tokens_to_keep
        )
    if 0 < (eta := config.eta_cutoff) < 1:
        yield lambda ids, scores: keep_above_probability(
            scores, eta_cutoff_probability(scores, eta), min_tokens_to_keep
        )


def keep_above_probability(scores: Tensor, min_probability: Tensor, min_tokens_to_keep: int) -> Tensor:
    """Drops ids whose probability is below `min_probability` (R, 1), except the `min_tokens_to_keep` most likely."""
    lowest_kept_score = scores.topk(min(min_tokens_to_keep, scores.shape[1])).values[:, -1:]
    return scores.masked_fill(
        (scores.softmax(-1) < min_probability) & (scores < lowest_kept_score), -torch.inf
    )


def eta_cutoff_probability(scores: Tensor, epsilon: float) -> Tensor:
    """The probability of eta sampling, (R, 1): min(epsilon, sqrt(epsilon) exp(-entropy)) (arXiv 2210.15191)."""
    bound: Tensor = (-_entropy(scores)).exp() * epsilon**0.5
    return bound.clamp(max=epsilon)


def keep_top_h(scores: Tensor, entropy_fraction: float, max_candidates: int = 100) -> Tensor:
    """Keeps the most likely ids while their sum of -p log p is at most a fraction of the entropy (arXiv 2509.02510).

    Args:
        entropy_fraction: of the entropy of the `max_candidates` most likely ids.
    """
    top_scores, order = scores.topk(min(max_candidates, scores.shape[1]))
    logarithms = top_scores.log_softmax(-1)
    cumulative_entropy = -(logarithms.exp() * logarithms.clamp(min=torch.finfo(scores.dtype).min)).cumsum(-1)
    keep = cumulative_entropy <= _entropy(top_scores) * entropy_fraction
    keep[:, 0] = True
    return scores.masked_fill(~torch.zeros_like(scores, dtype=torch.bool).scatter(1, order, keep), -torch.inf)


def _entropy(scores: Tensor) -> Tensor:
    """Entropy of the distributions: scores (R, V) -> (R, 1)."""
    logarithms = scores.log_softmax(-1).clamp(min=torch.finfo(scores.dtype).min)
    return -(logarithms.exp() * logarithms).sum(-1, keepdim=True)
