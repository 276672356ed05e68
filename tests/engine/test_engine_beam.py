"""Beam search: token for token what transformers' `generate` finds, and pictures besides."""

import itertools

import pytest
import torch
from torch import nn

from engine.fakes import IMAGE, TEXT, VOCABULARY, answered, engine_for, fake, mixed, picture, prompt, request
from idefics.config import CacheLayout, TextConfig
from idefics.engine.slow import SlowTwin, slow_greedy
from idefics.nn.decoder import Decoder
from idefics.nn.kernels import Attending

KINDS = ["text", "beside"]


def beam(model, asked, **options):
    return answered(engine_for(model), [request(asked, **options)])[0]


class Llama(Attending):
    """A decoder and its head under the names of transformers' LlamaForCausalLM: no pictures."""

    dtype = torch.float32

    def __init__(self, config):
        super().__init__()
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.width, config.vocabulary, bias=False)
        self.layout = CacheLayout(
            layers=config.layers,
            kv_heads=config.kv_heads,
            head_size=config.head_size,
            cross_layers=0,
            max_positions=config.max_positions,
            vocabulary=config.vocabulary,
        )

    def stack(self):
        return None

    def embed(self, ids):
        return self.model.embed_tokens(ids)

    def forward(self, x, positions, attn):
        return self.model(x, positions, attn)

    def logits(self, h):
        return self.lm_head(h)


@pytest.fixture(scope="module")
def pair():
    """The same tiny random model, theirs and ours. Flat enough for beams to cross, with stop ids in reach."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=24,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        initializer_range=0.35,
    )
    torch.manual_seed(2)
    theirs = transformers.LlamaForCausalLM(config).eval()
    ours = Llama(
        TextConfig(
            vocabulary=24,
            width=32,
            inner=48,
            layers=2,
            heads=4,
            kv_heads=2,
            head_size=8,
            norm_epsilon=config.rms_norm_eps,
            max_positions=64,
        )
    ).eval()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def generate(model, ids, *, max_new_tokens, num_beams, stop_ids=(), banned_ids=(), repetition_penalty=1.0):
    out = model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=max_new_tokens,
        num_beams=num_beams,
        do_sample=False,
        eos_token_id=sorted(stop_ids) or None,
        pad_token_id=0,
        bad_words_ids=[[id] for id in banned_ids] or None,
        repetition_penalty=repetition_penalty,
    )
    return out[0, len(ids) :].tolist()


CASES = [
    {"num_beams": beams, "stop_ids": stop_ids, **extra}
    for beams, stop_ids, extra in itertools.product(
        [2, 3, 6],
        [(), (12,), (3, 7, 11)],
        [{}, {"repetition_penalty": 1.4}, {"banned_ids": (0, 4, 9)}],
    )
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_beams_equal_those_of_transformers(pair, case):
    theirs, ours = pair
    reasons = set()
    for seed in range(6):
        ids = torch.randint(24, (3 + seed,), generator=torch.Generator().manual_seed(seed)).tolist()
        found = beam(ours, prompt("text", *ids), max_new_tokens=4 + 3 * seed, **case)
        expected = generate(theirs, ids, max_new_tokens=4 + 3 * seed, **case)
        stopped = expected[-1] in case["stop_ids"]
        assert found.ids == expected[: len(expected) - stopped]
        assert found.finish_reason == ("stop" if stopped else "length")
        reasons.add(found.finish_reason)
    assert ("stop" in reasons) == bool(case["stop_ids"])


@pytest.mark.parametrize("kind", KINDS)
def test_enough_beams_find_the_best_of_all_answers(kind):
    """As many beams as the vocabulary see every answer of two tokens."""
    model, asked = fake(kind), mixed(kind)[4]
    twin = SlowTwin(model, asked)

    @torch.inference_mode()
    def next_token(*after):
        return model.logits(twin.hidden(after)[-1:])[0].log_softmax(-1)

    first = next_token()
    scores = torch.stack([first[id] + next_token(id) for id in range(VOCABULARY)])
    best = divmod(int(scores.argmax()), VOCABULARY)
    assert beam(model, asked, max_new_tokens=2, num_beams=VOCABULARY).ids == list(best)


@pytest.mark.parametrize("kind", KINDS)
def test_beams_read_the_prompt_and_its_pictures_once(kind, monkeypatch):
    model = fake(kind)
    passes, forward = [], model.forward
    monkeypatch.setattr(model, "forward", lambda x, *rest: passes.append(len(x)) or forward(x, *rest))
    asked = prompt(kind, picture("cat"), 4, picture("dog"), 5)
    beam(model, asked, max_new_tokens=5, num_beams=3)
    assert passes == [len(asked), 3, 3, 3, 3]
    assert sum(model.encoded) == 2
    assert sum(model.remembered) == (2 if kind == "beside" else 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", [1, 3, 6, 8])
def test_one_beam_is_greedy(kind, which):
    model, asked = fake(kind), mixed(kind)[which]
    assert beam(model, asked, max_new_tokens=12).ids == slow_greedy(model, asked, 12)


@pytest.mark.parametrize("kind", KINDS)
def test_beams_score_better_than_greed(kind):
    model, asked = fake(kind), mixed(kind)[4]
    engine = engine_for(model)
    greedy = slow_greedy(model, asked, 12)
    found = beam(model, asked, max_new_tokens=12, num_beams=6, logprobs=True)
    by_greed, by_beams = (sum(scores) for scores in engine.score(asked, [greedy, found.ids]))
    assert by_beams > by_greed
    assert sum(found.logprobs) == pytest.approx(by_beams, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_logprobs_of_beams_leave_out_what_is_banned(kind):
    model, asked, banned = fake(kind), mixed(kind)[4], range(20)
    found = beam(model, asked, max_new_tokens=6, num_beams=3, logprobs=True, banned_ids=banned)
    twin = SlowTwin(model, asked)
    with torch.inference_mode():
        for place, (id, logprob) in enumerate(zip(found.ids, found.logprobs, strict=True)):
            logits = model.logits(twin.hidden(tuple(found.ids[:place]))[-1]).clone()
            logits[list(banned)] = -torch.inf
            assert logprob == pytest.approx(float(logits.log_softmax(-1)[id]), abs=1e-4)


def test_beams_never_say_what_is_banned():
    free = beam(fake("text"), prompt("text", 5), max_new_tokens=10, num_beams=4)
    found = beam(
        fake("text"), prompt("text", 5), max_new_tokens=10, num_beams=4, banned_ids={*free.ids, IMAGE}
    )
    assert not {*free.ids, IMAGE} & set(found.ids)
    few = set(range(VOCABULARY)) - {7, 8}  # fewer choices than beams
    assert set(beam(fake("text"), prompt("text", 5), max_new_tokens=4, num_beams=6, banned_ids=few).ids) <= {
        7,
        8,
    }


def test_beams_end_where_the_context_does():
    long = prompt("text", *[5] * (TEXT.max_positions - 3))
    found = beam(fake("text"), long, num_beams=3)
    assert len(found.ids) == 3
    assert found.finish_reason == "length"


class Bigrams(Attending):
    """A language whose next token depends on the last alone; `table` holds log-probabilities."""

    dtype = torch.float32

    def __init__(self, table):
        super().__init__()
        self.table = nn.Parameter(table)
        self.layout = CacheLayout(
            layers=1, kv_heads=1, head_size=1, cross_layers=0, max_positions=9, vocabulary=len(table)
        )

    def stack(self):
        return None

    def embed(self, ids):
        return self.table[ids]

    def forward(self, x, positions, attn):
        return x

    def logits(self, h):
        return h


def test_three_likely_ends_leave_room_for_what_goes_on():
    """Three ends stand before the second beam that goes on, and that one is the best in the long run."""
    start, good, fair, great, *stops = range(7)
    table = torch.full((40, 40), 1 / 36)
    table[:, stops] = 0
    table[start] = 0
    table[start, [good, *stops, fair]] = torch.tensor([0.31, 0.2, 0.19, 0.18, 0.12])
    table[[fair, great]] = 0
    table[[fair, great], great] = 1
    asked = prompt("text", start)
    found = beam(Bigrams(table.log()), asked, max_new_tokens=3, num_beams=2, stop_ids=set(stops))
    assert (found.ids, found.finish_reason) == ([fair, great, great], "length")


def test_an_end_beyond_the_best_beams_is_lost():
    """With two beams, an early end in third place is no answer, though its mean would win."""
    start, good, fair, stop = range(4)
    table = torch.full((40, 40), 1 / 39)
    table[:, stop] = 0
    table[start] = 0
    table[start, [good, fair, stop]] = torch.tensor([0.5, 0.4, 0.1])
    found = beam(Bigrams(table.log()), prompt("text", start), max_new_tokens=3, num_beams=2, stop_ids={stop})
    assert found.ids[0] == good
    assert found.finish_reason == "length"
    wider = beam(Bigrams(table.log()), prompt("text", start), max_new_tokens=3, num_beams=3, stop_ids={stop})
    assert (wider.ids, wider.finish_reason) == ([], "stop")
