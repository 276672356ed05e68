"""Sampling: each processor against transformers' own, and the independence of rows."""

from types import SimpleNamespace

import pytest
import torch

from idefics.config import Sampling
from idefics.engine.logits_processors import apply_repetition_penalty, keep_min_p, keep_top_k, keep_top_p
from idefics.engine.request import Request
from idefics.engine.sampler import Sampler, make_generator
from idefics.prompt import Prompt

CPU = torch.device("cpu")
VOCAB_SIZE = 50


@pytest.fixture(scope="module")
def reference():
    return pytest.importorskip("transformers.generation.logits_process")


def make_request(*ids, banned=(), **sampling):
    ids = ids or (1,)
    return Request(Prompt(ids, (), (), (-1,) * len(ids)), Sampling(**sampling), banned_ids=frozenset(banned))


def make_sampler(*requests, vocabulary=VOCAB_SIZE):
    return resample_with_state(requests, vocabulary=vocabulary)


def resample_with_state(requests, ids=None, generators=None, vocabulary=VOCAB_SIZE):
    """A sampler for changed rows, which keep their ids and generators."""
    ids = [request.prompt.ids for request in requests] if ids is None else ids
    made = (
        [make_generator(request.sampling.seed, CPU) for request in requests]
        if generators is None
        else generators
    )
    rows = [
        SimpleNamespace(ids=row_ids, request_state=SimpleNamespace(request=request, rng=rng))
        for request, row_ids, rng in zip(requests, ids, made, strict=True)
    ]
    return Sampler(rows, vocabulary, CPU)


def make_column(*values, dtype=torch.float32):
    return torch.tensor(values, dtype=dtype)[:, None]


@pytest.fixture
def logits():
    """Rows with ties, from flat to peaked."""
    rough = torch.randn(12, VOCAB_SIZE) * torch.linspace(0.1, 8, 12)[:, None]
    return torch.cat((rough, rough[:4].round(), torch.zeros(1, VOCAB_SIZE)))


@pytest.mark.parametrize("k", [1, 3, 49, 50, 400])
def test_top_k(reference, logits, k):
    ours = keep_top_k(logits, make_column(*[k] * len(logits), dtype=torch.long), max_top_k=k)
    assert torch.equal(ours, reference.TopKLogitsWarper(k)(None, logits))


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_top_p(reference, logits, p):
    ours = keep_top_p(logits, make_column(*[1 - p] * len(logits)))
    assert torch.equal(ours, reference.TopPLogitsWarper(p)(None, logits))


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("spread", [0.5, 2.0, 8.0])
def test_top_p_of_a_few_likely_tokens_is_that_of_all(monkeypatch, p, spread):
    logits = torch.randn(12, VOCAB_SIZE) * spread
    rest = make_column(*[1 - p] * len(logits))
    slow = keep_top_p(logits, rest)
    wholly, sort = [], torch.Tensor.sort
    monkeypatch.setattr("idefics.engine.logits_processors.TOP_P_CANDIDATES", 40)
    monkeypatch.setattr(torch.Tensor, "sort", lambda x: wholly.append(x) or sort(x))
    assert torch.equal(keep_top_p(logits, rest), slow)
    others = 1 - logits.softmax(-1).topk(40).values.sum(-1)
    assert bool(wholly) == bool((others > 1 - p).any())


@pytest.mark.parametrize("p", [0.0, 0.05, 0.5, 1.0])
def test_min_p(reference, logits, p):
    ours = keep_min_p(logits, make_column(*[p] * len(logits)))
    assert torch.equal(ours, reference.MinPLogitsWarper(p)(None, logits))


@pytest.mark.parametrize("penalty", [0.5, 1.2, 3.0])
def test_repetition_penalty(reference, logits, penalty):
    ids = torch.randint(VOCAB_SIZE, (len(logits), 20))
    present = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, ids, True)
    ours = apply_repetition_penalty(logits, present, penalty)
    assert torch.equal(ours, reference.RepetitionPenaltyLogitsProcessor(penalty)(ids, logits))


SETTINGS = [
    {"temperature": 0.7},
    {"temperature": 1.0, "top_k": 7},
    {"temperature": 1.3, "top_p": 0.8},
    {"temperature": 0.5, "min_p": 0.1},
    {"temperature": 2.0, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
    {"temperature": 1.0},
]


def reference_logits_warper(reference, logits, temperature, top_k=0, top_p=1.0, min_p=0.0):
    """The processors that transformers' `generate` builds from these settings."""
    if temperature != 1:
        logits = reference.TemperatureLogitsWarper(temperature)(None, logits)
    if top_k:
        logits = reference.TopKLogitsWarper(top_k)(None, logits)
    if top_p < 1:
        logits = reference.TopPLogitsWarper(top_p)(None, logits)
    if min_p:
        logits = reference.MinPLogitsWarper(min_p)(None, logits)
    return logits


def test_every_row_has_its_own_settings_in_the_order_of_the_reference(reference):
    logits = torch.randn(len(SETTINGS), VOCAB_SIZE) * 3
    ours = make_sampler(*(make_request(**settings) for settings in SETTINGS)).warp_logits(logits)
    theirs = [
        reference_logits_warper(reference, logits[[row]], **SETTINGS[row]) for row in range(len(SETTINGS))
    ]
    torch.testing.assert_close(ours, torch.cat(theirs))
    assert torch.equal(ours.isinf(), torch.cat(theirs).isinf())


def test_samples_follow_the_probabilities():
    logits = torch.tensor([0.0, 1.0, 2.0, -torch.inf, 0.5])
    drawing = make_sampler(*(make_request(temperature=0.8, seed=n) for n in range(500)), vocabulary=5)
    ids = torch.stack([drawing.sample(logits.expand(500, 5)).ids for _ in range(40)])
    seen = ids.flatten().bincount(minlength=5) / ids.numel()
    torch.testing.assert_close(seen, (logits / 0.8).softmax(0), rtol=0, atol=0.015)
    assert seen[3] == 0


@pytest.mark.parametrize("point", [0.0, 1.0])  # the latter by rounding only
def test_masked_tokens_are_not_sampled_at_the_limits_either(monkeypatch, point):
    logits = torch.randn(64, VOCAB_SIZE)
    logits[:, :3] = logits[:, -3:] = -torch.inf
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda x, generator: x.fill_(point))
    ids = make_sampler(*(make_request(temperature=1.0) for _ in logits)).sample(logits).ids
    assert set(ids.tolist()) == {3 if point == 0 else VOCAB_SIZE - 4}


def test_nan_logits_give_a_valid_id():
    logits = torch.full((1, VOCAB_SIZE), torch.nan)
    assert make_sampler(make_request(temperature=1.0)).sample(logits).ids.item() < VOCAB_SIZE


def test_a_seeded_row_samples_the_same_in_any_batch():
    logits = torch.randn(3, VOCAB_SIZE)
    requests = [make_request(temperature=1.0, seed=seed) for seed in (5, 6, 7)]
    together = make_sampler(*requests)
    alone = make_sampler(requests[1])
    first = [together.sample(logits).ids[1].item(), alone.sample(logits[1:2]).ids.item()]
    together = resample_with_state(
        [requests[2], requests[1]], generators=[together.states[n].rng for n in (2, 1)]
    )
    second = [together.sample(logits[[2, 1]]).ids[1].item(), alone.sample(logits[1:2]).ids.item()]
    assert first[0] == first[1]
    assert second[0] == second[1]


def test_greedy_rows_stay_greedy_in_a_batch_with_sampled_rows():
    logits = torch.randn(4, VOCAB_SIZE)
    rows = make_sampler(
        make_request(), make_request(temperature=5.0), make_request(), make_request(temperature=5.0, top_k=2)
    )
    for _ in range(20):
        ids = rows.sample(logits).ids
        assert ids[[0, 2]].tolist() == logits.argmax(-1)[[0, 2]].tolist()
        assert ids[3] in logits[3].topk(2).indices


def test_greedy_costs_no_softmax(monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("a softmax for nothing")

    monkeypatch.setattr(torch.Tensor, "softmax", forbidden)
    monkeypatch.setattr(torch.Tensor, "log_softmax", forbidden)
    assert make_sampler(make_request(), make_request()).sample(torch.eye(2, VOCAB_SIZE)).logprobs is None


def test_the_models_logits_are_left_alone():
    logits = torch.randn(1, VOCAB_SIZE)
    before = logits.clone()
    chosen = make_sampler(
        make_request(3, banned={4}, temperature=0.5, repetition_penalty=2.0, top_p=0.5, logprobs=True)
    )
    chosen.sample(logits)
    assert torch.equal(logits, before)


def test_the_penalty_follows_the_answer_and_the_rows():
    logits = torch.zeros(2, VOCAB_SIZE)
    logits[:, 9], logits[:, 8], logits[:, 7] = 3.0, 2.0, 1.8
    requests = make_request(1), make_request(9, repetition_penalty=2.0)
    rows = make_sampler(*requests)
    assert rows.sample(logits).ids.tolist() == [9, 8]  # 9 is in the prompt: 3 / 2 is less than 2
    rows = resample_with_state(requests[1:], ids=[(9, 8)])
    assert rows.sample(logits[:1]).ids.tolist() == [7]  # and 8 in the answer


def test_logprobs_exclude_banned_ids():
    logits = torch.randn(1, VOCAB_SIZE)
    chosen = make_sampler(make_request(banned={4, 5}, temperature=0.1, seed=1, logprobs=True)).sample(logits)
    allowed = logits.index_fill(1, torch.tensor([4, 5]), -torch.inf).log_softmax(-1)
    torch.testing.assert_close(chosen.logprobs, allowed[0, chosen.ids])
    assert chosen.logprobs.dtype == torch.float32
