"""The two decoding strategies, sampling (or greedy) and beam search, and their outputs.

R rows, T ids so far, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from idefics.compat.generate_call import GenerateCall
from idefics.compat.generation_callbacks import (
    EosTokenCriteria,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)
from idefics.compat.kv_cache import KeyValueCache
from idefics.compat.logits_process import LogitsProcessorList, make_logits_processors
from idefics.compat.modeling_outputs import ModelOutput
from idefics.engine.beam_search import BeamSearch, BeamSearchConfig
from idefics.errors import BadSetting


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


def generate_answers(call: GenerateCall) -> GenerateOutput:
    """Runs a call of `generate`: prefills the prompts, chooses ids until every answer has ended, and returns them."""
    runner, config = call.runner, call.config
    if call.streamer is not None:
        call.streamer.put(runner.repeat_rows(runner.prompts.original_ids).cpu())
    logits = runner.prefill()
    processors = make_logits_processors(call, vocab_size=logits.shape[1])
    loop = DecodingLoop(call, processors, make_stopping_criteria(call))
    out = loop.sample_or_greedy(logits) if config.num_beams == 1 else loop.beam_search(logits)
    runner.prompts.restore_right_padding(out)
    return out


def make_stopping_criteria(call: GenerateCall) -> StoppingCriteriaList:
    """The stopping criteria of a call: those of its settings, and the caller's.

    Raises:
        BadSetting: `stop_strings` are given without a tokenizer.
    """
    config = call.config
    criteria = StoppingCriteriaList(
        [MaxLengthCriteria(call.runner.prompt_ids.shape[1] + call.max_new_tokens)]
    )
    if config.max_time is not None:
        criteria.append(MaxTimeCriteria(config.max_time))
    if config.stop_strings:
        if call.tokenizer is None:
            raise BadSetting(
                f"stop_strings is {config.stop_strings!r}, and there is no tokenizer to read answers with: "
                "give generate(tokenizer=processor.tokenizer)"
            )
        criteria.append(StopStringCriteria(call.tokenizer, config.stop_strings))
    if config.stop_ids:
        criteria.append(EosTokenCriteria(config.stop_ids))
    criteria.extend(call.stopping_criteria)
    return criteria


@dataclass(frozen=True, slots=True)
class DecodingLoop:
    """Chooses ids until every answer has ended; the model has read the prompts."""

    call: GenerateCall
    logits_processors: LogitsProcessorList
    stopping_criteria: StoppingCriteriaList

    def sample_or_greedy(self, logits: Tensor) -> GenerateDecoderOnlyOutput:
        """Chooses the most likely id at each step, or with `do_sample` a random one; ended rows are padded.

        Args:
            logits: (R, V) of the first id of each answer.
        """
        runner, config, streamer = self.call.runner, self.call.config, self.call.streamer
        ids = runner.prompt_ids
        is_unfinished = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
        while True:
            scores = self._process_scores(ids, logits)
            next_ids = scores.softmax(-1).multinomial(1)[:, 0] if config.do_sample else scores.argmax(-1)
            if config.effective_pad_token_id is not None:
                next_ids = next_ids.where(is_unfinished, config.effective_pad_token_id)
            ids = torch.cat((ids, next_ids[:, None]), dim=1)
            if streamer is not None:
                streamer.put(next_ids.cpu())
            is_unfinished &= ~self._is_finished(ids)
            if not is_unfinished.any():
                return GenerateDecoderOnlyOutput(sequences=ids, **runner.recorded_outputs())
            logits = runner.decode_step(ids)

    def beam_search(self, logits: Tensor) -> GenerateBeamDecoderOnlyOutput:
        """Searches with `num_beams` beams, which with `do_sample` are sampled.

        Args:
            logits: (R, V) of the first id of each beam.
        """
        runner, config = self.call.runner, self.call.config
        rules = BeamSearchConfig(
            num_beams=config.num_beams,
            max_new_tokens=self.call.max_new_tokens,
            # Enough that `num_beams` continue even if each stop id ends as many.
            num_candidates=max(2, 1 + len(config.stop_ids)) * config.num_beams,
            length_penalty=config.length_penalty,
            early_stopping=config.early_stopping,
            do_sample=config.do_sample,
        )
        search = BeamSearch(runner.prompts.ids, rules, pad_id=config.effective_pad_token_id or 0)
        while True:
            scores = self._process_scores(search.ids, logits.log_softmax(-1))
            rows = search.advance(scores, self._is_finished)
            if search.is_done:
                break
            logits = runner.decode_step(search.ids, rows)
        ids, parents, scores, _ = search.best_beams(config.num_return_sequences)
        return GenerateBeamDecoderOnlyOutput(
            sequences=ids,
            sequences_scores=scores if config.output_scores else None,
            beam_indices=parents,
            **runner.recorded_outputs(),
        )

    def _process_scores(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Applies the logits processors, and records the scores if asked for: (R, T) ids, (R, V) scores -> (R, V)."""
        scores = self.logits_processors(ids, scores)
        self.call.runner.record_step_value("scores", scores)
        return scores

    def _is_finished(self, ids: Tensor) -> Tensor:
        """Which answers end at their last id: (R, T) ids -> (R,) bool."""
        return self.stopping_criteria(ids, tuple(self.call.runner.records.get("scores", ())) or None)
