"""How large the cache of keys and values is: by default, by what is asked for, and by what is free."""

from dataclasses import replace

import pytest
import torch

from engine.fakes import engine_for, fake
from idefics.config import CacheLayout, EngineConfig
from idefics.engine import memory
from idefics.engine.engine import Engine
from idefics.engine.pages import PAGE
from idefics.errors import BadSetting, OutOfMemory

CPU = torch.device("cpu")
GB, MiB = 10**9, 1 << 20
# SmolVLM-256M's: 46,080 bytes a token in float32.
SMALL = CacheLayout(layers=30, kv_heads=3, head_size=64, cross_layers=0, max_positions=8192, vocabulary=49280)
WIDE = replace(SMALL, layers=24, kv_heads=32, max_positions=131_072)  # 393,216 bytes a token


def taken(layout, free, **config):
    """Bytes of the cache's pages."""
    pages = memory.page_count(layout, torch.float32, CPU, EngineConfig(**config), free) - 1
    return pages * PAGE * memory.token_bytes(layout, torch.float32)


def near(size, layout=SMALL):
    """Whole pages, just below."""
    return pytest.approx(size - size % (PAGE * memory.token_bytes(layout, torch.float32)), abs=1)


def test_by_default_it_is_bounded():
    assert memory.token_bytes(SMALL, torch.float32) == 46_080
    assert taken(SMALL, 100 * GB) == near(512 * MiB)  # all of 8,192 tokens would be less
    assert taken(WIDE, 100 * GB) == 16_384 * 393_216
    assert taken(replace(WIDE, max_positions=2048), 100 * GB) == 2048 * 393_216


def test_no_more_than_a_share_of_what_is_free_is_taken_unasked():
    assert taken(SMALL, GB) == near(3 * GB // 10)
    assert taken(SMALL, 50_000_000) == 512 * 46_080, "but a picture can be asked about"


def test_no_more_than_the_rows_can_fill():
    tiny = replace(SMALL, max_positions=100)
    assert taken(tiny, GB, batch_rows=3) == 2 * 3 * 112 * 46_080
    assert taken(tiny, GB, batch_rows=3, kv_cache=GB) == 2 * 3 * 112 * 46_080


@pytest.mark.parametrize(
    ("asked", "bytes_"), [(GB, GB), (0.25, GB), (4 * GB, 4 * GB), (0.999, 3_996_000_000)]
)
def test_what_is_asked_for(asked, bytes_):
    assert taken(SMALL, 4 * GB, kv_cache=asked) == near(bytes_)


def test_more_than_is_free_is_refused():
    with pytest.raises(OutOfMemory, match=r"\(kv_cache\) needs 5\.0 GB, 4\.0 GB free: give less") as caught:
        taken(SMALL, 4 * GB, kv_cache=5 * GB)
    assert (caught.value.needed, caught.value.free) == (5 * GB, 4 * GB)


def test_too_little_is_refused():
    with pytest.raises(BadSetting, match=r"kv_cache is 1,000,000 bytes; give at least 24 MB"):
        taken(SMALL, 4 * GB, kv_cache=1_000_000)
    with pytest.raises(BadSetting, match=r"kv_cache is 0\.001, 4 MB"):
        taken(SMALL, 4 * GB, kv_cache=0.001)


@pytest.mark.parametrize("free", [20_000_000, 0, -5])
def test_where_nothing_is_free_that_is_said(free):
    with pytest.raises(OutOfMemory, match=r"needs 24 MB, .* MB free"):
        taken(SMALL, free)


def test_the_engine_takes_what_is_free_on_its_device(monkeypatch):
    monkeypatch.setattr("idefics.engine.memory.free_memory", lambda device: 1 << 20)
    assert (
        engine_for("text", batch_rows=1000).cache.pages
        < Engine(fake("text"), EngineConfig(batch_rows=1000), free=1 << 30).cache.pages
    )


def test_pictures_are_kept_up_to_a_quarter_of_a_gibibyte():
    assert EngineConfig().picture_bytes == 256 * MiB


@pytest.mark.parametrize("kv_cache", [0, True, 1.5, "1XB", -3])
def test_no_amount_of_memory(kv_cache):
    with pytest.raises(BadSetting, match="kv_cache is"):
        EngineConfig(kv_cache=kv_cache)
