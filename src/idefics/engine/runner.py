"""A planned step as tensors: pictures are encoded, prompts read, rows read one token further.

Knows the model and the cache; chooses no tokens. N packed tokens, D width, R rows, V vocabulary.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from idefics.engine.attention import Chunk, PagedAttn
from idefics.engine.cache import PagedCache
from idefics.engine.contract import VLM
from idefics.engine.decode import DecodeRows, DecodeStep
from idefics.engine.encode import Pictures
from idefics.engine.job import Branch, Job
from idefics.engine.pages import PAGE
from idefics.engine.plan import Plan, Span
from idefics.engine.score import Tree
from idefics.nn.attention import Memory

NOTHING: Memory = ()  # what a token sees that sees no picture


class Read(NamedTuple):
    """What a step has read.

    Attributes:
        branches: the R rows after which a token is chosen.
        logits: (R, V) float32.
        endings: of spans that are endings the hidden states (n, D).
    """

    branches: list[Branch]
    logits: list[Tensor]
    endings: list[tuple[Span, Tensor]]


class Runner:
    """Runs plans. While the same rows are read one token further, their tensors stay.

    Attributes:
        ahead: whether rows are read further as soon as their ids are chosen, before the host knows which they are: for
            a device that computes by itself, which would wait for the host else. A row that turns out to have ended has
            then been read in vain, on a page that nobody else had yet.

    Args:
        device: where ids are looked up.
    """

    def __init__(
        self,
        model: VLM,
        cache: PagedCache,
        decode: DecodeStep,
        pictures: Pictures,
        device: torch.device,
        *,
        ahead: bool,
    ) -> None:
        self.model, self.cache, self.decode, self.pictures = model, cache, decode, pictures
        self.device, self.ahead = device, ahead
        self._started: tuple[list[Branch], Tensor] | None = (
            None  # rows that were read ahead, and their logits
        )
        self._going: list[Branch] = []  # the rows of `_rows`
        self._rows: DecodeRows | None = None
        self._chosen: tuple[list[Branch], Tensor] = ([], torch.empty(0))

    def chose(self, branches: list[Branch], ids: Tensor) -> None:
        """(R,) the ids that follow: where the same rows go on, they need not leave the device."""
        self._chosen = branches, ids
        if self.ahead and branches == self._going and all(map(_has_room, branches)):
            try:
                self._started = branches, self.decode(self._next(branches, has_moved=False))
            except Exception:  # it comes again in the step itself, where it is told
                self._going = []

    def took_another(self) -> None:
        """Some row takes another id than was `chosen`: what was read ahead is read again."""
        self._going, self._started = [], None

    def run(self, plan: Plan) -> Read:
        """One step. An error of one job is written into the plan, and the others go on."""
        if plan.encode:
            errors = self.pictures.encode(plan.encode)
            for job in plan.readers:
                for tiles in job.request.prompt.pictures:
                    if tiles.key in errors:
                        plan.errors[job] = errors[tiles.key]
        if plan.copies:
            self.cache.copy(list(plan.copies.values()), list(plan.copies))
        decode = [branch for branch in plan.decode if branch.job not in plan.errors]
        spans = [span for span in plan.spans if span.branch.job not in plan.errors]
        try:
            return self._run(decode, spans, plan.has_moved)
        except Exception as error:
            self._going = []
            jobs = list(dict.fromkeys(b.job for b in (*decode, *(span.branch for span in spans))))
            if len(jobs) == 1:
                plan.errors[jobs[0]] = error
                return Read([], [], [])
            return self._apart(jobs, decode, spans, plan)

    def _apart(self, jobs: Sequence[Job], decode: list[Branch], spans: list[Span], plan: Plan) -> Read:
        """Each job by itself, after they have failed together. What they have written is written again."""
        read = Read([], [], [])
        for job in jobs:
            try:
                one = self._run(
                    [branch for branch in decode if branch.job is job],
                    [span for span in spans if span.branch.job is job],
                    has_moved=True,
                )
            except Exception as error:
                plan.errors[job] = error
            else:
                read.branches.extend(one.branches)
                read.logits.extend(one.logits)
                read.endings.extend(one.endings)
        self._going = []
        return read

    def _run(self, decode: list[Branch], spans: Sequence[Span], has_moved: bool) -> Read:
        read = Read([], [], [])
        if decode:
            read.branches.extend(decode)
            read.logits.append(self._decoded(decode, has_moved))
        else:
            self._started = None
        if spans:
            h, ends = self._read(spans)
            last = [(span, end) for span, end in zip(spans, ends, strict=True) if span.is_last]
            if last:
                read.branches.extend(span.branch for span, _ in last)
                rows = torch.tensor([end - 1 for _, end in last], device=h.device)
                read.logits.append(self.model.logits(h[rows]).float())
            read.endings.extend(
                (span, h[end - span.end : end])
                for span, end in zip(spans, ends, strict=True)
                if span.group is not None
            )
        return read

    def _decoded(self, branches: list[Branch], has_moved: bool) -> Tensor:
        """(R, V): the rows read one token further, if they have not been."""
        if self._started is None:
            return self.decode(self._next(branches, has_moved))
        (started, logits), self._started = self._started, None
        if branches == started:
            if has_moved and self._rows is not None:
                self._rows.tables = self._tables(branches)
            return logits
        places = {branch: row for row, branch in enumerate(started)}
        if places.keys() >= set(branches):
            return logits[torch.tensor([places[branch] for branch in branches], device=logits.device)]
        return self.decode(self._next(branches, has_moved))

    def _next(self, branches: list[Branch], has_moved: bool) -> DecodeRows:
        """Rows as tensors; those of the step before where they have not changed."""
        rows = self._rows
        if rows is None or branches != self._going:
            last = [branch.read for branch in branches]
            memories = [self._seen(branch) for branch in branches] if self.cache.layout.cross_layers else ()
            rows = DecodeRows(
                ids=torch.tensor([branch.ids[-1] for branch in branches], device=self.device),
                positions=torch.tensor(last, device=self.device),
                tables=self._tables(branches),
                memories=memories or [NOTHING] * len(branches),
                longest=max(last),
                shortest=min(last),
            )
            self._going, self._rows = branches, rows
            return rows
        rows.positions += 1
        rows.longest, rows.shortest = rows.longest + 1, rows.shortest + 1
        if has_moved:
            rows.tables = self._tables(branches)
        chosen, ids = self._chosen
        if chosen == branches:
            rows.ids = ids
        else:
            rows.ids = torch.tensor([branch.ids[-1] for branch in branches], device=self.device)
        return rows

    def _tables(self, branches: Sequence[Branch]) -> Tensor:
        longest = max(len(branch.pages) for branch in branches)
        tables = [branch.pages + [0] * (longest - len(branch.pages)) for branch in branches]
        return torch.tensor(tables, dtype=torch.int32, device=self.device)

    def _seen(self, branch: Branch) -> Memory:
        """What a row's next token sees: what the last of its prompt saw."""
        prompt = branch.job.request.prompt
        index = prompt.sees[-1]
        return self.pictures.memory(prompt.pictures[index]) if index >= 0 else NOTHING

    def _read(self, spans: Sequence[Span]) -> tuple[Tensor, list[int]]:
        """Reads spans, packed, in one pass: -> (N, D) and where each ends."""
        edges = list(accumulate((span.end - span.start for span in spans), initial=0))
        ids, positions, chunks, looks = [], [], [], []
        for span, (start, end) in zip(spans, pairwise(edges), strict=True):
            branch, tokens = span.branch, slice(start, end)
            if span.group is None:
                ids.append(torch.tensor(branch.ids[span.start : span.end]))
                positions.append(torch.arange(span.start, span.end))
                chunks.append(Chunk(tokens, span.start, branch.pages))
                looks += list(self._looks(span, start))
            else:
                tree: Tree = branch.job.search.trees[span.group]
                ids.append(tree.ids)
                positions.append(branch.read + tree.depths)
                chunks.append(Chunk(tokens, branch.read, branch.pages, tree.sees, tree.depths))
                if self.cache.layout.cross_layers and (memory := self._seen(branch)):
                    looks.append((tokens, memory))
        x = self.model.embed(torch.cat(ids).to(self.device))  # (N, D)
        if not self.cache.layout.cross_layers:
            for span, start in zip(spans, edges, strict=False):
                if span.group is None:
                    self._place(x, span, start)
        attn = PagedAttn(self.cache, chunks, looks, self.model.kernel)
        return self.model.forward(x, torch.cat(positions).to(x.device), attn), edges[1:]

    def _place(self, x: Tensor, span: Span, start: int) -> None:
        """Writes what of pictures stands in a span over its part of (N, D) embeddings."""
        prompt = span.branch.job.request.prompt
        for tiles, places in zip(prompt.pictures, prompt.places, strict=True):
            first, last = bisect_left(places, span.start), bisect_left(places, span.end)
            if first < last:
                where = torch.tensor(places[first:last], device=x.device) + (start - span.start)
                x[where] = self.pictures.features(tiles)[first:last].to(x.device)

    def _looks(self, span: Span, start: int) -> Iterator[tuple[slice, Memory]]:
        """Stretches of a span's packed tokens that see one picture beside the text, and what they see."""
        if not self.cache.layout.cross_layers:
            return
        prompt = span.branch.job.request.prompt
        sees = [prompt.sees[min(token, len(prompt) - 1)] for token in range(span.start, span.end)]
        for index, run in groupby(sees):
            count = len(list(run))
            if index >= 0:
                yield slice(start, start + count), self.pictures.memory(prompt.pictures[index])
            start += count


def _has_room(branch: Branch) -> bool:
    """Whether a row has a page for the token after the one that is being read."""
    return (branch.read + 1) // PAGE < len(branch.pages)
