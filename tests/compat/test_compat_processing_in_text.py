"""The processors of Idefics 2, Idefics 3 and SmolVLM: the reference's answers, and what it does not check."""

import itertools

import numpy as np
import pytest
import torch

from compat.processors_tiny import FRAME_TOKENS, SMALL, TALL, WIDE, idefics2, idefics3, same, smol
from idefics.compat.image_processing_in_text import Idefics3ImageProcessor
from idefics.compat.processing_in_text import Idefics3Processor, SmolVLMProcessor
from idefics.errors import BadPicture, BadPrompt, UnsupportedModel
from processing.tokenizers_tiny import FAKE, IMAGE, TURN_END

OURS = {"idefics2": idefics2(), "idefics3": idefics3()}
each = pytest.mark.parametrize("family", OURS)

TEXTS = [  # no letter behind a picture: there the reference goes its own way, see below
    f"User:{IMAGE}\nWhat is it?{TURN_END}\nAssistant:",
    f"User: Compare {IMAGE}{IMAGE} and {IMAGE}{TURN_END}\nAssistant:",
    f"User: Who are you?{TURN_END}\nAssistant:",
]
PICTURES = [WIDE, TALL, SMALL, WIDE]


@each
@pytest.mark.parametrize("images", [PICTURES, [[WIDE], [TALL, SMALL, WIDE], []]], ids=["flat", "grouped"])
def test_batches_are_the_references(reference, family, images):
    ours = OURS[family](text=TEXTS, images=images, return_tensors="pt")
    same(ours, reference[family](text=TEXTS, images=images, return_tensors="pt", padding=True))


def test_ids_of_idefics2_follow_the_tokenizers_file(reference):
    """5.0 and later put a space behind a closing fake, where the released tokenizer.json already puts one."""
    text = f"User:{IMAGE}Can you{TURN_END}\nAssistant:"
    ids = OURS["idefics2"](text=text, images=SMALL).input_ids[0]
    assert len(ids) == len(reference["idefics2"](text=text, images=SMALL).input_ids[0]) - 1
    codec, picture = OURS["idefics2"].tokenizer.codec, f"{FAKE}{IMAGE * FRAME_TOKENS}"
    parts = [f"User:{picture * 5}{FAKE}", "Can you", f"{TURN_END}\nAssistant:"]
    assert ids == list(
        itertools.chain.from_iterable(codec.encode(part, adds_special=False) for part in parts)
    )


@each
def test_text_alone_and_pictures_alone(reference, family):
    texts, ours = [TEXTS[2], "Hi"], OURS[family]
    theirs = reference[family](text=texts, return_tensors="pt", padding=True)
    assert set(ours(text=texts, return_tensors="pt")) == {"input_ids", "attention_mask"}
    same(ours(text=texts, return_tensors="pt"), theirs)
    same(
        ours(images=[[WIDE], [TALL]], return_tensors="pt"),
        ours.image_processor([[WIDE], [TALL]], return_tensors="pt"),
    )
    with pytest.raises(BadPrompt, match="neither"):
        ours()


@each
def test_without_tensors_there_are_lists(family):
    batch = OURS[family](text=TEXTS, images=PICTURES)
    assert len({len(ids) for ids in batch.input_ids}) == 3
    assert [len(ids) for ids in batch.input_ids] == [len(mask) for mask in batch.attention_mask]
    assert isinstance(batch.pixel_values, np.ndarray)
    single = OURS[family](TALL, TEXTS[0])
    assert len(single.input_ids) == 1


@each
def test_frames_that_are_missing_are_zeros(family):
    batch = OURS[family](text=TEXTS, images=PICTURES, return_tensors="pt")
    assert not batch.pixel_values[2].any()
    assert not batch.pixel_attention_mask[2].any()
    assert batch.pixel_attention_mask.dtype == torch.int64
    assert batch.pixel_values.shape[:2] == batch.pixel_attention_mask.shape[:2]


@each
def test_padding_is_on_the_left_unless_told(family):
    ours = OURS[family](text=["Hi", "Hi there"], return_tensors="pt")
    assert ours.attention_mask[0].tolist() == sorted(ours.attention_mask[0].tolist())
    assert ours.input_ids[0, 0] == OURS[family].tokenizer.pad_token_id
    right = OURS[family](text=["Hi", "Hi there"], return_tensors="pt", padding_side="right")
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
        OURS[family](text=texts, images=images)


@each
def test_a_picture_is_never_cut_in_two(family):
    with pytest.raises(BadPrompt, match=r"takes 1 of 1 pictures away"):
        OURS[family](text=TEXTS[0], images=WIDE, max_length=6, truncation=True)
    text = f"{IMAGE} and a long text behind it"
    whole = OURS[family](text=text, images=SMALL).input_ids[0]
    assert OURS[family](text=text, images=SMALL, max_length=len(whole) - 2).input_ids[0] == whole[:-2]


@each
def test_an_address_stands_wherever_a_picture_does(site, family, tmp_path):
    ours = OURS[family]
    TALL.save(tmp_path / "tall.png")
    expected = ours(text=TEXTS[1], images=[WIDE, TALL, WIDE], return_tensors="pt")
    sources = [f"{site}/wide.png", str(tmp_path / "tall.png"), f"{site}/turned.png"]
    same(ours(text=TEXTS[1], images=sources, return_tensors="pt"), expected)
    same(ours(text=[TEXTS[1]], images=[sources], return_tensors="pt"), expected)
    with pytest.raises(BadPicture, match="404"):
        ours(text=TEXTS[0], images=f"{site}/none.png")


@each
def test_text_is_text_whatever_it_looks_like(family, site):
    for text in (f"{site}/wide.png", "photo.jpg"):
        assert text in OURS[family].decode(OURS[family](text=text).input_ids[0])


def test_settings_of_one_call():
    ours = OURS["idefics3"]
    split, whole = (ours(text=IMAGE, images=WIDE, do_image_splitting=on) for on in (True, False))
    assert split.pixel_values.shape[1] == 9
    assert whole.pixel_values.shape[1] == 1
    assert ours.decode(whole.input_ids[0]) == f"{FAKE}<global-img>{IMAGE * FRAME_TOKENS}{FAKE}"
    assert whole.input_ids[0].count(ours.tokenizer.convert_tokens_to_ids(IMAGE)) == FRAME_TOKENS
    more = ours(text=IMAGE, images=WIDE, do_image_splitting=False, image_seq_len=5)
    assert more.input_ids[0].count(ours.tokenizer.convert_tokens_to_ids(IMAGE)) == 5
    with pytest.raises(TypeError, match="do_splitting"):
        ours(text=IMAGE, images=WIDE, do_splitting=False)


def test_settings_may_be_changed_in_place():
    ours = idefics3()
    ours.image_processor.do_image_splitting = False
    ours.tokenizer.padding_side = "right"
    assert ours(text=IMAGE, images=WIDE).pixel_values.shape[1] == 1
    assert ours(text=["a", "b c"], return_tensors="pt").attention_mask[0, -1] == 0


def test_smolvlm_speaks_as_idefics3():
    ours = SmolVLMProcessor(OURS["idefics3"].image_processor, smol(), image_seq_len=FRAME_TOKENS)
    same(
        ours(text=TEXTS, images=PICTURES, return_tensors="pt"),
        OURS["idefics3"](text=TEXTS, images=PICTURES, return_tensors="pt"),
    )
    assert Idefics3Processor(Idefics3ImageProcessor(), smol()).image_seq_len == 169


def test_parts_must_be_of_the_family():
    with pytest.raises(UnsupportedModel, match="needs an Idefics3ImageProcessor"):
        Idefics3Processor(OURS["idefics2"].image_processor, smol())
