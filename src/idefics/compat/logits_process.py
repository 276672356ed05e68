"""Builds the logits processors of a call of `generate`: those of the settings, and the caller's own.

R rows, T ids so far, V vocabulary. The computations are in `engine.sampler` and `engine.logits_processors`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from idefics.compat.generate_call import GenerateCall, GenerationRunner, LogitsProcessorFn
from idefics.compat.generation_config import GenerationConfig
from idefics.compat.generation_padding import LeftPaddedPrompts
from idefics.compat.logits_constraints import (
    apply_guidance,
    check_ids_in_vocabulary,
    increase_stop_scores,
    keep_allowed_tokens,
    make_sequence_bias_processor,
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
    token_mask,
)
from idefics.errors import BadSetting


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


def make_logits_processors(call: GenerateCall, vocab_size: int) -> LogitsProcessorList:
    """The processors of the settings and the caller's, in the order of transformers 5.

    Raises:
        BadSetting: a setting names ids that the model does not have, or needs prompt ids or stop ids that are missing.
    """
    config = call.config
    warpers = _sampling_processors(config, call.runner.prompt_ids.device) if config.do_sample else ()
    final_processors = [lambda ids, scores: scores.log_softmax(-1)] if config.renormalize_logits else []
    return LogitsProcessorList(
        [
            *_guidance_and_bias_processors(call, vocab_size),
            *_constraint_processors(call, vocab_size),
            *_forced_token_processors(call, vocab_size),
            *call.logits_processors,
            *warpers,
            *final_processors,
        ]
    )


def _forbid_masked_ids(mask: Callable[[Tensor], Tensor]) -> LogitsProcessorFn:
    """The processor that sets the scores of masked ids to -inf.

    Args:
        mask: (R, T) ids so far -> (R, V) or (V,) bool: the forbidden next ids.
    """
    return lambda ids, scores: scores.masked_fill(mask(ids), -torch.inf)


def _guidance_and_bias_processors(call: GenerateCall, vocab_size: int) -> Iterator[LogitsProcessorFn]:
    """Yields the processors that are set: guidance, biases of sequences, penalties for ids of the prompt."""
    config, runner = call.config, call.runner
    if config.guidance_scale != 1:
        yield partial(
            apply_guidance,
            scale=config.guidance_scale,
            negative_runner=_make_negative_runner(call),
            prompt_length=runner.prompt_ids.shape[1],
        )
    if config.sequence_bias:
        yield make_sequence_bias_processor(config.sequence_bias, vocab_size, runner.prompt_ids.device)
    if (penalty := config.encoder_repetition_penalty) != 1:
        prompts = _require_prompt_ids("encoder_repetition_penalty", call)
        is_in_prompt = present_ids_mask(prompts, vocab_size, runner.prompt_starts)
        yield lambda ids, scores: apply_repetition_penalty(scores, is_in_prompt, 1 / penalty)


def _make_negative_runner(call: GenerateCall) -> GenerationRunner:
    """A runner of the model on the negative prompts of guidance; by default on the last id of each prompt."""
    runner, ids, mask = call.runner, call.negative_prompt_ids, call.negative_prompt_attention_mask
    ids = runner.prompts.ids[:, -1:] if ids is None else ids
    return GenerationRunner(
        runner.model,
        LeftPaddedPrompts(ids, torch.ones_like(ids) if mask is None else mask, {}),
        answers_per_prompt=runner.answers_per_prompt,
        use_cache=call.config.use_cache and call.config.num_beams == 1,  # beams reorder the rows
    )


def _require_prompt_ids(setting_name: str, call: GenerateCall) -> Tensor:
    """The (R, T) ids of the prompts; raises BadSetting, naming the setting that needs them, if there are none."""
    if not call.runner.prompt_ids.shape[1]:
        raise BadSetting(
            f"{setting_name} is about the ids of the prompt, and embeddings are given: give input_ids"
        )
    return call.runner.prompt_ids


def _constraint_processors(call: GenerateCall, vocab_size: int) -> Iterator[LogitsProcessorFn]:
    """Yields the processors that are set: repetition penalties, forbidden sequences, the minimum length."""
    config, runner = call.config, call.runner
    device, prompt_length = runner.prompt_ids.device, runner.prompt_ids.shape[1]
    if (penalty := config.repetition_penalty) != 1:
        yield lambda ids, scores: apply_repetition_penalty(
            scores, present_ids_mask(ids, vocab_size, runner.prompt_starts), penalty
        )
    if ngram_size := config.no_repeat_ngram_size:
        yield _forbid_masked_ids(lambda ids: repeated_ngrams_mask(ids, ngram_size, vocab_size))
    if encoder_ngram_size := config.encoder_no_repeat_ngram_size:
        prompts = _require_prompt_ids("encoder_no_repeat_ngram_size", call)
        yield _forbid_masked_ids(
            lambda ids: repeated_ngrams_mask(ids, encoder_ngram_size, vocab_size, prompts)
        )
    if config.bad_words_ids:
        stop_sequences = [[id] for id in config.stop_ids]  # ending is never forbidden
        words = [word for word in config.bad_words_ids if word not in stop_sequences]
        check_ids_in_vocabulary("bad_words_ids", [id for word in words for id in word], vocab_size)
        yield _forbid_masked_ids(BannedIdSequences(words, vocab_size, device).mask)
    if config.stop_ids:
        stop_ids_in_vocabulary = [id for id in config.stop_ids if 0 <= id < vocab_size]
        stop_mask = token_mask(stop_ids_in_vocabulary, vocab_size, device)  # (V,)
        yield _forbid_masked_ids(lambda ids: stop_mask & (ids.shape[1] < prompt_length + call.min_new_tokens))


def _forced_token_processors(call: GenerateCall, vocab_size: int) -> Iterator[LogitsProcessorFn]:
    """Yields the processors that are set: forced ids, length penalties, suppressed ids."""
    config, prompt_ids = call.config, call.runner.prompt_ids
    prompt_length = prompt_ids.shape[1]

    def mask_of(setting_name: str, ids: Sequence[int]) -> Tensor:  # (V,)
        check_ids_in_vocabulary(setting_name, ids, vocab_size)
        return token_mask(ids, vocab_size, prompt_ids.device)

    if (function := call.prefix_allowed_tokens_fn) is not None:
        yield partial(keep_allowed_tokens, allowed_tokens_fn=function, rows_per_prompt=config.num_beams)
    if (forced_bos_id := config.forced_bos_token_id) is not None:
        yield _force_masked_ids_at_length(1, mask_of("forced_bos_token_id", [forced_bos_id]))
    if (forced_eos_ids := config.forced_eos_token_id) is not None:
        ids = [forced_eos_ids] if isinstance(forced_eos_ids, int) else forced_eos_ids
        yield _force_masked_ids_at_length(
            prompt_length + call.max_new_tokens - 1, mask_of("forced_eos_token_id", ids)
        )
    if (decay := config.exponential_decay_length_penalty) is not None:
        if not config.stop_ids:
            raise BadSetting(
                "exponential_decay_length_penalty acts on stop ids, and there are none: give eos_token_id"
            )
        start_length = prompt_length + int(decay[0])
        yield partial(
            increase_stop_scores, start_length=start_length, factor=decay[1], stop_ids=config.stop_ids
        )
    if config.suppress_tokens:
        suppressed = mask_of("suppress_tokens", config.suppress_tokens)
        yield _forbid_masked_ids(lambda ids: suppressed)
    if config.begin_suppress_tokens:
        suppressed_first = mask_of("begin_suppress_tokens", config.begin_suppress_tokens)
        begin_length = prompt_length + (prompt_length <= 1 and forced_bos_id is not None)
        yield _forbid_masked_ids(lambda ids: suppressed_first & (ids.shape[1] == begin_length))


def _force_masked_ids_at_length(length: int, mask: Tensor) -> LogitsProcessorFn:
    """The processor that allows only the ids in a mask (V,), at T = `length` alone."""
    return lambda ids, scores: (
        torch.zeros_like(scores).masked_fill(~mask, -torch.inf) if ids.shape[1] == length else scores
    )


def _sampling_processors(config: GenerationConfig, device: torch.device) -> Iterator[LogitsProcessorFn]:
    """Yields the processors of sampling that are set, such as top-k.

    With beams, more ids are kept than can end a beam, so that it can continue.
    """
    min_kept = 1 if config.num_beams == 1 else max(2, 1 + len(config.stop_ids))
    if config.temperature != 1:
        yield _make_score_processor(torch.div, config.temperature)
    if config.top_h is not None:
        yield _make_score_processor(keep_top_h, config.top_h)
    if config.top_k:
        top_k = max(config.top_k, min_kept)
        yield lambda ids, scores: keep_top_k(
            scores, torch.full((len(scores), 1), top_k, device=device), top_k
        )
    if config.top_p < 1:
        yield _make_score_processor(keep_top_p, 1 - config.top_p, min_kept)
    if config.min_p is not None:
        yield _make_score_processor(keep_min_p, config.min_p, min_kept)
    if config.typical_p < 1:
        yield _make_score_processor(keep_typical, config.typical_p, min_kept)
    if 0 < config.epsilon_cutoff < 1:
        yield _make_score_processor(keep_above_probability, config.epsilon_cutoff, min_kept)
    if 0 < (eta := config.eta_cutoff) < 1:
        yield lambda ids, scores: keep_above_probability(
            scores, eta_cutoff_probability(scores, eta), min_kept
        )


def _make_score_processor(transform: Callable[..., Tensor], *arguments: float) -> LogitsProcessorFn:
    """The processor that applies `transform(scores, *arguments)`, whatever the ids."""
    return lambda ids, scores: transform(scores, *arguments)


def keep_above_probability(
    scores: Tensor, min_probability: Tensor | float, min_tokens_to_keep: int
) -> Tensor:
    """Sets the scores of ids whose probability is below `min_probability` to -inf: (R, V) -> (R, V).

    Args:
        min_probability: (R, 1) or one number.
        min_tokens_to_keep: how many of the most likely ids are kept in any case.
    """
    lowest_kept_score = scores.topk(min(min_tokens_to_keep, scores.shape[1])).values[:, -1:]
    return scores.masked_fill(
        (scores.softmax(-1) < min_probability) & (scores < lowest_kept_score), -torch.inf
    )


def eta_cutoff_probability(scores: Tensor, epsilon: float) -> Tensor:
    """The probability of eta sampling, (R, 1): min(epsilon, sqrt(epsilon) exp(-entropy)) (arXiv 2210.15191)."""
    bound: Tensor = (-_entropy(scores)).exp() * epsilon**0.5
    return bound.clamp(max=epsilon)


def keep_top_h(scores: Tensor, entropy_fraction: float, max_candidates: int = 100) -> Tensor:
    """Keeps the most likely ids while their sum of -p log p is at most a fraction of the entropy; others get -inf.

    Source: arXiv 2509.02510. (R, V) scores -> (R, V).

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
    """The entropy of each row's distribution, softmax of its scores: (R, V) -> (R, 1)."""
    logarithms = scores.log_softmax(-1).clamp(min=torch.finfo(scores.dtype).min)
    return -(logarithms.exp() * logarithms).sum(-1, keepdim=True)
