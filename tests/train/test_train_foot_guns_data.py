"""What goes wrong with training data elsewhere, and cannot here: each test is one known way to spoil a training."""

import numpy as np
import pytest

from train.training_data import FAMILIES, first_target, write_rows

QUESTION, ANSWER = "What is on the table?", "A red ball."


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
