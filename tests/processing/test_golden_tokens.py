"""Token ids that were recorded from a serving run of the released Idefics 9b-instruct."""

import json
from pathlib import Path

import numpy as np
import pytest

from idefics.config import ImageProcessorConfig, PromptFormat
from idefics.evaluate.check.known_answers import read_known_answers
from idefics.processing.fetch import Fetcher
from idefics.processing.processor import Processor
from idefics.processing.tokenizer import TextPiece, Tokenizer
from processing.tokenizers_tiny import make_llama_tokenizer

DATA = Path(__file__).parents[3] / "shared" / "data"
SENTENCEPIECE = DATA / "llama_tokenizer.model"
RECORDED = DATA / "tgi_outputs" / "test_idefics.json"
needs_data = pytest.mark.skipif(
    not SENTENCEPIECE.exists(), reason="recorded tokens are needed: ../shared/data"
)
pytestmark = needs_data


def sentencepiece_pieces(data):
    """(text, score) of each piece of a SentencePiece model: a protobuf whose field 1 repeats the pieces."""

    def varint(at):
        value = shift = 0
        while True:
            value |= (data[at] & 0x7F) << shift
            shift, at = shift + 7, at + 1
            if data[at - 1] < 0x80:
                return value, at

    def fields(at, end):
        while at < end:
            key, at = varint(at)
            kind = key & 7
            size, at = varint(at) if kind == 2 else (0, at)
            if kind == 0:
                _, after = varint(at)
            else:
                after = at + {1: 8, 2: size, 5: 4}[kind]
            yield key >> 3, at, after
            at = after

    for number, start, end in fields(0, len(data)):
        if number == 1:
            parts = {n: data[a:b] for n, a, b in fields(start, end)}
            yield parts[1].decode(), float(np.frombuffer(parts[2], "<f4")[0])


@pytest.fixture(scope="module")
def llama():
    """tokenizer.json of Idefics 1 made of Llama's SentencePiece model.

    Merges are all pairs of pieces that join to a piece, the most likely piece first.
    """
    pieces = list(sentencepiece_pieces(SENTENCEPIECE.read_bytes()))
    vocabulary = {text: id for id, (text, _) in enumerate(pieces)}
    assert len(vocabulary) == 32000
    merges = []
    for text, score in pieces:
        pairs = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
        local = [pair for pair in pairs if pair[0] in vocabulary and pair[1] in vocabulary]
        merges += [(score, pair) for pair in sorted(local, key=lambda pair: [vocabulary[p] for p in pair])]
    merges.sort(key=lambda merge: -merge[0])
    return Tokenizer(make_llama_tokenizer(vocabulary, [pair for _, pair in merges]).to_str())


@pytest.fixture(scope="module")
def processor(llama):
    config = ImageProcessorConfig(
        frame_size=28,
        longest_edge=None,
        do_image_splitting=False,
        resample="bicubic",
        rescale_factor=1 / 255,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        tokens_per_frame=1,
    )
    style = PromptFormat(
        kind="chat",
        chat_template="",
        turn_end_token="<end_of_utterance>",
        image_tokens="cross_attention",
        strips_text=True,
        prompt_prefix="<s>",
        add_special_tokens=False,
    )
    return Processor(llama, config, style, Fetcher(policy="off"))


def test_the_recorded_prompt(processor):
    picture = np.zeros((4, 4, 3), np.uint8)
    prompt = processor.encode_raw(
        ["User:", picture, "Can you tell me a very short story based on the image?"]
    )
    recorded = json.loads(RECORDED.read_text())["details"]["prefill"]
    assert list(prompt.ids) == [token["id"] for token in recorded]
    assert prompt.image_index == (-1, -1, -1, -1) + (0,) * (len(prompt.ids) - 4)


def test_known_answers_have_the_recorded_prompt(processor, llama):
    """Those of `idefics check` for this checkpoint: the prompt's ids where they were recorded, and the texts."""
    answers = [
        one for one in read_known_answers()[1] if one.checkpoint == "HuggingFaceM4/idefics-9b-instruct"
    ]
    assert [answer.prompt_ids is not None for answer in answers] == [True, False]
    for answer in answers:
        prompt = processor.encode_raw(answer.fill_items([np.zeros((4, 4, 3), np.uint8)] * 2))
        assert answer.prompt_ids is None or list(prompt.ids) == answer.prompt_ids
        assert llama.decode(answer.ids).strip() == answer.texts[0].strip()


def test_the_trained_separator_of_turns(llama):
    """The space token 29871 is between `<end_of_utterance>` and the line break."""
    ids = llama.encode("<end_of_utterance>\nAssistant:", add_special_tokens=False)
    assert ids == [32002, 29871, 13, 7900, 22137, 29901]


def test_recorded_answer_is_decoded_as_recorded(llama):
    recorded = json.loads(RECORDED.read_text())
    tokens = [token["id"] for token in recorded["details"]["tokens"]]
    assert llama.decode(tokens).strip() == recorded["generated_text"].strip()


@pytest.mark.parametrize("text", ["<s>", "</s>", "<unk>", "<image>", "a<s>b", "<0x0A>"])
def test_forged_tokens_are_characters(llama, text):
    ids = llama.encode_pieces([TextPiece("<end_of_utterance>", trusted=True), TextPiece(text, trusted=False)])
    assert not llama.special_ids & set(ids[1:])
    assert llama.decode(ids[1:]) == text


def test_special_ids_stand_where_the_checkpoint_has_them(llama):
    names = ["<unk>", "<s>", "</s>", "<fake_token_around_image>", "<image>", "<end_of_utterance>"]
    assert [llama.token_to_id(name) for name in names] == [0, 1, 2, 32000, 32001, 32002]
