"""The two decoding strategies, sampling (or greedy) and beam search, and their outputs.

R rows, T ids so far, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from idefics.compat.generation_config import GenerationConfig
from idefics.compat.generation_runner import GenerationRunner
from idefics.compat.kv_cache import KeyValueCache
from idefics.compat.logits_process import LogitsProcessorList
from idefics.compat.modeling_outputs import ModelOutput
from idefics.compat.stopping_criteria import StoppingCriteriaList
from idefics.compat.streamers import BaseStreamer
from idefics.engine.beam_search import BeamSearch, BeamSearchConfig


class GenerateDecoderOnlyOutput(ModelOutput):
    """The output of `generate` with `return_dict_in_generate`.

    Attributes:
        sequences: (R, T) ids of prompts and answers, padded on the right.
        scores: for each step (R, V) float32, processed scores by which the id was chosen.
        logits: for each step (R, V) float32, the model's logits.
        attentions, hidden_states: for each step the model's, a tensor for each layer.
        past_key_values: the model's cache.
    """

    sequences: Tensor
    scores: tuple[Tensor, ...] | None
    logits: tuple[Tensor, ...] | None
    attentions: tuple[tuple[Tensor, ...], ...] | None
    hidden_states: tuple[tuple[Tensor, ...], ...] | None
    past_key_values: KeyValueCache | None


class GenerateBeamDecoderOnlyOutput(ModelOutput):
    """The output of a beam search with `return_dict_in_generate`.

    Attributes:
        sequences: (answers, T) ids of prompts and answers, padded on the right.
        sequences_scores: (answers,) float32, the beams' scores; with `output_scores`.
        scores: for each step (R, V) float32, processed log-probabilities.
        beam_indices: (answers, longest answer) for each id the row of `scores` from which it was chosen; -1 after the
            end of an answer.
        logits, attentions, hidden_states, past_key_values: as in sampling; rows are the beams of all prompts.
    """

    sequences: Tensor
    sequences_scores: Tensor | None
    scores: tuple[Tensor, ...] | None
    logits: tuple[Tensor, ...] | None
    beam_indices: Tensor
    attentions: tuple[tuple[Tensor, ...], ...] | None
    hidden_states: tuple[tuple[Tensor, ...], ...] | None
    past_key_values: KeyValueCache | None


GenerateOutput = GenerateDecoderOnlyOutput | GenerateBeamDecoderOnlyOutput


@dataclass(slots=True)
class StepProcessorsAndRecords:
    """The processors and criteria that run at every step, and the recorded scores and logits."""

    config: GenerationConfig
    logits_processors: LogitsProcessorList
    stopping_criteria: StoppingCriteriaList
    scores: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)

    def process_and_record_logits(self, ids: Tensor, logits: Tensor, scores: Tensor) -> Tensor:
        """Ids (R, T), logits (R, V), scores of them (R, V) -> processed scores (R, V), recorded if asked for."""
        scores = self.logits_processors(ids, scores)
        if self.config.return_dict_in_generate and self.config.output_logits:
            self.logits.append(logits)
        if self.config.return_dict_in_generate and self.config.output_scores:
            self.scores.append(scores)
        return scores

    def is_finished(self, ids: Tensor) -> Tensor:
        """Ids (R, T) -> (R,) bool, which answers end at their last id."""
        return self.stopping_criteria(ids, tuple(self.scores) or None)

    def recorded_outputs(self, runner: GenerationRunner) -> dict[str, Any]:
        """The fields of the output that the settings ask for."""
        lists = {"scores": self.scores, "logits": self.logits, **runner.extra_outputs}
        outputs = {name: tuple(steps) for name, steps in lists.items() if steps}
        return {"past_key_values": runner.cache, **outputs} if runner.use_cache else outputs


def sample_or_greedy(
    runner: GenerationRunner,
    prompts: Tensor,
    logits: Tensor,
    steps: StepProcessorsAndRecords,
    streamer: BaseStreamer | None,
) -> GenerateDecoderOnlyOutput:
    """Chooses the most likely id at each step, or with `do_sample` a random one; ended rows are padded.

    Args:
        prompts: (B, T) ids that `runner` has read.
        logits: (R, V) of the first id of each answer.
    """
    config = steps.config
    ids = prompts.repeat_interleave(runner.answers_per_prompt, dim=0)
    is_unfinished = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
    while True:
        scores = steps.process_and_record_logits(ids, logits, logits)
        next_ids = scores.softmax(-1).multinomial(1)[:, 0] if config.do_sample else scores.argmax(-1)
        if config.effective_pad_token_id is not None:
            next_ids = next_ids.where(is_unfinished, config.effective_pad_token_id)
        ids = torch.cat((ids, next_ids[:, None]), dim=1)
        if streamer is not None:
            streamer.put(next_ids.cpu())
        is_unfinished &= ~steps.is_finished(ids)
        if not is_unfinished.any():
            return GenerateDecoderOnlyOutput(sequences=ids, **steps.recorded_outputs(runner))
        logits = runner.decode_step(ids)


def beam_search(
    runner: GenerationRunner,
    prompts: Tensor,
    logits: Tensor,
    steps: StepProcessorsAndRecords,
    max_new_tokens: int,
) -> GenerateBeamDecoderOnlyOutput:
    """Searches with `num_beams` beams, which with `do_sample` are sampled; arguments as in `sample_or_greedy`.

    Args:
        max_new_tokens: the largest number of generated ids.
    """
    config = steps.config
    rules = BeamSearchConfig(
        num_beams=config.num_beams,
        max_new_tokens=max_new_tokens,
        # Enough that `num_beams` continue even if each stop id ends as many.
        num_candidates=max(2, 1 + len(config.stop_ids)) * config.num_beams,
        length_penalty=config.length_penalty,
        early_stopping=config.early_stopping,
        do_sample=config.do_sample,
    )
    search = BeamSearch(prompts, rules, pad_id=config.effective_pad_token_id or 0)
    while True:
        scores = steps.process_and_record_logits(search.ids, logits, logits.log_softmax(-1))
        rows = search.advance(scores, steps.is_finished)
        if search.is_done:
            break
        logits = runner.decode_step(search.ids, rows)
    ids, parents, scores, _ = search.best_beams(config.num_return_sequences)
    return GenerateBeamDecoderOnlyOutput(
        sequences=ids,
        sequences_scores=scores if config.output_scores else None,
        beam_indices=parents,
        **steps.recorded_outputs(runner),
    )
