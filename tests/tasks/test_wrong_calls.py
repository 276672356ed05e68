"""Wrong calls of the public API raise `IdeficsError`s that name the mistake and the nearest right name."""

import inspect

import numpy as np
import pytest

import idefics
from idefics import (
    BadCall,
    BadPicture,
    BadPrompt,
    BadSetting,
    EngineConfig,
    IdeficsError,
    ImageDetail,
    Message,
    Picture,
    QuantizationConfig,
    Sampling,
    Shot,
    Stream,
    UnknownArgument,
    Video,
    user,
)
from idefics.structured import OutputConstraint

PIXELS = np.zeros((20, 30, 3), np.uint8)


@pytest.fixture(scope="module")
def vlm():
    return idefics.load("demo")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda v: v.ask(PIXELS, "What?", max_tokens=3), UnknownArgument, "did you mean 'max_new_tokens'?"),
        (lambda v: v.ask(PIXELS, "What?", tempertaure=3), UnknownArgument, "did you mean 'temperature'?"),
        (lambda v: v.ask(PIXELS, "What?", zzz=3), UnknownArgument, "ask() has no argument 'zzz'; it takes image,"),
        (lambda v: v.chat([user("Hi")], max_tokens=3), UnknownArgument, "chat() has no argument 'max_tokens' (did"),
        (lambda v: v.generate(["Hi"], max_length=3), UnknownArgument, "did you mean 'max_new_tokens'?"),
        (lambda v: v.submit(v.prompt(["Hi"]), detail="low"), UnknownArgument, "submit() has no argument 'detail'"),
        (lambda v: v.classify(PIXELS, candidate_labels=["a", "b"]), UnknownArgument, "did you mean 'labels'?"),
        (lambda v: v.score(["Hi"], [" a"], detial="low"), UnknownArgument, "did you mean 'detail'?"),
        (lambda v: idefics.load("demo", foo=1), UnknownArgument, "load() has no argument 'foo'; it takes model,"),
        (lambda v: idefics.load("demo", load_in_4bit=True), UnknownArgument, "did you mean 'quantize'?"),
        (lambda v: idefics.load("demo", torch_dtype="auto"), UnknownArgument, "did you mean 'dtype'?"),
        (lambda v: Picture(PIXELS, foo=1), UnknownArgument, "Picture() has no argument 'foo'; it takes source,"),
        (lambda v: Picture(PIXELS, detial="low"), UnknownArgument, "did you mean 'detail'?"),
        (lambda v: Sampling(foo=1), UnknownArgument, "Sampling() has no argument 'foo'"),
        (lambda v: Sampling(max_tokens=1), UnknownArgument, "did you mean 'max_new_tokens'?"),
        (lambda v: EngineConfig(batch_row=1), UnknownArgument, "did you mean 'batch_rows'?"),
        (lambda v: v.ask(PIXELS), BadCall, "question"),
        (lambda v: v.ask(), BadCall, "call it ask(image, question, ...)"),
        (lambda v: v.ask(PIXELS, "What?", 3), BadCall, "too many positional arguments"),
        (lambda v: v.ask(PIXELS, "What?", question="Who?"), BadCall, "multiple values for argument 'question'"),
        (lambda v: idefics.load(), BadCall, "call it load(model, ...)"),
        (lambda v: Message("user"), BadCall, "call it Message(role, parts, ...)"),
        (lambda v: QuantizationConfig(), BadCall, "call it QuantizationConfig(kind=..., ...)"),
        (lambda v: v.ask(PIXELS, None), BadPrompt, "question is None; give a text, such as"),
        (lambda v: v.ask(PIXELS, ["What?", "Who?"]), BadPrompt, "question is a list of 2; give one text, which is"),
        (lambda v: v.ask(PIXELS, "\ud800?"), BadPrompt, "question has half of a character ('\\ud800'"),
        (lambda v: v.generate(["a \ud800 b"]), BadPrompt, "the prompt has half of a character"),
        (lambda v: v.complete(PIXELS, 3), BadPrompt, "text is 3; give a text"),
        (lambda v: v.write(PIXELS, None), BadPrompt, "instruction is None"),
        (lambda v: v.ask(None, "What?"), BadPicture, "NoneType"),
        (lambda v: v.ask({PIXELS.tobytes()}, "What?"), BadPrompt, "image is a set, which has no fixed order"),
        (lambda v: v.chat({"role": "user", "content": "Hi"}), BadPrompt, "give a list of messages, also for one"),
        (lambda v: v.chat("Hi"), BadPrompt, "messages is 'Hi'; give a list of messages"),
        (lambda v: v.chat(user("Hi")), BadPrompt, "give a list of messages, also for one"),
        (lambda v: v.chat([user("Hi")], answer_start=3), BadPrompt, "answer_start is 3"),
        (lambda v: v.generate({"a": 1}), BadPrompt, "items is {'a': 1}; give a list of text and pictures"),
        (lambda v: v.generate(3), BadPrompt, "items is 3; give a list"),
        (lambda v: v.generate({"a", "b"}), BadPrompt, "items is a set, which has no fixed order"),
        (lambda v: v.score(["Hi"], " a"), BadPrompt, "continuations is ' a'; give a list of texts"),
        (lambda v: v.score(["Hi"], [3]), BadPrompt, "continuation is 3"),
        (lambda v: v.submit("Hi"), BadPrompt, "prompt is 'Hi'; make one with vlm.prompt("),
        (lambda v: v.logits([1, 2]), BadPrompt, "prompt is [1, 2]; make one with vlm.prompt("),
        (lambda v: v.caption(PIXELS, stream="yes"), BadSetting, "stream is 'yes'; give True or False"),
        (lambda v: v.caption(PIXELS, logprobs=3), BadSetting, "logprobs is 3; give True or False"),
        (lambda v: v.classify(PIXELS, ["a", "b"], calibrated="no"), BadSetting, "calibrated is 'no'; give True or F"),
        (lambda v: v.classify(PIXELS, {"a", "b"}), BadSetting, "labels is a set, which has no fixed order"),
        (lambda v: v.classify(PIXELS, frozenset("ab")), BadSetting, "labels is a frozenset"),
        (lambda v: v.classify(PIXELS, {"a": 1, "b": 2}), BadSetting, "labels is {'a': 1, 'b': 2}; give a list"),
        (lambda v: v.classify(PIXELS, ["a", 3]), BadSetting, "a label is 3: give strings"),
        (lambda v: v.with_shots({Shot(Picture(PIXELS), "x")}), BadSetting, "shots is a set, which has no fixed order"),
        (lambda v: v.with_shots([{"image": "a.png"}]), BadPrompt, "shots[0] is a dict; give Shot(Picture("),
        (lambda v: v.with_shots([Shot(PIXELS, "x"), ("a.png", "x")]), BadPrompt, "shots[1] is a tuple; give Shot("),
        (lambda v: v.ask(PIXELS, np.eye(2)), BadPrompt, "question is array([[1., 0.], [0., 1.]]); give a text"),
        (lambda v: v.with_shots(3), BadSetting, "shots is 3; give a list of Shot"),
        (lambda v: v.caption(PIXELS, regex="\ud800"), BadPrompt, "regex has half of a character"),
        (lambda v: v.caption(PIXELS, banned=["\ud800"]), BadPrompt, "banned has half of a character"),
        (lambda v: v.caption(PIXELS, choices=3), BadSetting, "choices is 3; give a list of texts"),
        (lambda v: v.caption(PIXELS, detail=[]), BadSetting, "detail is []; give low, high or auto"),
        (lambda v: idefics.load(3), BadSetting, "model is 3; give a short name, a folder or a hub id"),
        (lambda v: idefics.load("demo", offline="yes"), BadSetting, "offline is 'yes'; give True or False"),
        (lambda v: idefics.load("demo", quantize=3), BadSetting, "quantize is 3; give int8"),
        (lambda v: idefics.load("demo", attn_implementation=[]), BadSetting, "attn_implementation is []; give"),
        (lambda v: idefics.load("demo", remote_images=3), BadSetting, "remote_images is 3; give any"),
        (lambda v: idefics.load("demo", device_map={}), BadSetting, "device_map is {}, which names no part"),
        (lambda v: idefics.load("demo", device=1.5), BadSetting, "device is 1.5; give auto"),
        (lambda v: v.fetching("any"), BadSetting, "fetcher is 'any'; give a Fetcher"),
        (lambda v: idefics.read_shots(3), BadPrompt, "path is 3; give the path of a JSONL file"),
        (lambda v: Shot(Picture(PIXELS), 3), BadPrompt, "answer is 3"),
    ],
)  # fmt: skip
def test_a_wrong_call_names_the_mistake(vlm, call, error, message):
    with pytest.raises(error) as caught:
        call(vlm)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_an_error_of_ours_from_within_stays_as_it_is(vlm):
    """A `TypeError` that a callback raises is no wrong call."""

    def progress(done, total):
        raise TypeError("mine")

    with pytest.raises(TypeError, match=r"^mine$") as caught:
        idefics.validation.reject_unknown_arguments(progress)(1, 2)
    assert type(caught.value) is TypeError


# Values of every kind, for arguments of every kind.
ODD_VALUES = [
    None, 3, -1, 10**30, 1.5, float("nan"), float("inf"), True, "", "x", "\ud800", b"x", [], [None], ["a"], [[]], [3],
    [{}], (), {}, {"a": 1}, {1}, {"a", "b"}, {"a": 1}.keys(), object(), len, type, range(3), np.array([1, 2]),
    np.float64(0.5), np.int64(3), {"role": "user"}, [{"role": "user"}], [{"role": "user", "content": 3}], [("a", "b")],
]  # fmt: skip


def public_calls(vlm):
    """Every public call with right arguments: (what is called, the arguments)."""
    items, prompt = [PIXELS, "x"], vlm.prompt(["a b"])
    return {
        "caption": (vlm.caption, {"image": PIXELS}),
        "ask": (vlm.ask, {"image": PIXELS, "question": "What?"}),
        "complete": (vlm.complete, {"image": PIXELS, "text": "This is"}),
        "write": (vlm.write, {"image": PIXELS}),
        "classify": (vlm.classify, {"image": PIXELS, "labels": ["a", "b"]}),
        "generate": (vlm.generate, {"items": items}),
        "chat": (vlm.chat, {"messages": [user(Picture(PIXELS), "Hi")]}),
        "score": (vlm.score, {"items": items, "continuations": [" a", " b"]}),
        "prompt": (vlm.prompt, {"items": items}),
        "cost": (vlm.cost, {"picture": PIXELS}),
        "embed": (vlm.embed, {"picture": PIXELS}),
        "with_shots": (vlm.with_shots, {"shots": []}),
        "submit": (vlm.submit, {"prompt": prompt}),
        "logits": (vlm.logits, {"prompt": prompt}),
        "Picture": (Picture, {"source": PIXELS}),
        "Video": (Video, {"source": [PIXELS]}),
        "Message": (Message, {"role": "user", "parts": ("a",)}),
        "Shot": (Shot, {"picture": Picture(PIXELS), "answer": "a"}),
        "ImageDetail": (ImageDetail, {}),
        "Sampling": (Sampling, {}),
        "EngineConfig": (EngineConfig, {}),
        "QuantizationConfig": (QuantizationConfig, {"kind": "int8"}),
        "load": (idefics.load, {"model": "demo"}),
        "read_shots": (idefics.read_shots, {"path": "nowhere.jsonl"}),
        "fetching": (vlm.fetching, {"fetcher": vlm.processor.fetcher}),
    }


NAMES = [
    "caption", "ask", "complete", "write", "classify", "generate", "chat", "score", "prompt", "cost", "embed",
    "with_shots", "submit", "logits", "Picture", "Video", "Message", "Shot", "ImageDetail", "Sampling", "EngineConfig",
    "QuantizationConfig", "load", "read_shots", "fetching",
]  # fmt: skip


def exception_of(call, given):
    """What a call raises, if anything; a stream is read to its end."""
    try:
        answer = call(**given)
        if isinstance(answer, Stream):
            list(answer)
    except Exception as error:
        return error
    return None


@pytest.mark.parametrize("name", NAMES)
def test_no_error_of_internals_escapes(vlm, name):
    """Whatever an argument is: the call works, or raises an error of ours of one line."""
    call, right = public_calls(vlm)[name]
    parameters = inspect.signature(call).parameters
    odd = (
        ODD_VALUES
        if name != "load"
        else [one for one in ODD_VALUES if not isinstance(one, (int, type(None)))]
    )
    for argument in parameters:
        for value in odd:
            given = {**right, argument: value}
            if "max_new_tokens" in parameters and argument != "max_new_tokens":
                given["max_new_tokens"] = 1
            error = exception_of(call, given)
            assert error is None or isinstance(error, IdeficsError), (argument, value, error)
            assert "\n" not in str(error), (argument, value)


@pytest.mark.parametrize(
    "given",
    [{"a": 1, "b": 2}.keys(), {1: "a", 2: "b"}.values(), ("a", "b"), iter(["a", "b"]), (c for c in "ab")],
)
def test_labels_may_be_any_ordered_collection(vlm, given):
    assert {row.label for row in vlm.classify(PIXELS, given)} == {"a", "b"}


def test_sets_are_accepted_where_order_does_not_matter(vlm):
    options = {"max_new_tokens": 6}
    whole = vlm.caption(PIXELS, **options).text
    word = whole.split()[-1]
    assert (
        vlm.caption(PIXELS, stop={word, "zzz"}, **options).text
        == vlm.caption(PIXELS, stop=[word], **options).text
    )
    assert vlm.caption(PIXELS, choices={"yes", "no"}).text in ("yes", "no")
    assert OutputConstraint(choices={"yes", "no"}) == OutputConstraint(choices=["no", "yes"])


def test_choices_may_be_a_generator(vlm):
    assert vlm.caption(PIXELS, choices=(word for word in ("yes", "no"))).text in ("yes", "no")


def test_pictures_may_come_from_a_generator(vlm):
    answers = vlm.caption((PIXELS for _ in range(2)), max_new_tokens=2)
    assert [answer.usage.pictures for answer in answers] == [1, 1]


def test_the_picture_of_a_shot_is_never_read_as_words():
    assert isinstance(Shot("photo.jpg", "A puppy.").picture, Picture)
