"""Videos from a file to an answer on a tiny SmolVLM2; other checkpoints refuse them."""

import json

import numpy as np
import PIL.Image
import pytest

import idefics
from engine.reference_decoding import reference_greedy
from idefics.errors import BadVideo
from idefics.messages import Picture, Shot, Video, user
from models import tiny
from processing.videos_tiny import encode_video, make_frame

RAW_CONFIG = tiny.merge_config(
    tiny.IDEFICS3, model_type="smolvlm", text_config={"max_position_embeddings": 4096}
)
VIDEO_SAMPLING = {"fps": 1, "max_frames": 6, "video_size": {"longest_edge": 32}}
FRAMES = [make_frame(index) for index in range(3)]
SHORT_OPTIONS = {"max_new_tokens": 6}


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    folder = tiny.write_complete_checkpoint(tmp_path_factory.mktemp("smolvlm2"), RAW_CONFIG)
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"video_sampling": VIDEO_SAMPLING}))
    return idefics.load(folder, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Four seconds."""
    path = tmp_path_factory.mktemp("videos") / "clip.mp4"
    path.write_bytes(encode_video(40, fps=10))
    return path


def test_a_video_is_taken_wherever_a_picture_is(vlm, clip):
    answers = [
        vlm.ask(source, "What happens?", **SHORT_OPTIONS)
        for source in (str(clip), clip, Video(clip), Video(clip.read_bytes()))
    ]
    assert len({answer.tokens for answer in answers}) == 1
    assert answers[0].usage.pictures == 4
    assert answers[0].tokens != vlm.ask(Video(FRAMES), "What happens?", **SHORT_OPTIONS).tokens


@pytest.mark.parametrize("stream", [False, True])
def test_every_call_takes_frames(vlm, stream):
    clip, options = Video(FRAMES), {"stream": stream, **SHORT_OPTIONS}
    for answer in (
        vlm.caption(clip, **options),
        vlm.complete(clip, "It shows", **options),
        vlm.ask(clip, "What happens?", **options),
        vlm.write(clip, **options),
        vlm.generate(["Watch: ", clip, "It shows"], **options),
        vlm.chat([user(clip, "What happens?")], **options),
    ):
        if stream:
            assert "".join(answer) == answer.answer.text
        said = answer.answer if stream else answer
        assert said.usage.pictures == 3 and 0 < len(said.tokens) <= 6


def test_dicts_as_the_cards_users_write_them(vlm, clip):
    expected = vlm.chat([user(Video(clip), "What happens?")], **SHORT_OPTIONS)
    for part in ({"path": str(clip)}, {"video": str(clip)}, {"url": str(clip)}, {"video": Video(clip)}):
        content = [{"type": "video", **part}, {"type": "text", "text": "What happens?"}]
        assert vlm.chat([{"role": "user", "content": content}], **SHORT_OPTIONS).tokens == expected.tokens
    listed = [{"type": "video", "video": FRAMES}, {"type": "text", "text": "What happens?"}]
    expected = vlm.ask(Video(FRAMES), "What happens?", **SHORT_OPTIONS)
    assert vlm.chat([{"role": "user", "content": listed}], **SHORT_OPTIONS).tokens == expected.tokens


def test_the_frames_of_a_video_equal_pictures_in_its_place(vlm):
    """The same ids; and frames, as 64 x 48 fits into 32 x 32 by way of 32 x 24, are not split."""
    prompt = vlm.prompt([user(Video(FRAMES, fps=1), "What happens?")])
    written = [
        *("You are provided the following series of three frames from a 0:00:03 [H:MM:SS] video.\n",),
        *("\nFrame from 00:00:", "\nFrame from 00:01:", "\nFrame from 00:02:", "\n\nWhat happens?"),
    ]
    small = [PIL.Image.fromarray(one).resize((32, 24), PIL.Image.Resampling.LANCZOS) for one in FRAMES]
    square = [np.asarray(one.resize((32, 32), PIL.Image.Resampling.LANCZOS)) for one in small]
    expected = [(pixels / 255 - 0.5) / 0.5 for pixels in square]
    for tiles, pixels in zip(prompt.pictures, expected, strict=True):
        np.testing.assert_allclose(tiles.frames[0].transpose(1, 2, 0), pixels, atol=1e-6)
    text = vlm.processor.tokenizer.decode(prompt.ids, hidden_ids=())
    assert [one for one in written if one not in text] == []


def test_a_video_equals_the_reference(vlm):
    prompt = vlm.prompt([user(Video(FRAMES), "What happens?")])
    slow = reference_greedy(
        vlm.engine.model,
        prompt,
        6,
        stop_ids=vlm.loaded_model.stop_ids,
        banned_ids=vlm.processor.image_placeholder_ids,
    )
    assert vlm.ask(Video(FRAMES), "What happens?", **SHORT_OPTIONS).tokens == tuple(slow)


def test_pictures_and_videos_are_answered_in_one_batch(vlm, clip):
    visuals = [clip, PIL.Image.fromarray(FRAMES[0]), Video(FRAMES)]
    together = vlm.ask(visuals, "What is it?", **SHORT_OPTIONS)
    assert [one.tokens for one in together] == [
        vlm.ask(one, "What is it?", **SHORT_OPTIONS).tokens for one in visuals
    ]


def test_classification_and_shots(vlm):
    ranking = vlm.classify(Video(FRAMES), ["a cat", "a dog", "rain"], calibrated=True)
    assert {label.label for label in ranking} == {"a cat", "a dog", "rain"}
    shot = Shot(Picture(FRAMES[0]), "Grey.")
    assert vlm.with_shots([shot]).caption(Video(FRAMES), **SHORT_OPTIONS).usage.pictures == 4


def test_long_videos_have_the_checkpoint_s_number_of_frames(vlm):
    assert vlm.caption(Video(FRAMES * 20, fps=2), **SHORT_OPTIONS).usage.pictures == 6


@pytest.mark.parametrize("name", ["demo", "demo-idefics1"])
def test_other_checkpoints_refuse(name):
    vlm = idefics.load(name)
    for ask in (
        lambda: vlm.ask("clip.mp4", "What happens?"),
        lambda: vlm.caption([FRAMES[0], Video(FRAMES)]),
        lambda: vlm.classify(Video(FRAMES), ["a", "b"]),
        lambda: vlm.generate([Video(FRAMES)]),
        lambda: vlm.chat([{"role": "user", "content": [{"type": "video", "path": "clip.mp4"}]}]),
    ):
        with pytest.raises(BadVideo, match=r"not trained with video: load one that was .*smolvlm2-500m"):
            ask()
