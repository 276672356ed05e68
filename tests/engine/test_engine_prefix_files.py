"""Files of the beginnings of prompts: later engines compute only the text after the picture, with the same answer."""

import sys
from dataclasses import replace
from functools import partial

import pytest
import torch

from engine.fakes import (
    TOKENS_PER_FRAME,
    make_fake_model,
    make_prompt,
    make_request,
    make_tiles,
    run_requests,
)
from idefics.config import EngineConfig
from idefics.engine.engine import Engine
from idefics.engine.page_pool import PAGE_SIZE
from idefics.engine.prefix_files import PrefixFiles
from idefics.engine.tensor_files import TensorFileCache

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="nothing is stored on Windows")

FRAMES = range(1, 8)  # so that the picture ends at different positions of a page


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "prefixes"


def make_engine(folder, kind="inline", dtype=torch.float32, model_key="tiny model", **config):
    engine = Engine(make_fake_model(kind).to(dtype), EngineConfig(**config))
    files = TensorFileCache(folder, model_key, max_bytes=1 << 30)
    engine.scheduler.prefix_files = PrefixFiles(files, engine.kv_cache, engine.scheduler.page_pool)
    return engine


def generate(engine, prompt):
    (handle,) = run_requests(engine, [make_request(prompt, max_new_tokens=6, logprobs=True)])
    return handle


def store_missing(engine):
    with engine.condition:
        engine.scheduler.prefix_files.store_missing()


def make_question(*ids, name="wide", frames=7, start=range(3, 17)):
    return make_prompt("inline", *start, make_tiles(name, frames=frames), *ids)


def store_beginning(folder, prompt, **options):
    """The file that an engine stores for a prompt."""
    before = set(folder.iterdir()) if folder.exists() else set()
    engine = make_engine(folder, **options)
    generate(engine, prompt)
    assert (set(folder.iterdir()) if folder.exists() else set()) == before, "only when it is told to"
    store_missing(engine)
    (file,) = set(folder.iterdir()) - before
    return file


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("frames", FRAMES)
def test_only_the_text_after_the_picture_is_computed(folder, frames, dtype):
    first, second = (make_engine(folder, dtype=dtype) for _ in range(2))
    question, other = make_question(4, 5, frames=frames), make_question(6, 7, 8, frames=frames)
    generate(first, question)
    store_missing(first)
    expected = generate(first, other)  # the same beginning, from memory
    handle = generate(second, other)
    assert handle.num_cached_tokens == expected.num_cached_tokens == 14 + frames * TOKENS_PER_FRAME
    assert (handle.ids, handle.logprobs) == (expected.ids, expected.logprobs)
    assert second.model.frames_per_encode == []
    alone = generate(make_engine(folder / "empty", dtype=dtype), other)
    assert alone.num_cached_tokens == 0
    assert alone.ids == handle.ids
    assert alone.logprobs == pytest.approx(handle.logprobs, rel=1e-5 if dtype == torch.float32 else 0.05)


def test_a_file_holds_nothing_of_the_question(folder):
    files = [
        store_beginning(folder / str(index), make_question(*ids)) for index, ids in enumerate([(4, 5), (6,)])
    ]
    assert files[0].name == files[1].name
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        {"name": "tall"},
        {"frames": 6},
        {"start": range(4, 17)},
        {"start": [3, *range(5, 18)]},
    ],
    ids=str,
)
def test_other_beginnings_have_files_of_their_own(folder, change):
    store_beginning(folder, make_question(4, 5))
    engine, prompt = make_engine(folder), make_question(4, 5, **change)
    handle = generate(engine, prompt)
    assert handle.num_cached_tokens == 0
    assert handle.logprobs == generate(make_engine(folder / "empty"), prompt).logprobs
    store_missing(engine)
    assert len(list(folder.glob("*.safetensors"))) == 2


def test_models_and_dtypes_of_the_cache_have_files_of_their_own(folder):
    prompt = make_question(4, 5)
    store_beginning(folder, prompt)
    for options in ({"model_key": "another model"}, {"dtype": torch.bfloat16}):
        assert generate(make_engine(folder, **options), prompt).num_cached_tokens == 0


def truncate(file, _):
    file.write_bytes(file.read_bytes()[:-100])


def flip_last_bit(file, _):
    file.write_bytes(file.read_bytes()[:-1] + bytes([file.read_bytes()[-1] ^ 1]))


def replace_by_another(file, other):
    file.write_bytes(other.read_bytes())


@pytest.mark.parametrize("damage", [truncate, flip_last_bit, replace_by_another])
def test_damaged_and_foreign_files_are_deleted(folder, damage):
    prompt = make_question(4, 5)
    file, other = (store_beginning(folder, one) for one in (prompt, make_question(4, name="tall")))
    expected = generate(make_engine(folder / "empty"), prompt)
    damage(file, other)
    handle = generate(make_engine(folder), prompt)
    assert (handle.num_cached_tokens, handle.logprobs) == (0, expected.logprobs)
    assert not file.exists()


@pytest.mark.parametrize(
    ("kind", "prompt"),
    [
        ("inline", make_prompt("inline", *range(3, 40))),
        ("inline", make_prompt("inline", *range(3, 17), make_tiles("wide", frames=7))),
        (
            "inline",
            make_prompt("inline", *range(3, 17), replace(make_tiles("wide"), base=make_tiles("tall")), 4),
        ),
        ("cross_attention", make_prompt("cross_attention", *range(3, 40), make_tiles("wide"), 4)),
    ],
    ids=["no picture", "no text after it", "a covered picture", "cross-attention"],
)
def test_beginnings_that_are_not_stored(folder, kind, prompt):
    engine = make_engine(folder, kind)
    generate(engine, prompt)
    store_missing(engine)
    assert not folder.exists()


def test_a_beginning_with_several_pictures_ends_with_the_last(folder):
    cat, dog = make_tiles("cat", frames=4), make_tiles("dog", frames=3)
    make_pair = partial(make_prompt, "inline", 3, cat, 4, 5, dog)
    store_beginning(folder, make_pair(6, 7))
    handle = generate(make_engine(folder), make_pair(8))
    assert handle.num_cached_tokens == len(make_pair())


def test_what_was_read_or_has_left_the_memory_is_not_written(folder):
    prompt = make_question(4, 5)
    file = store_beginning(folder, prompt)
    engine = make_engine(folder)
    generate(engine, prompt)
    file.unlink()
    store_missing(engine)
    assert list(folder.iterdir()) == []
    generate(engine, make_question(6, name="tall"))
    engine.clear_caches()
    store_missing(engine)
    store_missing(engine)
    assert list(folder.iterdir()) == []


def test_a_beginning_is_written_once(folder):
    engine = make_engine(folder)
    generate(engine, make_question(4, 5))
    store_missing(engine)
    for file in folder.iterdir():
        file.unlink()
    store_missing(engine)
    assert list(folder.iterdir()) == []


def test_a_beginning_that_is_in_memory_is_not_read(folder, monkeypatch):
    store_beginning(folder, make_question(4, 5))
    engine, keys, load = make_engine(folder), [], TensorFileCache.load
    monkeypatch.setattr(TensorFileCache, "load", lambda files, key: keys.append(key) or load(files, key))
    for ids in ((4, 5), (6,), (7, 8)):
        assert generate(engine, make_question(*ids)).num_cached_tokens > 0
    assert len(keys) == 1


def test_a_beginning_of_which_a_part_is_in_memory_is_read(folder):
    cat, dog, bird = make_tiles("cat", frames=6), make_tiles("dog", frames=1), make_tiles("bird", frames=1)
    make_pair = partial(make_prompt, "inline", *range(3, 17), cat, 4)
    store_beginning(folder, make_pair(dog, 5))
    engine = make_engine(folder)
    generate(engine, make_pair(bird, 5))
    assert generate(engine, make_pair(dog, 6)).num_cached_tokens == len(make_pair(dog))


def test_nothing_is_read_while_another_request_has_the_pages(folder):
    prompt, other = make_question(4, 5), make_prompt("inline", *range(20, 40))
    store_beginning(folder, prompt)
    num_pages = -(-(len(prompt) + 6) // PAGE_SIZE)
    engine = make_engine(folder, cache_pages=1 + num_pages)
    handles = run_requests(engine, [make_request(one, max_new_tokens=6) for one in (other, prompt)])
    alone = make_engine(folder / "empty")
    assert [one.ids for one in handles] == [generate(alone, one).ids for one in (other, prompt)]


@pytest.mark.parametrize("num_spare_pages", [0, 1, 4])
def test_small_caches(folder, num_spare_pages):
    """Other beginnings are evicted; with no page for the copy of a partly filled one, the prompt is computed."""
    prompt = make_question(4, 5)
    store_beginning(folder, prompt)
    num_pages = -(-(len(prompt) + 5) // PAGE_SIZE)
    engine = make_engine(folder, cache_pages=1 + num_pages + num_spare_pages)
    expected = generate(make_engine(folder / "empty"), prompt)
    for _ in range(2):
        generate(engine, make_prompt("inline", *range(20, 40), 5))
        handle = generate(engine, prompt)
        assert handle.logprobs == pytest.approx(expected.logprobs, rel=1e-5)
        assert (handle.num_cached_tokens > 0) == (num_spare_pages > 0)


def test_a_folder_that_cannot_be_used_changes_no_answer(folder):
    folder.write_text("mine")
    engine, prompt = make_engine(folder), make_question(4, 5)
    expected = generate(make_engine(folder.with_name("empty")), prompt)
    assert generate(engine, prompt).logprobs == expected.logprobs
    store_missing(engine)
    assert folder.read_text() == "mine"
