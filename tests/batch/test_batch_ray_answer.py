"""`Answer`, called as Ray Data calls it; Ray is not needed."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import idefics
from idefics.batch.ray import Answer
from idefics.errors import BadSetting, ModelNotFound

FOLDER = Path(idefics.__file__).parent / "demo" / "pictures"
NO_CACHE = {"feature_cache": False}


def column(*cells):
    """A column of cells of any type."""
    cells_of_column = np.empty(len(cells), dtype=object)
    cells_of_column[:] = cells
    return cells_of_column


@pytest.fixture(scope="module")
def demo():
    return idefics.load("demo", **NO_CACHE)


def test_the_forms_of_pictures(demo):
    path = FOLDER / "puppy.png"
    pixels = np.asarray(PIL.Image.open(path))
    batch = {
        "id": np.arange(5),
        "image": column(
            path.read_bytes(),
            str(path),
            {"bytes": None, "path": str(path)},
            {"bytes": path.read_bytes()},
            pixels,
        ),
    }
    answered = Answer("demo", load_keywords=NO_CACHE)(batch)
    assert list(answered) == [
        *("id", "image", "text", "finish", "probabilities", "error_type", "error", "tokens"),
    ]
    expected = demo.caption(path)
    assert answered["text"].tolist() == [str(expected)] * 5
    assert answered["tokens"].tolist() == [expected.usage.completion_tokens] * 5
    assert answered["finish"].tolist() == ["stop"] * 5
    assert answered["error"].tolist() == [""] * 5


def test_labels(demo):
    labels = ["a puppy", "a tower"]
    answer = Answer("demo", "classify", image_column="photo", labels=labels, load_keywords=NO_CACHE)
    answered = answer({"photo": column(str(FOLDER / "tower.png"))})
    expected = demo.classify(FOLDER / "tower.png", labels)
    assert answered["text"].tolist() == [str(expected)]
    assert json.loads(answered["probabilities"][0]) == pytest.approx(
        {one.label: one.probability for one in expected.labels}
    )


def test_prompts_and_errors_of_rows(demo):
    path = str(FOLDER / "shapes.png")
    answer = Answer("demo", "ask", prompt_column="question", prompt="What is this?", load_keywords=NO_CACHE)
    answered = answer(
        {
            "image": column(path, b"", path, b"no picture", None, path),
            "question": column("What colour is the star?", "a", None, "a", "a", 7),
        }
    )
    assert answered["text"].tolist() == [
        *(
            str(demo.ask(path, "What colour is the star?")),
            "",
            str(demo.ask(path, "What is this?")),
            "",
            "",
            "",
        ),
    ]
    assert answered["error_type"].tolist() == [
        *("", "BadPicture", "", "BadPicture", "BadPicture", "BadPrompt"),
    ]
    assert answered["error"][1] == "the cell of the picture is empty"
    assert answered["error"][5] == "the cell of the prompt is 7: give a text"
    assert answered["tokens"][1] == 0


def test_types_do_not_depend_on_the_rows():
    answer = Answer("demo", load_keywords=NO_CACHE)
    for cells in ((), (b"no picture",), (str(FOLDER / "tower.png"),)):
        answered = answer({"image": column(*cells)})
        kinds = {
            name: answered[name].dtype.kind for name in ("text", "finish", "error", "error_type", "tokens")
        }
        assert kinds == {"text": "U", "finish": "U", "error": "U", "error_type": "U", "tokens": "i"}


def test_what_is_wrong_with_all_rows_is_raised():
    with pytest.raises(ModelNotFound):
        Answer("nobody/nothing", load_keywords={"offline": True})
    with pytest.raises(BadSetting, match="labels"):
        Answer("demo", "classify", load_keywords=NO_CACHE)
    answer = Answer("demo", load_keywords=NO_CACHE)
    with pytest.raises(BadSetting, match="the data set has no column 'image'; it has photo"):
        answer({"photo": column()})
    with pytest.raises(BadSetting, match='a batch is a list: give map_batches batch_format="numpy"'):
        answer([])
