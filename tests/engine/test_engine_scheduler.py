"""The scheduler without a model: nobody starves, every page has its owners, nothing is left behind."""

import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.fakes import picture, prompt
from engine.fakes import request as request_for
from idefics.engine.handle import Handle
from idefics.engine.job import Job
from idefics.engine.pages import PAGE, Pages
from idefics.engine.plan import Limits, Pick
from idefics.engine.request import Request
from idefics.engine.scheduler import Scheduler
from idefics.errors import BadSetting, EngineBusy


class Frames:
    """Pictures of which so many frames have been encoded."""

    def __init__(self):
        self.encoded = Counter()

    def missing(self, tiles):
        return len(tiles.frames) - self.encoded[tiles.key]


class Steps:
    """A scheduler and a model that is none: ids follow by a rule, beams are drawn, endings are read."""

    def __init__(self, *, pages=20, rows=3, tokens=24, frames=2, queue=99, ahead=False):
        self.frames = Frames()
        limits = Limits(rows=rows, tokens=tokens, alone=2 * tokens, frames=frames, queue=queue, ahead=ahead)
        self.scheduler = Scheduler(Pages(pages), limits, self.frames)
        self.read = {}  # page -> what has been written there, a position each
        self.plans, self.arrived = [], []

    def submit(self, request, room=None):
        handle = Handle(request, lambda handle: None)
        room = request.sampling.max_new_tokens if room is None else room
        job = Job(request, handle, 0 if request.endings is not None else room, beside=False)
        self.scheduler.submit(job)
        self.arrived.append(job)
        return job

    def step(self, fail=()):
        scheduler = self.scheduler
        plan = scheduler.plan()
        self.check()
        limits = scheduler.limits
        assert sum(count for _, count in plan.encode) <= limits.frames
        assert sum(s.end - s.start for s in plan.spans[1:] if s.group is None) <= (
            limits.tokens if plan.decode else limits.alone
        )
        assert len({id(branch) for branch in plan.decode}) == len(plan.decode)
        rows = sum(job.request.rows for job in scheduler.running)
        assert rows <= limits.rows or len(scheduler.running) == 1, "only one wide request runs alone"
        assert len(plan.decode) <= rows
        for job in scheduler.running:
            if not job.is_reading:
                assert all(branch in plan.decode for branch in job.branches), "every row goes on"
        for tiles, count in plan.encode:
            self.frames.encoded[tiles.key] += count
            assert self.frames.missing(tiles) >= 0
        for target, source in plan.copies.items():
            self.read[target] = list(self.read[source])
        spans = [(b, b.read, b.read + 1) for b in plan.decode]
        spans += [(s.branch, s.start, s.end) for s in plan.spans if s.group is None]
        plan.errors.update({job: ValueError("no") for job in fail if job in scheduler.running})
        for branch, start, end in spans:
            self.write(branch, start, end, is_lost=branch.job in plan.errors)
        for branch, _, end in spans:
            if branch.job not in plan.errors:
                self.seen(branch, end)
        scheduler.commit(plan, self.picks(plan))
        self.check()
        self.plans.append(plan)
        return plan

    def write(self, branch, start, end, is_lost):
        for place in range(start, end):
            page = branch.pages[place // PAGE]
            assert self.scheduler.pages.owners[page] == 1, "what is written belongs to one row"
            held = self.read.setdefault(page, [])
            self.read[page] = [*held[: place % PAGE], None if is_lost else branch.ids[place]]

    def seen(self, branch, end):
        """A row's pages hold its own ids: whatever was shared, copied, taken away and read again."""
        held = [id for page in branch.pages for id in self.read.get(page, ())]
        assert held[:end] == branch.ids[:end]

    def picks(self, plan):
        picks = []
        chosen = list(plan.decode) + [s.branch for s in plan.spans if s.is_last]
        for job in dict.fromkeys(branch.job for branch in chosen):
            own = [branch for branch in chosen if branch.job is job]
            width = job.request.rows
            if job in plan.errors:
                continue
            if job.request.endings is not None:
                job.groups = {n: len(ending) for n, ending in enumerate(job.request.endings)}
            elif width == 1:
                picks.append(Pick(job, (following(own[0].ids),)))
            elif len(own[0].ids) == len(job.request.prompt) + job.room - 1:
                job.handle.ids = own[0].ids[len(job.request.prompt) :]
                picks.append(Pick(job, end="length"))
            else:
                parents = [(7 * n) % len(own) for n in range(width)]
                picks.append(Pick(job, [following(own[p].ids) + n for n, p in enumerate(parents)], parents))
        for span in plan.spans:
            job = span.branch.job
            if span.group is not None:
                del job.groups[span.group]
                if not job.groups:
                    picks.append(Pick(job, end="stop"))
        return picks

    def check(self):
        """Every page has exactly its owners, or is free, or is kept."""
        pages = self.scheduler.pages
        pages.check()
        owned = Counter(
            page for job in self.scheduler.running for branch in job.branches for page in branch.pages
        )
        assert owned == Counter({page: n for page, n in enumerate(pages.owners) if n})
        for job in self.scheduler.queue:
            assert not any(branch.pages for branch in job.branches)
        running, queue = list(self.scheduler.running), list(self.scheduler.queue)
        for some in (running, queue):
            assert some == sorted(some, key=self.arrived.index), "in the order in which they came"
        assert not set(running) & set(queue)

    def finish(self, most=3000):
        for _ in range(most):
            if not self.scheduler.is_busy:
                assert not any(self.scheduler.pages.owners)
                return
            self.step()
        raise AssertionError("somebody starves")


def following(ids):
    return 3 + (31 * sum(ids) + len(ids)) % 37


def said(asked, room):
    ids = list(asked.ids)
    for _ in range(room):
        ids.append(following(ids))
    return ids[len(asked) :]


items = st.lists(
    st.integers(3, 6) | st.sampled_from("ab").map(lambda name: picture(name, frames=3)),
    min_size=1,
    max_size=60,
)
asked = st.builds(
    lambda these, room, beams: request_for(prompt("text", *these), max_new_tokens=room, num_beams=beams),
    items,
    st.integers(1, 40),
    st.sampled_from([1, 1, 1, 2, 3]),
)
scored = st.builds(
    lambda these, sizes: Request(prompt("text", *these), endings=tuple((3,) * n for n in sizes)),
    items,
    st.lists(st.integers(1, 30), min_size=1, max_size=4),
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    data=st.data(),
    tokens=st.integers(1, 70),
    rows=st.integers(1, 5),
    pages=st.integers(18, 60),
    ahead=st.booleans(),
)
def test_whatever_comes_and_goes_all_are_served_and_nothing_leaks(data, tokens, rows, pages, ahead):
    steps = Steps(tokens=tokens, rows=rows, pages=pages, ahead=ahead)
    jobs, spoilt = [], set()
    for event in data.draw(st.lists(st.sampled_from("ssscsfsttt"), min_size=1, max_size=40)):
        going = [job for job in jobs if not job.handle.done]
        if event == "s":
            try:
                jobs.append(steps.submit(data.draw(asked | scored)))
            except BadSetting:
                continue
        elif event == "c" and going:
            job = data.draw(st.sampled_from(going))
            steps.scheduler.cancel(job)
            spoilt.add(job)
        elif event == "f" and going:
            job = data.draw(st.sampled_from(going))
            if job in steps.scheduler.running:
                steps.step(fail=[job])
                spoilt.add(job)
        else:
            for _ in range(data.draw(st.integers(1, 9))):
                steps.step()
    steps.finish()
    for job in jobs:
        handle, request = job.handle, job.request
        assert handle.done
        if job in spoilt:
            assert handle.finish_reason == "cancelled" or isinstance(handle.error, ValueError)
        elif request.endings is None and request.rows == 1:
            assert handle.ids == said(request.prompt, job.room), "sent away or not, it says the same"


def test_who_comes_first_is_served_first():
    steps = Steps(rows=2)
    jobs = [
        steps.submit(request_for(prompt("text", n, *range(3, 20)), max_new_tokens=4)) for n in range(3, 9)
    ]
    order = []
    while steps.scheduler.is_busy:
        steps.step()
        order += [n for n, job in enumerate(jobs) if job.handle.done and n not in order]
    assert order == [0, 1, 2, 3, 4, 5]


def test_running_answers_flow_while_a_long_prompt_is_read():
    steps = Steps(tokens=8, pages=40)
    short = steps.submit(request_for(prompt("text", 3), max_new_tokens=30))
    steps.step()
    long = steps.submit(request_for(prompt("text", *range(4, 104)), max_new_tokens=2))
    for count in range(2, 13):
        steps.step()
        assert len(short.handle.ids) == count
        assert long.branches[0].read == 8 * (count - 1)


def test_the_latest_is_sent_away_and_says_the_same():
    steps = Steps(pages=7, rows=4)
    asked = [prompt("text", *range(n, n + 20)) for n in (3, 30, 60)]
    jobs = [steps.submit(request_for(one, max_new_tokens=40)) for one in asked]
    sent_away = set()
    while steps.scheduler.is_busy:
        running = set(steps.scheduler.running)
        steps.step()
        sent_away |= {job for job in running if job in steps.scheduler.queue}
        assert jobs[0] not in sent_away, "the earliest stays"
    assert sent_away
    assert [job.handle.ids for job in jobs] == [said(one, 40) for one in asked]


def test_a_shared_beginning_is_read_once_even_by_those_who_come_together():
    steps = Steps(rows=8, pages=60, tokens=200)
    shots = range(3, 67)
    jobs = [steps.submit(request_for(prompt("text", *shots, n), max_new_tokens=3)) for n in range(3, 9)]
    steps.finish()
    read = Counter(job for plan in steps.plans for span in plan.spans for job in [span.branch.job])
    tokens = sum(span.end - span.start for plan in steps.plans for span in plan.spans)
    assert tokens == 65 + 5 * 1
    assert len(read) == len(jobs)


def test_the_turns_of_a_chat_are_read_once():
    steps = Steps(pages=60, tokens=200)
    first = steps.submit(request_for(prompt("text", *range(3, 43)), max_new_tokens=30))
    steps.finish()
    whole = [*range(3, 43), *first.handle.ids, *range(3, 13)]
    steps.submit(request_for(prompt("text", *whole), max_new_tokens=1))
    plan = steps.step()
    assert plan.spans[0].start == 40 + 29, "the last token of an answer is chosen, and not read"


def test_few_frames_a_step_and_each_picture_once():
    steps = Steps(frames=2, pages=60, tokens=100)
    asked = prompt("text", 3, picture("a", frames=5), 4)
    for _ in range(2):
        steps.submit(request_for(asked, max_new_tokens=1))
    plans = [steps.step() for _ in range(3)]
    assert [sum(count for _, count in plan.encode) for plan in plans] == [2, 2, 1]
    assert plans[0].spans[0][1:3] == (0, 1), "what stands before the picture need not wait"
    steps.finish()


def test_what_can_never_fit_is_refused_with_the_numbers():
    steps = Steps(pages=5)
    with pytest.raises(
        BadSetting, match=r"60 tokens with up to 6 new ones in 1 row takes 80 .* has 64: give fewer"
    ):
        steps.submit(request_for(prompt("text", *[3] * 60), max_new_tokens=6))
    steps.submit(request_for(prompt("text", *[3] * 60), max_new_tokens=5))
    steps.finish()


def test_the_queue_is_bounded():
    steps = Steps(queue=2)
    for _ in range(2):
        last = steps.submit(request_for(prompt("text", 3), max_new_tokens=2))
    with pytest.raises(EngineBusy, match="2 requests are waiting") as caught:
        steps.submit(request_for(prompt("text", 3), max_new_tokens=2))
    assert caught.value.limit == 2
    steps.scheduler.cancel(last)
    steps.submit(request_for(prompt("text", 3), max_new_tokens=2))


def test_an_error_of_a_watcher_is_its_own():
    def watch(id):
        raise LookupError("mine")

    steps = Steps()
    one = steps.submit(request_for(prompt("text", 3), max_new_tokens=5, watch=watch))
    other = steps.submit(request_for(prompt("text", 4), max_new_tokens=5))
    steps.finish()
    assert isinstance(one.handle.error, LookupError)
    assert other.handle.ids == said(other.request.prompt, 5)


def test_the_scheduler_knows_no_torch():
    import subprocess

    code = "import sys, idefics.engine.scheduler, idefics.engine.driver; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})


@pytest.mark.parametrize("read", [0, 15])
def test_what_was_not_read_is_never_found(read):
    """A step fails in which a prompt of two pages, or the last token of a page, was to be read."""
    steps = Steps(tokens=99)
    ids = list(range(3, 36)) if not read else [3]
    one = steps.submit(request_for(prompt("text", *ids), max_new_tokens=99), room=40)
    for _ in range(read):
        steps.step()
    steps.step(fail=[one])
    assert isinstance(one.handle.error, ValueError)
    whole = [*ids, *one.handle.ids, 5, 6]
    again = steps.submit(request_for(prompt("text", *whole), max_new_tokens=1))
    steps.step()
    assert steps.plans[-1].spans[0].start == (1 if read else 0), "what the first step read, and no more"
    assert again.handle.done


def test_a_page_ahead_is_taken_only_where_there_are_enough():
    """A row that fills its last page has the next one a token early, unless others may soon want it."""
    for pages, expected in ((20, 2), (4, 1)):
        steps = Steps(pages=pages, rows=3, ahead=True)
        job = steps.submit(request_for(prompt("text", *[5] * (PAGE - 2)), max_new_tokens=9))
        while job.branches[0].read < PAGE - 1:
            steps.step()
        steps.scheduler.plan()
        assert len(job.branches[0].pages) == expected, pages


def test_groups_of_endings_that_fit_are_read_in_one_step():
    steps = Steps(tokens=24)
    steps.submit(Request(prompt("text", 5, 6), endings=((3,) * 10, (4,) * 10, (5,) * 30)))
    steps.step()
    sizes = [[span.end for span in steps.step().spans] for _ in range(2)]
    assert sizes == [[10, 10], [30]]
