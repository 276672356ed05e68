"""The scheduler without a model: every request finishes, pages are shared correctly, nothing leaks."""

import sys
from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.fakes import check_page_pool, make_prompt, make_request, make_tiles
from idefics.config import EngineConfig
from idefics.engine import scheduler as scheduler_module
from idefics.engine.handle import RequestHandle
from idefics.engine.page_pool import PAGE_SIZE, PagePool
from idefics.engine.request import Request
from idefics.engine.request_state import (
    BeamSearchResult,
    NextBeams,
    RequestState,
    SampledToken,
)
from idefics.engine.scheduler import Scheduler
from idefics.errors import BadSetting, EngineBusy


@pytest.fixture(autouse=True, scope="module")
def two_chunks_in_idle_steps():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduler_module, "IDLE_PREFILL_FACTOR", 2)
        yield


class FakeEncoderCache:
    """Counts encoded frames by picture."""

    def __init__(self):
        self.num_encoded_frames = Counter()

    def count_missing_frames(self, tiles):
        return len(tiles.frames) - self.num_encoded_frames[tiles.content_hash]


class SchedulerSimulation:
    """A scheduler with a simulated model: next ids and beams follow a rule; page contents are checked."""

    def __init__(self, *, pages=20, rows=3, tokens=24, frames=2, queue=99, launches_ahead=False):
        self.encoder_cache = FakeEncoderCache()
        config = EngineConfig(batch_rows=rows, step_tokens=tokens, encode_frames=frames, waiting=queue)
        self.scheduler = Scheduler(
            PagePool(pages), config, self.encoder_cache, uses_lookahead_pages=launches_ahead
        )
        self.ids_by_page = {}  # page -> what has been written there, a position each
        self.scheduler_outputs, self.states_in_order = [], []

    def submit(self, request, max_new_tokens=None):
        handle = RequestHandle(request, lambda handle: None)
        max_new_tokens = request.sampling.max_new_tokens if max_new_tokens is None else max_new_tokens
        state = RequestState(
            request,
            handle,
            0 if request.continuations is not None else max_new_tokens,
            uses_cross_attention=False,
        )
        self.scheduler.submit(state)
        self.states_in_order.append(state)
        return state

    def step(self, failing=()):
        scheduler = self.scheduler
        scheduler_output = scheduler.schedule()
        self.check_invariants()
        config = scheduler.config
        assert sum(count for _, count in scheduler_output.encoder_inputs) <= config.encode_frames
        assert sum(s.end - s.start for s in scheduler_output.prefill_chunks[1:] if s.trie is None) <= (
            config.step_tokens if scheduler_output.decode_sequences else 2 * config.step_tokens
        )
        assert len({id(sequence) for sequence in scheduler_output.decode_sequences}) == len(
            scheduler_output.decode_sequences
        )
        rows = sum(state.request.num_sequences for state in scheduler.running)
        assert rows <= config.batch_rows or len(scheduler.running) == 1, "only one wide request runs alone"
        assert len(scheduler_output.decode_sequences) <= rows
        for state in scheduler.running:
            if not state.is_prefilling:
                assert all(sequence in scheduler_output.decode_sequences for sequence in state.sequences), (
                    "every running sequence decodes"
                )
        for tiles, count in scheduler_output.encoder_inputs:
            self.encoder_cache.num_encoded_frames[tiles.content_hash] += count
            assert self.encoder_cache.count_missing_frames(tiles) >= 0
        for target, source in scheduler_output.copy_source_by_page.items():
            self.ids_by_page[target] = list(self.ids_by_page[source])
        chunks = [
            (b, b.num_computed_tokens, b.num_computed_tokens + 1) for b in scheduler_output.decode_sequences
        ]
        chunks += [(s.sequence, s.start, s.end) for s in scheduler_output.prefill_chunks if s.trie is None]
        errors = {state: ValueError("no") for state in failing if state in scheduler.running}
        for sequence, start, end in chunks:
            self.write_pages(sequence, start, end, is_lost=sequence.request_state in errors)
        for sequence, _, end in chunks:
            if sequence.request_state not in errors:
                self.check_pages(sequence, end)
        outputs = self.make_outputs(scheduler_output, errors)
        scheduler.update_from_output(scheduler_output, outputs | errors)
        self.check_invariants()
        self.scheduler_outputs.append(scheduler_output)
        return scheduler_output

    def write_pages(self, sequence, start, end, is_lost):
        for position in range(start, end):
            page = sequence.pages[position // PAGE_SIZE]
            assert self.scheduler.page_pool.ref_counts[page] == 1, "a written page has one reference"
            page_ids = self.ids_by_page.setdefault(page, [])
            self.ids_by_page[page] = [
                *page_ids[: position % PAGE_SIZE],
                None if is_lost else sequence.ids[position],
            ]

    def check_pages(self, sequence, end):
        """A sequence's pages hold its own ids, even after sharing, copying, preemption and recomputation."""
        page_ids = [id for page in sequence.pages for id in self.ids_by_page.get(page, ())]
        assert page_ids[:end] == sequence.ids[:end]

    def make_outputs(self, scheduler_output, errors):
        outputs = {}
        sampled_sequences = list(scheduler_output.decode_sequences) + [
            chunk.sequence for chunk in scheduler_output.prefill_chunks if chunk.is_final_chunk
        ]
        for state in dict.fromkeys(sequence.request_state for sequence in sampled_sequences):
            own_sequences = [sequence for sequence in sampled_sequences if sequence.request_state is state]
            request, ids = state.request, own_sequences[0].ids
            if state in errors:
                continue
            if request.continuations is not None:
                state.continuation_scores = SimpleNamespace(pending_tries=list(request.continuations))
            elif request.num_sequences == 1:
                outputs[state] = SampledToken(next_id(ids))
            elif len(ids) == len(request.prompt) + state.max_new_tokens - 1:
                outputs[state] = BeamSearchResult(ids[len(request.prompt) :], [], "length")
            else:
                parents = [(7 * n) % len(own_sequences) for n in range(request.num_sequences)]
                beam_ids = [next_id(own_sequences[parent].ids) + n for n, parent in enumerate(parents)]
                outputs[state] = NextBeams(beam_ids, parents)
        for chunk in scheduler_output.prefill_chunks:
            state = chunk.sequence.request_state
            if chunk.trie is not None and state not in errors:
                state.continuation_scores.pending_tries.remove(chunk.trie)
                if not state.continuation_scores.pending_tries:
                    outputs[state] = SimpleNamespace(logprobs=[], top_logprobs=[])
        return outputs

    def check_invariants(self):
        """Reference counts equal the sequences' references; requests are in order of arrival."""
        pages = self.scheduler.page_pool
        check_page_pool(pages)
        ref_counts = Counter(
            page for state in self.scheduler.running for branch in state.sequences for page in branch.pages
        )
        assert ref_counts == Counter({page: n for page, n in enumerate(pages.ref_counts) if n})
        for state in self.scheduler.waiting:
            assert not any(branch.pages for branch in state.sequences)
        running, queue = list(self.scheduler.running), list(self.scheduler.waiting)
        for some in (running, queue):
            assert some == sorted(some, key=self.states_in_order.index), "in the order in which they came"
        assert not set(running) & set(queue)

    def run_until_idle(self, max_steps=3000):
        for _ in range(max_steps):
            if not self.scheduler.is_busy:
                assert not any(self.scheduler.page_pool.ref_counts)
                return
            self.step()
        raise AssertionError("a request never finishes")


def next_id(ids):
    return 3 + (31 * sum(ids) + len(ids)) % 37


def expected_answer(prompt, num_tokens):
    ids = list(prompt.ids)
    for _ in range(num_tokens):
        ids.append(next_id(ids))
    return ids[len(prompt) :]


item_lists = st.lists(
    st.integers(3, 6) | st.sampled_from("ab").map(lambda name: make_tiles(name, frames=3)),
    min_size=1,
    max_size=60,
)
generation_requests = st.builds(
    lambda these, room, beams: make_request(
        make_prompt("inline", *these), max_new_tokens=room, num_beams=beams
    ),
    item_lists,
    st.integers(1, 40),
    st.sampled_from([1, 1, 1, 2, 3]),
)
scoring_requests = st.builds(
    lambda these, sizes: Request(make_prompt("inline", *these), continuations=tuple((3,) * n for n in sizes)),
    item_lists,
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
def test_all_requests_finish_and_nothing_leaks(data, tokens, rows, pages, ahead):
    steps = SchedulerSimulation(tokens=tokens, rows=rows, pages=pages, launches_ahead=ahead)
    jobs, spoilt = [], set()
    for event in data.draw(st.lists(st.sampled_from("ssscsfsttt"), min_size=1, max_size=40)):
        going = [job for job in jobs if not job.handle.is_done]
        if event == "s":
            try:
                jobs.append(steps.submit(data.draw(generation_requests | scoring_requests)))
            except BadSetting:
                continue
        elif event == "c" and going:
            job = data.draw(st.sampled_from(going))
            steps.scheduler.cancel(job)
            spoilt.add(job)
        elif event == "f" and going:
            job = data.draw(st.sampled_from(going))
            if job in steps.scheduler.running:
                steps.step(failing=[job])
                spoilt.add(job)
        else:
            for _ in range(data.draw(st.integers(1, 9))):
                steps.step()
    steps.run_until_idle()
    for job in jobs:
        handle, request = job.handle, job.request
        assert handle.is_done
        if job in spoilt:
            assert handle.finish_reason == "cancelled" or isinstance(handle.error, ValueError)
        elif request.continuations is None and request.num_sequences == 1:
            assert handle.ids == expected_answer(request.prompt, job.max_new_tokens), (
                "the same answer with and without preemption"
            )


def test_first_come_first_served():
    steps = SchedulerSimulation(rows=2)
    jobs = [
        steps.submit(make_request(make_prompt("inline", n, *range(3, 20)), max_new_tokens=4))
        for n in range(3, 9)
    ]
    order = []
    while steps.scheduler.is_busy:
        steps.step()
        order += [n for n, job in enumerate(jobs) if job.handle.is_done and n not in order]
    assert order == [0, 1, 2, 3, 4, 5]


def test_running_answers_flow_while_a_long_prompt_is_read():
    steps = SchedulerSimulation(tokens=8, pages=40)
    short = steps.submit(make_request(make_prompt("inline", 3), max_new_tokens=30))
    steps.step()
    long = steps.submit(make_request(make_prompt("inline", *range(4, 104)), max_new_tokens=2))
    for count in range(2, 13):
        steps.step()
        assert len(short.handle.ids) == count
        assert long.sequences[0].num_computed_tokens == 8 * (count - 1)


def test_the_latest_is_preempted_with_the_same_answer():
    steps = SchedulerSimulation(pages=7, rows=4)
    prompts = [make_prompt("inline", *range(n, n + 20)) for n in (3, 30, 60)]
    jobs = [steps.submit(make_request(one, max_new_tokens=40)) for one in prompts]
    sent_away = set()
    while steps.scheduler.is_busy:
        running = set(steps.scheduler.running)
        steps.step()
        sent_away |= {job for job in running if job in steps.scheduler.waiting}
        assert jobs[0] not in sent_away, "the earliest stays"
    assert sent_away
    assert [job.handle.ids for job in jobs] == [expected_answer(one, 40) for one in prompts]


def test_a_shared_prefix_is_computed_once_for_concurrent_requests():
    steps = SchedulerSimulation(rows=8, pages=60, tokens=200)
    shots = range(3, 67)
    jobs = [
        steps.submit(make_request(make_prompt("inline", *shots, n), max_new_tokens=3)) for n in range(3, 9)
    ]
    steps.run_until_idle()
    read = Counter(
        job
        for plan in steps.scheduler_outputs
        for span in plan.prefill_chunks
        for job in [span.sequence.request_state]
    )
    tokens = sum(span.end - span.start for plan in steps.scheduler_outputs for span in plan.prefill_chunks)
    assert tokens == 65 + 5 * 1
    assert len(read) == len(jobs)


def test_the_turns_of_a_chat_are_computed_once():
    steps = SchedulerSimulation(pages=60, tokens=200)
    first = steps.submit(make_request(make_prompt("inline", *range(3, 43)), max_new_tokens=30))
    steps.run_until_idle()
    whole = [*range(3, 43), *first.handle.ids, *range(3, 13)]
    steps.submit(make_request(make_prompt("inline", *whole), max_new_tokens=1))
    plan = steps.step()
    assert plan.prefill_chunks[0].start == 40 + 29, "the last token of an answer is chosen, and not read"


def test_few_frames_a_step_and_each_picture_once():
    steps = SchedulerSimulation(frames=2, pages=60, tokens=100)
    prompt = make_prompt("inline", 3, make_tiles("a", frames=5), 4)
    for _ in range(2):
        steps.submit(make_request(prompt, max_new_tokens=1))
    plans = [steps.step() for _ in range(3)]
    assert [sum(count for _, count in plan.encoder_inputs) for plan in plans] == [2, 2, 1]
    assert plans[0].prefill_chunks[0][1:3] == (0, 1), "what stands before the picture need not wait"
    steps.run_until_idle()


def test_what_can_never_fit_is_refused_with_the_numbers():
    steps = SchedulerSimulation(pages=5)
    with pytest.raises(
        BadSetting, match=r"60 tokens with up to 6 new ones in 1 sequence takes 80 .* has 64: give a smaller"
    ):
        steps.submit(make_request(make_prompt("inline", *[3] * 60), max_new_tokens=6))
    steps.submit(make_request(make_prompt("inline", *[3] * 60), max_new_tokens=5))
    steps.run_until_idle()


def test_the_queue_is_bounded():
    steps = SchedulerSimulation(queue=2)
    for _ in range(2):
        last = steps.submit(make_request(make_prompt("inline", 3), max_new_tokens=2))
    with pytest.raises(EngineBusy, match="2 requests are already waiting") as caught:
        steps.submit(make_request(make_prompt("inline", 3), max_new_tokens=2))
    assert caught.value.limit == 2
    steps.scheduler.cancel(last)
    steps.submit(make_request(make_prompt("inline", 3), max_new_tokens=2))


def test_an_error_of_on_token_fails_its_request_only():
    def watch(id):
        raise LookupError("mine")

    steps = SchedulerSimulation()
    one = steps.submit(make_request(make_prompt("inline", 3), max_new_tokens=5, on_token=watch))
    other = steps.submit(make_request(make_prompt("inline", 4), max_new_tokens=5))
    steps.run_until_idle()
    assert isinstance(one.handle.error, LookupError)
    assert other.handle.ids == expected_answer(other.request.prompt, 5)


def test_the_scheduler_knows_no_torch():
    import subprocess

    code = "import sys, idefics.engine.scheduler, idefics.engine.engine_thread; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})


@pytest.mark.parametrize("read", [0, 15])
def test_failed_steps_add_nothing_to_the_prefix_cache(read):
    """The failed step was to compute a prompt of two pages, or the last token of a page."""
    steps = SchedulerSimulation(tokens=99)
    ids = list(range(3, 36)) if not read else [3]
    one = steps.submit(make_request(make_prompt("inline", *ids), max_new_tokens=99), max_new_tokens=40)
    for _ in range(read):
        steps.step()
    steps.step(failing=[one])
    assert isinstance(one.handle.error, ValueError)
    whole = [*ids, *one.handle.ids, 5, 6]
    again = steps.submit(make_request(make_prompt("inline", *whole), max_new_tokens=1))
    steps.step()
    assert steps.scheduler_outputs[-1].prefill_chunks[0].start == (1 if read else 0), (
        "what the first step read, and no more"
    )
    assert again.handle.is_done


def test_a_page_for_a_launched_step_is_allocated_only_where_enough_are_free():
    """A sequence that fills its last page gets the next one a token early, unless few are free."""
    for pages, expected in ((20, 2), (4, 1)):
        steps = SchedulerSimulation(pages=pages, rows=3, launches_ahead=True)
        job = steps.submit(make_request(make_prompt("inline", *[5] * (PAGE_SIZE - 2)), max_new_tokens=9))
        while job.sequences[0].num_computed_tokens < PAGE_SIZE - 1:
            steps.step()
        steps.scheduler.schedule()
        assert len(job.sequences[0].pages) == expected, pages


def test_groups_of_continuations_that_fit_are_computed_in_one_step():
    steps = SchedulerSimulation(tokens=24)
    steps.submit(Request(make_prompt("inline", 5, 6), continuations=((3,) * 10, (4,) * 10, (5,) * 30)))
    steps.step()
    sizes = [[span.num_tokens for span in steps.step().prefill_chunks] for _ in range(2)]
    assert sizes == [[10, 10], [30]]
