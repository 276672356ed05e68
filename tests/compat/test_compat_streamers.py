"""Streamers: the same pieces of text as the reference's, and an end even after an error."""

import random
import threading
from queue import Empty

import pytest
import torch

from compat.generation_fakes import TableModel, make_chain_table
from idefics.compat.generation_callbacks import BaseStreamer, TextIteratorStreamer, TextStreamer
from idefics.errors import BadSetting, UnknownArgument

ALPHABET = [
    "",
    "▁a",
    "b",
    "▁",
    "c▁",
    "\n",
    "猫",
    "中文",
    "한",
    "é",
    "x\n",
    ".",
    "▁▁",
    "<s>",
    "\xe4",
    "\xb8",
    "\xad",
]


class PieceTokenizer:
    """A tokenizer of pieces; the last three of the alphabet are the bytes of one character."""

    def __init__(self):
        self.options = []

    def decode(self, ids, skip_special_tokens=False):
        self.options.append(skip_special_tokens)
        pieces = [ALPHABET[id] for id in ids if not (skip_special_tokens and ALPHABET[id] == "<s>")]
        raw = b"".join(p.encode("latin-1") if p in ALPHABET[-3:] else p.encode() for p in pieces)
        return raw.decode(errors="replace").replace("▁", " ")


class CollectingStreamer(TextStreamer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.pieces = []

    def on_finalized_text(self, text, stream_end=False):
        self.pieces.append((text, stream_end))


def feed_streamer(streamer, prompt, answer):
    streamer.put(torch.tensor([prompt]))
    for id in answer:
        streamer.put(torch.tensor([id]))
    streamer.end()


@pytest.mark.parametrize("skip_prompt", [False, True])
@pytest.mark.parametrize("skip_special_tokens", [False, True])
def test_the_pieces_of_the_reference(skip_prompt, skip_special_tokens):
    transformers = pytest.importorskip("transformers")

    class Theirs(transformers.TextStreamer):
        pieces = None

        def on_finalized_text(self, text, stream_end=False):
            self.pieces.append((text, stream_end))

    rng = random.Random(0)
    for _ in range(200):
        prompt, answer = ([rng.randrange(len(ALPHABET)) for _ in range(n)] for n in (4, rng.randrange(12)))
        options = {"skip_prompt": skip_prompt, "skip_special_tokens": skip_special_tokens}
        ours, theirs = CollectingStreamer(PieceTokenizer(), **options), Theirs(PieceTokenizer(), **options)
        theirs.pieces = []
        feed_streamer(ours, prompt, answer)
        feed_streamer(theirs, prompt, answer)
        assert ours.pieces == theirs.pieces


def test_words_appear_when_they_are_whole():
    streamer = CollectingStreamer(PieceTokenizer(), skip_prompt=True)
    feed_streamer(streamer, [1, 1], [1, 2, 1, 2, 5, 6, 2, 14, 15, 16, 1])
    assert streamer.pieces == [
        (" ", False),
        ("", False),
        ("ab ", False),
        ("", False),
        ("ab\n", False),
        ("猫", False),
        ("", False),
        ("", False),
        ("", False),
        ("b中", False),
        (" ", False),
        ("a", True),
    ]


def test_printing(capsys):
    streamer = TextStreamer(PieceTokenizer(), skip_special_tokens=True)
    for _ in range(2):  # it may be used again
        feed_streamer(streamer, [13, 1], [2, 1, 2])
        assert capsys.readouterr().out == " ab ab\n"


def test_one_answer_alone():
    streamer = TextStreamer(PieceTokenizer())
    with pytest.raises(BadSetting, match="here are 2"):
        streamer.put(torch.ones(2, 3, dtype=torch.long))
    streamer.put(torch.ones(1, 3, dtype=torch.long))
    with pytest.raises(BadSetting, match="here are 2"):
        streamer.put(torch.ones(2, dtype=torch.long))


def test_a_streamer_of_ones_own_says_what_it_lacks():
    with pytest.raises(NotImplementedError, match="put"):
        BaseStreamer().put(torch.ones(1))
    with pytest.raises(NotImplementedError, match="end"):
        BaseStreamer().end()


def make_model(**settings):
    return TableModel(make_chain_table(1, 2, 5, 6, 3, vocabulary=len(ALPHABET)), max_new_tokens=4, **settings)


def test_generation_in_a_thread():
    streamer = TextIteratorStreamer(PieceTokenizer(), skip_prompt=True, timeout=20)
    thread = threading.Thread(
        target=make_model().generate, args=[torch.tensor([[1]])], kwargs={"streamer": streamer}
    )
    thread.start()
    assert "".join(streamer) == "b\n猫 "
    thread.join(20)
    assert not thread.is_alive()


def test_generation_tells_the_prompt_then_each_id():
    class Ids(BaseStreamer):
        def __init__(self):
            self.told = []

        def put(self, value):
            self.told.append(value.tolist())

        def end(self):
            self.told.append("end")

    streamer = Ids()
    out = make_model().generate(torch.tensor([[4, 1]]), streamer=streamer)
    assert out.tolist() == [[4, 1, 2, 5, 6, 3]]
    assert streamer.told == [[[4, 1]], [2], [5], [6], [3], "end"]


class FailingStreamer(TextIteratorStreamer):
    def put(self, value):
        raise RuntimeError("broken")


class FailingTokenizer(PieceTokenizer):
    def decode(self, ids, **options):
        raise RuntimeError("undecodable")


def raise_in_processor(ids, scores):
    raise RuntimeError("broken")


@pytest.mark.parametrize(
    ("streamer", "arguments", "error"),
    [
        (FailingStreamer(PieceTokenizer()), {}, RuntimeError),
        (TextIteratorStreamer(FailingTokenizer()), {}, RuntimeError),
        (TextIteratorStreamer(PieceTokenizer()), {"stopping_criteria": [raise_in_processor]}, RuntimeError),
        (TextIteratorStreamer(PieceTokenizer()), {"logits_processor": [raise_in_processor]}, RuntimeError),
        (TextIteratorStreamer(PieceTokenizer()), {"nonsense": 1}, UnknownArgument),
        (TextIteratorStreamer(PieceTokenizer()), {"num_beams": 2}, BadSetting),
        (TextIteratorStreamer(PieceTokenizer()), {"max_new_tokens": 0}, BadSetting),
        (TextIteratorStreamer(PieceTokenizer()), {"do_sample": True, "num_return_sequences": 2}, BadSetting),
    ],
    ids=("streamer", "decoder", "stopping", "scores", "unknown", "beams", "no length", "several answers"),
)
def test_an_error_ends_the_iteration(streamer, arguments, error):
    raised = []

    def run():
        try:
            make_model().generate(torch.tensor([[1]]), streamer=streamer, **arguments)
        except error as one:
            raised.append(one)

    thread = threading.Thread(target=run)
    thread.start()
    reader = threading.Thread(target=lambda: list(streamer), daemon=True)
    reader.start()
    for one in (thread, reader):
        one.join(20)
        assert not one.is_alive()
    assert raised


def test_waiting_has_an_end():
    with pytest.raises(Empty):
        next(TextIteratorStreamer(PieceTokenizer(), timeout=0.01))
