"""Clauses written for transformers' errors catch ours: the same mistakes are made with both, their classes compared."""

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from compat import models_tiny
from compat.processors_tiny import SMALL, WIDE, make_idefics3_processor
from idefics import compat
from idefics.errors import IdeficsError

LIBRARIES = (compat, transformers)
AUTOS = ("AutoConfig", "AutoProcessor", "AutoModelForImageTextToText", "AutoTokenizer", "GenerationConfig")
CLAUSES = (OSError, ValueError, KeyError, ImportError, RuntimeError)


def exception_of(call):
    try:
        call()
    except Exception as error:
        return error
    return None


def assert_caught_by_same_clauses(ours, theirs):
    """Checks that ours is caught by each clause that catches theirs, and where theirs stumbles, by ValueError."""
    assert theirs is not None, "transformers takes it"
    assert ours is not None, f"taken, but transformers raises {theirs!r}"
    kinds = [kind for kind in CLAUSES if isinstance(theirs, kind)]
    if isinstance(theirs, (TypeError, AttributeError)):  # of its internals, for a value of a wrong type
        kinds = [ValueError]
    assert kinds, f"{theirs!r} is no built-in error"
    assert all(isinstance(ours, kind) for kind in kinds), (ours, theirs)


FOLDERS = {
    "nowhere": None,
    "empty": {},
    "broken config": {"config.json": "{"},
    "config is a list": {"config.json": "[]"},
    "another architecture": {"config.json": '{"model_type": "foo"}'},
}


@pytest.mark.parametrize("name", AUTOS)
@pytest.mark.parametrize("files", FOLDERS.values(), ids=FOLDERS)
def test_folders_that_cannot_be_loaded(tmp_path, name, files):
    folder = tmp_path / "folder"
    if files is not None:
        folder.mkdir()
        for file, text in files.items():
            (folder / file).write_text(text)
    theirs = exception_of(lambda: getattr(transformers, name).from_pretrained(str(folder)))
    ours = exception_of(lambda: getattr(compat, name).from_pretrained(str(folder)))
    assert_caught_by_same_clauses(ours, theirs)


@pytest.mark.parametrize("kind", ["AutoModelForImageTextToText", "Idefics3ForConditionalGeneration"])
@pytest.mark.parametrize("damage", ["no weights", "another shape"])
def test_weights_that_are_not_there_or_do_not_fit(tmp_path, kind, damage):
    models_tiny.make_reference_model(models_tiny.CONFIG_BY_FAMILY["idefics3"]).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    file.unlink()
    if damage == "another shape":
        first = next(name for name, weight in weights.items() if weight.ndim == 2)
        save_file({**weights, first: weights[first][:-1].clone()}, file, metadata={"format": "pt"})
    loads = [
        lambda library=library: getattr(library, kind).from_pretrained(tmp_path) for library in LIBRARIES
    ]
    assert_caught_by_same_clauses(*map(exception_of, loads))


CALLS = {
    "too few pictures": lambda make: make(text=["<image> a <image>"], images=[[WIDE]]),
    "too many pictures": lambda make: make(text=["a"], images=[[WIDE]]),
    "another number of texts": lambda make: make(
        text=["<image>", "<image>"], images=[[WIDE], [SMALL], [WIDE]]
    ),
    "nothing": lambda make: make(),
    "text is a number": lambda make: make(text=3),
    "no such file": lambda make: make(text=["<image>"], images=["/nowhere/photo.png"]),
    "a picture is a number": lambda make: make(text=["<image>"], images=[[3]]),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_calls_of_a_processor(reference, call):
    assert_caught_by_same_clauses(
        exception_of(lambda: call(make_idefics3_processor())),
        exception_of(lambda: call(reference["idefics3"])),
    )


@pytest.mark.parametrize(
    "options",
    [
        {"foo": 1},
        {"max_new_tokens": -1},
        {"max_new_tokens": 0},
        {"num_beams": 2, "num_return_sequences": 3},
        {"do_sample": True, "temperature": -1.0},
        {"do_sample": True, "top_k": -1},
        {"repetition_penalty": -1.0},
    ],
    ids=str,
)
def test_options_of_generate(tmp_path, options):
    theirs, ours = models_tiny.make_reference_and_model(tmp_path, models_tiny.CONFIG_BY_FAMILY["idefics3"])
    ids = torch.tensor([[3, 4, 5]])
    calls = [
        lambda model=model: model.generate(input_ids=ids, **{"max_new_tokens": 2, **options})
        for model in (ours, theirs)
    ]
    assert_caught_by_same_clauses(*map(exception_of, calls))


def test_a_missing_entry_of_a_batch():
    inputs = make_idefics3_processor()(text=["a"])
    with pytest.raises(KeyError):
        _ = inputs["nothing"]
    with pytest.raises(AttributeError):
        _ = inputs.nothing


def test_ours_are_ours(tmp_path):
    assert isinstance(exception_of(lambda: compat.AutoConfig.from_pretrained(str(tmp_path))), IdeficsError)
