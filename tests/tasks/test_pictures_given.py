"""The `image` argument: arrays and series of other libraries, iterables, and Pillow images of several frames."""

import io

import numpy as np
import PIL.Image
import PIL.ImageSequence
import pytest

import idefics
from idefics.errors import BadPicture, BadPrompt, BadVideo
from idefics.messages import Picture, Video
from idefics.processing.fetch import Fetcher
from idefics.processing.image_processor import open_picture
from idefics.tasks.picture_arguments import parse_image_argument

RED, BLUE = (PIL.Image.new("RGB", (8, 6), color) for color in ("red", "blue"))
PIXELS = np.asarray(RED)


class Series:
    """Like a pandas series: no sequence, but NumPy converts it."""

    def __init__(self, values):
        self.values = values

    def __iter__(self):
        return iter(self.values)

    def __array__(self, dtype=None, copy=None):
        array = np.empty(len(self.values), object)
        array[:] = self.values
        return array


class OtherArray:
    """Pixels of another library."""

    def __array__(self, dtype=None, copy=None):
        return PIXELS


class Interface:
    """The older protocol for the same."""

    __array_interface__ = PIXELS.__array_interface__


class Pictures:
    """Only iterable."""

    def __iter__(self):
        return iter([RED, BLUE])


class ArrayOnGPU:
    def __array__(self, dtype=None, copy=None):
        raise TypeError("it lies on a GPU")


def colors(image):
    """(how many pictures in a list or 0 for one, the color of each)."""
    pictures, failures = parse_image_argument(image, "raise")
    opened = [open_picture(one, Fetcher(policy="off")) for one in pictures]
    return failures.num_inputs, ["RGB"[np.asarray(one)[0, 0].argmax()] for one in opened]


@pytest.fixture
def paths(tmp_path):
    names = [str(tmp_path / "red.png"), str(tmp_path / "blue.png")]
    RED.save(names[0])
    BLUE.save(names[1])
    return names


@pytest.mark.parametrize(
    "made",
    [np.array, Series, lambda names: np.array(names, object), iter, lambda n: Series([*map(Picture, n)])],
)
def test_collections_of_pictures_give_a_list(paths, made):
    assert colors(made(paths)) == (2, ["R", "B"])
    assert colors(made(paths[:1])) == (1, ["R"])


def test_a_series_of_pandas(paths):
    pandas = pytest.importorskip("pandas")
    assert colors(pandas.Series(paths)) == (2, ["R", "B"])
    frame = pandas.DataFrame({"image": paths, "name": ["a", "b"]}, index=[7, 3])
    assert colors(frame["image"]) == (2, ["R", "B"])
    with pytest.raises(BadPicture, match="a picture array of object is no picture"):
        colors(frame)


def test_any_iterable_of_pictures_gives_a_list():
    assert colors(Pictures()) == (2, ["R", "B"])
    assert colors({"a": RED, "b": BLUE}.values()) == (2, ["R", "B"])


@pytest.mark.parametrize("one", [PIXELS, OtherArray(), Interface()])
def test_pixels_are_one_picture(one):
    assert colors(one) == (0, ["R"])
    assert colors([one, BLUE]) == (2, ["R", "B"])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (
            ArrayOnGPU(),
            r"an object of type ArrayOnGPU cannot become a NumPy array \(it lies on a GPU\): give the array itself",
        ),
        (np.array([1, 2]), r"a picture array has the shape \(2,\); .*; several pictures are a list"),
        (np.zeros((2, 8, 6, 3), np.uint8), r"several pictures are a list"),
        ({"bytes": b""}, r"a picture cannot be of type dict: give a path, .*; several pictures are one list"),
        ([[RED]], r"a picture cannot be of type list: give a path, .*; several pictures are one list$"),
        (3, r"a picture cannot be of type int: give a path, .*; several pictures are one list"),
    ],
)
def test_other_types_are_refused_in_one_line(image, message):
    with pytest.raises(BadPicture, match=message):
        colors(image)


def test_messages_take_arrays_of_other_libraries():
    from idefics.processing.message_parsing import to_messages

    (message,) = to_messages([{"role": "user", "content": [OtherArray(), "What?"]}])
    assert np.array_equal(message.parts[0].source, PIXELS)


def test_frames_of_a_video_may_be_an_array_of_paths(paths):
    from idefics.processing.video import _list_frames

    assert _list_frames(Video(np.array(paths)).source) == paths
    with pytest.raises(BadVideo, match="a video array has the shape"):
        _list_frames(Video(np.zeros((4, 4))).source)


@pytest.fixture
def scan():
    file = io.BytesIO()
    RED.copy().save(file, "TIFF", save_all=True, append_images=[BLUE.copy()])
    return PIL.Image.open(file)


def test_each_page_of_an_iterator_is_its_own_picture(scan):
    assert colors(PIL.ImageSequence.Iterator(scan)) == (2, ["R", "B"])
    assert colors([page.copy() for page in PIL.ImageSequence.Iterator(scan)]) == (2, ["R", "B"])
    assert colors(page for page in PIL.ImageSequence.Iterator(scan)) == (2, ["R", "B"])


def test_one_object_for_several_pages_is_refused(scan):
    with pytest.raises(BadPrompt, match=r"which all show its current frame: give copies, \[page\.copy\(\)"):
        colors(list(PIL.ImageSequence.Iterator(scan)))
    assert colors([RED, RED]) == (2, ["R", "R"])


def test_a_picture_holds_the_page_that_was_shown_when_it_was_made(scan):
    first = idefics.Picture(scan)
    scan.seek(1)
    assert open_picture(first, Fetcher(policy="off")).getpixel((0, 0)) == (255, 0, 0)
