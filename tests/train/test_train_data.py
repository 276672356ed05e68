"""Training data in all its forms: which tokens rows have, and which of them are learned."""

import base64
import csv
import io
import json
import tarfile
import threading

import PIL.Image
import PIL.ImageFile
import pytest

from idefics.errors import BadSetting
from idefics.messages import Picture, Shot, user
from train.training_data import (
    ANSWER,
    BASE,
    BASE_MODEL,
    CHAT_MODEL,
    FAMILIES,
    QUESTION,
    SIZE_BY_PICTURE,
    image_part,
    prefix,
    text_part,
    write_rows,
)

# --- Tables


@pytest.mark.parametrize("form", ["jsonl", "csv", "metadata", "parquet", "bytes in parquet", "base64"])
@pytest.mark.parametrize("name", [CHAT_MODEL, BASE_MODEL])
def test_every_form_of_a_table_is_the_same_rows(get_checkpoint, pictures, name, form):
    checkpoint = get_checkpoint(name)
    rows = [
        {"image": "wide.png", "question": QUESTION, "answer": ANSWER},
        {"image": "tall.jpg", "question": "And here?", "answer": "7"},
    ]
    read = checkpoint.read(write_form(pictures, form, rows))
    assert len(read) == 2
    for given, row in zip(rows, (read[0], read[1]), strict=True):
        prompt = checkpoint.task_prompt("ask", pictures / given["image"], given["question"])
        assert prefix(row) == prompt.ids
        assert checkpoint.learned(row)[0].startswith(f" {given['answer']}")
        assert row.read_pictures()[0].content_hash == prompt.pictures[0].content_hash


def write_form(folder, form, rows):
    """A table of these rows, and its path."""
    data = [(folder / row["image"]).read_bytes() for row in rows]
    if form == "jsonl":
        return write_rows(folder / "rows.jsonl", *rows)
    if form == "metadata":
        write_rows(
            folder / "metadata.jsonl",
            *({"file_name" if key == "image" else key: value for key, value in row.items()} for row in rows),
        )
        return folder
    if form == "base64":
        texts = [base64.b64encode(one).decode() for one in data]
        return write_rows(
            folder / "rows.jsonl", *(row | {"image": text} for row, text in zip(rows, texts, strict=True))
        )
    if form == "csv":
        with (folder / "rows.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        return folder / "rows.csv"
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    if form == "bytes in parquet":
        rows = [row | {"image": {"bytes": one, "path": None}} for row, one in zip(rows, data, strict=True)]
    parquet.write_table(arrow.Table.from_pylist(rows), folder / "rows.parquet")
    return folder / "rows.parquet"


@pytest.mark.parametrize("column", ["answer", "text", "caption", "captions", "answers"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_row_without_a_question_is_a_caption(get_checkpoint, pictures, name, column):
    checkpoint = get_checkpoint(name)
    path = write_rows(pictures / "rows.jsonl", {"image": "wide.png", column: "A cat."})
    (row,) = checkpoint.read(path)
    assert prefix(row) == checkpoint.task_prompt("caption", pictures / "wide.png").ids
    (learned,) = checkpoint.learned(row)
    assert learned.strip().removesuffix(checkpoint.text(row.ids[-1:])) == "A cat."


def test_of_several_answers_the_most_frequent_is_learned(get_checkpoint, pictures):
    rows = [
        {"question": QUESTION, "answers": ["red", "blue", "blue"]},
        {"question": QUESTION, "answers": "red|blue|blue"},
        {"question": QUESTION, "answers": [{"answer": "blue"}, {"answer": "blue"}, {"answer": "red"}]},
        {"question": QUESTION, "label": 1, "choices": ["red", "blue"]},
        {"question": QUESTION, "class": "blue"},
        {"question": QUESTION, "answer": " blue\n", "id": 3, "source": "a data set", "answer_id": 1},
    ]
    read = get_checkpoint(CHAT_MODEL).read(write_rows(pictures / "rows.jsonl", *rows))
    for index in range(len(rows)):
        assert get_checkpoint(CHAT_MODEL).learned(read[index]) == [" blue<end_of_utterance>"]


@pytest.mark.parametrize("name", FAMILIES)
def test_several_pictures_and_none(get_checkpoint, pictures, name):
    checkpoint = get_checkpoint(name)
    both = {"images": ["wide.png", "tall.jpg", "wide.png"], "question": QUESTION, "answer": ANSWER}
    read = checkpoint.read(
        write_rows(pictures / "rows.jsonl", both, {"question": QUESTION, "answer": ANSWER})
    )
    items = [Picture(pictures / one) for one in both["images"]]
    if name in BASE:
        instruction = "Instruction: Provide an answer to the question. Use the image to answer.\n"
        asked = f"Question: {QUESTION} Answer:"
        prompts = [[instruction, *items, asked], [instruction, asked]]
    else:
        prompts = [[user(*items, QUESTION)], [user(QUESTION)]]
    for index, (prompt_items, num_pictures) in enumerate(zip(prompts, (3, 0), strict=True)):
        prompt, row = checkpoint.prompt_of(prompt_items), read[index]
        assert prefix(row) == prompt.ids
        assert tuple(row.image_index[: len(prompt)]) == prompt.image_index
        assert [tuple(one) for one in row.image_token_positions] == list(prompt.image_token_positions)
        assert len(row.picture_keys) == len(row.read_pictures()) == num_pictures
    assert len(set(read[0].picture_keys)) == 2
    assert read[0].picture_keys[0] == read[0].picture_keys[2]


@pytest.mark.parametrize("name", [CHAT_MODEL, BASE_MODEL, "idefics2-8b-base"])
def test_shots_stand_before_the_question_and_are_not_learned(get_checkpoint, pictures, name):
    checkpoint = get_checkpoint(name)
    shots = [
        {"image": "tall.jpg", "question": "What is here?", "answer": "A dog."},
        {"image": "small.png", "answer": "A cat."},
    ]
    path = write_rows(
        pictures / "rows.jsonl",
        {"image": "wide.png", "question": QUESTION, "answer": ANSWER, "shots": shots},
    )
    (row,) = checkpoint.read(path)
    expected = [
        Shot(Picture(pictures / one["image"]), one["answer"], one.get("question", "")) for one in shots
    ]
    assert prefix(row) == checkpoint.task_prompt("ask", pictures / "wide.png", QUESTION, expected).ids
    assert len(checkpoint.learned(row)) == 1
    sizes = [one.frames[-1].shape for one in row.read_pictures()]
    assert len(sizes) == 3


def test_a_shots_file_is_training_data(get_checkpoint, pictures):
    path = write_rows(
        pictures / "shots.jsonl",
        {"image": "wide.png", "answer": "A wide one.", "question": "What is it?"},
        {"image": "tall.jpg", "answer": "A tall one."},
    )
    read, checkpoint = get_checkpoint(CHAT_MODEL).read(path), get_checkpoint(CHAT_MODEL)
    assert [checkpoint.learned(read[index]) for index in (0, 1)] == [
        [" A wide one.<end_of_utterance>"],
        [" A tall one.<end_of_utterance>"],
    ]


# --- Documents


@pytest.mark.parametrize("name", BASE)
def test_all_text_of_a_document_is_learned(get_checkpoint, pictures, name):
    checkpoint = get_checkpoint(name)
    parts = ["Some cat.", image_part(path="wide.png"), text_part("A dog."), image_part(), image_part()]
    read = checkpoint.read(
        write_rows(
            pictures / "rows.jsonl",
            {"text": parts, "images": ["tall.jpg", "small.png"]},
            {"text": "Only words."},
        )
    )
    learned = [[text.strip() for text in checkpoint.learned(read[index])] for index in (0, 1)]
    if name == "9b":
        assert learned == [["Some cat.", "A dog.", "</s>"], ["Only words.</s>"]]
    else:  # whose tiny tokenizer has no token before a text, from which its first one could follow
        assert learned[0][1:] == ["A dog.", "</s>"]
        assert "Some cat.".endswith(learned[0][0])
        assert not read[0].is_target[0]
    wide, tall, small = (Picture(pictures / one) for one in ("wide.png", "tall.jpg", "small.png"))
    prompt = checkpoint.prompt_of(["Some cat.", wide, "A dog.", tall, small])
    assert tuple(read[0].ids[:-1]) == prompt.ids
    assert tuple(read[0].image_index[:-1]) == prompt.image_index
    placeholders = checkpoint.processor.image_placeholder_ids
    assert not placeholders.intersection(read[0].ids[read[0].is_target].tolist())


# --- Reading


def test_pictures_are_read_late_and_by_any_thread(get_checkpoint, pictures, monkeypatch):
    checkpoint = get_checkpoint(CHAT_MODEL)
    path = write_form(
        pictures,
        "base64",
        [{"image": one, "question": QUESTION, "answer": ANSWER} for one in SIZE_BY_PICTURE],
    )
    with monkeypatch.context() as patch:
        patch.setattr(PIL.ImageFile.ImageFile, "load", lambda _: pytest.fail("pixels were decoded"))
        read = checkpoint.read(path)
    expected = [
        checkpoint.task_prompt("ask", pictures / one, QUESTION).pictures[0].content_hash
        for one in SIZE_BY_PICTURE
    ]
    found = []

    def read_all():
        found.append([read[index].read_pictures()[0].content_hash for index in [0, 1, 2] * 5])

    threads = [threading.Thread(target=read_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected * 5] * 4


def test_equal_pictures_have_equal_keys_wherever_they_are(get_checkpoint, pictures):
    checkpoint = get_checkpoint(CHAT_MODEL)
    texts = [base64.b64encode((pictures / one).read_bytes()).decode() for one in ("wide.png", "tall.jpg")]
    read = checkpoint.read(
        write_rows(
            pictures / "rows.jsonl",
            *({"image": texts[at], "question": QUESTION, "answer": ANSWER} for at in (0, 1, 0)),
        )
    )
    keys = [read[index].picture_keys for index in range(3)]
    assert keys[0] == keys[2] != keys[1]
    fewer = checkpoint.read(pictures / "rows.jsonl", max_tiles=1)
    assert fewer[0].picture_keys != keys[0]


def test_lengths_are_those_of_the_rows(get_checkpoint, pictures):
    for name in FAMILIES:
        read = get_checkpoint(name).read(
            write_rows(
                pictures / "rows.jsonl",
                {"images": ["wide.png", "wide.png"], "question": QUESTION, "answer": ANSWER},
                {"question": QUESTION, "answer": "x"},
            )
        )
        assert read.lengths.tolist() == [len(read[0]), len(read[1])]


def test_a_url_is_fetched_once(get_checkpoint, pictures, monkeypatch):
    fetched = []

    def get(_, url):
        fetched.append(url)
        return (pictures / "wide.png").read_bytes()

    monkeypatch.setattr("idefics.processing.fetch.Fetcher.get", get)
    url = "https://example.com/wide.png"
    path = write_rows(pictures / "rows.jsonl", {"image": url, "question": QUESTION, "answer": ANSWER})
    (row,) = get_checkpoint(CHAT_MODEL).read(path)
    hashes = {row.read_pictures()[0].content_hash for _ in range(3)}
    prompt = get_checkpoint(CHAT_MODEL).task_prompt("ask", pictures / "wide.png", QUESTION)
    assert hashes == {prompt.pictures[0].content_hash}
    assert fetched == [url]


def test_a_data_set_of_the_hub(get_checkpoint, pictures):
    datasets = pytest.importorskip("datasets")
    rows = {"image_1": [str(pictures / "wide.png")], "question": [QUESTION], "answer": [ANSWER]}
    made = datasets.Dataset.from_dict(rows).cast_column("image_1", datasets.Image())
    made.to_parquet(str(pictures / "hub" / "train.parquet"))
    checkpoint = get_checkpoint(CHAT_MODEL)
    (row,) = checkpoint.read(f"hf:{pictures / 'hub'}:train")
    assert prefix(row) == checkpoint.task_prompt("ask", pictures / "wide.png", QUESTION).ids


# --- Folders and archives without a table


@pytest.mark.parametrize("name", [CHAT_MODEL, BASE_MODEL])
def test_text_files_next_to_pictures_are_captions(get_checkpoint, pictures, name):
    checkpoint = get_checkpoint(name)
    for picture in SIZE_BY_PICTURE:
        (pictures / picture).with_suffix(".txt").write_text(f"The {picture[:4]} one.\n")
    read = checkpoint.read(pictures)
    assert [read[index].name for index in range(3)] == [
        str(pictures / one) for one in sorted(SIZE_BY_PICTURE)
    ]
    end = checkpoint.text(read[0].ids[-1:])
    for index, picture in enumerate(sorted(SIZE_BY_PICTURE)):
        assert checkpoint.learned(read[index])[0].strip() == f"The {picture[:4]} one.{end}"
        assert prefix(read[index]) == checkpoint.task_prompt("caption", pictures / picture).ids
    (pictures / "wide.txt").unlink()
    with pytest.raises(
        BadSetting, match=r"wide\.png has nothing to learn: write its text into .*wide\.txt, or give a table"
    ):
        checkpoint.read(pictures)


def test_samples_of_webdataset_are_rows(get_checkpoint, pictures):
    checkpoint = get_checkpoint(CHAT_MODEL)
    columns = json.dumps({"question": QUESTION, "answer": ANSWER})
    members = [("1.png", (pictures / "wide.png").read_bytes()), ("1.json", columns.encode())]
    members += [("2.jpg", (pictures / "tall.jpg").read_bytes()), ("2.txt", b"A tall one.")]
    with tarfile.open(pictures / "rows.tar", "w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    read = checkpoint.read(pictures / "rows.tar")
    assert prefix(read[0]) == checkpoint.task_prompt("ask", pictures / "wide.png", QUESTION).ids
    assert prefix(read[1]) == checkpoint.task_prompt("caption", pictures / "tall.jpg").ids
    assert checkpoint.learned(read[1]) == [" A tall one.<end_of_utterance>"]
    assert read[1].read_pictures()[0].frames
