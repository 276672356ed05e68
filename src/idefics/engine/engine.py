"""The engine: prompts in, ids out. Simple and exact: rows of a batch start together and leave one by one.

Knows ids and the tensors of pictures; no text and no families.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from itertools import chain

import torch
from torch import Tensor

from idefics.config import EngineConfig
from idefics.engine.beam import beam_search
from idefics.engine.contract import VLM
from idefics.engine.encode import Pictures
from idefics.engine.request import Request, Sequence
from idefics.engine.runner import decode, prefill
from idefics.engine.sampler import Chosen, Sampler
from idefics.engine.score import Ending, score_endings
from idefics.engine.slow import SlowTwin
from idefics.errors import BadPrompt, PromptTooLong
from idefics.prompt import Prompt, Tiles

Step = list[tuple[Sequence, int]]  # the tokens chosen in one step, and whose they are


class Engine:
    """Continues prompts with a model, on the model's device and in its dtype.

    Every call raises, before any work, PromptTooLong for a prompt that leaves no room, and BadPrompt for an
    empty one or for ids that the model does not have.
    """

    def __init__(self, model: VLM, config: EngineConfig) -> None:
        self.model, self.config = model, config

    def run(self, sequences: Iterable[Sequence]) -> Generator[Step, None, None]:
        """Answers prompts together, `batch_rows` at a time, by sampling or greedily.

        Yields what each step has chosen, stop ids left out, until all have finished: "stop" on a stop id,
        "length" at `max_new_tokens` or when the model's positions are full. Between steps the caller may
        `finish` a sequence. Closing the generator frees everything and leaves the unfinished "cancelled".
        `num_beams` is for `beam`.
        """
        sequences = list(sequences)
        for sequence in sequences:
            self._check(sequence.request.prompt)
        return self._run(sequences)

    @torch.inference_mode()  # around each step; the caller between steps is outside of it
    def _run(self, sequences: list[Sequence]) -> Generator[Step, None, None]:
        rows = self.config.batch_rows
        batches = [sequences[start : start + rows] for start in range(0, len(sequences), rows)]
        last_use = {tiles.key: number for number, batch in enumerate(batches) for tiles in _pictures(batch)}
        pictures = Pictures(self.model, self.config.encode_frames)
        try:
            for number, batch in enumerate(batches):
                unfinished = [sequence for sequence in batch if sequence.finish_reason is None]
                pictures.read(_pictures(unfinished))
                yield from self._answer(unfinished, pictures)
                pictures.forget(tiles for tiles in _pictures(batch) if last_use[tiles.key] == number)
        finally:
            for sequence in sequences:
                if sequence.finish_reason is None:
                    sequence.finish("cancelled")

    def _answer(self, batch: list[Sequence], pictures: Pictures) -> Generator[Step, None, None]:
        """Reads the prompts; then chooses a token for each row and reads it, until every row has finished."""
        if not batch:
            return
        cache, h = prefill(self.model, [sequence.request.prompt for sequence in batch], pictures)
        logits = self.model.logits(h)
        requests = [sequence.request for sequence in batch]
        sampler = Sampler(requests, self.model.layout.vocabulary, logits.device)
        while True:
            chosen = sampler.choose(logits)
            yield self._commit(batch, chosen)
            going = [row for row, sequence in enumerate(batch) if sequence.finish_reason is None]
            if not going:
                return
            batch = [batch[row] for row in going]
            cache.select(going)
            sampler.select(going)
            logits = self.model.logits(decode(self.model, cache, chosen.ids[going]))

    def _commit(self, batch: list[Sequence], chosen: Chosen) -> Step:
        """Writes the chosen tokens down and finishes the rows that end with them."""
        step: Step = []
        logprobs = [0.0] * len(batch) if chosen.logprobs is None else chosen.logprobs.tolist()
        for sequence, id, logprob in zip(batch, chosen.ids.tolist(), logprobs, strict=True):
            if id in sequence.request.stop_ids:
                sequence.finish("stop")
                continue
            sequence.ids.append(id)
            if sequence.request.sampling.logprobs:
                sequence.logprobs.append(logprob)
            if len(sequence.ids) == self._room(sequence.request):
                sequence.finish("length")
            step.append((sequence, id))
        return step

    @torch.inference_mode()
    def beam(self, sequence: Sequence) -> None:
        """Answers one prompt by beam search, from beginning to end, with the best of `num_beams` beams."""
        prompt = sequence.request.prompt
        self._check(prompt)
        beam_search(self.model, sequence, self._room(sequence.request), self._read(prompt))

    @torch.inference_mode()
    def score(self, prompt: Prompt, endings: Iterable[Ending]) -> list[list[float]]:
        """The natural-log probability of each token of each ending, if it followed the prompt.

        The prompt and its pictures are read once, the endings together after it. Probabilities are the
        model's own: nothing is banned.
        """
        endings = list(endings)
        longest = max((len(ending) for ending in endings), default=0)
        self._check(prompt, room=longest, after=chain.from_iterable(endings))
        return score_endings(self.model, prompt, endings, self._read(prompt))

    @torch.no_grad()  # not inference_mode: the caller may go on computing with an ordinary tensor
    def logits(self, prompt: Prompt) -> Tensor:
        """(N, V) float32: after each token of a prompt, the logits of the next. One pass, nothing cached."""
        self._check(prompt, room=0)
        return self.model.logits(SlowTwin(self.model, prompt).hidden()).float()

    def _read(self, prompt: Prompt) -> Pictures:
        pictures = Pictures(self.model, self.config.encode_frames)
        pictures.read(prompt.pictures)
        return pictures

    def _room(self, request: Request) -> int:
        """How many tokens the answer may have."""
        return min(request.sampling.max_new_tokens, self.model.layout.max_positions - len(request.prompt))

    def _check(self, prompt: Prompt, room: int = 1, after: Iterable[int] = ()) -> None:
        """That the model has the ids of a prompt and `after` it, and `room` for so many more."""
        layout = self.model.layout
        if not prompt.ids:
            raise BadPrompt("the prompt is empty: give text, pictures or both")
        if len(prompt) + room > layout.max_positions:
            raise PromptTooLong(len(prompt), layout.max_positions - room, len(prompt.pictures))
        highest = max(chain(prompt.ids, after))
        if highest >= layout.vocabulary:  # on a GPU it would end the process's use of the device
            raise BadPrompt(
                f"the prompt has token {highest}, but this model's tokens are 0 to {layout.vocabulary - 1}: "
                "leave it out, or use the tokenizer of the same checkpoint"
            )


def _pictures(sequences: Iterable[Sequence]) -> Iterator[Tiles]:
    """Every picture of every prompt."""
    return (tiles for sequence in sequences for tiles in sequence.request.prompt.pictures)
