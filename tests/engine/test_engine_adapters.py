"""Several adapters share a model: each request is answered as by the model that has its adapter merged in."""

import pytest
import torch
from PIL import Image

import idefics
from models import tiny
from models.tiny_adapters import write_random_adapter

RAW_BY_FAMILY = {"idefics": tiny.IDEFICS1, "idefics2": tiny.IDEFICS2, "idefics3": tiny.IDEFICS3}
# Of different ranks, for different layers; the head and the pictures are among them.
TEXT_TARGETS = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj", "cross_attn.q_proj", "additional_fc")
PICTURE_TARGETS = ("q_proj", "k_proj", "up_proj", "o_proj", "lm_head", "fc1")
RED, BLUE = (Image.new("RGB", (40, 30), color) for color in ("red", "blue"))


@pytest.fixture(scope="module", params=RAW_BY_FAMILY)
def folders(request, tmp_path_factory):
    """A checkpoint of a family, and two adapters of it."""
    folder = tmp_path_factory.mktemp(request.param)
    base = tiny.write_complete_checkpoint(folder / "base", RAW_BY_FAMILY[request.param])
    model = tiny.load_checkpoint(base)
    write_random_adapter(folder / "text", model, TEXT_TARGETS, rank=3, seed=3)
    write_random_adapter(folder / "pictures", model, PICTURE_TARGETS, rank=5, seed=4)
    return folder


def load(folders, **options):
    return idefics.load(folders / "base", feature_cache=False, **options)


def load_shared(folders, **options):
    names = ("text", "pictures")
    return load(folders, adapters={name: folders / name for name in names}, **options)


@pytest.fixture(scope="module")
def merged(folders):
    """The model without an adapter, and with each merged into it."""
    return {name: load(folders, adapter=name and folders / name) for name in (None, "text", "pictures")}


@pytest.fixture(scope="module", params=["auto", "reference"])
def shared(request, folders):
    return load_shared(folders, kernels=request.param)


def test_logits_equal_those_of_the_merged_model(shared, merged):
    found = {}
    for name, model in merged.items():
        view = shared.with_adapter(name)
        found[name] = view.logits(view.prompt([RED, "What is it?", BLUE]))
        expected = model.logits(model.prompt([RED, "What is it?", BLUE]))
        torch.testing.assert_close(found[name], expected, atol=2e-4, rtol=2e-4)
    assert min((found[name] - found[None]).abs().max() for name in ("text", "pictures")) > 0.1


def test_answers_in_one_batch_equal_those_of_the_merged_models(shared, merged):
    """Twice: the second time most of each prompt is in the cache of its adapter."""
    names = ["text", None, "pictures", "text", "pictures", None]
    prompts = [[RED, f"{'word ' * (n // 3)}what?"] for n in range(len(names))]
    expected = [
        merged[name].generate(prompt, max_new_tokens=12).tokens
        for name, prompt in zip(names, prompts, strict=True)
    ]
    assert len({*map(tuple, expected)}) > 3
    shared.engine.clear_caches()
    for _ in range(2):
        views = [shared.with_adapter(name) for name in names]
        streams = [
            view.submit(view.prompt(prompt), max_new_tokens=12)
            for view, prompt in zip(views, prompts, strict=True)
        ]
        for stream in streams:
            assert "".join(stream) == stream.answer.text
        assert [stream.answer.tokens for stream in streams] == expected
