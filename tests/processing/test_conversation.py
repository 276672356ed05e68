"""Parsing of messages and raw items: no picture is read as words, and no key is ignored."""

import base64
import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from idefics.errors import BadPicture, BadPrompt
from idefics.messages import LiteralText, Message, Picture, Video, assistant, user
from idefics.processing.fetch import Fetcher
from idefics.processing.image_processor import open_picture
from idefics.processing.message_parsing import to_messages
from idefics.processing.prompt_items import parse_item
from processing.pictures_tiny import encode_picture, open_trusted, random_picture

DATA = encode_picture(random_picture("RGB"), "PNG")
BASE64_TEXT = base64.b64encode(DATA).decode()
URI = f"data:image/png;base64,{BASE64_TEXT}"


@pytest.fixture
def picture_files(tmp_path, monkeypatch):
    """A working folder with pictures under unusual names, and a text file."""
    monkeypatch.chdir(tmp_path)
    for format, names in {
        "PNG": ["tower.png", "photo", "my tower.png", "odd.dat"],
        "AVIF": ["photo.avif"],
        "JPEG": ["photo.jfif"],
        "JPEG2000": ["photo.jp2"],
    }.items():
        for name in names:
            Path(name).write_bytes(encode_picture(random_picture("RGB", (64, 48)), format))
    Path("notes.txt").write_text("hello")
    Path("folder").mkdir()
    return tmp_path


def parse_content(*parts):
    return [{"role": "user", "content": list(parts)}]


def parse_only_part(part):
    ((found,),) = (message.parts for message in to_messages(parse_content(part)))
    return found


@pytest.mark.parametrize(
    "name", ["photo.avif", "photo.jfif", "photo.jp2", "photo", "tower.png", "my tower.png", "odd.dat"]
)
def test_an_existing_file_among_items_is_a_picture(name, picture_files):
    part = parse_item(name)
    assert isinstance(part, Picture) and open_picture(part, Fetcher()).size == (64, 48)
    assert isinstance(parse_item(Path(name)), Picture)


def test_what_is_no_picture_is_refused_rather_than_read_as_words(picture_files):
    with pytest.raises(BadPicture, match=r"^notes.txt is a file and no picture; if it is meant as text"):
        parse_item("notes.txt")
    with pytest.raises(BadPicture, match=r"^folder/ is a folder: name the pictures themselves"):
        parse_item("folder/")
    for missing in (
        "gone.avif",
        "gone.heic",
        "gone.mp4",
        "gone.JFIF",
        "/no where/gone 1.png",
        "./my gone.png",
    ):
        with pytest.raises(BadPicture, match=f"^{missing}: no such file"):
            parse_item(missing)


@pytest.mark.parametrize("name", ["tower.png", "my tower.png", "photo", "gone.png", "./my gone.png"])
@pytest.mark.parametrize("form", ["{}\n", " {}", "{}\r\n"])
def test_white_space_around_the_name_of_a_file_makes_no_words_of_it(name, form, picture_files):
    text = form.format(name)
    with pytest.raises(BadPicture) as error:
        parse_item(text)
    assert str(error.value).startswith(
        f"{text!r} is the name of a file with white space around it: give {name!r};"
    )
    with pytest.raises(BadPrompt, match="the name of a file, and would be read as words"):
        to_messages(parse_content(text, "What is this?"))


def test_the_path_of_a_folder_is_no_words(picture_files):
    for path in (str(picture_files), str(picture_files / "folder"), "./folder", "folder/\n"):
        with pytest.raises(BadPicture, match=r"is a folder: name the pictures themselves"):
            parse_item(path)


@pytest.mark.parametrize(
    "text",
    [
        "folder",
        " notes.txt",
        "and/or",
        "a/" * 3000,
        "My text: a/b gone.png",
        "no file",
        "Look at gone.png",
        "notes.txt\n",
        "a" * 5000,
        "a\0b",
        "",
    ],
)
def test_other_texts_are_words(text, picture_files):
    assert parse_item(text) is text


def test_words_that_are_marked_as_such_name_no_file(picture_files):
    for text in ("tower.png", "https://example.com/a.png", "notes.txt"):
        assert parse_item(LiteralText(text)) == text and isinstance(parse_item(LiteralText(text)), str)
        assert to_messages([user(Picture("x.png"), LiteralText(text))])[0].parts[1] == text
        assert to_messages(parse_content({"type": "text", "text": text}))[0].parts == (text,)


@pytest.mark.parametrize("name", ["tower.png", "photo", "my tower.png", "notes.txt", "gone.png", "clip.mp4"])
def test_the_name_of_a_file_in_a_message_is_refused_with_the_way_to_give_it(name, picture_files):
    for messages in ([user(name, "What is this?")], parse_content(name, "What is this?")):
        with pytest.raises(BadPrompt) as error:
            to_messages(messages)
        assert str(error.value) == (
            f"message 1: content[0] is {name!r}, the name of a file, and would be read as words: for a picture give "
            f'Picture({name!r}), for words {{"type": "text", "text": ...}}'
        )


def test_what_a_model_has_said_may_be_the_name_of_a_file(picture_files):
    (message,) = to_messages([assistant("tower.png")])
    assert message.parts == ("tower.png",)
    (message,) = to_messages([{"role": "user", "content": "tower.png"}])
    assert message.parts == ("tower.png",)


def test_texts_of_untrusted_senders_name_no_file(picture_files, monkeypatch):
    monkeypatch.setattr(Path, "is_file", lambda self: pytest.fail("it was looked up"))
    (message,) = to_messages([Message("user", ("tower.png", "photo"))], untrusted=True)
    assert message.parts == ("tower.png", "photo")


@pytest.mark.parametrize(
    "part",
    [
        Path("tower.png"),
        DATA,
        bytearray(DATA),
        io.BytesIO(DATA),
        PIL.Image.open(io.BytesIO(DATA)),
        np.asarray(random_picture("RGB")),
        torch.from_numpy(np.array(random_picture("RGB"))),
    ],
    ids=lambda part: type(part).__name__,
)
def test_everything_that_a_picture_is_made_of_may_stand_among_parts(part, picture_files):
    for messages in ([user(part, "What is this?")], parse_content(part, "What is this?")):
        shown, words = to_messages(messages)[0].parts
        assert isinstance(shown, Picture) and words == "What is this?"
        open_picture(shown, Fetcher())


def test_a_path_of_a_video_is_a_video(picture_files):
    assert isinstance(parse_only_part(Path("clip.mp4")), Video)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "base64": BASE64_TEXT},
        {"type": "image", "base64": base64.encodebytes(DATA)},
        {"type": "image", "base64": URI},
        {"type": "image", "image": BASE64_TEXT},
        {"type": "image", "url": URI},
        {"type": "image", "image": URI, "url": None, "text": None, "path": ""},
        {"type": "image_url", "image_url": URI},
        {"type": "image_url", "image_url": {"url": URI, "format": "png"}},
        {"type": "image_url", "image_url": BASE64_TEXT, "cache_control": {"type": "ephemeral"}},
    ],
)
def test_pictures_as_transformers_and_openai_write_them(part):
    found = parse_only_part(part)
    assert np.array_equal(open_trusted(found.source), open_trusted(DATA))


def test_an_image_url_that_is_a_string_says_its_detail():
    assert parse_only_part({"type": "image_url", "image_url": URI, "detail": "low"}).detail == "low"


@pytest.mark.parametrize(
    "key", ["images", "pictures", "image", "photos", "image_url", "files", "attachments"]
)
def test_pictures_outside_the_content_are_refused_by_name(key):
    with pytest.raises(BadPrompt) as error:
        to_messages([{"role": "user", "content": "What is this?", key: [DATA]}])
    assert str(error.value) == (
        f"message 1 has the unknown key {key!r}: put pictures into the content, as "
        '{"type": "image", "image": ...}'
    )


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        ({"role": "user", "content": "x", "contents": "y"}, r"'contents' \(did you mean 'content'\?\)"),
        ({"role": "user", "content": "x", "weight": 1}, "'weight'; known are role, content, name"),
        ({"role": "user", "content": None}, "content is None; give a string or a list of parts"),
        *(
            ({"role": "user", "content": [part]}, complaint)
            for part, complaint in [
                ({"type": "image", "images": [URI]}, r"'images' \(did you mean 'image'\?\)"),
                ({"type": "image", "source": {"data": BASE64_TEXT}}, "unknown key 'source'"),
                (
                    {"type": "image", "image": URI, "url": URI},
                    'gives "image", "url": one picture has one of them',
                ),
                ({"type": "image"}, 'has no image: give one of "image", "url", "path", "base64"'),
                ({"type": "image", "base64": 3}, "base64 is an int; give a string"),
                ({"type": "text", "text": "x", "image": URI}, "unknown key 'image'"),
                (
                    {"type": "image_url", "image_url": {"url": URI, "size": 3}},
                    "image_url has the unknown key 'size'",
                ),
                ({"type": "image_url", "image_url": 3}, 'image_url has no "url"'),
                ({"type": "video", "video": "x.mp4", "url": "y.mp4"}, 'gives "video", "url"'),
                ({"type": "input_image", "image_url": URI}, "give one of text, image, video, image_url"),
            ]
        ),
    ],
)
def test_what_is_not_known_is_refused_by_name(message, complaint):
    with pytest.raises(BadPrompt, match=complaint):
        to_messages([message])


def test_keys_that_mean_nothing_are_accepted():
    part = {"type": "text", "text": "x", "image": None, "annotations": []}
    message = {
        "role": "user",
        "content": [part],
        "name": "anna",
        "tool_calls": None,
        "images": [],
        "prefix": False,
    }
    assert to_messages([message])[0].parts == ("x",)


def test_objects_that_are_no_part_are_refused():
    for wrong in (3, None, ["x"]):
        with pytest.raises(BadPrompt, match=r'give a dict with a "type"'):
            to_messages(parse_content(wrong))


@pytest.mark.parametrize("key", ["data", "source", "b64"])
def test_a_picture_under_the_key_of_another_api_is_refused_with_ours(key):
    with pytest.raises(BadPrompt) as error:
        to_messages(parse_content({"type": "image", key: "aGVsbG8="}))
    assert str(error.value) == (
        f'message 1: content[0] has the unknown key {key!r}: give the picture as "image", "url", "path" or '
        '"base64"'
    )
