"""Idefics' processor: every form of its call, and the reference's answers wherever they are right.

| what | transformers 5.23 | ours |
|-|-|-|
| `processor(prompts)`, `processor(prompts=...)` | fail | as the guides call it |
| `add_end_of_utterance_token=None` | never adds the token | adds it where the checkpoint has it |
| `debug=True`, `image_size=` of a call | left aside | do what they say |
| `return_tensors=None` | fails | lists |
"""

import random

import numpy as np
import PIL.Image
import pytest
import torch

from compat.processors_tiny import SMALL, TALL, WIDE, is_same_batch, make_idefics_processor
from idefics.compat.batch_feature import BatchFeature
from idefics.errors import BadPicture, BadPrompt, BadSetting
from processing.pictures_tiny import EXIF_ORIENTATION_TAG
from processing.tokenizers_tiny import END_OF_UTTERANCE, FAKE_IMAGE_TOKEN, IMAGE_TOKEN

INSTRUCT_PROCESSOR, BASE_PROCESSOR = make_idefics_processor(), make_idefics_processor(turn_end=False)
IMAGE_PLACEHOLDER = f"{FAKE_IMAGE_TOKEN}{IMAGE_TOKEN}{FAKE_IMAGE_TOKEN}"


def decode_batch(batch, skip_special_tokens=False):
    return INSTRUCT_PROCESSOR.batch_decode(batch.input_ids, skip_special_tokens=skip_special_tokens)


@pytest.mark.parametrize("seed", range(8))
def test_batches_of_prompts_are_the_references(reference, seed):
    choice = random.Random(seed)
    items = ["User:", " a cat ", "\nAssistant: yes", END_OF_UTTERANCE, "</s>", "日\n", WIDE, TALL, SMALL]
    prompts = [[choice.choice(items) for _ in range(choice.randint(1, 7))] for _ in range(3)]
    ends = bool(seed % 2)
    theirs = reference["idefics"](text=prompts, add_end_of_utterance_token=True, add_eos_token=ends)
    is_same_batch(INSTRUCT_PROCESSOR(prompts, add_end_of_utterance_token=True, add_eos_token=ends), theirs)


def test_the_forms_of_a_call():
    prompt = ["User:", WIDE, "What is it?"]
    expected = INSTRUCT_PROCESSOR([prompt])
    for batch in (
        INSTRUCT_PROCESSOR(prompt),
        INSTRUCT_PROCESSOR(prompts=prompt),
        INSTRUCT_PROCESSOR(text=prompt),
        INSTRUCT_PROCESSOR(prompts=[prompt]),
    ):
        assert isinstance(batch, BatchFeature)
        is_same_batch(batch, expected)
    assert list(expected) == ["input_ids", "attention_mask", "pixel_values", "image_attention_mask"]
    assert INSTRUCT_PROCESSOR.model_input_names == list(expected)
    assert decode_batch(expected) == [f"<s> User:{IMAGE_PLACEHOLDER} What is it?"]


@pytest.mark.parametrize(
    ("text", "images"),
    [
        ("What is it?", WIDE),
        (["What is it?"], [WIDE]),
        (["One", "two"], [WIDE, SMALL]),
        (["One", "two"], [[WIDE, TALL], [SMALL]]),
        (["One"], [[WIDE, TALL]]),
    ],
)
def test_text_and_images_are_concatenated_as_the_reference_does(reference, text, images):
    is_same_batch(
        INSTRUCT_PROCESSOR(text=text, images=images), reference["idefics"](text=text, images=images)
    )


def test_places_in_the_text_are_filled():
    joined = INSTRUCT_PROCESSOR(
        text=[f"a{IMAGE_TOKEN}b", f"c{IMAGE_TOKEN}{IMAGE_TOKEN}"], images=[WIDE, TALL, SMALL]
    )
    is_same_batch(joined, INSTRUCT_PROCESSOR([["a", WIDE, "b"], ["c", TALL, SMALL]]))


def test_text_alone(reference):
    batch = INSTRUCT_PROCESSOR([["Who are you?"], ["A longer text, as it is."]])
    is_same_batch(batch, reference["idefics"](text=[["Who are you?"], ["A longer text, as it is."]]))
    assert batch.pixel_values.shape == (2, 1, 3, 8, 8)
    assert batch.image_attention_mask.dtype == torch.bool
    is_same_batch(INSTRUCT_PROCESSOR("Who are you?"), INSTRUCT_PROCESSOR(["Who are you?"]))


@pytest.mark.parametrize(
    "options",
    [
        {"padding": True},
        {"padding": "longest"},
        {"padding": "max_length", "max_length": 30},
        {"padding": "max_length", "max_length": 6, "truncation": True},
        {"padding": True, "max_length": 7, "truncation": True},
        {"padding": True, "pad_to_multiple_of": 8},
        {"padding_side": "right"},
    ],
)
def test_lengths_are_the_references(reference, options):
    prompts = [[WIDE, "What is it, and what is it doing there?"], ["A", SMALL, "cat."]]
    theirs = reference["idefics"](text=prompts, add_end_of_utterance_token=False, **options)
    is_same_batch(INSTRUCT_PROCESSOR(prompts, add_end_of_utterance_token=False, **options), theirs)


def test_max_length_alone_cuts():
    whole, cut = INSTRUCT_PROCESSOR(["A longer text."]), INSTRUCT_PROCESSOR(["A longer text."], max_length=3)
    assert cut.input_ids.tolist() == whole.input_ids[:, :3].tolist()


def test_a_picture_that_is_cut_off_is_gone():
    batch = INSTRUCT_PROCESSOR([[SMALL, "and", WIDE]], max_length=4)
    assert batch.input_ids.shape == (1, 4)
    assert batch.pixel_values.shape == (1, 1, 3, 8, 8)
    assert batch.image_attention_mask[0, :, 0].tolist() == [0, 0, 1, 1]
    processor = make_idefics_processor()
    processor.tokenizer.truncation_side = "left"
    later = processor([[SMALL, "and", WIDE]], max_length=4)
    torch.testing.assert_close(later.pixel_values, processor([WIDE]).pixel_values)
    assert later.image_attention_mask[0, :, 0].tolist() == [0, 0, 1, 1]


def test_the_turn_ends_where_the_checkpoint_has_the_token():
    prompt = ["User: hi", "\nAssistant:"]
    assert decode_batch(INSTRUCT_PROCESSOR(prompt)) == [f"<s> User: hi{END_OF_UTTERANCE} \nAssistant:"]
    assert decode_batch(INSTRUCT_PROCESSOR(prompt, add_end_of_utterance_token=False)) == [
        "<s> User: hi\nAssistant:"
    ]
    assert END_OF_UTTERANCE not in BASE_PROCESSOR.decode(BASE_PROCESSOR(prompt).input_ids[0])
    assert END_OF_UTTERANCE not in BASE_PROCESSOR.decode(
        BASE_PROCESSOR(prompt, add_end_of_utterance_token=False).input_ids[0]
    )
    with pytest.raises(BadSetting, match="no such token"):
        BASE_PROCESSOR(prompt, add_end_of_utterance_token=True)


def test_what_the_reference_no_longer_does(reference):
    theirs = reference["idefics"]
    with pytest.raises(UnboundLocalError):
        theirs(["User:", WIDE])
    with pytest.raises(ValueError, match="need to specify"):
        theirs(prompts=["User:", WIDE])
    ids = theirs(text=["User: hi", "\nAssistant:"])["input_ids"]
    assert END_OF_UTTERANCE not in theirs.batch_decode(ids)[0]


def test_the_class_says_what_calls_leave_open():
    silent = make_idefics_processor()
    silent.add_end_of_utterance_token = False
    assert END_OF_UTTERANCE not in silent.decode(silent(["a", "b"]).input_ids[0])
    assert END_OF_UTTERANCE in silent.decode(silent(["a", "b"], add_end_of_utterance_token=True).input_ids[0])


def test_lists_are_not_padded():
    batch = INSTRUCT_PROCESSOR([[WIDE, "A longer text."], ["Short."]], return_tensors=None)
    assert isinstance(batch.input_ids, list)
    lengths = [len(ids) for ids in batch.input_ids]
    assert lengths[0] > lengths[1]
    assert [len(mask) for mask in batch.attention_mask] == lengths
    assert [mask.shape for mask in batch.image_attention_mask] == [(length, 1) for length in lengths]
    assert INSTRUCT_PROCESSOR(["Short."], return_tensors="np").input_ids.dtype == np.int64


def test_transform_takes_the_place_of_the_usual_steps():
    seen = []

    def transform(image):
        seen.append(image)
        return torch.full((3, 4, 4), float(len(seen)))

    batch = INSTRUCT_PROCESSOR([[WIDE, "a", SMALL], ["b"]], transform=transform)
    assert seen == [WIDE, SMALL]
    assert batch.pixel_values.shape == (2, 2, 3, 4, 4)
    assert batch.pixel_values[:, :, 0, 0, 0].tolist() == [[1, 2], [0, 0]]
    with pytest.raises(BadSetting, match="transform returned a Image"):
        INSTRUCT_PROCESSOR([WIDE], transform=lambda image: image)
    sizes = iter((4, 5))
    with pytest.raises(BadSetting, match="one size for all"):
        INSTRUCT_PROCESSOR([WIDE, WIDE], transform=lambda image: torch.zeros((3, next(sizes), 4)))


def test_debug_shows_each_prompt(capsys):
    INSTRUCT_PROCESSOR([[WIDE, "What is it?"], ["Hi."]], debug=True)
    shown = capsys.readouterr().err
    assert f"{IMAGE_PLACEHOLDER} What is it?" in shown
    assert "prompt 2" in shown
    INSTRUCT_PROCESSOR(["Hi."])
    assert capsys.readouterr() == ("", "")


def test_settings_of_one_call():
    assert INSTRUCT_PROCESSOR([WIDE, "a"], image_size=12).pixel_values.shape[-1] == 12
    assert INSTRUCT_PROCESSOR([WIDE, "a"]).pixel_values.shape[-1] == 8
    with pytest.raises(TypeError, match="paddding"):
        INSTRUCT_PROCESSOR([WIDE, "a"], paddding=True)


def test_an_address_stands_wherever_a_picture_does(picture_server_url):
    address = f"{picture_server_url}/wide.png?w=3542&q=80"
    expected = INSTRUCT_PROCESSOR([WIDE, "a"])
    for batch in (
        INSTRUCT_PROCESSOR([address, "a"]),
        INSTRUCT_PROCESSOR([f" {address} ", "a"]),
        INSTRUCT_PROCESSOR(prompts=[[address, "a"]]),
        INSTRUCT_PROCESSOR(text=["a"], images=[address]),
        INSTRUCT_PROCESSOR(text=[f"{IMAGE_TOKEN}a"], images=address),
        INSTRUCT_PROCESSOR([f"{picture_server_url}/turned.png", "a"]),
    ):
        is_same_batch(batch, expected)
    with pytest.raises(BadPicture, match="404"):
        INSTRUCT_PROCESSOR([f"{picture_server_url}/none.png", "a"])


def test_text_that_is_no_whole_address_is_text(tmp_path):
    WIDE.save(tmp_path / "wide.png")
    for text in ("see https://example.org/a.png", str(tmp_path / "wide.png"), "photo.jpg"):
        assert text in decode_batch(INSTRUCT_PROCESSOR([text]))[0]
    is_same_batch(
        INSTRUCT_PROCESSOR(text="a", images=str(tmp_path / "wide.png")),
        INSTRUCT_PROCESSOR(text="a", images=WIDE),
    )


def test_objects_are_taken_as_they_are():
    turned = WIDE.copy()
    turned.getexif()[EXIF_ORIENTATION_TAG] = 6
    is_same_batch(INSTRUCT_PROCESSOR([turned]), INSTRUCT_PROCESSOR([WIDE]))
    is_same_batch(INSTRUCT_PROCESSOR([np.asarray(WIDE)]), INSTRUCT_PROCESSOR([WIDE]))
    is_same_batch(
        INSTRUCT_PROCESSOR([torch.from_numpy(np.array(WIDE)).permute(2, 0, 1)]), INSTRUCT_PROCESSOR([WIDE])
    )


def test_mistakes_are_told():
    with pytest.raises(BadPrompt, match="prompt 2 is not a list"):
        INSTRUCT_PROCESSOR([["a"], "b"])
    with pytest.raises(BadPrompt, match="2 texts, and pictures for 1"):
        INSTRUCT_PROCESSOR(text=["a", "b"], images=[WIDE])
    with pytest.raises(BadPrompt, match=r"2 places for pictures \(<image>\), and 1 pictures"):
        INSTRUCT_PROCESSOR(text=[f"{IMAGE_TOKEN}{IMAGE_TOKEN}"], images=[WIDE])
    with pytest.raises(BadPrompt, match="holds 1 <image> of its own"):
        INSTRUCT_PROCESSOR([WIDE, f"what {IMAGE_TOKEN}?"])
    with pytest.raises(BadPrompt, match="give prompts"):
        INSTRUCT_PROCESSOR()
    with pytest.raises(BadPrompt, match="give prompts"):
        INSTRUCT_PROCESSOR(["a"], images=[WIDE])
    with pytest.raises(BadPicture, match="cannot be of type int"):
        INSTRUCT_PROCESSOR([3])
    with pytest.raises(BadPicture, match="broken"):
        INSTRUCT_PROCESSOR([broken_file()])
    with pytest.raises(BadSetting, match="padding is 'max_length'"):
        INSTRUCT_PROCESSOR(["a"], padding="max_length")
    with pytest.raises(BadSetting, match="return_tensors is 'tf'"):
        INSTRUCT_PROCESSOR(["a"], return_tensors="tf")


def broken_file():
    import io

    buffer = io.BytesIO()
    WIDE.save(buffer, "PNG")
    return PIL.Image.open(io.BytesIO(buffer.getvalue()[:-200]))


def test_the_batch_moves_to_a_device():
    batch = INSTRUCT_PROCESSOR([WIDE, "a"])
    assert batch.to("meta") is batch
    assert {value.device.type for value in batch.values()} == {"meta"}
    batch = INSTRUCT_PROCESSOR([WIDE, "a"]).to("cpu", torch.float16)
    assert batch.pixel_values.dtype == torch.float16
    assert batch.input_ids.dtype == torch.int64
    assert (
        INSTRUCT_PROCESSOR([WIDE, "a"]).to(dtype=torch.bfloat16, device="cpu").pixel_values.dtype
        == torch.bfloat16
    )
    with pytest.raises(AttributeError, match="pixels"):
        _ = batch.pixels
