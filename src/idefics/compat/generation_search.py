"""The two ways to choose ids: one answer at a time, greedily or drawn, and beams. What they give back.

R rows, T ids so far, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from idefics.compat.cache import KeyValueCache
from idefics.compat.generation_config import GenerationConfig
from idefics.compat.generation_reader import Reader
from idefics.compat.logits_process import LogitsProcessorList
from idefics.compat.outputs import ModelOutput
from idefics.compat.stopping import StoppingCriteriaList
from idefics.compat.streamers import BaseStreamer
from idefics.engine.beams import BeamRules, BeamSearch


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
class Steps:
    """What happens at every step of a search, and what is kept of the steps."""

    config: GenerationConfig
    process: LogitsProcessorList
    criteria: StoppingCriteriaList
    scores: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)

    def score(self, ids: Tensor, logits: Tensor, scores: Tensor) -> Tensor:
        """(R, T) ids, (R, V) the model's logits and the scores they give -> (R, V) scores to choose by."""
        scores = self.process(ids, scores)
        if self.config.return_dict_in_generate and self.config.output_logits:
            self.logits.append(logits)
        if self.config.return_dict_in_generate and self.config.output_scores:
            self.scores.append(scores)
        return scores

    def ends(self, ids: Tensor) -> Tensor:
        """(R, T) -> (R,) which of them end here."""
        return self.criteria(ids, tuple(self.scores) or None)

    def kept(self, reader: Reader) -> dict[str, Any]:
        """What was asked for, as the outputs name it."""
        lists = {"scores": self.scores, "logits": self.logits, **reader.extras}
        kept = {name: tuple(steps) for name, steps in lists.items() if steps}
        return {"past_key_values": reader.cache, **kept} if reader.use_cache else kept


def sample(
    reader: Reader, prompts: Tensor, logits: Tensor, steps: Steps, streamer: BaseStreamer | None
) -> GenerateDecoderOnlyOutput:
    """The most likely id at each step, or a drawn one; what has ended is padded until all have.

    Args:
        prompts: (B, T), which `reader` has read.
        logits: (R, V) of the first id of each answer.
    """
    config = steps.config
    ids = prompts.repeat_interleave(reader.answers, dim=0)
    going = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
    while True:
        scores = steps.score(ids, logits, logits)
        chosen = scores.softmax(-1).multinomial(1)[:, 0] if config.do_sample else scores.argmax(-1)
        if config.padding is not None:
            chosen = chosen.where(going, config.padding)
        ids = torch.cat((ids, chosen[:, None]), dim=1)
        if streamer is not None:
            streamer.put(chosen.cpu())
        going &= ~steps.ends(ids)
        if not going.any():
            return GenerateDecoderOnlyOutput(sequences=ids, **steps.kept(reader))
        logits = reader.more(ids)


def beam_search(
    reader: Reader, prompts: Tensor, logits: Tensor, steps: Steps, room: int
) -> GenerateBeamDecoderOnlyOutput:
    """The best of `num_beams` beams, or drawn ones; the arguments are those of `sample`.

    Args:
        room: at most so many ids are generated.
    """
    config = steps.config
    rules = BeamRules(
        width=config.num_beams,
        room=room,
        candidates=max(2, 1 + len(config.stop_ids)) * config.num_beams,  # n go on though each stop id ends n
        length_penalty=config.length_penalty,
        early_stopping=config.early_stopping,
        draws=config.do_sample,
    )
    search = BeamSearch(prompts, rules, fill=config.padding or 0)
    while True:
        scores = steps.score(search.ids, logits, logits.log_softmax(-1))
        rows = search.advance(scores, steps.ends)
        if search.is_over:
            break
        logits = reader.more(search.ids, rows)
    ids, parents, scores, _ = search.best(config.num_return_sequences)
    return GenerateBeamDecoderOnlyOutput(
        sequences=ids,
        sequences_scores=scores if config.output_scores else None,
        beam_indices=parents,
        **steps.kept(reader),
    )
