"""What happens to scores before an id is chosen: the caller's processors, and those that settings ask for.

R rows, T ids so far, V vocabulary. The mathematics lives in `engine.sampler` and `engine.constraints`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from idefics.compat.generation_config import GenerationConfig
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


def processors(
    config: GenerationConfig, own: Sequence[Processor], *, least: int, starts: Tensor, vocabulary: int
) -> LogitsProcessorList:
    """What `config` asks for and the caller's `own`, in the order of transformers 5.

    Args:
        least: T before which no answer ends.
        starts: (R,) where the padding of each row ends.
    """
    constraints = _constraints(config, least, starts, vocabulary)
    warpers = _warpers(config, starts.device) if config.do_sample else ()
    return LogitsProcessorList([*constraints, *own, *warpers])


def _constraints(
    config: GenerationConfig, least: int, starts: Tensor, vocabulary: int
) -> Iterator[Processor]:
    """What holds however the next id is chosen."""
    if (penalty := config.repetition_penalty) != 1:
        yield lambda ids, scores: penalise(scores, present_ids(ids, vocabulary, starts), penalty)
    if size := config.no_repeat_ngram_size:
        yield lambda ids, scores: scores.masked_fill(repeated_ngrams(ids, size, vocabulary), -torch.inf)
    if config.bad_words_ids:
        allowed = [[id] for id in config.stop_ids]  # ending is never forbidden
        words = [word for word in config.bad_words_ids if word not in allowed]
        if beyond := [id for word in words for id in word if id >= vocabulary]:
            raise BadSetting(
                f"bad_words_ids has id {max(beyond)}; this model's ids are 0 to {vocabulary - 1}: "
                "use the tokenizer of the same checkpoint"
            )
        banned = BannedWords(words, vocabulary, starts.device)
        yield lambda ids, scores: scores.masked_fill(banned.mask(ids), -torch.inf)
    if config.stop_ids:
        within = [id for id in config.stop_ids if 0 <= id < vocabulary]
        stops = ids_mask(within, vocabulary, starts.device)  # (V,)
        yield lambda ids, scores: scores.masked_fill(stops, -torch.inf) if ids.shape[1] < least else scores


def _warpers(config: GenerationConfig, device: torch.device) -> Iterator[Processor]:
    """How a drawn id is drawn. A beam must be able to go on whatever ends it: one id more than can end is kept."""
    at_least = 1 if config.num_beams == 1 else max(2, 1 + len(config.stop_ids))
    if (temperature := config.temperature) != 1:
        yield lambda ids, scores: scores / temperature
    if config.top_k:
        most = max(config.top_k, at_least)
        yield lambda ids, scores: keep_top_k(scores, torch.full((len(scores), 1), most, device=device), most)
    if (top_p := config.top_p) < 1:
        yield lambda ids, scores: keep_top_p(scores, 1 - top_p, at_least)
    if (min_p := config.min_p) is not None:
        yield lambda ids, scores: keep_min_p(scores, min_p, at_least)
    if (typical_p := config.typical_p) < 1:
        yield lambda ids, scores: keep_typical(scores, typical_p, at_least)
