"""Several adapters share a model: each request is answered as by the model that has its adapter merged in."""

import pytest
import torch
from PIL import Image

import idefics
from idefics import BadPrompt, BadSetting
from idefics.engine.request import Request
from models import tiny
from models.tiny_adapters import write_random_adapter

RAW_BY_FAMILY = {"idefics": tiny.IDEFICS1, "idefics2": tiny.IDEFICS2, "idefics3": tiny.IDEFICS3}
# Of different ranks, for different layers. The first changes the decoder alone, the second pictures and the head too.
TEXT_TARGETS = (
    *("text_model.layers.0.mlp.down_proj", "text_model.layers.1.self_attn.q_proj"),
    *("model.layers.0.mlp.down_proj", "model.layers.1.self_attn.q_proj"),
    *("cross_attn.q_proj", "lm_head.additional_fc"),
)
PICTURE_TARGETS = ("q_proj", "k_proj", "up_proj", "o_proj", "lm_head", "fc1")
RED, BLUE = (Image.new("RGB", (40, 30), color) for color in ("red", "blue"))


@pytest.fixture(scope="module", params=RAW_BY_FAMILY)
def folders(request, tmp_path_factory):
    """A checkpoint of a family, and two adapters of it."""
    folder = tmp_path_factory.mktemp(request.param)
    base = tiny.write_complete_checkpoint(folder / "base", RAW_BY_FAMILY[request.param])
    model = tiny.load_checkpoint(base)
    gates = ("alpha_cross_attn", "alpha_dense") if request.param == "idefics" else ()
    write_random_adapter(folder / "text", model, TEXT_TARGETS, rank=3, seed=3, modules_to_save=gates)
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


def test_scores_beams_and_structured_output(shared, merged):
    for name in ("text", "pictures"):
        view, expected = shared.with_adapter(name), merged[name]
        options = {"choices": ["a red one", "a blue one", "neither"], "max_new_tokens": 9}
        assert (
            view.generate([RED, "Which?"], **options).text
            == expected.generate([RED, "Which?"], **options).text
        )
        beams = {"num_beams": 3, "max_new_tokens": 6}
        assert (
            view.generate([BLUE, "What?"], **beams).tokens
            == expected.generate([BLUE, "What?"], **beams).tokens
        )
        scores = [one.score([RED, "This is "], ["red and big", "blue"])[1] for one in (view, expected)]
        torch.testing.assert_close(
            *([torch.tensor(row) for row in rows] for rows in scores), atol=2e-3, rtol=1e-3
        )
        torch.testing.assert_close(view.embed(RED), expected.embed(RED), atol=1e-4, rtol=1e-4)


def test_pictures_are_encoded_again_only_for_adapters_that_change_them(folders):
    shared = load_shared(folders)
    for name in (None, "text", "pictures", "pictures", None):
        view = shared.with_adapter(name)
        view.generate([RED, "What?"], max_new_tokens=2)
    assert [one.changes_pictures for one in shared.engine.adapters.adapters] == [False, True]
    assert shared.engine.encoder_cache.num_encoded == 2


def test_a_prompts_beginning_is_found_again_for_its_adapter_alone(folders):
    shared = load_shared(folders)

    def cached_tokens(name):
        view = shared.with_adapter(name)
        return view.generate(["word " * 40], max_new_tokens=1).usage.cached_tokens

    assert [cached_tokens(name) for name in (None, "text", "pictures")] == [0, 0, 0]
    assert min(cached_tokens(name) for name in (None, "text", "pictures")) > 16


def test_files_of_encoded_pictures_are_the_adapters_own(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("idefics.generation.cache_files.MIN_TOWER_MULTIPLICATIONS", 0)
    names = ("text", "pictures")
    found = []
    for _ in range(2):
        shared = idefics.load(
            folders / "base", feature_cache=True, adapters={name: folders / name for name in names}
        )
        found += [
            [
                shared.with_adapter(name).generate([RED, "What?"], max_new_tokens=6).tokens
                for name in (None, *names)
            ]
        ]
    assert shared.engine.encoder_cache.num_encoded == 0
    assert found[0] == found[1]
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2


def test_files_of_prompts_beginnings_are_the_adapters_own(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("idefics.generation.cache_files.MIN_TOWER_MULTIPLICATIONS", 0)
    names = ("text", "pictures")

    def answer_once(name):
        shared = idefics.load(
            folders / "base", feature_cache=True, adapters={name: folders / name for name in names}
        )
        answer = shared.with_adapter(name).generate([RED, "What?"], max_new_tokens=6)
        shared.loaded_model.store_prefix()
        return answer.usage.cached_tokens > 0, answer.tokens

    first, second = ([answer_once(name) for name in (None, *names)] for _ in range(2))
    is_inline = not load(folders).engine.model.layout.num_cross_attention_layers
    assert [was_cached for was_cached, _ in first + second] == [False] * 3 + [is_inline] * 3
    assert [tokens for _, tokens in first] == [tokens for _, tokens in second]


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_quantised_models_are_shared(folders, quantize):
    """Without an adapter as before; with one the difference is the adapter's, not that of rounding it."""
    alone = load(folders, quantize=quantize, kernels="reference")
    shared = load_shared(folders, quantize=quantize, kernels="reference")
    prompt = alone.prompt([RED, "What is it?"])
    torch.testing.assert_close(shared.logits(prompt), alone.logits(prompt))
    view = shared.with_adapter("text")
    found = view.logits(view.prompt([RED, "What is it?"]))
    dequantized = idefics.load(folders / "base", adapters={"text": folders / "text"}, feature_cache=False)
    for name, layer in shared.engine.model.named_modules():
        if hasattr(layer, "dequantize"):
            dequantized.engine.model.get_submodule(name).weight.data = layer.dequantize(torch.float32)
    exact = dequantized.with_adapter("text")
    torch.testing.assert_close(found, exact.logits(exact.prompt([RED, "What is it?"])), atol=2e-4, rtol=2e-4)


def test_memory_counts_the_factors(folders):
    base, shared = load(folders), load_shared(folders)
    assert shared.memory - base.memory == shared.engine.adapters.num_bytes > 1000


def test_a_prompt_of_another_models_adapter_is_refused(folders):
    shared, alone = load_shared(folders), load(folders)
    prompt = shared.with_adapter("text").prompt(["What?"])
    with pytest.raises(
        BadPrompt, match=r"made for the adapter 'text' of another model: make it with this one"
    ):
        alone.submit(prompt)


def test_names_that_are_not_there(folders):
    shared, alone = load_shared(folders), load(folders)
    assert (shared.adapters, alone.adapters) == (("text", "pictures"), ())
    with pytest.raises(BadSetting, match=r"^name is 'words'; give text, pictures$"):
        shared.with_adapter("words")
    with pytest.raises(BadSetting, match=r"^name is 'text'; this model has no adapters"):
        alone.with_adapter("text")
    with pytest.raises(BadSetting, match="adapter and adapters are both given"):
        load_shared(folders, adapter=folders / "text")
    for wrong in ([folders / "text"], {"": folders / "text"}, {1: folders / "text"}):
        with pytest.raises(BadSetting, match=r"^adapters is .*; give names and folders or hub ids"):
            load(folders, adapters=wrong)


def test_scores_at_once_are_those_of_each_adapter(shared, merged):
    """Continuations of several tokens after prompts of equal and unequal length, in the same steps."""
    continuations = ((5, 6, 7), (5, 8), (9, 10, 11, 12))
    names, texts = ["pictures", None, "text", "pictures"], ["one", "one", "one", "another one"]
    expected = [
        merged[name].engine.score(merged[name].prompt([text]), continuations)
        for name, text in zip(names, texts, strict=True)
    ]
    prompts = [shared.with_adapter(name).prompt([text]) for name, text in zip(names, texts, strict=True)]
    with shared.engine.condition:  # so that one step takes all
        handles = [shared.engine.submit(Request(one, continuations=continuations)) for one in prompts]
    for handle, scores in zip(handles, expected, strict=True):
        found = handle.result().continuation_logprobs
        assert found == [pytest.approx(row, abs=1e-3) for row in scores]


def test_an_adapter_of_pictures_alone_leaves_the_decoder_as_it_is(tmp_path):
    """The C step has no terms and no gates of adapters then."""
    base = tiny.write_complete_checkpoint(tmp_path / "base", tiny.IDEFICS1)
    write_random_adapter(tmp_path / "pictures", tiny.load_checkpoint(base), ("fc1",), rank=5, seed=4)
    adapters = {"pictures": tmp_path / "pictures"}
    answers = [
        idefics.load(base, feature_cache=False, kernels=kernels, adapters=adapters)
        .with_adapter("pictures")
        .generate([RED, "What is it?"], max_new_tokens=12)
        .tokens
        for kernels in ("auto", "reference")
    ]
    assert answers[0] == answers[1]


def test_a_prompt_for_an_adapter_of_another_model_is_refused(folders, shared):
    prompt = shared.with_adapter("text").prompt(["What is it?"])
    with pytest.raises(BadPrompt, match="another model"):
        load(folders).logits(prompt)
