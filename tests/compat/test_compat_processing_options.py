"""Processors: keywords in groups, attributes, template variables, prefill, marks of what the assistant says, files."""

import base64
import io
import json

import pytest
import torch

from compat.processors_tiny import (
    SMALL,
    TALL,
    WIDE,
    is_same_batch,
    make_idefics2_processor,
    make_idefics3_processor,
    make_idefics_processor,
)
from idefics.compat import AutoProcessor, Idefics2Processor, IdeficsProcessor
from idefics.compat.keyword_arguments import override_video_config
from idefics.config import VideoProcessorConfig
from idefics.errors import BadPrompt, BadSetting, UnsupportedModel
from models.checkpoint_folders import write_hub_layout
from models.released import RELEASED_BY_NAME
from processing.tokenizers_tiny import END_OF_UTTERANCE, FAKE_IMAGE_TOKEN, IMAGE_TOKEN

PROCESSOR_BY_FAMILY = {
    "idefics": make_idefics_processor(),
    "idefics2": make_idefics2_processor(),
    "idefics3": make_idefics3_processor(),
}
each = pytest.mark.parametrize("family", PROCESSOR_BY_FAMILY)
each_inline_family = pytest.mark.parametrize("family", ["idefics2", "idefics3"])
TEXT = f"{IMAGE_TOKEN}What is on the table?"
TEMPLATE_WITH_GENERATION_BLOCKS = (
    "{% for m in messages %}{{ m.role }}: "
    "{% if m.role == 'assistant' %}{% generation %}{% for part in m.content %}{{ part.text }}{% endfor %}"
    "<end_of_utterance>{% endgeneration %}{% else %}{% for part in m.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}\n"
    "{% endfor %}{{ mood }}{{ tools | tojson if tools else '' }}"
)


def make_messages(answer="A red ball", image=None):
    place = {"type": "image"} if image is None else {"type": "image", "image": image}
    return [
        {"role": "user", "content": [place, {"type": "text", "text": "What is on the table?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    ]


@each
def test_keywords_in_groups_are_keywords(family):
    ours = PROCESSOR_BY_FAMILY[family]
    alone = ours(
        text=TEXT, images=[WIDE], return_tensors="pt", padding="max_length", max_length=400, do_rescale=False
    )
    grouped = ours(
        text=TEXT,
        images=[WIDE],
        common_kwargs={"return_tensors": "pt"},
        text_kwargs={"padding": "max_length", "max_length": 400},
        images_kwargs={"do_rescale": False},
        audio_kwargs={},
    )
    is_same_batch(grouped, alone)
    assert alone.input_ids.shape[1] == 400
    with pytest.raises(BadSetting, match="max_length is given alone and in text_kwargs"):
        ours(text=TEXT, images=[WIDE], max_length=3, text_kwargs={"max_length": 4})


@each
def test_words_that_ask_for_nothing(family):
    ours = PROCESSOR_BY_FAMILY[family]
    neutral = {
        "return_mm_token_type_ids": False,
        "stride": 0,
        "audio": None,
        "num_frames": 8,
        "verbose": True,
    }
    is_same_batch(
        ours(text=TEXT, images=[WIDE], return_tensors="pt", **neutral),
        ours(text=TEXT, images=[WIDE], return_tensors="pt"),
    )
    with pytest.raises(BadSetting, match="return_mm_token_type_ids is True"):
        ours(text=TEXT, images=[WIDE], return_mm_token_type_ids=True)
    with pytest.raises(TypeError, match="padd"):
        ours(text=TEXT, images=[WIDE], padd=True)
    assert "attention_mask" not in ours(text=TEXT, images=[WIDE], return_attention_mask=False)


@each
def test_what_the_tokenizer_was_loaded_with_holds(family, tmp_path):
    PROCESSOR_BY_FAMILY[family].save_pretrained(tmp_path)
    ours = type(PROCESSOR_BY_FAMILY[family]).from_pretrained(tmp_path, max_length=300, padding="max_length")
    assert ours(text=TEXT, images=[WIDE], return_tensors="pt").input_ids.shape[1] == 300
    assert ours(text=TEXT, images=[WIDE], return_tensors="pt", max_length=310).input_ids.shape[1] == 310


@each_inline_family
def test_attributes_are_the_references(reference, family):
    ours, theirs = PROCESSOR_BY_FAMILY[family], reference[family]
    for name in ("image_token", "image_token_id", "fake_image_token", "image_seq_len", "chat_template"):
        if name != "chat_template" or family == "idefics3":
            assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.image_token.content == IMAGE_TOKEN
    assert ours.fake_image_token == FAKE_IMAGE_TOKEN
    assert ours.end_of_utterance_token == END_OF_UTTERANCE
    assert ours.fake_image_token_id == ours.tokenizer.convert_tokens_to_ids(FAKE_IMAGE_TOKEN)
    assert ours.get_attributes() == theirs.get_attributes()
    assert (
        json.loads(ours.to_json_string())["image_seq_len"]
        == json.loads(theirs.to_json_string())["image_seq_len"]
    )
    assert ours.global_image_token == theirs.global_image_tag if family == "idefics3" else True


@each
def test_generated_ids_become_texts(family):
    ours = PROCESSOR_BY_FAMILY[family]
    ids = torch.tensor(ours.tokenizer([f"A cat.{END_OF_UTTERANCE}"]).input_ids)
    assert ours.post_process_image_text_to_text(ids) == ["A cat."]
    kept = ours.post_process_image_text_to_text(ids, skip_special_tokens=False)
    assert kept == ours.batch_decode(ids) == [f"A cat.{END_OF_UTTERANCE}"]


@each
def test_files_that_were_written_are_named(family, tmp_path):
    ours = PROCESSOR_BY_FAMILY[family]
    files = ours.save_pretrained(tmp_path, push_to_hub=False)
    assert sorted(file.rsplit("/")[-1] for file in files) == sorted(path.name for path in tmp_path.iterdir())
    again = type(ours).from_pretrained(tmp_path)
    assert again.to_dict() == ours.to_dict()
    ours.to_json_file(tmp_path / "settings.json")
    assert json.loads((tmp_path / "settings.json").read_text()) == ours.to_dict()
    given = type(ours).from_pretrained(
        tmp_path, tokenizer=ours.tokenizer, image_processor=ours.image_processor
    )
    assert (given.tokenizer, given.image_processor) == (ours.tokenizer, ours.image_processor)


@each_inline_family
def test_how_many_tokens_a_frame_takes_may_be_said_when_loading(family, tmp_path):
    PROCESSOR_BY_FAMILY[family].save_pretrained(tmp_path)
    ours = type(PROCESSOR_BY_FAMILY[family]).from_pretrained(
        tmp_path, image_seq_len=5, chat_template="{{ 7 }}"
    )
    assert ours.image_seq_len == 5
    assert ours.apply_chat_template(make_messages()) == "7"
    is_same_batch(
        ours(text=TEXT, images=[WIDE], return_tensors="pt"),
        PROCESSOR_BY_FAMILY[family](text=TEXT, images=[WIDE], image_seq_len=5, return_tensors="pt"),
    )


@each
def test_templates_get_variables(family):
    ours = PROCESSOR_BY_FAMILY[family]
    tools = [{"name": "é<b>", "a": None}]
    text = ours.apply_chat_template(
        make_messages(), TEMPLATE_WITH_GENERATION_BLOCKS, mood="glad", tools=tools
    )
    assert text.endswith('glad[{"name": "é<b>", "a": null}]')
    with pytest.raises(TypeError, match="'moot' is no variable"):
        ours.apply_chat_template(make_messages(), TEMPLATE_WITH_GENERATION_BLOCKS, moot="glad")


@each
def test_an_answer_may_be_begun(family):
    ours = PROCESSOR_BY_FAMILY[family]
    text = ours.apply_chat_template(make_messages("A red"), continue_final_message=True)
    assert text.endswith("Assistant: A red")
    batch = ours.apply_chat_template(
        make_messages("A red", WIDE),
        continue_final_message=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    is_same_batch(batch, ours(text=text, images=[WIDE], return_tensors="pt"))
    with pytest.raises(BadPrompt, match="both true"):
        ours.apply_chat_template(make_messages(), continue_final_message=True, add_generation_prompt=True)


@each
def test_options_may_be_given_in_a_dict(family):
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    is_same_batch(
        PROCESSOR_BY_FAMILY[family].apply_chat_template(
            make_messages(image=WIDE), processor_kwargs={"do_rescale": False}, **options
        ),
        PROCESSOR_BY_FAMILY[family].apply_chat_template(
            make_messages(image=WIDE), do_rescale=False, **options
        ),
    )


@each
def test_what_the_assistant_says_is_marked(family):
    ours = PROCESSOR_BY_FAMILY[family]
    options = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True, "padding": True}
    conversations = [make_messages(image=WIDE), make_messages("Two cats", image=SMALL)]
    batch = ours.apply_chat_template(
        conversations, TEMPLATE_WITH_GENERATION_BLOCKS, return_tensors="pt", **options
    )
    assert batch.assistant_masks.shape == batch.input_ids.shape
    for row, mask, said in zip(
        batch.input_ids, batch.assistant_masks, ("A red ball", "Two cats"), strict=True
    ):
        assert ours.decode(row[mask.bool()]).strip(": ") == f"{said}{END_OF_UTTERANCE}"


def test_what_the_assistant_says_is_marked_as_the_reference_does(reference):
    options = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True, "padding": True}
    conversations = [make_messages(image=WIDE), make_messages("Two cats", image=TALL)]
    mine, theirs = (
        each.apply_chat_template(
            conversations, TEMPLATE_WITH_GENERATION_BLOCKS, return_tensors="pt", **options
        )
        for each in (PROCESSOR_BY_FAMILY["idefics3"], reference["idefics3"])
    )
    assert torch.equal(mine.assistant_masks, torch.as_tensor(theirs["assistant_masks"]))


@each
def test_a_picture_may_be_base64(family):
    file = io.BytesIO()
    WIDE.save(file, "PNG")
    text = base64.b64encode(file.getvalue()).decode()
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    parts = [{"type": "image", "base64": text}, {"type": "text", "text": "What is on the table?"}]
    messages = [{"role": "user", "content": parts}]
    is_same_batch(
        PROCESSOR_BY_FAMILY[family].apply_chat_template(messages, **options),
        PROCESSOR_BY_FAMILY[family].apply_chat_template(make_messages(image=WIDE)[:1], **options),
    )


def test_videos_are_sampled_as_the_call_says():
    plan = VideoProcessorConfig(fps=1, max_frames=64, skip_seconds=1, longest_edge=8)
    words = {"num_frames": 8, "target_fps": 2.0, "skip_secs": 0}
    assert override_video_config(plan, words) == VideoProcessorConfig(
        fps=2.0, max_frames=8, skip_seconds=0, longest_edge=8
    )
    assert override_video_config(plan, {"fps": None, "max_frames": None}) == plan
    assert override_video_config(None, words) is None
    for name in ("num_frames", "max_frames", "fps"):
        with pytest.raises(BadSetting, match=f"{name} is 0; give more than 0"):
            override_video_config(plan, {name: 0})


@pytest.mark.parametrize("name", ["idefics2-8b-base", "idefics2-8b"])
def test_a_base_checkpoint_without_a_template_has_none(tmp_path, name):
    folder = write_hub_layout(tmp_path / name, RELEASED_BY_NAME[name])
    ours = AutoProcessor.from_pretrained(folder)
    messages = make_messages()
    if name.endswith("base"):
        with pytest.raises(UnsupportedModel, match="this checkpoint has no chat template"):
            ours.apply_chat_template(messages)
    else:
        assert ours.apply_chat_template(messages).startswith(f"User:{IMAGE_TOKEN}")


def test_parts_of_other_packages_are_told():
    ours = PROCESSOR_BY_FAMILY["idefics2"]
    with pytest.raises(BadSetting, match="tokenizer is None; give one of"):
        Idefics2Processor(ours.image_processor, None)
    with pytest.raises(UnsupportedModel, match="needs an IdeficsImageProcessor"):
        IdeficsProcessor(ours.image_processor, ours.tokenizer)
    with pytest.raises(TypeError, match="moods"):
        Idefics2Processor(ours.image_processor, ours.tokenizer, moods=3)
    assert Idefics2Processor(ours.image_processor, ours.tokenizer, return_tensors="pt").image_seq_len == 64


def test_blanks_that_idefics_drops_do_not_move_the_assistant_mask():
    options = {
        "tokenize": True,
        "return_dict": True,
        "return_assistant_tokens_mask": True,
        "return_tensors": "pt",
    }
    plain, blank = make_messages(image=WIDE), make_messages(image=WIDE)
    blank[0]["content"][1]["text"] = "   What is on the table?"
    ours = PROCESSOR_BY_FAMILY["idefics"]
    expected, batch = (
        ours.apply_chat_template(each, TEMPLATE_WITH_GENERATION_BLOCKS, **options) for each in (plain, blank)
    )
    is_same_batch(batch, expected)
