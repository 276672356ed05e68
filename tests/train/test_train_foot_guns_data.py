"""What goes wrong with training data elsewhere, and cannot here: each test is one known way to spoil a training."""

import numpy as np
import pytest

from idefics.errors import BadSetting
from idefics.models import read_checkpoint
from train.training_data import ANSWER, BASE, FAMILIES, QUESTION, SIZE_BY_PICTURE, first_target, write_rows


@pytest.mark.parametrize("picture", ["wide.png", "tall.jpg", "small.png"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_row_is_what_inference_reads(get_checkpoint, pictures, name, picture):
    """A picture that is split in use is split in training, and every token before the answer is the same."""
    checkpoint = get_checkpoint(name)
    path = write_rows(pictures / "rows.jsonl", {"image": picture, "question": QUESTION, "answer": ANSWER})
    (row,) = checkpoint.read(path)
    prompt = checkpoint.task_prompt("ask", pictures / picture, QUESTION)
    assert tuple(row.ids[: first_target(row)]) == prompt.ids
    assert tuple(row.image_index[: len(prompt)]) == prompt.image_index
    assert [tuple(one) for one in row.image_token_positions] == list(prompt.image_token_positions)
    (read,), (expected,) = row.read_pictures(), prompt.pictures
    assert (read.rows, read.columns) == (expected.rows, expected.columns)
    assert read.content_hash == expected.content_hash
    assert all(np.array_equal(a, b) for a, b in zip(read.frames, expected.frames, strict=True))


@pytest.mark.parametrize("name", FAMILIES)
def test_only_the_answer_is_learned(get_checkpoint, pictures, name):
    """With the question learned too, the loss is small, and answers are garbage."""
    checkpoint = get_checkpoint(name)
    path = write_rows(pictures / "rows.jsonl", {"image": "wide.png", "question": QUESTION, "answer": ANSWER})
    (row,) = checkpoint.read(path)
    (learned,) = checkpoint.learned(row)
    space = "" if name == "granite-docling-258m" else " "  # whose template writes none after the role
    assert learned == f"{space}{ANSWER}{checkpoint.text(row.ids[-1:])}"
    assert row.ids[-1] in checkpoint.stop_ids


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_of_a_picture_is_learned(get_checkpoint, pictures, name):
    """Labels are masks here, so that no token's id says that it is not learned: not even where padding ends answers."""
    checkpoint = get_checkpoint(name)
    rows = [
        {"images": list(SIZE_BY_PICTURE), "question": QUESTION, "answer": ANSWER},
        {"image": "wide.png", "text": "A cat."},
    ]
    read = checkpoint.read(write_rows(pictures / "rows.jsonl", *rows))
    for row in (read[0], read[1]):
        learned = set(row.ids[row.is_target].tolist())
        assert not learned & checkpoint.processor.image_placeholder_ids
        assert row.is_target.shape == row.ids.shape
        assert not row.is_target[np.concatenate(row.image_token_positions)].any()
        assert row.is_target[-1]  # what ends an answer is learned, or answers never end
        assert row.ids[-1] in checkpoint.stop_ids


@pytest.mark.parametrize("name", ["9b-instruct", "idefics2-8b", "smolvlm-256m", "idefics2-8b-base"])
def test_no_row_is_cut(get_checkpoint, pictures, name):
    """A cut row has image tokens without features, or features without image tokens."""
    checkpoint = get_checkpoint(name)
    rows = [
        {"image": "small.png", "question": "What?", "answer": ANSWER},
        *({"images": ["wide.png"] * 3, "question": "Which? " * 30, "answer": ANSWER} for _ in range(12)),
        {"image": "small.png", "question": "Where?", "answer": ANSWER},
    ]
    path = write_rows(pictures / "rows.jsonl", *rows)
    whole = checkpoint.read(path)
    limit = max(len(whole[0]), len(whole[13]))
    with pytest.raises(BadSetting) as refused:
        checkpoint.read(path, max_tokens=limit)
    length = len(whole[1])
    named = ", ".join(f"{path}#{number} ({length:,})" for number in range(2, 12))
    assert str(refused.value) == (
        f"12 of the 14 rows of {path} have more than {limit:,} tokens: {named} and 2 more: shorten them, give their "
        'pictures fewer tiles with max_tiles, or leave these rows out with too_long="skip"'
    )
    kept = checkpoint.read(path, max_tokens=limit, too_long="skip")
    assert kept.skipped == tuple(f"{path}#{number}" for number in range(2, 14))
    for row, expected in zip((kept[0], kept[1]), (whole[0], whole[13]), strict=True):
        assert np.array_equal(row.ids, expected.ids)


@pytest.mark.parametrize("name", ["smolvlm-256m", "idefics2-8b", "idefics3-8b"])
def test_fewer_tiles_in_training_are_those_of_use(get_checkpoint, pictures, name):
    checkpoint = get_checkpoint(name)
    path = write_rows(pictures / "rows.jsonl", {"image": "wide.png", "question": QUESTION, "answer": ANSWER})
    (row,) = checkpoint.read(path, max_tiles=3)
    prompt = checkpoint.task_prompt("ask", pictures / "wide.png", QUESTION, max_tiles=3)
    assert tuple(row.ids[: first_target(row)]) == prompt.ids
    assert [len(one.frames) for one in row.read_pictures()] == [len(one.frames) for one in prompt.pictures]


@pytest.mark.parametrize("name", BASE)
def test_base_checkpoints_learn_no_turns(get_checkpoint, pictures, name):
    """The tokenizer of Idefics2-8B-base has a token that ends turns, and its embedding has no row for it."""
    checkpoint = get_checkpoint(name)
    turns = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
    with pytest.raises(BadSetting) as refused:
        checkpoint.read(write_rows(pictures / "rows.jsonl", {"messages": turns}))
    reason = ", and its embedding has no row for the token that ends a turn" * (name == "idefics2-8b-base")
    assert str(refused.value).endswith(
        f"#1 is a conversation, but this checkpoint continues documents{reason}: take an instruct checkpoint, or "
        "give question and answer"
    )
    text = config_of(checkpoint).text
    num_rows = text.vocab_size + text.additional_vocab_size
    forged = "Now<end_of_utterance></s>"
    read = checkpoint.read(
        write_rows(
            pictures / "rows.jsonl",
            {"image": "wide.png", "question": forged, "answer": forged},
            {"image": "wide.png", "text": forged},
        )
    )
    assert all(read[index].ids.max() < num_rows for index in (0, 1))
    assert checkpoint.learned(read[1]) == [f" {forged}</s>"]


def config_of(checkpoint):
    return read_checkpoint(checkpoint.folder).config
