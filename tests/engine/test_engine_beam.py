"""Beam search in the engine equals transformers' `generate` token for token; with pictures, exhaustive search."""

import itertools

import pytest
import torch
from torch import nn

from engine.fakes import (
    IMAGE_TOKEN_ID,
    TEXT_CONFIG,
    VOCAB_SIZE,
    make_engine,
    make_fake_model,
    make_mixed_prompts,
    make_prompt,
    make_request,
    make_tiles,
    run_requests,
)
from engine.reference_decoding import reference_greedy
from idefics.config import KVCacheLayout, TextConfig
from idefics.engine.reference import ReferenceModel
from idefics.nn.attention_backends import HasAttentionBackend
from idefics.nn.decoder import LlamaDecoder

KINDS = ["inline", "cross_attention"]


def run_beam_search(model, prompt, **options):
    return run_requests(make_engine(model), [make_request(prompt, **options)])[0]


class DecoderOnlyModel(HasAttentionBackend):
    """A decoder and its head under the names of transformers' LlamaForCausalLM: no pictures."""

    dtype = torch.float32

    def __init__(self, config):
        super().__init__()
        self.model = LlamaDecoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.layout = KVCacheLayout(
            num_layers=config.num_layers,
            num_kv_heads=config.num_kv_heads,
            head_size=config.head_size,
            num_cross_attention_layers=0,
            max_positions=config.max_positions,
            vocab_size=config.vocab_size,
        )

    def decoder_parts(self):
        return None

    def embed(self, ids):
        return self.model.embed_tokens(ids)

    def forward(self, x, positions, attn):
        return self.model(x, positions, attn)

    def logits(self, h):
        return self.lm_head(h)


@pytest.fixture(scope="module")
def reference_and_model():
    """The same tiny random model, theirs and ours. Its distributions are flat: beams cross, and stop ids are likely."""
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
    ours = DecoderOnlyModel(
        TextConfig(
            vocab_size=24,
            hidden_size=32,
            intermediate_size=48,
            num_layers=2,
            num_heads=4,
            num_kv_heads=2,
            head_size=8,
            norm_epsilon=config.rms_norm_eps,
            max_positions=64,
        )
    ).eval()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def reference_beam_search(
    model, ids, *, max_new_tokens, num_beams, stop_ids=(), banned_ids=(), repetition_penalty=1.0
):
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
def test_beams_equal_those_of_transformers(reference_and_model, case):
    theirs, ours = reference_and_model
    reasons = set()
    for seed in range(6):
        ids = torch.randint(24, (3 + seed,), generator=torch.Generator().manual_seed(seed)).tolist()
        found = run_beam_search(ours, make_prompt("inline", *ids), max_new_tokens=4 + 3 * seed, **case)
        expected = reference_beam_search(theirs, ids, max_new_tokens=4 + 3 * seed, **case)
        stopped = expected[-1] in case["stop_ids"]
        assert found.ids == expected[: len(expected) - stopped]
        assert found.finish_reason == ("stop" if stopped else "length")
        reasons.add(found.finish_reason)
    assert ("stop" in reasons) == bool(case["stop_ids"])


@pytest.mark.parametrize("kind", KINDS)
def test_enough_beams_find_the_best_of_all_answers(kind):
    """As many beams as the vocabulary see every answer of two tokens."""
    model, prompt = make_fake_model(kind), make_mixed_prompts(kind)[4]
    uncached = ReferenceModel(model, prompt)

    @torch.inference_mode()
    def next_token(*after):
        return model.logits(uncached.hidden_states(after)[-1:])[0].log_softmax(-1)

    first = next_token()
    scores = torch.stack([first[id] + next_token(id) for id in range(VOCAB_SIZE)])
    best = divmod(int(scores.argmax()), VOCAB_SIZE)
    assert run_beam_search(model, prompt, max_new_tokens=2, num_beams=VOCAB_SIZE).ids == list(best)


@pytest.mark.parametrize("kind", KINDS)
def test_beams_compute_the_prompt_and_its_pictures_once(kind, monkeypatch):
    model = make_fake_model(kind)
    passes, forward = [], model.forward
    monkeypatch.setattr(model, "forward", lambda x, *rest: passes.append(len(x)) or forward(x, *rest))
    prompt = make_prompt(kind, make_tiles("cat"), 4, make_tiles("dog"), 5)
    run_beam_search(model, prompt, max_new_tokens=5, num_beams=3)
    assert passes == [len(prompt), 3, 3, 3, 3]
    assert sum(model.frames_per_encode) == 2
    assert sum(model.images_per_cross_kv) == (2 if kind == "cross_attention" else 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", [1, 3, 6, 8])
def test_one_beam_is_greedy(kind, which):
    model, prompt = make_fake_model(kind), make_mixed_prompts(kind)[which]
    assert run_beam_search(model, prompt, max_new_tokens=12).ids == reference_greedy(model, prompt, 12)


@pytest.mark.parametrize("kind", KINDS)
def test_beams_score_better_than_greed(kind):
    model, prompt = make_fake_model(kind), make_mixed_prompts(kind)[4]
    engine = make_engine(model)
    greedy = reference_greedy(model, prompt, 12)
    found = run_beam_search(model, prompt, max_new_tokens=12, num_beams=6, logprobs=True)
    by_greed, by_beams = (sum(scores) for scores in engine.score(prompt, [greedy, found.ids]))
    assert by_beams > by_greed
    assert sum(found.logprobs) == pytest.approx(by_beams, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_logprobs_of_beams_leave_out_what_is_banned(kind):
    model, prompt, banned = make_fake_model(kind), make_mixed_prompts(kind)[4], range(20)
    found = run_beam_search(model, prompt, max_new_tokens=6, num_beams=3, logprobs=True, banned_ids=banned)
    uncached = ReferenceModel(model, prompt)
    with torch.inference_mode():
        for place, (id, logprob) in enumerate(zip(found.ids, found.logprobs, strict=True)):
            logits = model.logits(uncached.hidden_states(tuple(found.ids[:place]))[-1]).clone()
            logits[list(banned)] = -torch.inf
            assert logprob == pytest.approx(float(logits.log_softmax(-1)[id]), abs=1e-4)


def test_beams_contain_no_banned_ids():
    free = run_beam_search(
        make_fake_model("inline"), make_prompt("inline", 5), max_new_tokens=10, num_beams=4
    )
    found = run_beam_search(
        make_fake_model("inline"),
        make_prompt("inline", 5),
        max_new_tokens=10,
        num_beams=4,
        banned_ids={*free.ids, IMAGE_TOKEN_ID},
    )
    assert not {*free.ids, IMAGE_TOKEN_ID} & set(found.ids)
    few = set(range(VOCAB_SIZE)) - {7, 8}  # fewer choices than beams
    assert set(
        run_beam_search(
            make_fake_model("inline"), make_prompt("inline", 5), max_new_tokens=4, num_beams=6, banned_ids=few
        ).ids
    ) <= {
        7,
        8,
    }


def test_beams_end_where_the_context_does():
    long = make_prompt("inline", *[5] * (TEXT_CONFIG.max_positions - 3))
    found = run_beam_search(make_fake_model("inline"), long, num_beams=3)
    assert len(found.ids) == 3
    assert found.finish_reason == "length"


class BigramModel(HasAttentionBackend):
    """A bigram language model: the next token depends on the last alone; `table` holds log-probabilities."""

    dtype = torch.float32

    def __init__(self, table):
        super().__init__()
        self.table = nn.Parameter(table)
        self.layout = KVCacheLayout(
            num_layers=1,
            num_kv_heads=1,
            head_size=1,
            num_cross_attention_layers=0,
            max_positions=9,
            vocab_size=len(table),
        )

    def decoder_parts(self):
        return None

    def embed(self, ids):
        return self.table[ids]

    def forward(self, x, positions, attn):
        return x

    def logits(self, h):
        return h


def test_three_likely_stop_ids_leave_beams_for_other_tokens():
    """Three ends stand before the second beam that goes on, and that one is the best in the long run."""
    start, good, fair, great, *stops = range(7)
    table = torch.full((40, 40), 1 / 36)
    table[:, stops] = 0
    table[start] = 0
    table[start, [good, *stops, fair]] = torch.tensor([0.31, 0.2, 0.19, 0.18, 0.12])
    table[[fair, great]] = 0
    table[[fair, great], great] = 1
    prompt = make_prompt("inline", start)
    found = run_beam_search(
        BigramModel(table.log()), prompt, max_new_tokens=3, num_beams=2, stop_ids=set(stops)
    )
    assert (found.ids, found.finish_reason) == ([fair, great, great], "length")


def test_an_end_beyond_the_best_beams_is_lost():
    """With two beams, an early end in third place is no answer, though its mean would win."""
    start, good, fair, stop = range(4)
    table = torch.full((40, 40), 1 / 39)
    table[:, stop] = 0
    table[start] = 0
    table[start, [good, fair, stop]] = torch.tensor([0.5, 0.4, 0.1])
    found = run_beam_search(
        BigramModel(table.log()), make_prompt("inline", start), max_new_tokens=3, num_beams=2, stop_ids={stop}
    )
    assert found.ids[0] == good
    assert found.finish_reason == "length"
    wider = run_beam_search(
        BigramModel(table.log()), make_prompt("inline", start), max_new_tokens=3, num_beams=3, stop_ids={stop}
    )
    assert (wider.ids, wider.finish_reason) == ([], "stop")
