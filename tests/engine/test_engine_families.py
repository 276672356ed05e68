"""The engine with the real families, tiny and random: cached equals uncached, beams equal transformers'."""

import pytest
import torch

from engine.fakes import answered as handles_of
from engine.fakes import engine_for, request
from idefics.engine.slow import SlowTwin, slow_greedy
from models import tiny

WINDOW_3 = tiny.changed(tiny.IDEFICS2, text_config={"sliding_window": 3})
FAMILIES = pytest.mark.parametrize(
    "raw",
    [tiny.IDEFICS1, tiny.IDEFICS2, WINDOW_3, tiny.IDEFICS3],
    ids=["beside", "window 8", "window 3", "text"],
)
BESIDE = ["t", "ttttt", "1tt", "tt1t1", "t1t1tet1t", "1te1te", "1t1t1t1t1t", "tte"]
TEXT = ["t", "ttttt", "1tt", "tt3", "t1tt2ttt", "4t1t", "1t1t1t1t1t", "5"]


def prompts_for(model):
    return [tiny.prompt(model, scene) for scene in (BESIDE if model.config.cross else TEXT)]


def answered(model, prompts, **sampling):
    engine = engine_for(model, batch_rows=5, encode_frames=3)
    rows = [request(asked, stop_ids={7, 8, 9}, **sampling) for asked in prompts]
    return [one.ids for one in handles_of(engine, rows)]


@FAMILIES
def test_cached_generation_equals_the_slow_twin(raw):
    model = tiny.model_of(raw)
    prompts = prompts_for(model)
    fast = answered(model, prompts, max_new_tokens=15)
    assert fast == [slow_greedy(model, asked, 15, stop_ids={7, 8, 9}) for asked in prompts]
    assert len({len(ids) for ids in fast}) > 1


@FAMILIES
def test_scores_equal_one_uncached_pass_each(raw):
    model = tiny.model_of(raw)
    endings = [(5,), (6, 7, 8), (6, 7), (9, 10, 11, 12, 13)]
    for asked in prompts_for(model):
        scores = engine_for(model).score(asked, endings)
        twin = SlowTwin(model, asked)
        for ending, score in zip(endings, scores, strict=True):
            with torch.inference_mode():
                h = twin.hidden(ending)[len(asked) - 1 : -1]
                slow = model.logits(h).log_softmax(-1)[range(len(ending)), ending]
            torch.testing.assert_close(torch.tensor(score), slow, rtol=0, atol=1e-5)


@FAMILIES
@pytest.mark.parametrize("beams", [1, 3])
def test_answers_equal_those_of_transformers(raw, beams, tmp_path):
    reference, model = tiny.pair(tmp_path, raw)
    engine = engine_for(model)
    for asked in prompts_for(model):
        if not asked.pictures:
            continue
        (one,) = handles_of(engine, [request(asked, max_new_tokens=10, num_beams=beams, stop_ids={7, 8, 9})])
        assert one.ids == generated(reference, asked, beams)


def generated(reference, asked, beams):
    """transformers' answer, without its stop id."""
    out = reference.generate(
        **tiny.reference_inputs(reference, [asked]),
        max_new_tokens=10,
        num_beams=beams,
        do_sample=False,
        eos_token_id=[7, 8, 9],
        pad_token_id=0,
    )[0, len(asked) :].tolist()
    return out[:-1] if out[-1] in (7, 8, 9) else out
