"""The steps of the published model cards, written anew, over tiny checkpoints: only the imports are ours."""

import numpy as np
import PIL.Image
import pytest
import torch

import idefics
from compat.processors_tiny import random_photo
from idefics.compat import (
    AutoModelForImageTextToText,
    AutoModelForVision2Seq,
    AutoProcessor,
    Idefics3ForConditionalGeneration,
    IdeficsForVisionText2Text,
)
from idefics.compat.image_utils import load_image
from models.checkpoint_folders import write_hub_layout
from models.released import RELEASED_BY_NAME
from processing.videos_tiny import encode_video

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ATTENTION = "flash_attention_2" if DEVICE == "cuda" else "eager"
MAX_NEW_TOKENS = 6
DOCTAGS = "<doctag><text><loc_1><loc_2>hi</text></doctag>"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The folder of a tiny checkpoint with the files of a released one."""
    made = {}

    def folder(name):
        if name not in made:
            made[name] = write_hub_layout(tmp_path_factory.mktemp("cards") / name, RELEASED_BY_NAME[name])
        return str(made[name])

    return folder


def check_answers(generated, inputs, texts, processor):
    """Answers follow their prompts, and are the texts of their ids."""
    prompt = inputs["input_ids"]
    assert generated[:, : prompt.shape[1]].equal(prompt)
    assert 0 < generated.shape[1] - prompt.shape[1] <= MAX_NEW_TOKENS
    assert texts == [processor.tokenizer.decode(row, skip_special_tokens=True) for row in generated]


def make_messages(*pictures, text="Can you describe the two images?"):
    return [{"role": "user", "content": [*pictures, {"type": "text", "text": text}]}]


@pytest.mark.parametrize("name", ["smolvlm-2.2b", "smolvlm-500m", "smolvlm-256m"])
def test_smolvlm(checkpoint, picture_server_url, name):
    image1, image2 = (
        load_image(f"{picture_server_url}/wide.png"),
        load_image(f"{picture_server_url}/turned.png"),
    )
    processor = AutoProcessor.from_pretrained(checkpoint(name))
    model = AutoModelForVision2Seq.from_pretrained(
        checkpoint(name), torch_dtype=torch.bfloat16, _attn_implementation=ATTENTION
    ).to(DEVICE)
    messages = make_messages({"type": "image"}, {"type": "image"})
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(text=prompt, images=[image1, image2], return_tensors="pt")
    inputs = inputs.to(DEVICE)
    generated_ids = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS)
    check_answers(
        generated_ids, inputs, processor.batch_decode(generated_ids, skip_special_tokens=True), processor
    )


def test_a_smaller_picture_as_the_card_of_smolvlm_says(checkpoint):
    side = RELEASED_BY_NAME["smolvlm-2.2b"].preprocessor["max_image_size"]["longest_edge"]
    small, large = (
        AutoProcessor.from_pretrained(
            checkpoint("smolvlm-2.2b"), size={"longest_edge": n * side}
        ).image_processor
        for n in (1, 2)
    )
    assert (small.size["longest_edge"], large.size["longest_edge"]) == (side, 2 * side)
    square = random_photo(64, 64)
    assert small(square)["pixel_values"].shape[1] <= large(square)["pixel_values"].shape[1]


@pytest.mark.parametrize("name", ["smolvlm2-2.2b", "smolvlm2-256m"])
@pytest.mark.parametrize("kind", ["image", "video", "images"])
def test_smolvlm2(checkpoint, picture_server_url, tmp_path, name, kind):
    parts = {
        "image": [{"type": "image", "url": f"{picture_server_url}/wide.png"}],
        "images": [
            {"type": "image", "url": f"{picture_server_url}/wide.png"},
            {"type": "image", "url": f"{picture_server_url}/turned.png"},
        ],
    }
    if kind == "video":
        (tmp_path / "video.mp4").write_bytes(encode_video())
        parts["video"] = [{"type": "video", "path": str(tmp_path / "video.mp4")}]
    processor = AutoProcessor.from_pretrained(checkpoint(name))
    model = AutoModelForImageTextToText.from_pretrained(
        checkpoint(name), torch_dtype=torch.bfloat16, _attn_implementation=ATTENTION
    ).to(DEVICE)
    inputs = processor.apply_chat_template(
        make_messages(*parts[kind]),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(model.device, dtype=torch.bfloat16)
    assert inputs.pixel_values.dtype == torch.bfloat16
    generated_ids = model.generate(**inputs, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
    check_answers(
        generated_ids, inputs, processor.batch_decode(generated_ids, skip_special_tokens=True), processor
    )


@pytest.mark.parametrize("name", ["smoldocling-256m", "granite-docling-258m"])
def test_docling(checkpoint, picture_server_url, name, monkeypatch):
    image = load_image(f"{picture_server_url}/wide.png")
    processor = AutoProcessor.from_pretrained(checkpoint(name))
    model = AutoModelForVision2Seq.from_pretrained(
        checkpoint(name), torch_dtype=torch.bfloat16, _attn_implementation=ATTENTION
    ).to(DEVICE)
    messages = make_messages({"type": "image"}, text="Convert this page to docling.")
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(text=prompt, images=[image], return_tensors="pt").to(DEVICE)
    generated_ids = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS)
    prompt_length = inputs.input_ids.shape[1]
    trimmed = generated_ids[:, prompt_length:]
    doctags = processor.batch_decode(trimmed, skip_special_tokens=False)[0].lstrip()
    assert doctags == processor.tokenizer.decode(trimmed[0]).lstrip()
    page = processor.tokenizer(DOCTAGS, add_special_tokens=False, return_tensors="pt").input_ids
    assert processor.batch_decode(page, skip_special_tokens=False)[0].lstrip() == DOCTAGS


@pytest.mark.parametrize("name", ["idefics2-8b-base", "idefics2-8b"])
def test_idefics2(checkpoint, picture_server_url, name):
    image1, image2, image3 = (
        load_image(f"{picture_server_url}/{file}.png") for file in ("wide", "turned", "wide")
    )
    processor = AutoProcessor.from_pretrained(checkpoint(name))
    model = AutoModelForVision2Seq.from_pretrained(checkpoint(name)).to(DEVICE)
    if name.endswith("base"):
        prompts = ["<image>In this image, we see a city.<image>In this image,", "Where is that?<image>"]
        images = [[image1, image2], [image3]]
    else:
        messages = [
            *make_messages({"type": "image"}, text="What do we see?"),
            {"role": "assistant", "content": [{"type": "text", "text": "A city."}]},
            *make_messages({"type": "image"}, text="And how about this image?"),
        ]
        prompts = processor.apply_chat_template(messages, add_generation_prompt=True)
        images = [image1, image2]
    inputs = processor(text=prompts, images=images, padding=True, return_tensors="pt")
    inputs = {name: tensor.to(DEVICE) for name, tensor in inputs.items()}
    generated_ids = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS)
    check_answers(
        generated_ids, inputs, processor.batch_decode(generated_ids, skip_special_tokens=True), processor
    )


def test_less_memory_as_the_card_of_idefics2_says(checkpoint):
    whole = AutoProcessor.from_pretrained(checkpoint("idefics2-8b"), do_image_splitting=False)
    size = {"longest_edge": 448, "shortest_edge": 378}
    sized = AutoProcessor.from_pretrained(checkpoint("idefics2-8b"), size=size)
    assert whole.image_processor(random_photo(30, 20))["pixel_values"].shape[1] == 1
    assert sized.image_processor(random_photo(900, 500), do_image_splitting=False)["pixel_values"].shape[
        -2:
    ] == (
        378,
        448,
    )


def test_idefics3(checkpoint, picture_server_url):
    image1, image2 = (
        load_image(f"{picture_server_url}/wide.png"),
        load_image(f"{picture_server_url}/turned.png"),
    )
    folder = checkpoint("idefics3-8b")
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForVision2Seq.from_pretrained(folder, torch_dtype=torch.bfloat16).to(DEVICE)
    assert isinstance(model, Idefics3ForConditionalGeneration)
    messages = make_messages({"type": "image"}, text="What do we see?") + make_messages(
        {"type": "image"}, text="And here?"
    )
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(text=prompt, images=[image1, image2], return_tensors="pt")
    inputs = {name: tensor.to(DEVICE) for name, tensor in inputs.items()}
    generated_ids = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS)
    check_answers(
        generated_ids, inputs, processor.batch_decode(generated_ids, skip_special_tokens=True), processor
    )


def test_idefics(checkpoint, picture_server_url):
    folder = checkpoint("9b-instruct")
    model = IdeficsForVisionText2Text.from_pretrained(folder, torch_dtype=torch.bfloat16).to(DEVICE)
    processor = AutoProcessor.from_pretrained(folder)
    prompts = [
        [
            "User: What is in this image?",
            f"{picture_server_url}/wide.png",
            "<end_of_utterance>",
            "\nAssistant:",
        ]
    ]
    inputs = processor(prompts, add_end_of_utterance_token=False, return_tensors="pt").to(DEVICE)
    exit_condition = processor.tokenizer("<end_of_utterance>", add_special_tokens=False).input_ids
    bad_words = ["<image>", "<fake_token_around_image>"]
    bad_words_ids = processor.tokenizer(bad_words, add_special_tokens=False).input_ids
    generated_ids = model.generate(
        **inputs, eos_token_id=exit_condition, bad_words_ids=bad_words_ids, max_new_tokens=MAX_NEW_TOKENS
    )
    check_answers(
        generated_ids, inputs, processor.batch_decode(generated_ids, skip_special_tokens=True), processor
    )


@pytest.mark.parametrize(
    "name", ["smolvlm-256m", "smolvlm2-256m", "idefics2-8b", "idefics3-8b", "9b-instruct"]
)
def test_a_card_answers_as_load_does(checkpoint, name):
    image, question = random_photo(40, 30, 6), "What is on the table?"
    processor = AutoProcessor.from_pretrained(checkpoint(name))
    model = AutoModelForImageTextToText.from_pretrained(checkpoint(name), torch_dtype=torch.float32)
    inputs = processor.apply_chat_template(
        make_messages({"type": "image", "image": image}, text=question),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)[
        0, inputs.input_ids.shape[1] :
    ]
    loaded = idefics.load(checkpoint(name), dtype="float32")
    answer = loaded.chat([idefics.user(idefics.Picture(image), question)], max_new_tokens=MAX_NEW_TOKENS)
    assert answer.tokens
    assert ids.tolist()[: len(answer.tokens)] == list(answer.tokens)


def test_frames_that_a_published_video_script_has_resized(checkpoint):
    """It sets attributes of the image processor, and gives frames as pictures."""
    processor = AutoProcessor.from_pretrained(checkpoint("smolvlm-256m"))
    side = processor.image_processor.max_image_size["longest_edge"]
    processor.image_processor.size = (side, side)
    processor.image_processor.do_resize = False
    processor.image_processor.do_image_splitting = False
    frames = [PIL.Image.fromarray(np.full((side, side, 3), 40 * n, np.uint8)) for n in range(3)]
    messages = make_messages(*[{"type": "image"}] * 3, text="What happens?")
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(text=prompt, images=frames, return_tensors="pt")
    assert inputs.pixel_values.shape == (1, 3, 3, side, side)
    expected = [40 * n / 255 * 2 - 1 for n in range(3)]
    torch.testing.assert_close(inputs.pixel_values[0, :, 0, 0, 0], torch.tensor(expected))


def test_load_image_reads_what_the_reference_reads(picture_server_url, tmp_path):
    picture = random_photo(9, 7)
    picture.save(tmp_path / "a.png")
    for source in (picture, str(tmp_path / "a.png"), (tmp_path / "a.png").read_bytes()):
        assert np.array_equal(np.asarray(load_image(source)), np.asarray(picture))
    assert (
        load_image(f"{picture_server_url}/turned.png").size
        == load_image(f"{picture_server_url}/wide.png", timeout=5).size
    )
