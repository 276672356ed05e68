"""Changes to the scores of the next id that hold however it is chosen: what settings of transformers ask for.

R rows, B prompts, T ids so far, V vocabulary. All take ids (R, T) and scores (R, V).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from idefics.compat.generation_reader import Model, Reader
from idefics.engine.sampler import ids_mask
from idefics.errors import BadSetting

AllowedIds = Callable[[int, Tensor], Sequence[int]]  # index of the prompt, ids so far -> ids that may follow


def known_ids(name: str, ids: Sequence[int], vocabulary: int) -> Sequence[int]:
    """These ids. Raises BadSetting where the model does not have one of them."""
    if beyond := [id for id in ids if id >= vocabulary]:
        raise BadSetting(
            f"{name} has id {max(beyond)}; this model's ids are 0 to {vocabulary - 1}: "
            "use the tokenizer of the same checkpoint"
        )
    return ids


class SequenceBias:
    """Adds a number to the score of the last id of a sequence after the ids before it.

    Args:
        biases: [ids, number] of each sequence.
    """

    def __init__(
        self, biases: Sequence[tuple[list[int], float]], vocabulary: int, device: torch.device
    ) -> None:
        known_ids("sequence_bias", [id for ids, _ in biases for id in ids], vocabulary)
        self.always = torch.zeros(vocabulary, device=device)
        for ids, bias in biases:
            if len(ids) == 1:
                self.always[ids[0]] = bias
        self.after = [
            (torch.tensor(ids[:-1], device=device), ids[-1], bias) for ids, bias in biases if len(ids) > 1
        ]

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores + self.always
        for beginning, last, bias in self.after:
            if len(beginning) <= ids.shape[1]:
                scores[:, last] += bias * (ids[:, -len(beginning) :] == beginning).all(-1)
        return scores


class AllowedPrefix:
    """Only ids that the caller's function allows after those so far.

    Args:
        allowed: called with the index of the prompt and the ids (T,) so far.
        beams: rows of one prompt.
    """

    def __init__(self, allowed: AllowedIds, beams: int) -> None:
        self.allowed, self.beams = allowed, beams

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        mask = torch.full_like(scores, -torch.inf)
        for row, so_far in enumerate(ids):
            following = list(self.allowed(row // self.beams, so_far))
            if not following:
                raise BadSetting(
                    f"prefix_allowed_tokens_fn allows no id in prompt {row // self.beams} after "
                    f"{so_far.tolist()[-5:]}: return at least one"
                )
            mask[row, following] = 0
        allowed = scores + mask
        # Where another setting forbids all that is allowed in every beam, the function wins.
        none = allowed.amax(-1).isneginf().view(-1, self.beams).all(-1).repeat_interleave(self.beams)
        return torch.where(none[:, None], mask, allowed)


class OnlyAt:
    """At one length only some ids, or none of them.

    Args:
        length: T at which it acts.
        ids: the ids.
        forces: whether they are the only ones; else they are forbidden.
    """

    def __init__(
        self, length: int, ids: Sequence[int], vocabulary: int, device: torch.device, *, forces: bool
    ) -> None:
        self.length, self.forces = length, forces
        self.mask = ids_mask(known_ids("a list of ids", ids, vocabulary), vocabulary, device)  # (V,)

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        if ids.shape[1] != self.length:
            return scores
        if self.forces:
            return torch.zeros_like(scores).masked_fill(~self.mask, -torch.inf)
        return scores.masked_fill(self.mask, -torch.inf)


class GrowingStop:
    """From a length on, the scores of the stop ids grow by a factor with each further id.

    Args:
        start: T after which it acts.
        stops: the stop ids.
    """

    def __init__(self, start: int, factor: float, stops: Sequence[int]) -> None:
        self.start, self.factor, self.stops = start, factor, list(stops)

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        over = ids.shape[1] - self.start
        if over <= 0:
            return scores
        found = scores[:, self.stops]
        grown = found.abs() * (self.factor**over - 1)
        scores = scores.clone()
        scores[:, self.stops] = found + grown.masked_fill(~found.isfinite(), 0.0)
        return scores


class Guidance:
    """Draws scores away from those that the model gives to the answer after another prompt (arXiv 2306.17806).

    Args:
        scale: 1 changes nothing, more draws further away.
        prompts: (R, P') ids of the other prompt; None: the last id of the prompt alone.
        mask: (R, P') which of them are no padding; None: all.
        use_cache: whether the other prompt is kept as it was read. False in a beam search, whose rows change places.
    """

    def __init__(
        self, model: Model, scale: float, prompts: Tensor | None, mask: Tensor | None, *, use_cache: bool
    ) -> None:
        self.model, self.scale, self.prompts, self.mask, self.use_cache = (
            model,
            scale,
            prompts,
            mask,
            use_cache,
        )
        self.reader: Reader | None = None
        self.length = 0  # of the prompt that is answered

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        if self.reader is None:
            self.length = ids.shape[1]
            self.prompts = ids[:, -1:] if self.prompts is None else self.prompts
            mask = torch.ones_like(self.prompts) if self.mask is None else self.mask
            self.reader = Reader(
                self.model, {"attention_mask": mask}, answers=1, use_cache=self.use_cache, extras=()
            )
            other = self.reader.prompts(self.prompts)
        else:
            assert self.prompts is not None
            other = self.reader.more(torch.cat((self.prompts, ids[:, self.length :]), 1))
        other = other.log_softmax(-1)
        return self.scale * (scores.log_softmax(-1) - other) + other
