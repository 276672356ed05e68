"""The processors of Idefics 2, Idefics 3 and SmolVLM: the reference's answers, and what it does not check."""

import itertools

import numpy as np
import pytest
import torch

from compat.processors_tiny import (
    FRAME_TOKENS,
    SMALL,
    TALL,
    WIDE,
    is_same_batch,
    make_idefics2_processor,
    make_idefics3_processor,
    make_smolvlm_tokenizer,
)
from idefics.compat.image_processing_inline import Idefics3ImageProcessor
from idefics.compat.processing_inline import Idefics3Processor, SmolVLMProcessor
from idefics.errors import BadPicture, BadPrompt, UnsupportedModel
from processing.tokenizers_tiny import END_OF_UTTERANCE, FAKE_IMAGE_TOKEN, IMAGE_TOKEN

PROCESSOR_BY_FAMILY = {"idefics2": make_idefics2_processor(), "idefics3": make_idefics3_processor()}
each = pytest.mark.parametrize("family", PROCESSOR_BY_FAMILY)

TEXTS = [  # no letter behind a picture: there the reference goes its own way, see below
    f"User:{IMAGE_TOKEN}\nWhat is it?{END_OF_UTTERANCE}\nAssistant:",
    f"User: Compare {IMAGE_TOKEN}{IMAGE_TOKEN} and {IMAGE_TOKEN}{END_OF_UTTERANCE}\nAssistant:",
    f"User: Who are you?{END_OF_UTTERANCE}\nAssistant:",
]
PICTURES = [WIDE, TALL, SMALL, WIDE]


@each
@pytest.mark.parametrize("images", [PICTURES, [[WIDE], [TALL, SMALL, WIDE], []]], ids=["flat", "grouped"])
def test_batches_are_the_references(reference, family, images):
    ours = PROCESSOR_BY_FAMILY[family](text=TEXTS, images=images, return_tensors="pt")
    is_same_batch(ours, reference[family](text=TEXTS, images=images, return_tensors="pt", padding=True))


def test_ids_of_idefics2_follow_the_tokenizers_file(reference):
    """5.0 and later put a space behind a closing fake, where the released tokenizer.json already puts one."""
    text = f"User:{IMAGE_TOKEN}Can you{END_OF_UTTERANCE}\nAssistant:"
    ids = PROCESSOR_BY_FAMILY["idefics2"](text=text, images=SMALL).input_ids[0]
    assert len(ids) == len(reference["idefics2"](text=text, images=SMALL).input_ids[0]) - 1
    codec, picture = (
        PROCESSOR_BY_FAMILY["idefics2"].tokenizer.codec,
        f"{FAKE_IMAGE_TOKEN}{IMAGE_TOKEN * FRAME_TOKENS}",
    )
    parts = [f"User:{picture * 5}{FAKE_IMAGE_TOKEN}", "Can you", f"{END_OF_UTTERANCE}\nAssistant:"]
    assert ids == list(
        itertools.chain.from_iterable(codec.encode(part, add_special_tokens=False) for part in parts)
    )


@each
def test_text_alone_and_pictures_alone(reference, family):
    texts, ours = [TEXTS[2], "Hi"], PROCESSOR_BY_FAMILY[family]
    theirs = reference[family](text=texts, return_tensors="pt", padding=True)
    assert set(ours(text=texts, return_tensors="pt")) == {"input_ids", "attention_mask"}
    is_same_batch(ours(text=texts, return_tensors="pt"), theirs)
    is_same_batch(
        ours(images=[[WIDE], [TALL]], return_tensors="pt"),
        ours.image_processor([[WIDE], [TALL]], return_tensors="pt"),
    )
    with pytest.raises(BadPrompt, match="neither"):
        ours()


@each
def test_without_tensors_there_are_lists(family):
    batch = PROCESSOR_BY_FAMILY[family](text=TEXTS, images=PICTURES)
    assert len({len(ids) for ids in batch.input_ids}) == 3
    assert [len(ids) for ids in batch.input_ids] == [len(mask) for mask in batch.attention_mask]
    assert isinstance(batch.pixel_values, np.ndarray)
    single = PROCESSOR_BY_FAMILY[family](TALL, TEXTS[0])
    assert len(single.input_ids) == 1


@each
def test_frames_that_are_missing_are_zeros(family):
    batch = PROCESSOR_BY_FAMILY[family](text=TEXTS, images=PICTURES, return_tensors="pt")
    assert not batch.pixel_values[2].any()
    assert not batch.pixel_attention_mask[2].any()
    assert batch.pixel_attention_mask.dtype == torch.int64
    assert batch.pixel_values.shape[:2] == batch.pixel_attention_mask.shape[:2]


@each
def test_padding_is_on_the_left_unless_told(family):
    ours = PROCESSOR_BY_FAMILY[family](text=["Hi", "Hi there"], return_tensors="pt")
    assert ours.attention_mask[0].tolist() == sorted(ours.attention_mask[0].tolist())
    assert ours.input_ids[0, 0] == PROCESSOR_BY_FAMILY[family].tokenizer.pad_token_id
    right = PROCESSOR_BY_FAMILY[family](text=["Hi", "Hi there"], return_tensors="pt", padding_side="right")
    assert right.attention_mask[0].tolist() == sorted(ours.attention_mask[0].tolist(), reverse=True)


@each
@pytest.mark.parametrize(
    ("texts", "images", "said"),
    [
        ([TEXTS[0]], [WIDE, TALL], r"1 places for pictures \(<image>\), and 2 pictures"),
        ([TEXTS[1]], [WIDE, TALL], "3 places.*and 2 pictures"),
        ([TEXTS[0]], None, "1 places.*and 0 pictures"),
        ([TEXTS[0], TEXTS[0]], [[WIDE, WIDE], []], "1 places.*and 2 pictures"),
        ([TEXTS[0]], [[WIDE], [WIDE]], "1 texts, and pictures for 2"),
        ([TEXTS[2]], [WIDE], "0 places.*and 1 pictures"),
    ],
)
def test_pictures_and_places_are_counted(family, texts, images, said):
    with pytest.raises(BadPrompt, match=said):
        PROCESSOR_BY_FAMILY[family](text=texts, images=images)


@each
def test_a_picture_is_never_cut_in_two(family):
    with pytest.raises(BadPrompt, match=r"cuts 1 of 1 pictures"):
        PROCESSOR_BY_FAMILY[family](text=TEXTS[0], images=WIDE, max_length=6, truncation=True)
    text = f"{IMAGE_TOKEN} and a long text behind it"
    whole = PROCESSOR_BY_FAMILY[family](text=text, images=SMALL).input_ids[0]
    assert (
        PROCESSOR_BY_FAMILY[family](text=text, images=SMALL, max_length=len(whole) - 2).input_ids[0]
        == whole[:-2]
    )


@each
def test_an_address_stands_wherever_a_picture_does(picture_server_url, family, tmp_path):
    ours = PROCESSOR_BY_FAMILY[family]
    TALL.save(tmp_path / "tall.png")
    expected = ours(text=TEXTS[1], images=[WIDE, TALL, WIDE], return_tensors="pt")
    sources = [
        f"{picture_server_url}/wide.png",
        str(tmp_path / "tall.png"),
        f"{picture_server_url}/turned.png",
    ]
    is_same_batch(ours(text=TEXTS[1], images=sources, return_tensors="pt"), expected)
    is_same_batch(ours(text=[TEXTS[1]], images=[sources], return_tensors="pt"), expected)
    with pytest.raises(BadPicture, match="404"):
        ours(text=TEXTS[0], images=f"{picture_server_url}/none.png")


@each
def test_text_is_text_whatever_it_looks_like(family, picture_server_url):
    for text in (f"{picture_server_url}/wide.png", "photo.jpg"):
        assert text in PROCESSOR_BY_FAMILY[family].decode(PROCESSOR_BY_FAMILY[family](text=text).input_ids[0])


def test_settings_of_one_call():
    ours = PROCESSOR_BY_FAMILY["idefics3"]
    split, whole = (ours(text=IMAGE_TOKEN, images=WIDE, do_image_splitting=on) for on in (True, False))
    assert split.pixel_values.shape[1] == 9
    assert whole.pixel_values.shape[1] == 1
    assert (
        ours.decode(whole.input_ids[0])
        == f"{FAKE_IMAGE_TOKEN}<global-img>{IMAGE_TOKEN * FRAME_TOKENS}{FAKE_IMAGE_TOKEN}"
    )
    assert whole.input_ids[0].count(ours.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)) == FRAME_TOKENS
    more = ours(text=IMAGE_TOKEN, images=WIDE, do_image_splitting=False, image_seq_len=5)
    assert more.input_ids[0].count(ours.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)) == 5
    with pytest.raises(TypeError, match="do_splitting"):
        ours(text=IMAGE_TOKEN, images=WIDE, do_splitting=False)


def test_settings_may_be_changed_in_place():
    ours = make_idefics3_processor()
    ours.image_processor.do_image_splitting = False
    ours.tokenizer.padding_side = "right"
    assert ours(text=IMAGE_TOKEN, images=WIDE).pixel_values.shape[1] == 1
    assert ours(text=["a", "b c"], return_tensors="pt").attention_mask[0, -1] == 0


def test_smolvlm_speaks_as_idefics3():
    ours = SmolVLMProcessor(
        PROCESSOR_BY_FAMILY["idefics3"].image_processor, make_smolvlm_tokenizer(), image_seq_len=FRAME_TOKENS
    )
    is_same_batch(
        ours(text=TEXTS, images=PICTURES, return_tensors="pt"),
        PROCESSOR_BY_FAMILY["idefics3"](text=TEXTS, images=PICTURES, return_tensors="pt"),
    )
    assert Idefics3Processor(Idefics3ImageProcessor(), make_smolvlm_tokenizer()).image_seq_len == 169


def test_parts_must_be_of_the_family():
    with pytest.raises(UnsupportedModel, match="needs an Idefics3ImageProcessor"):
        Idefics3Processor(PROCESSOR_BY_FAMILY["idefics2"].image_processor, make_smolvlm_tokenizer())


@each
def test_where_the_channels_are_holds_for_pictures_of_texts(family):
    array = np.random.default_rng(5).integers(0, 256, (3, 8, 3), dtype=np.uint8)
    last, first = (
        PROCESSOR_BY_FAMILY[family](
            text=IMAGE_TOKEN, images=images, input_data_format=f"channels_{at}", return_tensors="pt"
        )
        for images, at in ((array, "last"), (array.transpose(2, 0, 1), "first"))
    )
    assert torch.equal(last["pixel_values"], first["pixel_values"])
