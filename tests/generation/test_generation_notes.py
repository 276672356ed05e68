"""`notes` of an answer name the frames of its pictures' files that were not read."""

import io

import PIL.Image
import pytest

import idefics

pytestmark = pytest.mark.filterwarnings("ignore::idefics.errors.PartialPictureWarning")


@pytest.fixture(scope="module")
def demo():
    with idefics.load("demo") as vlm:
        yield vlm


@pytest.fixture
def multi_page_scan(tmp_path):
    path = tmp_path / "scan.tif"
    first, *rest = (PIL.Image.new("RGB", (32, 32), color) for color in ("red", "blue"))
    first.save(path, save_all=True, append_images=rest)
    return path


def test_every_call_says_so(demo, multi_page_scan):
    said = (
        (
            f"{multi_page_scan} has 2 pages, and only the first was read: "
            "save the others as files of their own to ask about them"
        ),
    )
    assert demo.ask(multi_page_scan, "What is this?", max_new_tokens=1).notes == said
    assert demo.classify(multi_page_scan, ["a", "b"]).notes == said
    assert (
        demo.chat([idefics.user(idefics.Picture(multi_page_scan), "What?")], max_new_tokens=1).notes == said
    )
    assert demo.generate([str(multi_page_scan), "This"], max_new_tokens=1).notes == said
    with demo.caption(multi_page_scan, stream=True, max_new_tokens=2) as stream:
        assert list(stream)
    assert stream.answer.notes == said
    shots = [idefics.Shot(idefics.Picture(multi_page_scan), "A plain page.")]
    good = PIL.Image.new("RGB", (32, 32))
    assert demo.with_shots(shots).caption(good, max_new_tokens=1).notes == said


def test_of_whole_pictures_there_is_nothing_to_say(demo):
    file = io.BytesIO()
    PIL.Image.new("RGB", (32, 32)).save(file, "PNG")
    assert demo.caption(file, max_new_tokens=1).notes == ()
