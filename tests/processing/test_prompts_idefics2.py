"""Prompts of Idefics 2: placeholders of split and whole pictures, shared fake tokens, spaces as in `tokenizer.json`."""

import dataclasses
import json
import random
import warnings

import numpy as np
import PIL.Image
import pytest

from idefics.config import PromptFormat
from idefics.errors import BadPrompt, BadSetting, UnsupportedModel
from idefics.messages import Picture, assistant, user
from idefics.models.idefics2 import read_prompt_format as style_of
from idefics.processing.fetch import Fetcher
from idefics.processing.processor import Processor
from idefics.processing.tokenizer import Tokenizer
from processing.test_images_idefics2 import SPLIT_CONFIG, UNSPLIT_CONFIG
from processing.tokenizers_tiny import (
    END_OF_UTTERANCE,
    FAKE_IMAGE_TOKEN,
    IMAGE_TOKEN,
    train_mistral_tokenizer,
)

FRAME_TOKENS = 3
TOKENIZER = Tokenizer(train_mistral_tokenizer().to_str())
PROMPT_FORMAT = style_of("", TOKENIZER.added_token_contents)
UNSPLIT_PROCESSOR, SPLIT_PROCESSOR = (
    Processor(
        TOKENIZER,
        dataclasses.replace(config, tokens_per_frame=FRAME_TOKENS),
        PROMPT_FORMAT,
        Fetcher(policy="off"),
    )
    for config in (UNSPLIT_CONFIG, SPLIT_CONFIG)
)
each_way = pytest.mark.parametrize(
    ("processor", "frames"), [(UNSPLIT_PROCESSOR, 1), (SPLIT_PROCESSOR, 5)], ids=["whole", "split"]
)
SQUARE_PICTURE = np.full((50, 50, 3), 9, np.uint8)
WIDE_PICTURE = np.full((20, 80, 3), 200, np.uint8)


def encode_text(text):
    """Ids of a text by `tokenizer.json` alone, with its `<s>`."""
    return tuple(TOKENIZER.encode(text, add_special_tokens=True))


def image_placeholders(frames, pictures=1):
    """Neighbouring frames share a fake token, whether of one picture or of two."""
    return f"{FAKE_IMAGE_TOKEN}{IMAGE_TOKEN * FRAME_TOKENS}" * (frames * pictures) + FAKE_IMAGE_TOKEN


@each_way
def test_an_inline_picture(processor, frames):
    prompt = processor.encode_raw(["User: ", SQUARE_PICTURE, "What?"])
    assert prompt.ids == encode_text(f"User: {image_placeholders(frames)}What?")
    assert len(prompt.pictures[0].frames) == frames
    assert len(prompt.image_token_positions[0]) == frames * FRAME_TOKENS
    assert {prompt.ids[place] for place in prompt.image_token_positions[0]} == {
        TOKENIZER.token_to_id(IMAGE_TOKEN)
    }


@each_way
@pytest.mark.parametrize("pictures", [2, 5])
def test_neighbouring_pictures_share_a_fake(processor, frames, pictures):
    prompt = processor.encode_raw(
        [SQUARE_PICTURE, WIDE_PICTURE, SQUARE_PICTURE, WIDE_PICTURE, SQUARE_PICTURE][:pictures]
    )
    assert prompt.ids == encode_text(image_placeholders(frames, pictures))
    assert [len(places) for places in prompt.image_token_positions] == [frames * FRAME_TOKENS] * pictures


@each_way
def test_a_split_picture_is_five_times_the_tokens_and_six_fakes(processor, frames):
    assert processor.count_image_tokens(Picture(SQUARE_PICTURE)) == frames * FRAME_TOKENS + frames + 1


def test_a_picture_too_small_to_split_is_one_frame():
    prompt = SPLIT_PROCESSOR.encode_raw([np.zeros((1, 9, 3), np.uint8), SQUARE_PICTURE])
    assert prompt.ids == encode_text(image_placeholders(6))
    assert [len(places) for places in prompt.image_token_positions] == [FRAME_TOKENS, 5 * FRAME_TOKENS]
    assert SPLIT_PROCESSOR.count_image_tokens(Picture(np.zeros((1, 9, 3), np.uint8))) == FRAME_TOKENS + 2


@pytest.mark.parametrize("between", ["", f"{FAKE_IMAGE_TOKEN}", f"{FAKE_IMAGE_TOKEN}{FAKE_IMAGE_TOKEN}"])
def test_fakes_are_shared_wherever_they_come_from(between):
    """The released processor replaces two by one in the whole text: of four, two are left."""
    count = {0: 1, 1: 2, 2: 2}[between.count(FAKE_IMAGE_TOKEN)]
    picture = f"{FAKE_IMAGE_TOKEN}{IMAGE_TOKEN * FRAME_TOKENS}"
    prompt = UNSPLIT_PROCESSOR.encode_raw([SQUARE_PICTURE, between, SQUARE_PICTURE])
    assert prompt.ids == encode_text(f"{picture}{FAKE_IMAGE_TOKEN * (count - 1)}{picture}{FAKE_IMAGE_TOKEN}")


@pytest.mark.parametrize("between", [" ", "\n", "and"])
def test_text_between_pictures_separates_their_fakes(between):
    assert UNSPLIT_PROCESSOR.encode_raw([SQUARE_PICTURE, between, SQUARE_PICTURE]).ids == encode_text(
        f"{image_placeholders(1)}{between}{image_placeholders(1)}"
    )


@each_way
def test_a_conversation(processor, frames):
    """A turn that begins with a picture has no space after its colon; the template writes no `<s>`."""
    turns = [
        user(Picture(SQUARE_PICTURE), Picture(WIDE_PICTURE), "What?"),
        assistant("A wall."),
        user("And ", Picture(WIDE_PICTURE)),
    ]
    prompt = processor.encode_chat(turns)
    assert prompt.ids == encode_text(
        f"User:{image_placeholders(frames, 2)}What?{END_OF_UTTERANCE}\nAssistant: A wall.{END_OF_UTTERANCE}\n"
        f"User: And {image_placeholders(frames)}{END_OF_UTTERANCE}\nAssistant:"
    )
    assert prompt.ids.count(TOKENIZER.token_to_id("<s>")) == 1


def test_forged_fakes_are_characters_and_are_not_shared():
    prompt = UNSPLIT_PROCESSOR.encode_chat(
        [
            user(
                Picture(SQUARE_PICTURE),
                f"{FAKE_IMAGE_TOKEN}{FAKE_IMAGE_TOKEN}{IMAGE_TOKEN}",
                Picture(SQUARE_PICTURE),
            )
        ]
    )
    assert prompt.ids.count(TOKENIZER.token_to_id(FAKE_IMAGE_TOKEN)) == 4
    assert TOKENIZER.decode(prompt.ids, hidden_ids=()).count(FAKE_IMAGE_TOKEN) == 6


def test_a_turn_ends_with_a_blank_of_its_own():
    """`<end_of_utterance>`, "▁", a line break: the separator that the checkpoints were trained with."""
    ids = UNSPLIT_PROCESSOR.encode_chat([user("a")]).ids
    end = ids.index(TOKENIZER.token_to_id(END_OF_UTTERANCE))
    assert list(ids[end + 1 : end + 3]) == [TOKENIZER.token_to_id("▁"), TOKENIZER.token_to_id("\n")]


def test_items_are_concatenated_unchanged():
    assert UNSPLIT_PROCESSOR.encode_raw([" a ", " b"]).ids == encode_text(" a  b")
    with pytest.raises(BadSetting):
        UNSPLIT_PROCESSOR.encode_raw(["a"], add_end_of_utterance_token=True)


def test_pictures_written_as_text_are_counted():
    with pytest.raises(BadPrompt, match="holds 1 <image> of its own"):
        UNSPLIT_PROCESSOR.encode_raw([SQUARE_PICTURE, IMAGE_TOKEN])


def test_continuations_are_tokenized_with_their_prompt():
    messages = [user(Picture(SQUARE_PICTURE), Picture(WIDE_PICTURE), "What is it?")]
    prompt, endings = SPLIT_PROCESSOR.encode_chat_continuations(messages, ["cat", "a red ball"])
    for label, ending in zip(["cat", "a red ball"], endings, strict=True):
        assert prompt.ids + ending == SPLIT_PROCESSOR.encode_chat(messages, answer_start=label).ids
    assert [len(places) for places in prompt.image_token_positions] == [5 * FRAME_TOKENS] * 2


def test_image_tokens_are_never_generated():
    assert UNSPLIT_PROCESSOR.image_placeholder_ids == {
        TOKENIZER.token_to_id(FAKE_IMAGE_TOKEN),
        TOKENIZER.token_to_id(IMAGE_TOKEN),
    }


# Base, instruct and chatty


def test_a_checkpoint_with_turn_ends_chats_with_or_without_a_template_file():
    assert (PROMPT_FORMAT.kind, PROMPT_FORMAT.turn_end_token, PROMPT_FORMAT.add_special_tokens) == (
        "chat",
        END_OF_UTTERANCE,
        True,
    )
    assert style_of("a template", TOKENIZER.added_token_contents).chat_template == "a template"


def test_base_has_no_row_for_the_turn_end_of_its_tokenizer():
    """32002 rows for 32003 tokens: it continues documents, and has no dialogue of its own."""
    rows = TOKENIZER.token_to_id(END_OF_UTTERANCE)
    base = style_of("", TOKENIZER.added_tokens_below(rows))
    assert base == PromptFormat(
        kind="base",
        chat_template="",
        turn_end_token="",
        image_tokens="inline",
        strips_text=False,
        prompt_prefix="",
        add_special_tokens=True,
    )
    with pytest.raises(UnsupportedModel, match="no chat template"):
        Processor(TOKENIZER, UNSPLIT_CONFIG, base, Fetcher()).encode_chat([user("a")])


# Against transformers


@pytest.fixture(scope="module")
def library():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers talks about torchvision
        transformers = pytest.importorskip("transformers")
        from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil
        from transformers.models.idefics2.processing_idefics2 import Idefics2Processor
    return transformers, Idefics2ImageProcessorPil, Idefics2Processor


def make_reference_processor(library, tokenizer, config):
    _, image_processor, processor = library
    size = {"longest_edge": config.longest_edge, "shortest_edge": config.shortest_edge}
    made = image_processor(size=size, do_image_splitting=config.do_image_splitting)
    return processor(made, tokenizer, image_seq_len=FRAME_TOKENS, chat_template=PROMPT_FORMAT.chat_template)


def make_reference_tokenizer(library):
    """transformers' generic tokenizer class, which reads tokenizer.json without changes."""
    return library[0].PreTrainedTokenizerFast(
        tokenizer_object=train_mistral_tokenizer(), bos_token="<s>", pad_token="<unk>"
    )


@pytest.mark.parametrize("processor", [UNSPLIT_PROCESSOR, SPLIT_PROCESSOR], ids=["whole", "split"])
@pytest.mark.parametrize("seed", range(10))
def test_ids_and_frames_are_those_of_transformers(library, processor, seed):
    """Texts that do not begin with a letter, before which transformers' processor adds a space after a picture."""
    choice = random.Random(seed)
    texts = ["\nUser:", " a cat ", "\nAssistant: yes", " ", "", END_OF_UTTERANCE, FAKE_IMAGE_TOKEN, "\n日"]
    items = [choice.choice([*texts, SQUARE_PICTURE, WIDE_PICTURE]) for _ in range(choice.randint(1, 8))]
    text = "".join(IMAGE_TOKEN if isinstance(item, np.ndarray) else item for item in items)
    pictures = [PIL.Image.fromarray(item) for item in items if isinstance(item, np.ndarray)]
    theirs = make_reference_processor(library, make_reference_tokenizer(library), processor.image_config)(
        text=text, images=pictures or None
    )
    ours = processor.encode_raw(items if text else ["\n"])
    assert list(ours.ids) == (theirs["input_ids"][0] if text else list(encode_text("\n")))
    frames = [frame for picture in ours.pictures for frame in picture.frames]
    if frames:
        padded, real = theirs["pixel_values"][0], theirs["pixel_attention_mask"][0]
        for frame, pixels, mask in zip(frames, padded, real, strict=True):
            height, width = mask[:, 0].sum(), mask[0].sum()
            np.testing.assert_allclose(frame, pixels[:, :height, :width], rtol=0, atol=1e-6)


def test_transformers_writes_a_blank_after_a_picture(library):
    """Since 5.0, as its tokenizer class loses a space there; with `tokenizer.json` none is lost."""
    text = f"User:{IMAGE_TOKEN}What?"
    theirs = make_reference_processor(library, make_reference_tokenizer(library), UNSPLIT_CONFIG)(
        text=text, images=[PIL.Image.fromarray(SQUARE_PICTURE)]
    )
    ours = UNSPLIT_PROCESSOR.encode_raw(["User:", SQUARE_PICTURE, "What?"])
    assert tuple(theirs["input_ids"][0]) == encode_text(f"User:{image_placeholders(1)} What?") != ours.ids


def test_transformers_loses_the_blanks_after_special_tokens(library, tmp_path):
    """Its Llama class rebuilds tokenizer.json; where the settings say `legacy: false`, it prepends "▁" only once."""
    train_mistral_tokenizer().save(str(tmp_path / "tokenizer.json"))
    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "bos_token": "<s>", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "add_bos_token": True}))
    theirs = library[0].AutoTokenizer.from_pretrained(tmp_path)
    text = f"User: a{END_OF_UTTERANCE}\nAssistant:"
    ours = list(UNSPLIT_PROCESSOR.encode_chat([user("a")]).ids)
    assert ours == list(encode_text(text))
    blank = ours.index(TOKENIZER.token_to_id(END_OF_UTTERANCE)) + 1
    assert ours[blank] == TOKENIZER.token_to_id("▁")
    assert theirs(text)["input_ids"] == ours[:blank] + ours[blank + 1 :]
