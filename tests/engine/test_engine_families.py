"""The engine with tiny random models of each family: cached equals uncached, beams equal transformers'."""

import pytest
import torch

from engine.fakes import make_engine, make_request, run_requests
from engine.reference_decoding import reference_greedy
from idefics.engine.reference import ReferenceModel
from models import tiny

WINDOW_3 = tiny.merge_config(tiny.IDEFICS2, text_config={"sliding_window": 3})
FAMILIES = pytest.mark.parametrize(
    "raw",
    [tiny.IDEFICS1, tiny.IDEFICS2, WINDOW_3, tiny.IDEFICS3],
    ids=["cross_attention", "window 8", "window 3", "inline"],
)
CROSS_ATTENTION_SCENES = ["t", "ttttt", "1tt", "tt1t1", "t1t1tet1t", "1te1te", "1t1t1t1t1t", "tte"]
INLINE_SCENES = ["t", "ttttt", "1tt", "tt3", "t1tt2ttt", "4t1t", "1t1t1t1t1t", "5"]


def make_prompts(model):
    return [
        tiny.make_random_prompt(model, scene)
        for scene in (CROSS_ATTENTION_SCENES if model.config.cross_attention else INLINE_SCENES)
    ]


def run_engine(model, prompts, **sampling):
    engine = make_engine(model, batch_rows=5, encode_frames=3)
    rows = [make_request(prompt, stop_ids={7, 8, 9}, **sampling) for prompt in prompts]
    return [one.ids for one in run_requests(engine, rows)]


@FAMILIES
def test_cached_generation_equals_the_reference(raw):
    model = tiny.make_random_model(raw)
    prompts = make_prompts(model)
    fast = run_engine(model, prompts, max_new_tokens=15)
    assert fast == [reference_greedy(model, prompt, 15, stop_ids={7, 8, 9}) for prompt in prompts]
    assert len({len(ids) for ids in fast}) > 1


@FAMILIES
def test_scores_equal_one_uncached_pass_each(raw):
    model = tiny.make_random_model(raw)
    endings = [(5,), (6, 7, 8), (6, 7), (9, 10, 11, 12, 13)]
    for prompt in make_prompts(model):
        scores = make_engine(model).score(prompt, endings)
        uncached = ReferenceModel(model, prompt)
        for ending, score in zip(endings, scores, strict=True):
            with torch.inference_mode():
                h = uncached.hidden_states(ending)[len(prompt) - 1 : -1]
                slow = model.logits(h).log_softmax(-1)[range(len(ending)), ending]
            torch.testing.assert_close(torch.tensor(score), slow, rtol=0, atol=1e-5)


@FAMILIES
@pytest.mark.parametrize("beams", [1, 3])
def test_answers_equal_those_of_transformers(raw, beams, tmp_path):
    reference, model = tiny.make_reference_and_model(tmp_path, raw)
    engine = make_engine(model)
    for prompt in make_prompts(model):
        if not prompt.pictures:
            continue
        (one,) = run_requests(
            engine, [make_request(prompt, max_new_tokens=10, num_beams=beams, stop_ids={7, 8, 9})]
        )
        assert one.ids == reference_generate(reference, prompt, beams)


def reference_generate(reference, prompt, beams):
    """transformers' answer, without its stop id."""
    out = reference.generate(
        **tiny.make_reference_inputs(reference, [prompt]),
        max_new_tokens=10,
        num_beams=beams,
        do_sample=False,
        eos_token_id=[7, 8, 9],
        pad_token_id=0,
    )[0, len(prompt) :].tolist()
    return out[:-1] if out[-1] in (7, 8, 9) else out
