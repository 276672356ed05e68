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

from compat.processors_tiny import SMALL, TALL, WIDE, idefics, same
from idefics.compat.features import BatchFeature
from idefics.errors import BadPicture, BadPrompt, BadSetting
from processing.pictures_tiny import ORIENTATION
from processing.tokenizers_tiny import FAKE, IMAGE, TURN_END

OURS, BASE = idefics(), idefics(turn_end=False)
MARKS = f"{FAKE}{IMAGE}{FAKE}"


def texts(batch, skip_special_tokens=False):
    return OURS.batch_decode(batch.input_ids, skip_special_tokens=skip_special_tokens)


@pytest.mark.parametrize("seed", range(8))
def test_batches_of_prompts_are_the_references(reference, seed):
    choice = random.Random(seed)
    items = ["User:", " a cat ", "\nAssistant: yes", TURN_END, "</s>", "日\n", WIDE, TALL, SMALL]
    prompts = [[choice.choice(items) for _ in range(choice.randint(1, 7))] for _ in range(3)]
    ends = bool(seed % 2)
    theirs = reference["idefics"](text=prompts, add_end_of_utterance_token=True, add_eos_token=ends)
    same(OURS(prompts, add_end_of_utterance_token=True, add_eos_token=ends), theirs)


def test_the_forms_of_a_call():
    prompt = ["User:", WIDE, "What is it?"]
    expected = OURS([prompt])
    for batch in (OURS(prompt), OURS(prompts=prompt), OURS(text=prompt), OURS(prompts=[prompt])):
        assert isinstance(batch, BatchFeature)
        same(batch, expected)
    assert list(expected) == ["input_ids", "attention_mask", "pixel_values", "image_attention_mask"]
    assert OURS.model_input_names == list(expected)
    assert texts(expected) == [f"<s> User:{MARKS} What is it?"]


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
def test_text_and_images_are_joined_as_the_reference_does(reference, text, images):
    same(OURS(text=text, images=images), reference["idefics"](text=text, images=images))


def test_places_in_the_text_are_filled():
    joined = OURS(text=[f"a{IMAGE}b", f"c{IMAGE}{IMAGE}"], images=[WIDE, TALL, SMALL])
    same(joined, OURS([["a", WIDE, "b"], ["c", TALL, SMALL]]))


def test_text_alone(reference):
    batch = OURS([["Who are you?"], ["A longer text, as it is."]])
    same(batch, reference["idefics"](text=[["Who are you?"], ["A longer text, as it is."]]))
    assert batch.pixel_values.shape == (2, 1, 3, 8, 8)
    assert batch.image_attention_mask.dtype == torch.bool
    same(OURS("Who are you?"), OURS(["Who are you?"]))


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
    same(OURS(prompts, add_end_of_utterance_token=False, **options), theirs)


def test_max_length_alone_cuts():
    whole, cut = OURS(["A longer text."]), OURS(["A longer text."], max_length=3)
    assert cut.input_ids.tolist() == whole.input_ids[:, :3].tolist()


def test_a_picture_that_is_cut_off_is_gone():
    batch = OURS([[SMALL, "and", WIDE]], max_length=4)
    assert batch.input_ids.shape == (1, 4)
    assert batch.pixel_values.shape == (1, 1, 3, 8, 8)
    assert batch.image_attention_mask[0, :, 0].tolist() == [0, 0, 1, 1]
    processor = idefics()
    processor.tokenizer.truncation_side = "left"
    later = processor([[SMALL, "and", WIDE]], max_length=4)
    torch.testing.assert_close(later.pixel_values, processor([WIDE]).pixel_values)
    assert later.image_attention_mask[0, :, 0].tolist() == [0, 0, 1, 1]


def test_the_turn_ends_where_the_checkpoint_has_the_token():
    prompt = ["User: hi", "\nAssistant:"]
    assert texts(OURS(prompt)) == [f"<s> User: hi{TURN_END} \nAssistant:"]
    assert texts(OURS(prompt, add_end_of_utterance_token=False)) == ["<s> User: hi\nAssistant:"]
    assert TURN_END not in BASE.decode(BASE(prompt).input_ids[0])
    assert TURN_END not in BASE.decode(BASE(prompt, add_end_of_utterance_token=False).input_ids[0])
    with pytest.raises(BadSetting, match="no such token"):
        BASE(prompt, add_end_of_utterance_token=True)


def test_what_the_reference_no_longer_does(reference):
    theirs = reference["idefics"]
    with pytest.raises(UnboundLocalError):
        theirs(["User:", WIDE])
    with pytest.raises(ValueError, match="need to specify"):
        theirs(prompts=["User:", WIDE])
    ids = theirs(text=["User: hi", "\nAssistant:"])["input_ids"]
    assert TURN_END not in theirs.batch_decode(ids)[0]


def test_the_class_says_what_calls_leave_open():
    silent = idefics()
    silent.add_end_of_utterance_token = False
    assert TURN_END not in silent.decode(silent(["a", "b"]).input_ids[0])
    assert TURN_END in silent.decode(silent(["a", "b"], add_end_of_utterance_token=True).input_ids[0])


def test_lists_are_not_padded():
    batch = OURS([[WIDE, "A longer text."], ["Short."]], return_tensors=None)
    assert isinstance(batch.input_ids, list)
    lengths = [len(ids) for ids in batch.input_ids]
    assert lengths[0] > lengths[1]
    assert [len(mask) for mask in batch.attention_mask] == lengths
    assert [mask.shape for mask in batch.image_attention_mask] == [(length, 1) for length in lengths]
    assert OURS(["Short."], return_tensors="np").input_ids.dtype == np.int64


def test_transform_takes_the_place_of_the_usual_steps():
    seen = []

    def transform(image):
        seen.append(image)
        return torch.full((3, 4, 4), float(len(seen)))

    batch = OURS([[WIDE, "a", SMALL], ["b"]], transform=transform)
    assert seen == [WIDE, SMALL]
    assert batch.pixel_values.shape == (2, 2, 3, 4, 4)
    assert batch.pixel_values[:, :, 0, 0, 0].tolist() == [[1, 2], [0, 0]]
    with pytest.raises(BadSetting, match="transform returned a Image"):
        OURS([WIDE], transform=lambda image: image)
    sizes = iter((4, 5))
    with pytest.raises(BadSetting, match="one size for all"):
        OURS([WIDE, WIDE], transform=lambda image: torch.zeros((3, next(sizes), 4)))


def test_debug_shows_each_prompt(capsys):
    OURS([[WIDE, "What is it?"], ["Hi."]], debug=True)
    shown = capsys.readouterr().err
    assert f"{MARKS} What is it?" in shown
    assert "prompt 2" in shown
    OURS(["Hi."])
    assert capsys.readouterr() == ("", "")


def test_settings_of_one_call():
    assert OURS([WIDE, "a"], image_size=12).pixel_values.shape[-1] == 12
    assert OURS([WIDE, "a"]).pixel_values.shape[-1] == 8
    with pytest.raises(TypeError, match="paddding"):
        OURS([WIDE, "a"], paddding=True)


def test_an_address_stands_wherever_a_picture_does(site):
    address = f"{site}/wide.png?w=3542&q=80"
    expected = OURS([WIDE, "a"])
    for batch in (
        OURS([address, "a"]),
        OURS([f" {address} ", "a"]),
        OURS(prompts=[[address, "a"]]),
        OURS(text=["a"], images=[address]),
        OURS(text=[f"{IMAGE}a"], images=address),
        OURS([f"{site}/turned.png", "a"]),
    ):
        same(batch, expected)
    with pytest.raises(BadPicture, match="404"):
        OURS([f"{site}/none.png", "a"])


def test_text_that_is_no_whole_address_is_text(tmp_path):
    WIDE.save(tmp_path / "wide.png")
    for text in ("see https://example.org/a.png", str(tmp_path / "wide.png"), "photo.jpg"):
        assert text in texts(OURS([text]))[0]
    same(OURS(text="a", images=str(tmp_path / "wide.png")), OURS(text="a", images=WIDE))


def test_objects_are_taken_as_they_are():
    turned = WIDE.copy()
    turned.getexif()[ORIENTATION] = 6
    same(OURS([turned]), OURS([WIDE]))
    same(OURS([np.asarray(WIDE)]), OURS([WIDE]))
    same(OURS([torch.from_numpy(np.array(WIDE)).permute(2, 0, 1)]), OURS([WIDE]))


def test_mistakes_are_told():
    with pytest.raises(BadPrompt, match="prompt 2 is not a list"):
        OURS([["a"], "b"])
    with pytest.raises(BadPrompt, match="2 texts, and pictures for 1"):
        OURS(text=["a", "b"], images=[WIDE])
    with pytest.raises(BadPrompt, match=r"2 places for pictures \(<image>\), and 1 pictures"):
        OURS(text=[f"{IMAGE}{IMAGE}"], images=[WIDE])
    with pytest.raises(BadPrompt, match="holds 1 <image> of its own"):
        OURS([WIDE, f"what {IMAGE}?"])
    with pytest.raises(BadPrompt, match="give prompts"):
        OURS()
    with pytest.raises(BadPrompt, match="give prompts"):
        OURS(["a"], images=[WIDE])
    with pytest.raises(BadPicture, match="cannot be of type int"):
        OURS([3])
    with pytest.raises(BadPicture, match="broken"):
        OURS([broken()])
    with pytest.raises(BadSetting, match="padding is 'max_length'"):
        OURS(["a"], padding="max_length")
    with pytest.raises(BadSetting, match="return_tensors is 'tf'"):
        OURS(["a"], return_tensors="tf")


def broken():
    import io

    buffer = io.BytesIO()
    WIDE.save(buffer, "PNG")
    return PIL.Image.open(io.BytesIO(buffer.getvalue()[:-200]))


def test_the_batch_moves_to_a_device():
    batch = OURS([WIDE, "a"])
    assert batch.to("meta") is batch
    assert {value.device.type for value in batch.values()} == {"meta"}
    batch = OURS([WIDE, "a"]).to("cpu", torch.float16)
    assert batch.pixel_values.dtype == torch.float16
    assert batch.input_ids.dtype == torch.int64
    assert OURS([WIDE, "a"]).to(dtype=torch.bfloat16, device="cpu").pixel_values.dtype == torch.bfloat16
    with pytest.raises(AttributeError, match="pixels"):
        _ = batch.pixels
