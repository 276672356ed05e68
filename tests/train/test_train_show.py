"""Rows as `--show` prints them."""

import pytest

from idefics.train.show import show_rows
from train.training_data import write_rows


def shown(checkpoint, path, count=3, in_colour=False):
    return list(show_rows(checkpoint.read(path), checkpoint.processor.tokenizer, count, in_colour=in_colour))


@pytest.fixture
def path(pictures):
    return write_rows(
        pictures / "rows.jsonl",
        {"image": "small.png", "question": "What is this?", "answer": "A ball."},
        {"question": "\x1b[2JNow?", "answer": "Né, 球."},
        {"image": "small.png", "text": "A third."},
    )


def test_a_row_shows_its_cost_its_pictures_and_what_is_learned(get_checkpoint, path):
    first, second = shown(get_checkpoint("idefics2-8b"), path, count=2)
    frames = "<fake_token_around_image><image>x64" * 5
    assert first == (
        f"{path}#1: 346 tokens (320 of 1 picture), 4 of them learned\n"
        f" User:{frames}<fake_token_around_image> What is this?<end_of_utterance> \n"
        "Assistant:« A ball.<end_of_utterance>»\n"
    )
    assert second == (
        f"{path}#2: 26 tokens (no picture), 11 of them learned\n"
        " User: \\x1b[2JNow?<end_of_utterance> \n"
        "Assistant:« Né, 球.<end_of_utterance>»\n"
    )


def test_colours_are_for_terminals(get_checkpoint, path):
    text = shown(get_checkpoint("9b"), path, count=3, in_colour=True)[2]
    assert text.endswith("\x1b[32m« A third.</s>»\x1b[0m\n")
    assert "<fake_token_around_image><image><fake_token_around_image>" in text
