"""The two ways to choose ids: one answer at a time, greedily or drawn, and beams. What they give back.

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
    """What `generate` gives with `return_dict_in_generate`.

    Attributes:
        sequences: (R, T) ids of prompts and answers, padded on the right.
        scores: for each step (R, V) float32: what the id was chosen by.
        logits: for each step (R, V) float32, as the model gave them.
        attentions, hidden_states: for each step what the model gave, a tensor a layer.
        past_key_values: the model's cache.
    """

    sequences: Tensor
    scores: tuple[Tensor, ...] | None
    logits: tuple[Tensor, ...] | None
    attentions: tuple[tuple[Tensor, ...], ...] | None
    hidden_states: tuple[tuple[Tensor, ...], ...] | None
    past_key_values: KeyValueCache | None


class GenerateBeamDecoderOnlyOutput(ModelOutput):
    """What `generate` gives of beams with `return_dict_in_generate`.

    Attributes:
        sequences: (answers, T) ids of prompts and answers, padded on the right.
        sequences_scores: (answers,) float32, by which beams competed; with `output_scores`.
        scores: for each step (R, V) float32: log-probabilities, after what settings make of them.
        beam_indices: (answers, longest answer) for each id the row of `scores` that it was chosen from; -1 after
            the end of an answer.
        logits, attentions, hidden_states, past_key_values: as of one answer; rows are the beams of all prompts.
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
class DecodingSteps:
    """What happens at every step of a search, and what is kept of the steps."""

    config: GenerationConfig
    logits_processors: LogitsProcessorList
    stopping_criteria: StoppingCriteriaList
    scores: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)

    def process_logits(self, ids: Tensor, logits: Tensor, scores: Tensor) -> Tensor:
        """(R, T) ids, (R, V) the model's logits and the scores they give -> (R, V) scores to choose by."""
        scores = self.logits_processors(ids, scores)
        if self.config.return_dict_in_generate and self.config.output_logits:
            self.logits.append(logits)
        if self.config.return_dict_in_generate and self.config.output_scores:
            self.scores.append(scores)
        return scores

    def is_finished(self, ids: Tensor) -> Tensor:
        """(R, T) -> (R,) which of them end here."""
        return self.stopping_criteria(ids, tuple(self.scores) or None)

    def recorded_outputs(self, runner: GenerationRunner) -> dict[str, Any]:
        """What was asked for, as the outputs name it."""
        lists = {"scores": self.scores, "logits": self.logits, **runner.extra_outputs}
        outputs = {name: tuple(steps) for name, steps in lists.items() if steps}
        return {"past_key_values": runner.cache, **outputs} if runner.use_cache else outputs


def sample(
    runner: GenerationRunner,
    prompts: Tensor,
    logits: Tensor,
    steps: DecodingSteps,
    streamer: BaseStreamer | None,
) -> GenerateDecoderOnlyOutput:
    """The most likely id at each step, or a drawn one; what has ended is padded until all have.

    Args:
        prompts: (B, T), which `runner` has read.
        logits: (R, V) of the first id of each answer.
    """
    config = steps.config
    ids = prompts.repeat_interleave(runner.answers_per_prompt, dim=0)
    is_unfinished = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
    while True:
        scores = steps.process_logits(ids, logits, logits)
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
    runner: GenerationRunner, prompts: Tensor, logits: Tensor, steps: DecodingSteps, max_new_tokens: int
) -> GenerateBeamDecoderOnlyOutput:
    """The best of `num_beams` beams, or drawn ones; the arguments are those of `sample`.

    Args:
        max_new_tokens: at most so many ids are generated.
    """
    config = steps.config
    rules = BeamSearchConfig(
        num_beams=config.num_beams,
        max_new_tokens=max_new_tokens,
        num_candidates=max(2, 1 + len(config.stop_ids))
        * config.num_beams,  # n go on though each stop id ends n
        length_penalty=config.length_penalty,
        early_stopping=config.early_stopping,
        do_sample=config.do_sample,
    )
    search = BeamSearch(prompts, rules, pad_id=config.effective_pad_token_id or 0)
    while True:
        scores = steps.process_logits(search.ids, logits, logits.log_softmax(-1))
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
