"""`on_error`: an error about one input of a list is raised with its number, or returned in the place of its answer."""

import gc
import io
import pickle
import tempfile
import weakref
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

import idefics
from idefics import Answer, Ranking
from idefics.demo import pictures
from idefics.errors import BadPicture, BadPrompt, BadSetting, PromptTooLong

LABELS = ["a cat", "a tower"]


@pytest.fixture(scope="module")
def vlm():
    return idefics.load("demo")


@pytest.fixture(scope="module")
def good_picture():
    return [str(path) for path in pictures()[:2]]


CALLS = {
    "caption": lambda vlm, images, **o: vlm.caption(images, max_new_tokens=2, **o),
    "complete": lambda vlm, images, **o: vlm.complete(images, "This is", max_new_tokens=2, **o),
    "ask": lambda vlm, images, **o: vlm.ask(images, "What is this?", max_new_tokens=2, **o),
    "write": lambda vlm, images, **o: vlm.write(images, max_new_tokens=2, **o),
    "classify": lambda vlm, images, **o: vlm.classify(images, LABELS, **o),
}


@pytest.mark.parametrize("call", CALLS)
def test_an_error_takes_the_place_of_its_answer(call, vlm, good_picture):
    closed = io.BytesIO()
    closed.close()
    given = [good_picture[0], "missing.png", good_picture[1], closed, b"no picture"]
    results = CALLS[call](vlm, given, on_error="return")
    kind = Ranking if call == "classify" else Answer
    assert [type(result) for result in results] == [kind, BadPicture, kind, BadPicture, BadPicture]
    assert str(results[1]) == "missing.png: no such file"
    alone = CALLS[call](vlm, good_picture)
    assert [str(results[0]), str(results[2])] == [str(one) for one in alone]
    assert not any(one.__traceback__ or one.__context__ for one in results if isinstance(one, BadPicture))


@pytest.mark.parametrize("call", CALLS)
def test_the_default_raises_and_names_the_input(call, vlm, good_picture):
    with pytest.raises(BadPicture) as error:
        CALLS[call](vlm, [*good_picture, b"no picture", "missing.png"])
    assert str(error.value).startswith(
        "picture 3 of 4: a picture of 10 bytes is not a picture that can be read"
    )
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)
    with pytest.raises(BadPicture, match=r"^missing.png: no such file$"):
        CALLS[call](vlm, "missing.png")


@pytest.mark.parametrize("call", CALLS)
def test_one_picture_gives_its_error(call, vlm):
    result = CALLS[call](vlm, "missing.png", on_error="return")
    assert isinstance(result, BadPicture) and str(result) == "missing.png: no such file"


def test_raw_prompts(vlm, good_picture):
    prompts = [
        [good_picture[0], "It is"],
        ["missing.png", "It is"],
        "no list",
        [good_picture[1], "word " * 50_000],
    ]
    results = vlm.generate(prompts, max_new_tokens=2, on_error="return")
    assert [type(one) for one in results[:3]] == [Answer, BadPicture, BadPrompt]
    assert isinstance(results[3], PromptTooLong)
    with pytest.raises(BadPicture, match=r"^prompt 2 of 4: missing.png: no such file"):
        vlm.generate(prompts, max_new_tokens=2)
    with pytest.raises(PromptTooLong, match=r"^prompt 2 of 2: ") as error:
        vlm.generate([prompts[0], prompts[3]], max_new_tokens=2)
    assert error.value.limit > 0


def test_conversations(vlm, good_picture):
    asked = {"type": "text", "text": "What is this?"}
    conversations = [
        [{"role": "user", "content": [{"type": "image", "path": path}, asked]}]
        for path in (good_picture[0], "missing.png")
    ]
    conversations.append([{"role": "user", "content": "What?", "images": [good_picture[0]]}])
    results = vlm.chat(conversations, max_new_tokens=2, on_error="return")
    assert [type(one) for one in results] == [Answer, BadPicture, BadPrompt]
    with pytest.raises(BadPicture, match=r"^conversation 2 of 3: missing.png"):
        vlm.chat(conversations, max_new_tokens=2)


def test_a_request_that_fails_on_its_way_takes_its_own_place(vlm, good_picture, monkeypatch):
    """Not only prompts fail: here what the engine says of one of them."""
    submit = type(vlm.engine).submit
    count = iter(range(10))

    def failing(self, request, **how):
        if next(count) == 1:
            raise PromptTooLong(9, 8, 1)
        return submit(self, request, **how)

    monkeypatch.setattr(type(vlm.engine), "submit", failing)
    results = vlm.caption([*good_picture, good_picture[0]], max_new_tokens=2, on_error="return")
    assert [type(one) for one in results] == [Answer, PromptTooLong, Answer]


@pytest.mark.parametrize("wrong", ["ignore", None, True])
def test_unknown_kernel_modes_are_refused(wrong, vlm, good_picture):
    for call in CALLS.values():
        with pytest.raises(BadSetting, match=r"on_error is .*; give raise or return"):
            call(vlm, good_picture, on_error=wrong)


def test_a_stream_raises_where_it_is_read(vlm, good_picture):
    with pytest.raises(BadSetting, match="cannot be combined with stream=True"):
        vlm.ask(good_picture[0], "What?", stream=True, on_error="return")


def test_what_is_wrong_with_the_call_itself_is_raised(vlm, good_picture):
    with pytest.raises(BadSetting, match="max_new_tokens"):
        vlm.caption(good_picture, max_new_tokens=0, on_error="return")
    with pytest.raises(BadPrompt, match="the list of pictures is empty"):
        vlm.caption([], on_error="return")


def test_a_returned_error_keeps_no_picture(vlm):
    image = PIL.Image.new("F", (40, 30), 7)
    kept = weakref.ref(image)
    (result,) = vlm.caption([image], on_error="return")
    assert isinstance(result, BadPicture)
    del image
    gc.collect()
    assert kept() is None


def test_many_are_answered_in_one_batch(vlm, good_picture):
    """Errors among them do not hold up the rest."""
    given = [good_picture[0], b"x"] * 20
    results = vlm.caption(given, max_new_tokens=1, on_error="return")
    assert [isinstance(one, Answer) for one in results] == [True, False] * 20


def test_one_picture_in_every_form_gives_one_answer(vlm, good_picture, tmp_path):
    """A file object has lines, and a buffer numbers: neither is a list of pictures."""
    path = tmp_path / "x.png"
    path.write_bytes(Path(good_picture[0]).read_bytes())
    data = path.read_bytes()
    pixels = np.array(PIL.Image.open(path).convert("RGB"))
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    with path.open("rb") as file, tempfile.NamedTemporaryFile() as kept:
        kept.write(data)
        forms = [path, data, bytearray(data), memoryview(data), io.BytesIO(data), file, kept, pixels, tensor]
        forms += [
            pixels.transpose(2, 0, 1),
            pixels / 255,
            tensor / 255,
            tensor.long(),
            pixels.astype(np.uint16) * 257,
        ]
        expected = vlm.ask(good_picture[0], "What is this?", max_new_tokens=4)
        for form in forms:
            answer = vlm.ask(form, "What is this?", max_new_tokens=4)
            assert (answer.text, answer.tokens) == (expected.text, expected.tokens), type(form)
    assert [one.text for one in vlm.ask([forms[2], forms[8]], "What is this?", max_new_tokens=4)] == [
        expected.text
    ] * 2
    assert isinstance(vlm.ask(tensor.bfloat16() / 255, "What is this?", max_new_tokens=1), Answer)


def test_continuations_that_cannot_follow_take_their_own_positions(vlm, good_picture):
    conversation = [
        {
            "role": "user",
            "content": [{"type": "image", "path": good_picture[0]}, {"type": "text", "text": "What?"}],
        }
    ]
    for prompt, spaced in (([good_picture[0], "It is"], " "), (conversation, "")):
        sound = [f"{spaced}a door.", f"{spaced}a tower."]
        expected_prompt, expected = vlm.score(prompt, sound)
        given = [" ", sound[0], 3, sound[1], "word " * 50_000]
        found_prompt, found = vlm.score(prompt, given, on_error="return")
        assert found_prompt.ids == expected_prompt.ids
        assert [found[1], found[3]] == [pytest.approx(one, abs=1e-4) for one in expected]
        assert [type(found[index]) for index in (0, 2)] == [BadPrompt, BadPrompt]
        assert isinstance(found[4], PromptTooLong)
        with pytest.raises(BadPrompt, match=r"^continuation 2 of 3: the continuation ' ' is blank"):
            vlm.score(prompt, [sound[0], " ", sound[1]])
        alone, errors = vlm.score(prompt, [" "], on_error="return")
        assert len(alone.ids) and [type(one) for one in errors] == [BadPrompt]
        with pytest.raises(BadPrompt, match="no continuations given"):
            vlm.score(prompt, [], on_error="return")
    _, (error,) = vlm.score([good_picture[0], "It is"], ["<image>"], on_error="return")
    assert "continuations are text" in str(error)
    with pytest.raises(BadPicture):
        vlm.score(["missing.png", "It is"], [" a"], on_error="return")
