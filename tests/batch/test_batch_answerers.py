"""`LocalAnswerer`: a model in this process."""

import idefics
from idefics.batch.answerers import PICTURE_CACHE_BYTES, LocalAnswerer, WorkItem
from idefics.demo import pictures


def test_a_run_keeps_few_encoded_pictures():
    vlm = idefics.load("demo")
    assert vlm.engine.encoder_cache.max_bytes > PICTURE_CACHE_BYTES
    items = [WorkItem(b"%d" % number, path.read_bytes(), None) for number, path in enumerate(pictures())]
    answers = dict(LocalAnswerer(lambda: vlm, "caption", {}).answer(iter(items)))
    assert {answers[item.key]["text"] for item in items} == {str(one) for one in vlm.caption(pictures())}
    assert vlm.engine.encoder_cache.max_bytes == PICTURE_CACHE_BYTES


def test_without_an_item_no_model_is_loaded():
    assert list(LocalAnswerer(lambda: 1 / 0, "caption", {}).answer(iter(()))) == []
