"""Errors survive pickle, copy and process pools, and are caught by `except` clauses for built-in classes."""

import copy
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module

import pytest

import idefics
from idefics import errors
from idefics.cli.output import OutputWriteError
from idefics.errors import IdeficsError
from test_architecture import MODULES, module_name

# One of each, with every argument of its own.
ERROR_INSTANCES = [
    errors.IdeficsError("text"),
    errors.BadRequest("text"),
    errors.BadSetting("text"),
    errors.BadCall("text"),
    errors.UnknownArgument("ask", ["max_tokens"], ["max_new_tokens", "seed"]),
    errors.BadPicture("text"),
    errors.BadVideo("text"),
    errors.BadPrompt("text"),
    errors.PromptTooLong(3000, 2048, 2),
    errors.TextTooLong(90_000, 80_000, 1024),
    OutputWriteError("no space left"),
    errors.EngineBusy(8),
    errors.RequestTimeout(2.5),
    errors.ModelError("text"),
    errors.ModelNotFound("text"),
    errors.UnsupportedModel("text"),
    errors.BrokenCheckpoint("text"),
    errors.WeightsMismatch(["a", "b"], ["c"], {"d": ((1, 2), (2, 1))}),
    errors.AdapterMismatch("folder", {"unknown": ["a", "b"]}),
    errors.OutputError("text"),
    errors.OutOfMemory("the model", 5 * 10**9, 10**9, "take a smaller one"),
    errors.ModelClosed("text"),
    errors.MissingExtra("reading a video file", "video"),
]


def error_classes(kind):
    yield kind
    for below in kind.__subclasses__():
        yield from error_classes(below)


def is_same_error(original, copied):
    """Whether a copy of an error has its class, text and attributes."""
    return type(copied) is type(original) and str(copied) == str(original) and vars(copied) == vars(original)


def raise_error(number):
    """Raises an error; runs in another process."""
    raise ERROR_INSTANCES[number]


def test_every_error_is_tried():
    for path in MODULES:
        if module_name(path) not in (
            "idefics.__main__",
            "idefics.server.session_router",
        ):  # the latter needs Ray
            import_module(module_name(path))
    assert set(error_classes(IdeficsError)) == {type(made) for made in ERROR_INSTANCES}


def test_every_error_of_the_library_is_public():
    ours = {kind.__name__ for kind in error_classes(IdeficsError) if kind.__module__ == "idefics.errors"}
    assert ours <= set(idefics.__all__)


@pytest.mark.parametrize("made", ERROR_INSTANCES, ids=lambda made: type(made).__name__)
@pytest.mark.parametrize(
    "trip",
    [
        *(lambda made, version=version: pickle.loads(pickle.dumps(made, version)) for version in range(6)),
        copy.copy,
        copy.deepcopy,
    ],
    ids=[*(f"pickle {version}" for version in range(6)), "copy", "deepcopy"],
)
def test_an_error_comes_back_whole(made, trip):
    assert is_same_error(made, trip(made))


def test_a_note_and_a_field_of_the_callers_travel():
    error = errors.PromptTooLong(3000, 2048, 2)
    error.add_note("photo.jpg")
    error.name = "photo.jpg"
    back = pickle.loads(pickle.dumps(error))
    assert (back.limit, back.name, back.__notes__) == (2048, "photo.jpg", ["photo.jpg"])


def test_errors_come_out_of_processes():
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as executor:
        futures = [executor.submit(raise_error, number) for number in range(len(ERROR_INSTANCES))]
        assert all(
            is_same_error(made, future.exception(60))
            for made, future in zip(ERROR_INSTANCES, futures, strict=True)
        )
    with spawn.Pool(1) as pool:
        for number, made in enumerate(ERROR_INSTANCES):
            with pytest.raises(type(made)) as caught:
                pool.apply_async(raise_error, (number,)).get(60)
            assert is_same_error(made, caught.value)


@pytest.mark.parametrize(
    ("kind", "clauses"),
    [
        (errors.BadRequest, (ValueError,)),
        (errors.BadSetting, (ValueError,)),
        (errors.BadCall, (ValueError, TypeError)),
        (errors.UnknownArgument, (ValueError, TypeError)),
        (errors.BadPicture, (ValueError, OSError)),
        (errors.BadPrompt, (ValueError,)),
        (errors.PromptTooLong, (ValueError,)),
        (errors.RequestTimeout, (TimeoutError,)),
        (errors.OutputError, (OSError,)),
        (errors.ModelNotFound, (OSError, ValueError)),
        (errors.UnsupportedModel, (OSError, ValueError)),
        (errors.BrokenCheckpoint, (OSError, ValueError)),
        (errors.WeightsMismatch, (OSError, ValueError, RuntimeError)),
        (errors.AdapterMismatch, (OSError, ValueError, RuntimeError)),
        (errors.ModelClosed, (RuntimeError,)),
        (errors.MissingExtra, (ImportError,)),
    ],
)
def test_except_clauses_for_built_in_errors_catch_these(kind, clauses):
    assert all(issubclass(kind, clause) for clause in clauses)


def test_a_text_that_is_too_long_is_not_told_a_limit_that_it_keeps():
    assert str(errors.TextTooLong(19_999, 25_600, 1024)) == (
        "the text has 19,999 characters, which are more than the 1,024 tokens that this model reads: send less text"
    )
    assert "(at most 25,600 characters, mostly far fewer)" in str(errors.TextTooLong(25_601, 25_600, 1024))
