"""Videos for SmolVLM's processor: text and frames are those of `idefics.load`, wherever the video is given."""

import numpy as np
import pytest

from compat.processors_tiny import (
    FRAME_TOKENS,
    IDEFICS3_SETTINGS,
    SMALL,
    TALL,
    WIDE,
    is_same_batch,
    make_idefics3_processor,
    make_smolvlm_tokenizer,
)
from idefics import Video
from idefics.compat.image_processing_inline import Idefics3ImageProcessor
from idefics.compat.media_inputs import VIDEO_TOKEN
from idefics.compat.processing_inline import SmolVLMProcessor
from idefics.errors import BadPicture, BadPrompt, BadSetting
from processing.tokenizers_tiny import END_OF_UTTERANCE, FAKE_IMAGE_TOKEN, IMAGE_TOKEN
from processing.videos_tiny import encode_video

VIDEO_SAMPLING = {"fps": 1, "max_frames": 4, "video_size": {"longest_edge": 8}}
PROCESSOR = SmolVLMProcessor(
    Idefics3ImageProcessor(**IDEFICS3_SETTINGS, video_sampling=VIDEO_SAMPLING),
    make_smolvlm_tokenizer(),
    image_seq_len=FRAME_TOKENS,
)
FRAMES = [WIDE, TALL, SMALL]
FRAME_PLACEHOLDER = f"{FAKE_IMAGE_TOKEN}<global-img>{IMAGE_TOKEN * FRAME_TOKENS}{FAKE_IMAGE_TOKEN}"
VIDEO_TEXT = (
    "You are provided the following series of three frames from a 0:00:00 [H:MM:SS] video.\n"
    f"\nFrame from 00:00:{FRAME_PLACEHOLDER}\nFrame from 00:00:{FRAME_PLACEHOLDER}"
    f"\nFrame from 00:00:{FRAME_PLACEHOLDER}\n\n"
)


def test_a_video_becomes_words_and_frames():
    batch = PROCESSOR(text=f"User: {VIDEO_TOKEN}What?", videos=FRAMES, return_tensors="pt")
    assert PROCESSOR.decode(batch.input_ids[0]) == f"User: {VIDEO_TEXT}What?"
    assert batch.pixel_values.shape == (1, 3, 3, 8, 8)


def test_frames_are_those_of_single_pictures():
    batch = PROCESSOR(text=VIDEO_TOKEN, videos=FRAMES, return_tensors="pt")
    whole = PROCESSOR.image_processor(
        FRAMES, do_image_splitting=False, size={"longest_edge": 8}, return_tensors="pt"
    )
    assert (batch.pixel_values == whole.pixel_values).all()


@pytest.mark.parametrize(
    "videos",
    [
        [FRAMES, [SMALL]],
        [[FRAMES], [[SMALL]]],
        [Video(FRAMES), Video([SMALL])],
        [FRAMES, np.array(SMALL)[None]],
    ],
)
def test_videos_are_shared_out(videos):
    texts = [f"{VIDEO_TOKEN}a", f"{VIDEO_TOKEN}{IMAGE_TOKEN}b"]
    batch = PROCESSOR(text=texts, videos=videos, images=[TALL], return_tensors="pt", do_image_splitting=False)
    expected = [PROCESSOR(text=texts[0], videos=FRAMES, return_tensors="pt")]
    assert (batch.pixel_values[0, :3] == expected[0].pixel_values[0]).all()
    assert batch.pixel_values.shape[:2] == (2, 3)
    assert not batch.pixel_attention_mask[1, 2].any()


def test_a_conversation_with_a_video():
    messages = [
        {"role": "user", "content": [{"type": "video", "video": FRAMES}, {"type": "text", "text": "What?"}]}
    ]
    text = PROCESSOR.apply_chat_template(messages, add_generation_prompt=True)
    assert text == f"<|im_start|>User: {VIDEO_TOKEN}What?{END_OF_UTTERANCE}\nAssistant:"
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    is_same_batch(
        PROCESSOR.apply_chat_template(messages, **options),
        PROCESSOR(text=text, videos=FRAMES, return_tensors="pt"),
    )


def test_videos_and_places_are_counted():
    with pytest.raises(BadPrompt, match=r"1 places for videos \(<video>\), and 0 videos"):
        PROCESSOR(text=VIDEO_TOKEN)
    with pytest.raises(BadPrompt, match=r"1 places for videos .*and 2 videos"):
        PROCESSOR(text=VIDEO_TOKEN, videos=[FRAMES, FRAMES])
    with pytest.raises(BadPrompt, match="2 texts, and videos for 1"):
        PROCESSOR(text=[VIDEO_TOKEN, "a"], videos=[[FRAMES]])


def test_a_checkpoint_without_video_says_so():
    with pytest.raises(BadPicture, match="not trained with video"):
        make_idefics3_processor()(text=VIDEO_TOKEN, videos=FRAMES)
    assert VIDEO_TOKEN in make_idefics3_processor().decode(
        make_idefics3_processor()(text=VIDEO_TOKEN).input_ids[0]
    )


def test_the_settings_are_saved(tmp_path):
    PROCESSOR.save_pretrained(tmp_path)
    again = SmolVLMProcessor.from_pretrained(tmp_path)
    assert again.image_processor.video_sampling == VIDEO_SAMPLING
    assert again.image_processor.to_processor_config() == PROCESSOR.image_processor.to_processor_config()


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ({}, 4),
        ({"num_frames": 2}, 2),
        ({"max_frames": 3}, 3),
        ({"fps": 4, "max_frames": 64}, 16),
        ({"target_fps": 2.0, "num_frames": 64, "video_load_backend": "decord"}, 8),
        ({"num_frames": 4, "skip_secs": 0, "do_sample_frames": True}, 4),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_how_many_frames_of_a_file_are_shown_may_be_said(tmp_path, words, shown, nested):
    (tmp_path / "four_seconds.mp4").write_bytes(encode_video(100))
    parts = [{"type": "video", "path": str(tmp_path / "four_seconds.mp4")}, {"type": "text", "text": "What?"}]
    batch = PROCESSOR.apply_chat_template(
        [{"role": "user", "content": parts}],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        **({"processor_kwargs": {"videos_kwargs": words}} if nested else words),
    )
    assert batch.pixel_values.shape[1] == shown


def test_frames_that_shall_not_be_sampled():
    plain = PROCESSOR(text=VIDEO_TOKEN, videos=FRAMES, return_tensors="pt")
    is_same_batch(
        PROCESSOR(text=VIDEO_TOKEN, videos=FRAMES, return_tensors="pt", do_sample_frames=False), plain
    )
    with pytest.raises(BadSetting, match="do_sample_frames is False, but a video is a file"):
        PROCESSOR(text=VIDEO_TOKEN, videos=["a.mp4"], do_sample_frames=False)
