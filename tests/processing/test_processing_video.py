"""Videos: which frames are sampled, the text around them, and how they are read from files."""

import base64
import dataclasses
import random
import sys
import warnings
from fractions import Fraction
from itertools import islice
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest

from idefics.config import VideoProcessorConfig
from idefics.errors import BadPicture, BadSetting, BadVideo, MissingExtra
from idefics.messages import Picture, Video, assistant, user
from idefics.models import family_for
from idefics.processing import video_file
from idefics.processing.checkpoint_settings import read_preprocessor_config
from idefics.processing.fetch import Fetcher
from idefics.processing.image_processor import preprocess_image
from idefics.processing.message_parsing import to_messages
from idefics.processing.processor import Processor
from idefics.processing.prompt_items import parse_item
from idefics.processing.tokenizer import TextPiece, Tokenizer
from idefics.processing.video import (
    expand_video,
    is_video_name,
    number_to_words,
    sample_frame_indices,
    to_picture_or_video,
)
from idefics.processing.video_file import open_video
from idefics.prompt import PreprocessedImage
from processing.test_processor import (
    CROSS_ATTENTION_CONFIG,
    TILES_CONFIG,
    TILES_FORMAT,
    WIDE_PICTURE,
    decode_prompt,
)
from processing.tokenizers_tiny import FAKE_IMAGE_TOKEN, IMAGE_TOKEN, train_byte_level_tokenizer
from processing.videos_tiny import FRAME_SIZE, encode_audio_only, encode_video, frame_number, make_frame

RELEASED_CONFIG = VideoProcessorConfig(fps=1, max_frames=64, skip_seconds=1.0, longest_edge=512)
TINY_CONFIG = dataclasses.replace(TILES_CONFIG, video=dataclasses.replace(RELEASED_CONFIG, longest_edge=16))
NO_NETWORK_FETCHER = Fetcher(policy="off")
VIDEO_PROCESSOR = Processor(
    Tokenizer(train_byte_level_tokenizer().to_str()), TINY_CONFIG, TILES_FORMAT, NO_NETWORK_FETCHER
)
FRAME_PLACEHOLDER = (
    f"{FAKE_IMAGE_TOKEN}<global-img>{IMAGE_TOKEN * TINY_CONFIG.tokens_per_frame}{FAKE_IMAGE_TOKEN}"
)


def make_frames(number):
    return [make_frame(index) for index in range(number)]


def video_text(parts):
    """The text of a video in a prompt, with a block character for each frame."""
    return "".join(part.text if isinstance(part, TextPiece) else FRAME_PLACEHOLDER for part in parts)


# Which frames


@pytest.mark.parametrize(
    ("total", "fps", "chosen"),
    [
        (1, 25, [0]),
        (2, 25, [0]),  # less than half a second is still one frame
        (37, 25, [0]),
        (38, 25, [0, 37]),  # 1.52 seconds
        (250, 25, [0, 27, 55, 83, 110, 138, 166, 193, 221, 249]),
        (5, Fraction(1, 2), [0, 1, 2, 3, 4]),  # ten are wanted, five are there
        (62, 25, [0, 61]),  # 2.48 seconds
    ],
)
def test_about_one_frame_a_second(total, fps, chosen):
    assert sample_frame_indices(total, fps, RELEASED_CONFIG) == chosen


def test_a_long_video_gives_no_more_than_the_checkpoint_saw():
    assert (
        len(sample_frame_indices(64 * 25, 25, RELEASED_CONFIG))
        == len(sample_frame_indices(100 * 25, 25, RELEASED_CONFIG))
        == 64
    )
    assert len(sample_frame_indices(100 * 25, 25, dataclasses.replace(RELEASED_CONFIG, max_frames=10))) == 10


def test_a_second_at_both_ends_of_a_long_video_is_left_out():
    """`skip_seconds` only counts where more than `most_frames` remain."""
    long, just = (
        sample_frame_indices(67 * 30, 30, RELEASED_CONFIG),
        sample_frame_indices(66 * 30, 30, RELEASED_CONFIG),
    )
    assert (long[0], long[-1]) == (30, 66 * 30)
    assert (just[0], just[-1]) == (0, 66 * 30 - 1)
    ends = dataclasses.replace(RELEASED_CONFIG, skip_seconds=0.0)
    assert sample_frame_indices(67 * 30, 30, ends)[-1] == 67 * 30 - 1


@pytest.fixture(scope="module")
def reference():
    """transformers' video code for SmolVLM2, which works without torchvision where nothing is decoded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("transformers")
        pytest.importorskip("num2words")
        from transformers.models.smolvlm.processing_smolvlm import SmolVLMProcessor
        from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor
        from transformers.video_utils import VideoMetadata
    return SimpleNamespace(words=SmolVLMProcessor, sampler=SmolVLMVideoProcessor, metadata=VideoMetadata)


def test_the_frames_are_the_reference_processors(reference):
    sampler = reference.sampler(
        video_sampling={"fps": 1, "max_frames": 64, "video_size": {"longest_edge": 512}}
    )
    rng = random.Random(0)
    for _ in range(500):
        fps = rng.choice([10.0, 23.976, 24.0, 25.0, 29.97, 30.0, 60.0, 120.0, 0.5])
        total = rng.choice([rng.randint(1, 100), rng.randint(1, 10_000), rng.randint(1, 500_000)])
        wanted, most = rng.choice([0.5, 1, 2]), rng.choice([1, 8, 64])
        metadata = reference.metadata(total_num_frames=total, fps=fps, duration=total / fps)
        theirs = sampler.sample_frames(metadata, num_frames=most, fps=wanted)
        config = VideoProcessorConfig(fps=wanted, max_frames=most, skip_seconds=1.0, longest_edge=512)
        assert sample_frame_indices(total, fps, config) == theirs.tolist(), (total, fps, wanted, most)


# What is said


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (1, "one"),
        (13, "thirteen"),
        (20, "twenty"),
        (64, "sixty-four"),
        (101, "one hundred and one"),
        (1234, "one thousand, two hundred and thirty-four"),
    ],
)
def test_numbers_in_words(number, words):
    assert number_to_words(number) == words


def test_numbers_in_words_are_num2words():
    num2words = pytest.importorskip("num2words").num2words
    numbers = [*range(1200), *range(1900, 2200), 10_000, 64_001, 99_999, 100_000, 999_999]
    assert [number_to_words(number) for number in numbers] == [num2words(number) for number in numbers]


def test_the_words_of_a_video():
    assert video_text(expand_video(Video(make_frames(3), fps=1), TINY_CONFIG, NO_NETWORK_FETCHER)) == (
        "You are provided the following series of three frames from a 0:00:03 [H:MM:SS] video.\n"
        f"\nFrame from 00:00:{FRAME_PLACEHOLDER}\nFrame from 00:01:{FRAME_PLACEHOLDER}"
        f"\nFrame from 00:02:{FRAME_PLACEHOLDER}\n\n"
    )


def test_times_of_a_long_video():
    """Minutes count beyond 60."""
    text = video_text(expand_video(Video(make_frames(2), fps=1 / 8192), TINY_CONFIG, NO_NETWORK_FETCHER))
    assert "two frames from a 4:33:04 [H:MM:SS] video" in text
    assert "\nFrame from 00:00:" in text and "\nFrame from 136:32:" in text


def test_frames_without_a_rate_are_all_shown_as_24_a_second():
    """The duration is then the time of the last frame."""
    text = video_text(expand_video(Video(make_frames(48)), TINY_CONFIG, NO_NETWORK_FETCHER))
    assert "series of forty-eight frames from a 0:00:01 [H:MM:SS]" in text
    assert (text.count("Frame from 00:00:"), text.count("Frame from 00:01:")) == (24, 24)


@pytest.mark.parametrize("fps", [None, 2, 29.97])
def test_the_words_are_the_reference_processors(reference, fps):
    total = 48
    metadata = reference.metadata(total_num_frames=total, fps=fps, duration=fps and total / fps)
    chosen = list(range(total)) if fps is None else sample_frame_indices(total, fps, RELEASED_CONFIG)
    metadata.frames_indices = chosen
    marks = SimpleNamespace(
        fake_image_token=FAKE_IMAGE_TOKEN,
        image_token=IMAGE_TOKEN,
        global_image_token="<global-img>",
        image_seq_len=TINY_CONFIG.tokens_per_frame,
    )
    inputs = {"pixel_values": np.empty((1, len(chosen))), "video_metadata": [metadata]}
    theirs = reference.words.replace_video_token(marks, inputs, 0)
    assert (
        video_text(expand_video(Video(make_frames(total), fps=fps), TINY_CONFIG, NO_NETWORK_FETCHER))
        == theirs
    )


# Where it stands in a prompt


def test_a_video_in_a_conversation():
    """The template sees a text part, and puts a space before it: "User: You are provided"."""
    prompt = VIDEO_PROCESSOR.encode_chat([user(Video(make_frames(2), fps=1), "What happens?")])
    assert decode_prompt(VIDEO_PROCESSOR, prompt) == (
        "<|im_start|>User: You are provided the following series of two frames from a 0:00:02 [H:MM:SS] video.\n"
        f"\nFrame from 00:00:{FRAME_PLACEHOLDER}\nFrame from 00:01:{FRAME_PLACEHOLDER}"
        "\n\nWhat happens?<end_of_utterance>\nAssistant:"
    )
    assert [len(places) for places in prompt.image_token_positions] == [TINY_CONFIG.tokens_per_frame] * 2
    text = decode_prompt(VIDEO_PROCESSOR, prompt)
    assert list(prompt.ids) == VIDEO_PROCESSOR.tokenizer.encode(text, add_special_tokens=False)


def test_videos_pictures_and_words_stand_where_they_were_put():
    clip, other = Video(make_frames(2), fps=1), Video(make_frames(1))
    prompt = VIDEO_PROCESSOR.encode_chat(
        [user(Picture(WIDE_PICTURE), clip, "And?"), assistant("A."), user(other)]
    )
    text = decode_prompt(VIDEO_PROCESSOR, prompt)
    assert [len(picture.frames) for picture in prompt.pictures] == [9, 1, 1, 1]
    assert (
        text.index("<row_1_col_1>") < text.index("two frames") < text.index("And?") < text.index("one frames")
    )
    raw = VIDEO_PROCESSOR.encode_raw(["Watch this.", clip, "It shows"])
    assert decode_prompt(VIDEO_PROCESSOR, raw).startswith("Watch this.You are provided")
    assert decode_prompt(VIDEO_PROCESSOR, raw).endswith(f"Frame from 00:01:{FRAME_PLACEHOLDER}\n\nIt shows")


def test_nobody_can_forge_a_video():
    text = "<video>{'type': 'video'}\ue0001\ue0010\ue002"
    prompt = VIDEO_PROCESSOR.encode_chat([user(Video(make_frames(1)), text)])
    assert text in decode_prompt(VIDEO_PROCESSOR, prompt)
    assert len(prompt.pictures) == 1


def test_continuations_follow_a_video():
    prompt, endings = VIDEO_PROCESSOR.encode_chat_continuations(
        [user(Video(make_frames(1)), "Is it grey?")], ["yes", "no"]
    )
    assert len(prompt.pictures) == 1 and len(endings) == 2


def test_frames_are_pictures_that_are_never_split():
    """Compared with the same frames as pictures: resized to `longest_edge`, then to one frame."""
    sources = [WIDE_PICTURE, PIL.Image.fromarray(WIDE_PICTURE[:, :5])]
    shown = [
        part
        for part in expand_video(Video(sources), TINY_CONFIG, NO_NETWORK_FETCHER)
        if isinstance(part, PreprocessedImage)
    ]
    whole = dataclasses.replace(TINY_CONFIG, longest_edge=16, do_image_splitting=False)
    for source, tiles in zip(sources, shown, strict=True):
        image = source if isinstance(source, PIL.Image.Image) else PIL.Image.fromarray(source)
        expected = preprocess_image(image, whole)
        assert (tiles.rows, tiles.columns, len(tiles.frames)) == (0, 0, 1)
        np.testing.assert_array_equal(tiles.frames[0], expected.frames[0])
        assert tiles.content_hash == expected.content_hash


def test_frames_of_every_kind(tmp_path):
    PIL.Image.fromarray(make_frame(4)).save(tmp_path / "4.png")
    kinds = [
        tmp_path / "4.png",
        str(tmp_path / "4.png"),
        make_frame(4),
        PIL.Image.fromarray(make_frame(4)),
        Picture(make_frame(4)),
    ]
    for source in (kinds, tuple(kinds), np.stack([make_frame(4)] * 5)):
        shown = [
            part
            for part in expand_video(Video(source), TINY_CONFIG, NO_NETWORK_FETCHER)
            if isinstance(part, PreprocessedImage)
        ]
        assert len({part.content_hash for part in shown}) == 1 and len(shown) == 5


def test_only_chosen_frames_of_a_list_are_opened():
    listed = [make_frame(0), "no such file.png", "nor this.png", make_frame(3)]
    shown = expand_video(Video(listed, fps=2), TINY_CONFIG, NO_NETWORK_FETCHER)
    assert len([part for part in shown if isinstance(part, PreprocessedImage)]) == 2


# What is refused before a file is opened


@pytest.mark.parametrize("fps", [0, -1, float("inf"), float("nan"), "2"])
def test_a_rate_is_above_0(fps):
    with pytest.raises(BadSetting, match=r"fps is .*; give the frames a second"):
        Video(make_frames(1), fps=fps)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "has no frames"),
        (make_frame(0), r"shape \(48, 64, 3\)"),
        (17, "cannot be of type int"),
        (PIL.Image.new("RGB", (2, 2)), "cannot be of type Image"),
        (make_frames(65), "65 frames is too long; this checkpoint is shown 64: give fewer, or give fps"),
    ],
)
def test_what_is_no_video(source, message):
    with pytest.raises(BadVideo, match=message):
        expand_video(Video(source), TINY_CONFIG, NO_NETWORK_FETCHER)


def test_a_broken_frame_names_itself():
    with pytest.raises(BadPicture, match=r"missing\.png: no such file"):
        expand_video(Video(["missing.png"]), TINY_CONFIG, NO_NETWORK_FETCHER)


@pytest.mark.parametrize("config", [CROSS_ATTENTION_CONFIG, TILES_CONFIG], ids=["cross_attention", "tiles"])
def test_a_checkpoint_without_video_names_those_with(config):
    with pytest.raises(
        BadVideo, match=r"not trained with video: load one that was \(smolvlm2-256m, .*2\.2b\)"
    ):
        expand_video(Video("no matter what.mp4"), config, NO_NETWORK_FETCHER)


# Settings


def make_smolvlm2_plan(settings):
    family = family_for("smolvlm")
    return family.read_image_config(
        family.read_config({"model_type": "smolvlm", "vision_config": {"image_size": 512}}, {}), settings
    )


@pytest.mark.parametrize(
    "name", ["preprocessor_config.json", "processor_config.json"], ids=["as released", "as saved by 5.x"]
)
def test_settings_of_a_checkpoint(tmp_path, name):
    """transformers 5 overwrites `video_size` with `size` in its video processor's settings, not in its images'."""
    ours = '{"video_sampling": {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": 512}}}'
    theirs = ours.replace("512", "2048")
    wrapped = f'{{"image_processor": {ours}, "video_processor": {theirs}}}'
    (tmp_path / name).write_text(wrapped if name == "processor_config.json" else ours)
    assert make_smolvlm2_plan(read_preprocessor_config(tmp_path)).video == RELEASED_CONFIG


def test_settings_that_are_left_out():
    assert make_smolvlm2_plan({}).video is None
    assert make_smolvlm2_plan({"video_sampling": {"max_frames": 8}}).video == dataclasses.replace(
        RELEASED_CONFIG, max_frames=8
    )


# Names


@pytest.mark.parametrize(
    ("name", "is_video"),
    [
        ("clip.mp4", True),
        ("a/CLIP.MOV", True),
        ("https://example.com/clip.webm?size=2#t=1", True),
        ("https://example.com/clip.jpg?of=clip.mp4", False),
        ("data:video/mp4;base64,AAAA", True),
        ("data:image/png;base64,AAAA", False),
        ("photo.jpg", False),
        ("animated.gif", False),
    ],
)
def test_names_of_videos(name, is_video):
    assert is_video_name(name) == is_video
    assert isinstance(to_picture_or_video(name), Video if is_video else Picture)


def test_items_of_a_raw_prompt(tmp_path):
    path = tmp_path / "clip.mp4"
    with pytest.raises(BadPicture, match="no such file"):
        parse_item(str(path))
    path.touch()
    assert isinstance(parse_item(str(path)), Video) and isinstance(parse_item(path), Video)
    assert isinstance(parse_item("http://example.com/clip.mp4"), Video)
    assert parse_item("Here is clip.mp4") == "Here is clip.mp4"


def test_messages_as_dicts():
    clip = Video("clip.mp4")
    parts = [{"type": "video", "path": "clip.mp4"}, {"type": "video", "url": "clip.mp4"}]
    parts += [{"type": "video", "video": ["a.png", "b.png"]}, {"type": "video", "video": clip}, clip]
    (message,) = to_messages([{"role": "user", "content": parts}])
    assert all(isinstance(part, Video) for part in message.parts)
    assert [part.source for part in message.parts] == ["clip.mp4"] * 2 + [["a.png", "b.png"]] + [
        "clip.mp4"
    ] * 2
    assert message.parts[3] is message.parts[4] is clip


# Files


@pytest.fixture
def needs_av():
    pytest.importorskip("av")


ENCODING_BY_KIND = {
    "mp4": {},
    "mov": {"format": "mov", "codec": "mpeg4"},
    "mkv": {"format": "matroska"},
    "webm": {"format": "webm", "codec": "libvpx-vp9", "num_b_frames": 0},
    "avi": {"format": "avi", "codec": "mpeg4"},
    "ts": {"format": "mpegts"},
    "one key": {"key_frame_interval": 1000},
    "all keys": {"key_frame_interval": 1, "num_b_frames": 0},
}


@pytest.fixture(scope="module", params=ENCODING_BY_KIND, ids=str)
def clip(request):
    return encode_video(50, **ENCODING_BY_KIND[request.param])


@pytest.mark.parametrize(
    "chosen", [[0], [49], [0, 24, 49], [3, 11, 12, 13, 30, 31], list(range(50))], ids=str
)
def test_every_frame_can_be_reached(clip, chosen):
    with open_video(clip, NO_NETWORK_FETCHER) as file:
        assert (file.num_frames, file.fps, file.duration_seconds) == (50, 25, 2.0)
        images = list(file.read_frames(chosen))
    assert [frame_number(image) for image in images] == chosen
    assert {(image.mode, image.size) for image in images} == {("RGB", FRAME_SIZE)}


class CountingContainer:
    """A container that counts the frames that it decodes, at most `max_frames` per call."""

    def __init__(self, container, most=1000):
        self.container, self.num_decoded, self.max_frames = container, 0, most

    def __getattr__(self, name):
        return getattr(self.container, name)

    def decode(self, stream):
        for one in islice(self.container.decode(stream), self.max_frames):
            self.num_decoded += 1
            yield one


def test_only_frames_after_the_last_key_frame_are_decoded():
    with open_video(encode_video(50, key_frame_interval=10, num_b_frames=0), NO_NETWORK_FETCHER) as file:
        file.container = CountingContainer(file.container)
        assert [frame_number(image) for image in file.read_frames([22, 23, 41])] == [22, 23, 41]
        assert file.container.num_decoded == 3 + 1 + 2


def test_frames_are_read_one_at_a_time():
    with open_video(encode_video(20), NO_NETWORK_FETCHER) as file:
        images = file.read_frames([0, 19])
        file.container = CountingContainer(file.container)
        next(images)
        assert file.container.num_decoded == 1


def test_the_frames_of_a_truncated_video_are_read():
    """Frames are counted, as the length in a file's header may be too large."""
    with open_video(
        encode_video(50, format="matroska", codec="mpeg4", num_b_frames=0)[:-600], NO_NETWORK_FETCHER
    ) as file:
        last = file.num_frames - 1
        assert 30 < last < 49
        assert [frame_number(image) for image in file.read_frames([last - 1, last])] == [last - 1, last]


def test_where_frames_are_missing_at_the_end_the_last_one_stays():
    """Some packets hold no visible frame."""
    with open_video(encode_video(20), NO_NETWORK_FETCHER) as file:
        file.container = CountingContainer(file.container, most=10)
        assert [frame_number(image) for image in file.read_frames([5, 12, 19])] == [5, 9, 9]
    with open_video(encode_video(20), NO_NETWORK_FETCHER) as file:
        file.container = CountingContainer(file.container, most=0)
        with pytest.raises(BadVideo, match="is broken: none of its frames can be read"):
            list(file.read_frames([5]))


@pytest.mark.parametrize("degrees", [0, 90, -90, 180])
def test_videos_of_phones_are_upright(degrees):
    with open_video(encode_video(2, rotation=degrees), NO_NETWORK_FETCHER) as file:
        (image,) = file.read_frames([0])
    expected = np.rot90(make_frame(0), degrees // 90)
    assert np.asarray(image).shape == expected.shape
    assert np.abs(np.asarray(image, int) - expected).mean() < 12  # the corner is where it belongs


def test_a_video_file_in_a_prompt(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(encode_video(75))
    shown = expand_video(Video(path), TINY_CONFIG, NO_NETWORK_FETCHER)
    assert video_text(shown).startswith(
        "You are provided the following series of three frames from a 0:00:03 [H:MM:SS]"
    )
    assert "Frame from 00:01:" in video_text(shown) and "Frame from 00:02:" in video_text(
        shown
    )  # the last is frame 74
    keys = [part.content_hash for part in shown if isinstance(part, PreprocessedImage)]
    assert keys == [
        part.content_hash
        for part in expand_video(Video(str(path)), TINY_CONFIG, NO_NETWORK_FETCHER)
        if isinstance(part, PreprocessedImage)
    ]
    assert keys == [
        part.content_hash
        for part in expand_video(Video(path.read_bytes()), TINY_CONFIG, NO_NETWORK_FETCHER)
        if isinstance(part, PreprocessedImage)
    ]


def test_a_video_in_a_data_uri():
    uri = "data:video/mp4;base64," + base64.b64encode(encode_video(5)).decode()
    assert "one frames" in video_text(expand_video(Video(uri), TINY_CONFIG, NO_NETWORK_FETCHER))


def test_an_address_is_fetched_as_a_pictures_is(monkeypatch):
    got = []

    def get(self, url):
        got.append(url)
        return encode_video(5)

    monkeypatch.setattr(Fetcher, "get", get)
    assert "one frames" in video_text(
        expand_video(Video("https://example.com/clip.mp4"), TINY_CONFIG, Fetcher())
    )
    assert got == ["https://example.com/clip.mp4"]


@pytest.mark.usefixtures("needs_av")
def test_an_address_may_be_refused():
    with pytest.raises(BadPicture, match="remote pictures are off"):
        expand_video(Video("https://example.com/clip.mp4"), TINY_CONFIG, NO_NETWORK_FETCHER)


@pytest.mark.usefixtures("needs_av")
def test_a_gif_may_be_a_video(tmp_path):
    first, *rest = [PIL.Image.fromarray(make_frame(10 * index)) for index in range(4)]
    first.save(tmp_path / "a.gif", save_all=True, append_images=rest, duration=1000, loop=0)
    shown = expand_video(Video(tmp_path / "a.gif"), TINY_CONFIG, NO_NETWORK_FETCHER)
    assert "four frames from a 0:00:04" in video_text(shown)


# Files that are refused


@pytest.fixture
def invalid_videos(tmp_path):
    """Files that are no videos, or broken ones."""
    whole = encode_video(100, num_b_frames=0)
    (tmp_path / "whole.mp4").write_bytes(whole)
    contents = {
        "text.mp4": b"hello" * 100,
        "empty.mp4": b"",
        "cut.mp4": whole[:-200],  # what it needs to be read stands at its end
        "sound.mp4": encode_audio_only(),
        "rare.mkv": encode_video(3, codec="ffv1", format="matroska", num_b_frames=0),
        "list.mp4": b"ffconcat version 1.0\nfile whole.mp4\n",
        "playlist.mp4": b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:9,\nwhole.mp4\n#EXT-X-ENDLIST\n",
        "none.mkv": encode_video(0, format="matroska"),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder.mp4").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("text.mp4", "is not a video that can be read: give MP4"),
        ("empty.mp4", r"is empty \(0 bytes\)"),
        ("cut.mp4", "is not a video that can be read"),
        ("sound.mp4", "has no pictures in it, only sound"),
        ("rare.mkv", "is in a codec that is not read here: convert it to H.264"),
        ("list.mp4", "is not a video that can be read"),
        ("playlist.mp4", "is not a video that can be read"),
        ("none.mkv", r"has no frames|is not a video|no pictures|is empty \(0 bytes\)"),
        ("missing.mp4", "no such file"),
        ("folder.mp4", "is not a file"),
    ],
)
def test_files_that_are_no_videos(invalid_videos, name, message):
    with pytest.raises(BadPicture, match=message) as refusal:
        expand_video(Video(invalid_videos / name), TINY_CONFIG, NO_NETWORK_FETCHER)
    assert name in str(refusal.value) and "\n" not in str(refusal.value)
    assert refusal.value.__suppress_context__ or refusal.value.__context__ is None


@pytest.mark.usefixtures("needs_av")
def test_a_broken_video():
    """Invalid bytes in the middle of the file."""
    whole = bytearray(encode_video(100))
    for start in range(whole.index(b"mdat") + 900, whole.index(b"moov") - 100):
        whole[start] = (37 * start) % 256
    with pytest.raises(BadVideo, match="is broken: its frames cannot be read to the end"):
        expand_video(Video(bytes(whole)), TINY_CONFIG, NO_NETWORK_FETCHER)


@pytest.mark.usefixtures("needs_av")
def test_a_video_that_is_too_long(monkeypatch):
    monkeypatch.setattr(video_file, "MAX_FRAMES", 40)
    with pytest.raises(BadVideo, match="has more than 40 frames: cut it shorter"):
        expand_video(Video(encode_video(41)), TINY_CONFIG, NO_NETWORK_FETCHER)
    expand_video(Video(encode_video(40)), TINY_CONFIG, NO_NETWORK_FETCHER)


@pytest.mark.usefixtures("needs_av")
def test_a_video_that_is_too_large(monkeypatch):
    monkeypatch.setattr(video_file, "MAX_PIXELS", 64 * 48 - 1)
    with pytest.raises(BadVideo, match="64 x 48 pixels; at most 3,071 are read: make it smaller"):
        expand_video(Video(encode_video(2)), TINY_CONFIG, NO_NETWORK_FETCHER)


@pytest.mark.usefixtures("needs_av")
def test_a_files_rate_is_its_own():
    with pytest.raises(BadSetting, match="fps is 2, but a video file has its own"):
        expand_video(Video(encode_video(2), fps=2), TINY_CONFIG, NO_NETWORK_FETCHER)


def test_without_pyav(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtra, match=r"needs an optional dependency: pip install 'idefics\[video\]'"):
        expand_video(Video("clip.mp4"), TINY_CONFIG, NO_NETWORK_FETCHER)
    assert "two frames" in video_text(expand_video(Video(make_frames(2)), TINY_CONFIG, NO_NETWORK_FETCHER))
