"""The size of the KV cache: by default, as configured, and limited by free memory."""

from dataclasses import replace

import pytest
import torch

from engine.fakes import make_engine, make_fake_model
from idefics.config import EngineConfig, KVCacheLayout
from idefics.engine import kv_cache_size
from idefics.engine.engine import Engine
from idefics.engine.page_pool import PAGE_SIZE
from idefics.errors import BadSetting, OutOfMemory

CPU = torch.device("cpu")
GB, MiB = 10**9, 1 << 20
# SmolVLM-256M's: 46,080 bytes a token in float32.
SMALL_LAYOUT = KVCacheLayout(
    num_layers=30,
    num_kv_heads=3,
    head_size=64,
    num_cross_attention_layers=0,
    max_positions=8192,
    vocab_size=49280,
)
WIDE_LAYOUT = replace(
    SMALL_LAYOUT, num_layers=24, num_kv_heads=32, max_positions=131_072
)  # 393,216 bytes a token


def kv_cache_bytes(layout, free, **config):
    """Bytes of the cache's pages."""
    pages = kv_cache_size.compute_num_pages(layout, torch.float32, CPU, EngineConfig(**config), free) - 1
    return pages * PAGE_SIZE * kv_cache_size.kv_bytes_per_token(layout, torch.float32)


def approx_in_pages(size, layout=SMALL_LAYOUT):
    """Rounded down to whole pages."""
    return pytest.approx(
        size - size % (PAGE_SIZE * kv_cache_size.kv_bytes_per_token(layout, torch.float32)), abs=1
    )


def test_by_default_it_is_bounded():
    assert kv_cache_size.kv_bytes_per_token(SMALL_LAYOUT, torch.float32) == 46_080
    assert kv_cache_bytes(SMALL_LAYOUT, 100 * GB) == approx_in_pages(
        512 * MiB
    )  # all of 8,192 tokens would be less
    assert kv_cache_bytes(WIDE_LAYOUT, 100 * GB) == 16_384 * 393_216
    assert kv_cache_bytes(replace(WIDE_LAYOUT, max_positions=2048), 100 * GB) == 2048 * 393_216


def test_by_default_only_a_fraction_of_free_memory_is_used():
    assert kv_cache_bytes(SMALL_LAYOUT, GB) == approx_in_pages(3 * GB // 10)
    assert kv_cache_bytes(SMALL_LAYOUT, 50_000_000) == 512 * 46_080, "enough for a picture"


def test_no_more_than_the_sequences_can_fill():
    tiny = replace(SMALL_LAYOUT, max_positions=100)
    assert kv_cache_bytes(tiny, GB, batch_rows=3) == 2 * 3 * 112 * 46_080
    assert kv_cache_bytes(tiny, GB, batch_rows=3, kv_cache=GB) == 2 * 3 * 112 * 46_080


@pytest.mark.parametrize(
    ("kv_cache", "size"), [(GB, GB), (0.25, GB), (4 * GB, 4 * GB), (0.999, 3_996_000_000)]
)
def test_a_configured_size(kv_cache, size):
    assert kv_cache_bytes(SMALL_LAYOUT, 4 * GB, kv_cache=kv_cache) == approx_in_pages(size)


def test_more_than_is_free_is_refused():
    with pytest.raises(OutOfMemory, match=r"\(kv_cache\) needs 5\.0 GB, 4\.0 GB free: give less") as caught:
        kv_cache_bytes(SMALL_LAYOUT, 4 * GB, kv_cache=5 * GB)
    assert (caught.value.needed, caught.value.free) == (5 * GB, 4 * GB)


def test_too_little_is_refused():
    with pytest.raises(BadSetting, match=r"kv_cache is 1,000,000 bytes; give at least 24 MB"):
        kv_cache_bytes(SMALL_LAYOUT, 4 * GB, kv_cache=1_000_000)
    with pytest.raises(BadSetting, match=r"kv_cache is 0\.001, 4 MB"):
        kv_cache_bytes(SMALL_LAYOUT, 4 * GB, kv_cache=0.001)


@pytest.mark.parametrize("free", [20_000_000, 0, -5])
def test_no_free_memory_is_reported(free):
    with pytest.raises(OutOfMemory, match=r"needs 24 MB, .* MB free"):
        kv_cache_bytes(SMALL_LAYOUT, free)


def test_the_engine_takes_what_is_free_on_its_device(monkeypatch):
    monkeypatch.setattr("idefics.engine.kv_cache_size.free_memory", lambda device: 1 << 20)
    assert (
        make_engine("inline", batch_rows=1000).kv_cache.num_pages
        < Engine(
            make_fake_model("inline"), EngineConfig(batch_rows=1000), free_bytes=1 << 30
        ).kv_cache.num_pages
    )


def test_pictures_are_kept_up_to_a_quarter_of_a_gibibyte():
    assert EngineConfig().picture_bytes == 256 * MiB


@pytest.mark.parametrize("kv_cache", [0, True, 1.5, "1XB", -3])
def test_no_amount_of_memory(kv_cache):
    with pytest.raises(BadSetting, match="kv_cache is"):
        EngineConfig(kv_cache=kv_cache)
