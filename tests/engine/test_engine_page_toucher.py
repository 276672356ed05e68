"""An idle engine writes to the pages that come next, to no more of them, and never to pages in use."""

import time

import pytest
import torch

from engine.fakes import wait_until_idle
from idefics.config import EngineConfig, KVCacheLayout, Sampling
from idefics.engine import page_toucher
from idefics.engine.engine import Engine
from idefics.engine.kv_cache import PagedKVCache
from idefics.engine.page_pool import PagePool
from idefics.engine.page_toucher import PageToucher
from idefics.engine.request import Request
from idefics.prompt import Prompt
from models.tiny import IDEFICS3, make_random_model

LAYOUT = KVCacheLayout(
    num_layers=3,
    num_kv_heads=2,
    head_size=8,
    num_cross_attention_layers=0,
    max_positions=1000,
    vocab_size=50,
)
PAGE_BYTES = 2 * 3 * 2 * 16 * 8 * 4  # of all layers


@pytest.fixture
def cache(monkeypatch):
    """A cache of 10 pages of ones, of which 3 are touched ahead: what is touched becomes zero."""
    monkeypatch.setattr(page_toucher, "MAX_TOUCHED_BYTES", 3 * PAGE_BYTES + 1)
    cache = PagedKVCache(LAYOUT, 10, torch.float32, torch.device("cpu"))
    for pages in (*cache.keys, *cache.values):
        pages.fill_(1)
    return cache


def touched_pages(cache):
    """The pages that are zero, for each layer's keys and values."""
    return [
        [page for page in range(cache.num_pages) if not pages[page].any()]
        for pages in (*cache.keys, *cache.values)
    ]


def touch_all(toucher):
    while toucher.has_work:
        toucher.touch_layer()


def test_the_next_unused_pages_are_touched_in_every_layer(cache):
    pool = PagePool(10)
    pool.allocate()
    toucher = PageToucher(cache, pool)
    touch_all(toucher)
    assert touched_pages(cache) == [[2, 3, 4]] * 6
    pool.allocate()
    touch_all(toucher)
    assert touched_pages(cache) == [[2, 3, 4, 5]] * 6


def test_pages_allocated_meanwhile_are_left_alone(cache):
    pool = PagePool(10)
    toucher = PageToucher(cache, pool)
    toucher.touch_layer()
    allocated = [pool.allocate(), pool.allocate()]
    for pages in (*cache.keys, *cache.values):
        pages[allocated] = 7
    touch_all(toucher)
    assert all((pages[allocated] == 7).all() for pages in (*cache.keys, *cache.values))
    assert touched_pages(cache) == [[3, 4, 5]] * 6


def test_the_last_page_ends_the_work(cache):
    pool = PagePool(10)
    toucher = PageToucher(cache, pool)
    for _ in range(8):
        pool.allocate()
    touch_all(toucher)
    assert touched_pages(cache) == [[9]] * 6
    pool.allocate()
    assert not toucher.has_work


def test_caches_on_other_devices_are_not_touched():
    cache = PagedKVCache(LAYOUT, 10, torch.float32, None)
    assert not PageToucher(cache, PagePool(10)).has_work


def test_an_engine_touches_pages_after_a_request():
    engine = Engine(make_random_model(IDEFICS3), EngineConfig())
    try:
        assert engine.page_toucher.has_work
        request = Request(Prompt((5, 6, 7), (), (), (-1,) * 3), Sampling(max_new_tokens=2))
        engine.submit(request).result()
        wait_until_idle(engine)
        deadline = time.monotonic() + 10
        while engine.page_toucher.has_work and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not engine.page_toucher.has_work
    finally:
        engine.close()
