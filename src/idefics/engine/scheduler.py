"""Who is read in the next step, and how far. Plain bookkeeping: no torch, no tensors.

Requests wait in a queue and are admitted in the order in which they came, when there are rows and pages for them. Long
prompts are read in chunks. Every row that answers is read one token further in each step. When pages run out, the
latest arrival gives its own back and waits again in its old place: the earliest is never sent away, so all are served.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from idefics.engine.job import Branch, Job
from idefics.engine.pages import PAGE, Key, Pages
from idefics.engine.plan import Limits, Pick, Plan, Shelf, Span
from idefics.errors import BadSetting, EngineBusy
from idefics.messages import Finish


class Scheduler:
    """The queue, the running jobs and their pages. One caller at a time.

    Attributes:
        found: how many tokens of prompts had been read already, for others, when their turn came.
    """

    def __init__(self, pages: Pages, limits: Limits, shelf: Shelf) -> None:
        self.pages, self.limits, self.shelf = pages, limits, shelf
        self.queue: deque[Job] = deque()  # by arrival
        self.running: list[Job] = []  # by arrival
        self.found = 0

    @property
    def is_busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.running or self.queue)

    @property
    def is_full(self) -> bool:
        """Whether the queue takes no more."""
        return len(self.queue) >= self.limits.queue

    def submit(self, job: Job) -> None:
        """A job joins the queue.

        Raises:
            EngineBusy: the queue is full.
            BadSetting: there are not enough pages for it, even if it were alone.
        """
        wanted, there = job.most_pages, self.pages.count - 1
        if wanted > there:
            raise BadSetting(
                f"a prompt of {len(job.request.prompt)} tokens with up to {job.room} new ones in "
                f"{job.request.rows} row{'s' * (job.request.rows > 1)} takes {wanted * PAGE} positions of the cache, "
                f"which has {there * PAGE}: give fewer max_new_tokens or num_beams, or a larger kv_cache (--kv-cache)"
            )
        if self.is_full:
            raise EngineBusy(self.limits.queue)
        self.queue.append(job)

    def cancel(self, job: Job) -> None:
        """Ends a job that is not done; if it is running, its pages are given back after the step."""
        if not job.handle.done:
            job.handle.finish("cancelled")
        if job in self.queue:
            self.queue.remove(job)

    def plan(self) -> Plan:
        """The next step."""
        self._reap()
        plan = Plan()
        for job in list(self.running):
            if job in self.running and not job.is_reading:
                self._decode(job, plan)
        frames = self.limits.frames
        tokens = self.limits.tokens if plan.decode else self.limits.alone
        for job in self.running:
            if job.is_reading:
                frames, tokens = self._read(job, plan, frames, tokens)
        while self.queue and tokens > 0 and self._admit(plan):
            frames, tokens = self._read(self.running[-1], plan, frames, tokens)
        return plan

    def commit(self, plan: Plan, picks: list[Pick]) -> None:
        """What was read and chosen is written down; who has ended gives pages back."""
        for branch in plan.decode:
            if branch.job not in plan.errors:
                branch.read += 1
                if branch.read % PAGE == 0:
                    self._publish(branch)
        for span in plan.spans:
            if span.group is None and span.branch.job not in plan.errors:
                span.branch.read = span.end
                self._publish(span.branch)
        for pick in picks:
            if not pick.job.handle.done:
                self._follow(pick)
        for job, error in plan.errors.items():
            if not job.handle.done:
                job.handle.fail(error)
        self._reap()

    def fail(self, error: Exception) -> None:
        """Ends every job."""
        for job in (*self.running, *self.queue):
            if not job.handle.done:
                job.handle.fail(error)
        self.queue.clear()
        self._reap()

    def in_use(self) -> set[str]:
        """Keys of the pictures that running jobs have still to read or see."""
        return {
            job.request.prompt.pictures[sight.picture].key
            for job in self.running
            for sight in job.sights
            if sight.last >= min(branch.read for branch in job.branches)
        }

    def _decode(self, job: Job, plan: Plan) -> None:
        """Plans one more token of each of a job's rows, if there are pages for it."""
        for branch in job.branches:
            number = branch.read // PAGE
            is_new = number == len(branch.pages)
            if is_new or self.pages.owners[branch.pages[number]] > 1:
                while not self.pages.room:
                    latest = self.running[-1]
                    self._preempt(latest)
                    if latest is job:
                        return
                page = self.pages.take()
                plan.has_moved = True
                if is_new:
                    branch.pages.append(page)
                else:  # shared with another beam: from here on they differ
                    plan.copies[page] = branch.pages[number]
                    self.pages.release([branch.pages[number]])
                    branch.pages[number] = page
            is_full = (branch.read + 1) // PAGE == len(branch.pages)
            if self.limits.ahead and is_full and self.pages.room > self.limits.rows:
                branch.pages.append(self.pages.take())
                plan.has_moved = True
        plan.decode += job.branches

    def _read(self, job: Job, plan: Plan, frames: int, tokens: int) -> tuple[int, int]:
        """Plans the next chunk of a prompt, or of endings: -> how many frames and tokens are left."""
        if tokens <= 0:
            return frames, tokens
        if job.groups:
            for number, count in job.groups.items():
                if count > tokens and plan.spans:
                    break
                plan.spans.append(Span(job.branches[0], 0, count, number))
                tokens -= count
            return frames, tokens
        (branch,) = job.branches
        end = min(len(branch.ids), branch.read + tokens)
        for sight in job.sights:
            if sight.last < branch.read or sight.first >= end:
                continue
            tiles = job.request.prompt.pictures[sight.picture]
            missing = self.shelf.missing(tiles)
            if missing:
                plan.readers.append(job)
            missing -= sum(count for other, count in plan.encode if other.key == tiles.key)
            if now := min(missing, frames):
                plan.encode.append((tiles, now))
                frames -= now
            if now < missing:
                end = max(sight.first, branch.read)
        if end > branch.read:
            plan.spans.append(Span(branch, branch.read, end))
        return frames, tokens - (end - branch.read)

    def _admit(self, plan: Plan) -> bool:
        """Lets the first of the queue run, if there is room: whether it does."""
        job = self.queue[0]
        rows = sum(other.request.rows for other in self.running)
        if self.running and rows + job.request.rows > self.limits.rows:
            return False
        (branch,) = job.branches
        last = len(branch.ids) - 1  # it is read in any case, for what follows it
        keys = branch.keys.upto(branch.ids, last)
        found = self.pages.find(keys)
        if len(found) < len(keys) and keys[len(found)] in self._promised():
            return False  # another is reading the same beginning: in a step or so it can be shared
        after = branch.keys.content(branch.ids, len(found), last)
        part, count = self.pages.partly(after.after, after.marks)
        candidates, known = [*found, part], branch.keys.outside(len(found) * PAGE + count)
        growing = sum(
            len(other.branches) for other in self.running
        )  # a page each, or they would soon be sent away
        while True:
            full = known // PAGE
            shared, begun = candidates[:full], candidates[full:][: min(known % PAGE, 1)]  # the last is copied
            new = -(-len(branch.ids) // PAGE) - full
            room = self.pages.room - sum(not self.pages.owners[page] for page in (*shared, *begun))
            if new + growing <= room:
                break
            if self.running or not begun:
                return False
            known = branch.keys.outside(full * PAGE)  # the copied page is in the way
        self.pages.share(shared + begun)
        branch.pages = shared + [self.pages.take() for _ in range(new)]
        if begun:
            plan.copies[branch.pages[len(shared)]] = begun[0]
        self.pages.release(begun)
        branch.read, branch.published = known, len(shared)
        self.found += known
        if job.handle.cached is None:  # one that was sent away finds what it has read itself
            job.handle.cached = known
        self.running.append(self.queue.popleft())
        return True

    def _promised(self) -> set[Key]:
        """What will be published as soon as it is read."""
        return {key for job in self.running if job.is_reading for key in job.branches[0].unpublished()}

    def _preempt(self, job: Job) -> None:
        """Sends a job, the latest, back to its place in the queue: nothing of it is planned yet."""
        self.running.remove(job)
        self._release(job)
        job.start_over()
        self.queue.appendleft(job)

    def _follow(self, pick: Pick) -> None:
        job = pick.job
        if pick.parents is not None:
            self._fork(job, pick.parents, pick.ids)
            return
        try:
            if pick.end is not None:
                self._end(job, pick.end)
            else:
                self._answer(job, pick)
        except Exception as error:  # of the caller's `watch`
            job.handle.fail(error)

    def _answer(self, job: Job, pick: Pick) -> None:
        handle, request, id = job.handle, job.request, pick.ids[0]
        if id in request.stop_ids:
            handle.finish("stop")
            return
        ends = request.watch is not None and request.watch(id)
        handle.push(id, pick.logprob, pick.top)
        if ends:
            handle.finish("stop")
        elif len(handle.ids) == job.room:
            handle.finish("length")
        else:
            job.branches[0].ids.append(id)

    def _end(self, job: Job, reason: Finish) -> None:
        """An answer that came as a whole."""
        handle, watch = job.handle, job.request.watch
        for count, id in enumerate(handle.ids if watch is not None else (), start=1):
            if watch is not None and watch(id):
                handle.ids, handle.logprobs = handle.ids[:count], handle.logprobs[:count]
                reason = "stop"
                break
        handle.finish(reason)

    def _fork(self, job: Job, parents: Sequence[int], ids: Sequence[int]) -> None:
        """Each new row goes on with another id after one of the old ones, and shares its pages."""
        before = job.branches
        job.branches = [before[parent].fork(id) for parent, id in zip(parents, ids, strict=True)]
        for branch in job.branches:
            self.pages.share(branch.pages)
        for branch in before:
            self.pages.release(branch.pages)

    def _publish(self, branch: Branch) -> None:
        """What has been read can be found: whole pages, and what there is of the last one where others may go on."""
        full = branch.read // PAGE
        pages = range(branch.published, full + (branch.read % PAGE > 0))
        for number in pages:
            self.pages.publish(branch.pages[number], branch.keys.content(branch.ids, number, branch.read))
        branch.published = full

    def _reap(self) -> None:
        """Who is done gives pages back."""
        for job in [job for job in self.running if job.handle.done]:
            self.running.remove(job)
            if job.handle.error is None:
                for branch in job.branches:
                    self._publish(branch)
            self._release(job)
            job.branches = []

    def _release(self, job: Job) -> None:
        for branch in job.branches:
            self.pages.release(branch.pages)
            branch.pages = []
