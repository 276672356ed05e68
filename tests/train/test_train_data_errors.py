"""What is wrong with training data: every row that cannot be learned is found before training, and named."""

import base64
import dataclasses
import errno
import io
import json
import re

import numpy as np
import PIL.Image
import pytest

from idefics.errors import BadPicture, BadSetting, IdeficsError, OutputError, UnsupportedModel
from idefics.messages import assistant, user
from idefics.train.data.examples import TrainingExample
from idefics.train.data.passages import PassageLayout
from idefics.train.rows import RowSizes
from train.training_data import CHAT, write_rows

CHAT_MODEL, BASE_MODEL = "smolvlm-256m", "9b"
GOOD = {"image": "wide.png", "question": "What?", "answer": "A ball."}
USER = {"role": "user", "content": "What?"}
ANSWER = {"role": "assistant", "content": "A ball."}


def errors_of(checkpoint, path, **settings):
    """The message about rows."""
    with pytest.raises(BadSetting) as caught:
        checkpoint.read(path, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


BAD_ROWS = {
    "missing picture": (GOOD | {"image": "none.png"}, "none.png: no such file"),
    "broken picture": (GOOD | {"image": "broken.png"}, "broken.png is broken: it begins like PNG"),
    "empty picture": (GOOD | {"image": "empty.png"}, "empty.png is empty (0 bytes)"),
    "no picture": (GOOD | {"image": "notes.txt"}, "notes.txt is not a picture that can be read"),
    "video": (GOOD | {"image": "film.mp4"}, "film.mp4 is a video"),
    "number as picture": (GOOD | {"image": 3}, "has an int as picture"),
    "empty answer": (GOOD | {"answer": "  "}, "has an empty column answer"),
    "null answer": (GOOD | {"answer": None}, "has an empty column answer"),
    "empty answers": (GOOD | {"answer": None, "answers": []}, "has an empty column answers"),
    "object as answer": (GOOD | {"answer": {"a": 1}}, "answer is a dict; give a text"),
    "bool as answer": (GOOD | {"answer": True}, "answer is a bool; give a text"),
    "NaN as answer": (GOOD | {"answer": float("nan")}, "has an empty column answer"),
    "NaN as question": (GOOD | {"question": float("nan")}, "question is no number; give a text"),
    "objects as answers": (GOOD | {"answers": [{"a": 1}]}, "a right answer is {'a': 1}: give a text"),
    "empty question": (GOOD | {"question": " "}, "has an answer and an empty question"),
    "null question": (GOOD | {"question": None}, "has an answer and an empty question"),
    "list as question": (GOOD | {"question": ["a"]}, "question is a list; give a text"),
    "half a character": (GOOD | {"question": "\ud83d?"}, "question has half of a character"),
    "placeholder in a text": (GOOD | {"question": "<image>\nWhat?"}, "question has <image> in its text"),
    "no answer": (
        {"image": "wide.png", "question": "What?"},
        "has no column answer, text or messages; it has",
    ),
    "LLaVA's conversations": (
        {"image": "wide.png", "conversations": [{"from": "human", "value": "What?"}]},
        "has conversations, which are not read: write messages, such as [{",
    ),
    "misspelt answer": (
        {"image": "wide.png", "question": "What?", "anwser": "x"},
        "has the column 'anwser', which is not read: call it 'answer'",
    ),
    "misspelt question": ({"image": "wide.png", "Question": "What?", "answer": "x"}, "call it 'question'"),
    "misspelt image": ({"photo": "wide.png", "question": "What?", "answer": "x"}, "call it 'image'"),
    "no question and no picture": ({"answer": "x"}, "has neither a question nor a picture"),
    "label without question": ({"image": "wide.png", "label": "cat"}, "has a label and no question"),
    "both": (GOOD | {"messages": [USER, ANSWER]}, "has both messages and question"),
    "image and images": (GOOD | {"images": ["wide.png"]}, "has both image and images"),
    "images is a text": (
        {"images": "wide.png", "question": "What?", "answer": "x"},
        "images is not valid JSON",
    ),
    "images is a number": (
        {"images": 3, "question": "What?", "answer": "x"},
        "images is an int; give a list",
    ),
    "document": (
        {"text": ["a", {"type": "image", "path": "wide.png"}]},
        "is a document for a base checkpoint",
    ),
    "shots of texts": (GOOD | {"shots": ["a"]}, "shots is no list of objects"),
    "shot without answer": (GOOD | {"shots": [{"image": "wide.png"}]}, "shot 1 needs an image and an answer"),
    "shot with more": (
        GOOD | {"shots": [{"image": "wide.png", "answer": "x", "caption": "y"}]},
        "shot 1 has the unknown key 'caption'",
    ),
    "messages of texts": ({"messages": ["a"]}, "message 1 is a str"),
    "messages is a number": ({"messages": 3}, "messages is an int; give a list of messages"),
    "messages is no JSON": ({"messages": "[{"}, "messages is not valid JSON"),
    "role": ({"messages": [USER, {"role": "tool", "content": "x"}]}, "role is 'tool'; give one of"),
    "ends with the user": ({"messages": [USER, ANSWER, USER]}, "the last message is the user's"),
    "begins with the assistant": (
        {"messages": [ANSWER, USER, ANSWER]},
        "the first message is the assistant's",
    ),
    "empty turn": (
        {"messages": [USER, {"role": "assistant", "content": " "}]},
        "message 2 is an empty answer",
    ),
    "picture of the assistant": (
        {"messages": [USER, {"role": "assistant", "content": [{"type": "image", "path": "wide.png"}]}]},
        "message 2 is the assistant's and has a picture",
    ),
    "unknown key": (
        {"messages": [{"role": "user", "content": [{"type": "text", "txt": "x"}]}, ANSWER]},
        "has the unknown key 'txt'",
    ),
    "too few pictures": (
        {"images": ["wide.png"], "messages": [{"role": "user", "content": [{"type": "image"}] * 2}, ANSWER]},
        "of pictures, its columns have 1, and its text places 2",
    ),
    "too many pictures": (
        {
            "images": ["wide.png"] * 2,
            "messages": [{"role": "user", "content": [{"type": "image"}]}, ANSWER],
        },
        "of pictures, its columns have 2, and its text places 1",
    ),
    "film in a message": (
        {"messages": [{"role": "user", "content": [{"type": "video", "path": "film.mp4"}]}, ANSWER]},
        "has a video: rows to learn from have pictures only",
    ),
    "no object": ([1, 2], "is no JSON object"),
}


@pytest.fixture
def folder(pictures):
    """Pictures, and files that are none."""
    whole = (pictures / "wide.png").read_bytes()
    (pictures / "broken.png").write_bytes(whole[:12] + b"rubbish" * 10)
    (pictures / "empty.png").touch()
    (pictures / "notes.txt").write_text("nothing to see\n" * 10)
    (pictures / "film.mp4").write_bytes(b"\x00\x00\x00\x18ftypmp42" + bytes(100))
    return pictures


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_row_that_cannot_be_learned_is_named(get_checkpoint, folder, case):
    row, expected = BAD_ROWS[case]
    path = write_rows(folder / "rows.jsonl", GOOD, row, GOOD)
    message = errors_of(get_checkpoint(CHAT_MODEL), path)
    assert message.startswith(f"1 of the 3 rows of {path} cannot be learned: ")
    assert f"{path}#2" in message
    assert expected in message


def test_a_misspelt_column_of_pictures_is_named_as_the_folder_calls_it(get_checkpoint, pictures):
    path = write_rows(pictures / "metadata.jsonl", {"file": "wide.png", "question": "What?", "answer": "x"})
    assert "call it 'file_name', or leave it out" in errors_of(get_checkpoint(CHAT_MODEL), path.parent)


def test_all_errors_are_counted_and_the_first_ten_named(get_checkpoint, pictures):
    bad = [row for row, _ in BAD_ROWS.values()]
    path = write_rows(pictures / "rows.jsonl", *([GOOD, *bad] * 30))  # more than are tokenized together
    message = errors_of(get_checkpoint(CHAT_MODEL), path)
    assert message.startswith(f"{30 * len(bad):,} of the {30 * (len(bad) + 1):,} rows")
    assert f"; {path}#8, #9 has an empty column answer: fill it in" in message, "one reason once"
    named = {int(number) for number in re.findall(r"#(\d+)", message)}
    assert named == set(range(2, 12))
    assert message.endswith(f"; and {30 * len(bad) - 10:,} more")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("rows.jsonl", "", "has no rows: give at least one to learn"),
        ("rows.jsonl", "\n\n", "has no rows"),
        ("rows.csv", "image,question,answer\n", "has no rows"),
        ("rows.csv", "image,question,answer\nwide.png,What?\n", "#1 has 2 values, but the header has 3"),
        ("rows.jsonl", "{", "#1 is not valid JSON"),
        ("wide.png", None, "wide.png has nothing to learn: write its text into"),
        ("", None, "3 of the 3 rows"),
        ("rows.json", "[]", "rows.json is JSON: give JSON lines (.jsonl)"),
    ],
)
def test_files_without_rows(get_checkpoint, pictures, name, content, expected):
    path = pictures / name
    if content is not None:
        path.write_text(content)
    assert expected in errors_of(get_checkpoint(CHAT_MODEL), path)


def test_data_that_are_not_there(get_checkpoint, pictures):
    checkpoint = get_checkpoint(CHAT_MODEL)
    assert errors_of(checkpoint, "esay-vqa") == (
        "esay-vqa: no such file, folder or suite (did you mean 'easy-vqa'?)"
    )
    assert errors_of(checkpoint, "vqav2") == (
        "vqav2 needs its folder, which docs/evaluation.md describes: vqav2:/data/vqav2"
    )
    with pytest.raises(BadPicture, match=r"none\.jsonl: no such file"):
        checkpoint.read(pictures / "none.jsonl")
    assert "questions.json cannot be read as JSON" in errors_of(checkpoint, f"easy-vqa:{pictures}")


def test_rows_that_are_too_long_are_left_out_if_told_so(get_checkpoint, pictures):
    checkpoint = get_checkpoint(CHAT_MODEL)
    rows = [GOOD | {"question": "What? " * number} for number in (1, 60, 2, 60)]
    path = write_rows(pictures / "rows.jsonl", *rows)
    lengths = checkpoint.read(path).lengths.tolist()
    limit = lengths[2]
    read = checkpoint.read(path, max_tokens=limit, too_long="skip")
    assert [read[index].name for index in range(len(read))] == [f"{path}#1", f"{path}#3"]
    assert read.skipped == (f"{path}#2", f"{path}#4")
    assert read.count_tokens().num_left_out == 2
    assert RowSizes.of(read.count_tokens()).num_left_out == 2
    assert read.lengths.tolist() == [lengths[0], lengths[2]]
    assert [len(read[index]) for index in (0, 1)] == [lengths[0], lengths[2]]
    message = errors_of(checkpoint, path, max_tokens=1, too_long="skip")
    assert message.startswith("4 of the 4 rows")
    assert "leave these rows out" not in message


def test_a_token_that_the_embedding_lacks_is_an_error_of_its_row(get_checkpoint, pictures):
    checkpoint = get_checkpoint(CHAT_MODEL)
    path = write_rows(pictures / "rows.jsonl", GOOD, GOOD)
    largest = int(checkpoint.read(path)[0].ids.max())
    config = checkpoint.checkpoint.config
    small = dataclasses.replace(config, text=dataclasses.replace(config.text, vocab_size=largest))
    smaller = dataclasses.replace(
        checkpoint, checkpoint=dataclasses.replace(checkpoint.checkpoint, config=small)
    )
    assert errors_of(smaller, path).startswith(
        f"2 of the 2 rows of {path} cannot be learned: {path}#1, #2 has the token {largest}, and the model's embedding "
        f"has {largest:,} tokens: leave this row out"
    )


def test_no_room_for_copies_of_pictures_is_an_error_of_one_line(get_checkpoint, pictures, monkeypatch):
    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", Full)
    data = base64.b64encode((pictures / "small.png").read_bytes()).decode()
    path = write_rows(pictures / "rows.jsonl", GOOD | {"image": f"data:image/png;base64,{data}"})
    with pytest.raises(
        OutputError, match=r"^pictures that have .* \(No space left on device\): make room in "
    ):
        get_checkpoint(CHAT_MODEL).read(path)


def test_no_limit_is_above_that_of_the_model(get_checkpoint, pictures):
    path = write_rows(pictures / "rows.jsonl", GOOD)
    checkpoint = get_checkpoint(CHAT_MODEL)
    limit = checkpoint.processor.text_limit.max_tokens
    assert len(checkpoint.read(path, max_tokens=limit)) == 1
    expected = f"max_tokens is {limit + 1:,}; this model reads {limit:,}"
    assert errors_of(checkpoint, path, max_tokens=limit + 1).startswith(expected)


def test_a_picture_that_changes_is_not_learned(get_checkpoint, pictures):
    (row,) = get_checkpoint(CHAT_MODEL).read(write_rows(pictures / "rows.jsonl", GOOD))
    row.read_pictures()
    PIL.Image.new("RGB", (500, 10)).save(pictures / "wide.png")
    with pytest.raises(BadPicture, match=r"wide\.png has changed since the rows were read"):
        row.read_pictures()


def test_a_picture_whose_pixels_are_broken_is_named_when_it_is_read(get_checkpoint, pictures):
    path = pictures / "wide.png"
    noise = np.random.default_rng(0).integers(0, 256, (40, 90, 3), np.uint8)
    PIL.Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:3000])
    (row,) = get_checkpoint(CHAT_MODEL).read(write_rows(pictures / "rows.jsonl", GOOD))
    with pytest.raises(BadPicture, match=r"wide\.png is broken: its pixels cannot be read to the end"):
        row.read_pictures()


def test_a_template_that_writes_answers_otherwise_is_refused(get_checkpoint, monkeypatch):
    checkpoint = get_checkpoint(CHAT_MODEL)
    without_end = "{% for m in messages %}{{ m['role'] }}: {{ m['content'][0]['text'] }}\n{% endfor %}"
    prompted = without_end + "{% if add_generation_prompt %}assistant:{% endif %}"
    otherwise = without_end + "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    for template, expected in (
        (prompted, "without a token that ends"),
        (otherwise, "otherwise than it prompts"),
    ):
        with pytest.raises(IdeficsError, match=expected):
            learn_with(checkpoint, template)


def learn_with(checkpoint, template):
    """Lays out a conversation with another template."""
    processor = checkpoint.processor.with_image_detail(checkpoint.processor.image_detail)
    processor.prompt_format = dataclasses.replace(processor.prompt_format, chat_template=template)
    example = TrainingExample(name="row", prompt=[user("What?"), assistant("A ball.")], answer=None)
    return PassageLayout(processor, checkpoint.stop_ids).lay_out(example)


def test_a_checkpoint_without_a_token_that_ends_answers_is_refused(get_checkpoint):
    with pytest.raises(UnsupportedModel, match="no token of this checkpoint ends an answer"):
        PassageLayout(get_checkpoint(CHAT_MODEL).processor, frozenset())


@pytest.mark.parametrize("name", CHAT)
def test_messages_in_json_text_are_messages(get_checkpoint, pictures, name):
    path = write_rows(pictures / "rows.jsonl", {"messages": json.dumps([USER, ANSWER])})
    (row,) = get_checkpoint(name).read(path)
    assert row.num_targets


def test_documents_end_as_documents(get_checkpoint):
    """A base checkpoint may have a token that ends turns; its documents end with the other one."""
    checkpoint = get_checkpoint("idefics2-8b")
    processor = checkpoint.processor.with_image_detail(checkpoint.processor.image_detail)
    example = TrainingExample(name="row", prompt=["What?"], answer="A ball.")
    for kind, end in (("base", "</s>"), ("chat", "<end_of_utterance>")):
        processor.prompt_format = dataclasses.replace(processor.prompt_format, kind=kind)
        *_, learned = PassageLayout(processor, checkpoint.stop_ids).lay_out(example)
        assert [piece.text for piece in learned] == [" A ball.", end]
