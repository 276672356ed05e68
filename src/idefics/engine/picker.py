"""What follows for every job of a step: a token of each row that samples, new beams, the scores of endings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice, starmap
from typing import Any

import torch
from torch import Tensor

from idefics.engine.beams import BeamRules, BeamSearch
from idefics.engine.constraints import present_ids
from idefics.engine.contract import VLM
from idefics.engine.job import Branch, Job
from idefics.engine.plan import Pick, Plan
from idefics.engine.request import BeamGuide
from idefics.engine.runner import Read, Runner
from idefics.engine.sampler import Sampler, generator, ids_mask, penalise
from idefics.engine.score import Scores
from idefics.engine.token_masks import forbidden_ids
from idefics.messages import Alternative


class Picker:
    """Turns what has been read into what follows. While the same rows go on, their settings stay as they are.

    Args:
        runner: is told the ids, which it will read next.
    """

    def __init__(self, model: VLM, runner: Runner) -> None:
        self.model, self.runner = model, runner
        self.vocabulary = model.layout.vocabulary
        self._rows: list[Branch] = []
        self._sampler: Sampler | None = None
        self._sent = sent if runner.ahead else at_once

    def pick(self, plan: Plan, read: Read) -> list[Pick]:
        """One pick for each job that has something to follow. An error of one job is written into the plan."""
        picks: list[Pick] = []
        if read.branches:
            logits = read.logits[0] if len(read.logits) == 1 else torch.cat(read.logits)
            plain = [row for row, branch in enumerate(read.branches) if _samples(branch.job)]
            if len(plain) == len(read.branches):
                picks += self._sample(plan, read.branches, logits)
            else:
                if plain:
                    picks += self._sample(plan, [read.branches[row] for row in plain], logits[plain])
                picks += self._searches(plan, read.branches, logits)
        for span, h in read.endings:
            job, group = span.branch.job, span.group
            assert group is not None, "endings are read in groups"
            try:
                job.search.read(group, h, self.model.logits)
            except Exception as error:
                plan.errors[job] = error
            else:
                del job.groups[group]
                picks += _scored(job)
        return picks

    def _sample(self, plan: Plan, branches: list[Branch], logits: Tensor) -> list[Pick]:
        """Rows that sample, greedy ones among them, all at once; each alone if that fails."""
        try:
            if self._sampler is None or branches != self._rows:
                self._sampler, self._rows = self._settings(branches, logits.device), branches
            chosen = self._sampler.choose(logits)
            ids = self._sent(chosen.ids)
            thoughts = [None if one is None else self._sent(one) for one in chosen[1:]]
        except Exception as error:
            self._sampler = None
            if len(branches) == 1:
                plan.errors[branches[0].job] = error
                return []
            return [
                pick
                for row, branch in enumerate(branches)
                for pick in self._sample(plan, [branch], logits[row : row + 1])
            ]
        self.runner.chose(branches, chosen.ids)
        picks = _picked(branches, ids(), *(None if one is None else one() for one in thoughts))
        return self._settled(plan, picks, logits) if self._sampler.guides else picks

    def _settled(self, plan: Plan, picks: list[Pick], logits: Tensor) -> list[Pick]:
        """What guides say to the ids of their rows, (R, V) logits."""
        settled, sampler = list(picks), self._sampler
        assert sampler is not None, "it has just chosen"
        for row, pick in enumerate(picks):
            job, id = pick.job, pick.ids[0]
            if (guide := job.request.guide) is None:
                continue
            try:
                taken = guide.settle(id, job.room - len(job.handle.ids) - 1)
            except Exception as error:
                plan.errors[job] = error
                continue
            if taken != id:
                logprob = None if pick.logprob is None else sampler.logprob(logits, row, taken)
                settled[row] = pick._replace(ids=(taken,), logprob=logprob)
                self._sampler = None  # it has counted the other one
                self.runner.took_another()
        return [pick for pick in settled if pick.job not in plan.errors]

    def _settings(self, branches: list[Branch], device: torch.device) -> Sampler:
        for branch in branches:
            sampling = branch.job.request.sampling
            if sampling.temperature > 0 and branch.job.draws is None:
                branch.job.draws = generator(sampling.seed, device)
        return Sampler(
            [branch.job.request for branch in branches],
            [branch.ids for branch in branches],
            [branch.job.draws for branch in branches],
            self.vocabulary,
            device,
        )

    def _searches(self, plan: Plan, branches: list[Branch], logits: Tensor) -> list[Pick]:
        """Beams, and prompts whose endings are to be read."""
        rows: dict[Job, list[int]] = {}
        for row, branch in enumerate(branches):
            if not _samples(branch.job):
                rows.setdefault(branch.job, []).append(row)
        picks: list[Pick] = []
        for job, own in rows.items():
            try:
                picks += self._search(job, logits[own])
            except Exception as error:
                plan.errors[job] = error
        return picks

    def _search(self, job: Job, logits: Tensor) -> list[Pick]:
        endings = job.request.endings
        if endings is not None:
            job.search = Scores(endings, logits[0], job.request.sampling.top_logprobs)
            job.groups = {number: len(tree) for number, tree in job.search.trees.items()}
            return _scored(job)
        if job.search is None:
            job.search = Beaming(job, self.vocabulary, logits.device)
        return [job.search.advance(logits)]


def _picked(
    branches: Sequence[Branch],
    ids: list[int],
    logprobs: list[float] | None,
    top_ids: list[list[int]] | None,
    top_logprobs: list[list[float]] | None,
) -> list[Pick]:
    """A pick for each row, with what it asked for."""
    picks = []
    for row, branch in enumerate(branches):
        sampling = branch.job.request.sampling
        pick = Pick(branch.job, (ids[row],))
        if logprobs is not None and sampling.logprobs:
            pick = pick._replace(logprob=logprobs[row])
        if top_ids is not None and top_logprobs is not None:
            pairs = zip(top_ids[row], top_logprobs[row], strict=True)
            pick = pick._replace(top=tuple(starmap(Alternative, islice(pairs, sampling.top_logprobs))))
        picks.append(pick)
    return picks


def at_once(numbers: Tensor) -> Callable[[], list[Any]]:
    """What has the numbers, which the host has waited for."""
    found = numbers.tolist()
    return lambda: found


def sent(numbers: Tensor) -> Callable[[], list[Any]]:
    """Sends numbers from CUDA to the host: -> what waits for them, and for nothing that is computed meanwhile."""
    there = torch.empty_like(numbers, device="cpu", pin_memory=True).copy_(numbers, non_blocking=True)
    arrival = torch.cuda.Event()
    arrival.record(torch.cuda.current_stream(numbers.device))

    def received() -> list[Any]:
        arrival.synchronize()
        return there.tolist()

    return received


class Beaming:
    """One request's beams. n of them, V vocabulary.

    The search is that of transformers' `generate(num_beams=n)`: a repetition penalty acts on log-probabilities, and
    banned ids lose theirs afterwards. `logprobs` are, as in sampling, of the model's own distribution with banned ids
    left out.
    """

    def __init__(self, job: Job, vocabulary: int, device: torch.device) -> None:
        self.job, request = job, job.request
        self.stop_ids = torch.tensor(sorted(request.stop_ids), dtype=torch.long, device=device)
        self.banned = ids_mask(request.banned_ids, vocabulary, device)  # (V,)
        width = request.sampling.num_beams
        rules = BeamRules(
            width=width,
            room=job.room,
            candidates=min(max(2, 1 + len(request.stop_ids)) * width, width * vocabulary),
        )
        self.search = BeamSearch(torch.tensor([request.prompt.ids], device=device), rules, fill=0)

    def advance(self, logits: Tensor) -> Pick:
        """(n, V), or (1, V) after the prompt -> the next id of each beam, or the end."""
        request, search = self.job.request, self.search
        is_first = len(logits) == 1
        logits = logits.expand(request.sampling.num_beams, -1)
        scores = logits.log_softmax(-1)
        if request.sampling.repetition_penalty != 1:
            starts = torch.zeros(len(search.ids), dtype=torch.long, device=logits.device)
            present = present_ids(search.ids, logits.shape[1], starts)
            scores = penalise(scores, present, request.sampling.repetition_penalty)
        scores = scores.masked_fill(self.banned, -torch.inf)
        if request.beam_guide is not None:
            scores = self._guided(scores, request.beam_guide)
        thoughts = None
        if request.sampling.logprobs:
            thoughts = logits.masked_fill(self.banned, -torch.inf).log_softmax(-1)
        rows = search.advance(scores, self._ends, thoughts)
        if search.is_over:
            return self._end()
        parents = [0] * len(rows) if is_first else rows.tolist()
        return Pick(self.job, search.ids[:, -1].tolist(), parents)

    def _guided(self, scores: Tensor, guide: BeamGuide) -> Tensor:
        """(n, V) scores without the ids that may not follow in each beam."""
        length = len(self.job.request.prompt)
        beams = [guide.allowed_after(ids[length:]) for ids in self.search.ids.tolist()]
        forbidden = forbidden_ids([bits for bits, _ in beams], scores.shape[1], scores.device)
        forced = torch.tensor([[is_forced] for _, is_forced in beams], device=scores.device)
        scores = scores.masked_fill(forced, 0).masked_fill(forbidden, -torch.inf)
        return scores.log_softmax(-1) if guide.renormalizes else scores

    def _ends(self, ids: Tensor) -> Tensor:
        """(C, T) -> (C,) which of the candidates end here."""
        if ids.shape[1] == len(self.job.request.prompt) + self.job.room:
            return torch.ones(len(ids), dtype=torch.bool, device=ids.device)
        return torch.isin(ids[:, -1], self.stop_ids)

    def _end(self) -> Pick:
        request, handle = self.job.request, self.job.handle
        best = self.search.best(1)
        ids = best.ids[0, len(request.prompt) :].tolist()
        stopped = ids[-1] in request.stop_ids
        kept = slice(len(ids) - stopped)
        if request.sampling.logprobs:
            handle.logprobs = best.logprobs[0, kept].tolist()
        handle.ids = ids[kept]
        return Pick(self.job, end="stop" if stopped else "length")


def _samples(job: Job) -> bool:
    return job.request.endings is None and job.request.sampling.num_beams == 1


def _scored(job: Job) -> list[Pick]:
    """The end of a ranking, once all groups of its endings have been read."""
    if job.groups:
        return []
    job.handle.scores, job.handle.score_tops = job.search.scores, job.search.tops
    return [Pick(job, end="stop")]
