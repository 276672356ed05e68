"""`detail` and `max_tiles` reach every call that takes pictures; `cost` counts a picture's tokens."""

import numpy as np
import PIL.Image
import pytest

import idefics
from idefics import Message, Picture, Shot
from idefics.errors import BadSetting


@pytest.fixture(scope="module")
def vlm():
    """The demo checkpoint, changed to split pictures into tiles."""
    loaded = idefics.load("demo")
    plan = loaded.processor.image_config
    splitting = type(plan)(
        **{
            name: getattr(plan, name)
            for name in plan.__slots__
            if name not in {"do_image_splitting", "longest_edge"}
        },
        do_image_splitting=True,
        longest_edge=4 * plan.frame_size,
    )
    loaded.processor.image_config = splitting
    return loaded


PIXELS = np.zeros((200, 200, 3), np.uint8)
PICTURE = PIL.Image.fromarray(PIXELS)


def test_every_call_takes_the_options(vlm):
    few = {"max_new_tokens": 1}
    for ask in (
        lambda **look: vlm.caption(PICTURE, **few, **look),
        lambda **look: vlm.ask(PICTURE, "What?", **few, **look),
        lambda **look: vlm.complete(PICTURE, "This is", **few, **look),
        lambda **look: vlm.write(PICTURE, **few, **look),
        lambda **look: vlm.classify(PICTURE, ["a", "b"], **look),
        lambda **look: vlm.chat([Message("user", (Picture(PICTURE), "What?"))], **few, **look),
        lambda **look: vlm.generate([PICTURE, "What?"], **few, **look),
    ):
        full, some, low = (
            ask(**look).usage.prompt_tokens for look in ({}, {"max_tiles": 5}, {"detail": "low"})
        )
        assert full > some > low


def test_a_stream_takes_image_detail(vlm):
    with pytest.raises(BadSetting, match="detail is 'no'"):
        vlm.caption(PICTURE, stream=True, detail="no")
    stream = vlm.caption(PICTURE, stream=True, detail="low", max_new_tokens=1)
    assert "".join(stream) == stream.answer.text


def test_prompt_and_cost_follow_image_detail(vlm):
    for look in ({}, {"detail": "low"}, {"detail": "auto"}, {"max_tiles": 5}):
        assert vlm.cost(PICTURE, **look) == len(vlm.prompt([PICTURE], **look))
    assert vlm.cost(Picture(PICTURE, detail="low")) == vlm.cost(PICTURE, detail="low") < vlm.cost(PICTURE)


def test_shots_have_the_call_s_image_detail_unless_they_set_their_own(vlm):
    shots = vlm.with_shots([Shot(Picture(PICTURE), "A cat.")])
    own = vlm.with_shots([Shot(Picture(PICTURE, detail="low"), "A cat.")])
    high, low, mixed = (
        v.caption(PICTURE, max_new_tokens=1, **look).usage.prompt_tokens
        for v, look in ((shots, {}), (shots, {"detail": "low"}), (own, {}))
    )
    assert high - mixed == mixed - low > 0
