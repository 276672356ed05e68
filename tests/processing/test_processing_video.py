"""Videos: which frames are shown, what is said about them, and how they are read from files."""

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

from idefics.config import VideoPlan
from idefics.errors import BadPicture, BadSetting, BadVideo, MissingExtra
from idefics.messages import Picture, Video, assistant, user
from idefics.models import family_for
from idefics.processing import video_file
from idefics.processing.conversation import to_messages
from idefics.processing.fetch import Fetcher
from idefics.processing.images import prepare
from idefics.processing.processor import Processor
from idefics.processing.prompt_items import to_part
from idefics.processing.settings import preprocessor
from idefics.processing.tokenizer import Piece, Tokenizer
from idefics.processing.video import as_visual, choose, in_words, names_video, watch
from idefics.processing.video_file import open_video
from idefics.prompt import Tiles
from processing.test_processor import BESIDE_PLAN, TILES_PLAN, TILES_STYLE, WIDE, text_of
from processing.tokenizers_tiny import FAKE, IMAGE, byte_level
from processing.videos_tiny import SIZE, frame, number_of, sound, video

RELEASED = VideoPlan(fps=1, most_frames=64, skip_seconds=1.0, longest=512)
PLAN = dataclasses.replace(TILES_PLAN, video=dataclasses.replace(RELEASED, longest=16))
CLOSED = Fetcher(policy="off")
WATCHER = Processor(Tokenizer(byte_level().to_str()), PLAN, TILES_STYLE, CLOSED)
BLOCK = f"{FAKE}<global-img>{IMAGE * PLAN.tokens}{FAKE}"


def frames(number):
    return [frame(index) for index in range(number)]


def said(parts):
    """The words of a video, with a block for each frame."""
    return "".join(part.text if isinstance(part, Piece) else BLOCK for part in parts)


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
    assert choose(total, fps, RELEASED) == chosen


def test_a_long_video_gives_no_more_than_the_checkpoint_saw():
    assert len(choose(64 * 25, 25, RELEASED)) == len(choose(100 * 25, 25, RELEASED)) == 64
    assert len(choose(100 * 25, 25, dataclasses.replace(RELEASED, most_frames=10))) == 10


def test_a_second_at_both_ends_of_a_long_video_is_left_out():
    """`skip_seconds` only counts where more than `most_frames` remain."""
    long, just = choose(67 * 30, 30, RELEASED), choose(66 * 30, 30, RELEASED)
    assert (long[0], long[-1]) == (30, 66 * 30)
    assert (just[0], just[-1]) == (0, 66 * 30 - 1)
    ends = dataclasses.replace(RELEASED, skip_seconds=0.0)
    assert choose(67 * 30, 30, ends)[-1] == 67 * 30 - 1


@pytest.fixture(scope="module")
def reference():
    """What transformers has of SmolVLM2's video, which works without torchvision as far as it decodes nothing."""
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
        plan = VideoPlan(fps=wanted, most_frames=most, skip_seconds=1.0, longest=512)
        assert choose(total, fps, plan) == theirs.tolist(), (total, fps, wanted, most)


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
    assert in_words(number) == words


def test_numbers_in_words_are_num2words():
    num2words = pytest.importorskip("num2words").num2words
    numbers = [*range(1200), *range(1900, 2200), 10_000, 64_001, 99_999, 100_000, 999_999]
    assert [in_words(number) for number in numbers] == [num2words(number) for number in numbers]


def test_the_words_of_a_video():
    assert said(watch(Video(frames(3), fps=1), PLAN, CLOSED)) == (
        "You are provided the following series of three frames from a 0:00:03 [H:MM:SS] video.\n"
        f"\nFrame from 00:00:{BLOCK}\nFrame from 00:01:{BLOCK}\nFrame from 00:02:{BLOCK}\n\n"
    )


def test_times_of_a_long_video():
    """Minutes go on counting after the first hour."""
    text = said(watch(Video(frames(2), fps=1 / 8192), PLAN, CLOSED))
    assert "two frames from a 4:33:04 [H:MM:SS] video" in text
    assert "\nFrame from 00:00:" in text and "\nFrame from 136:32:" in text


def test_frames_without_a_rate_are_all_shown_as_24_a_second():
    """The video is then as long as the time of its last frame."""
    text = said(watch(Video(frames(48)), PLAN, CLOSED))
    assert "series of forty-eight frames from a 0:00:01 [H:MM:SS]" in text
    assert (text.count("Frame from 00:00:"), text.count("Frame from 00:01:")) == (24, 24)


@pytest.mark.parametrize("fps", [None, 2, 29.97])
def test_the_words_are_the_reference_processors(reference, fps):
    total = 48
    metadata = reference.metadata(total_num_frames=total, fps=fps, duration=fps and total / fps)
    chosen = list(range(total)) if fps is None else choose(total, fps, RELEASED)
    metadata.frames_indices = chosen
    marks = SimpleNamespace(
        fake_image_token=FAKE, image_token=IMAGE, global_image_token="<global-img>", image_seq_len=PLAN.tokens
    )
    inputs = {"pixel_values": np.empty((1, len(chosen))), "video_metadata": [metadata]}
    theirs = reference.words.replace_video_token(marks, inputs, 0)
    assert said(watch(Video(frames(total), fps=fps), PLAN, CLOSED)) == theirs


# Where it stands in a prompt


def test_a_video_in_a_conversation():
    """It is text to the template, which puts a space before text: "User: You are provided"."""
    prompt = WATCHER.chat([user(Video(frames(2), fps=1), "What happens?")])
    assert text_of(WATCHER, prompt) == (
        "<|im_start|>User: You are provided the following series of two frames from a 0:00:02 [H:MM:SS] video.\n"
        f"\nFrame from 00:00:{BLOCK}\nFrame from 00:01:{BLOCK}\n\nWhat happens?<end_of_utterance>\nAssistant:"
    )
    assert [len(places) for places in prompt.places] == [PLAN.tokens] * 2
    text = text_of(WATCHER, prompt)
    assert list(prompt.ids) == WATCHER.tokenizer.encode(text, adds_special=False)


def test_videos_pictures_and_words_stand_where_they_were_put():
    clip, other = Video(frames(2), fps=1), Video(frames(1))
    prompt = WATCHER.chat([user(Picture(WIDE), clip, "And?"), assistant("A."), user(other)])
    text = text_of(WATCHER, prompt)
    assert [len(picture.frames) for picture in prompt.pictures] == [9, 1, 1, 1]
    assert (
        text.index("<row_1_col_1>") < text.index("two frames") < text.index("And?") < text.index("one frames")
    )
    raw = WATCHER.raw(["Watch this.", clip, "It shows"])
    assert text_of(WATCHER, raw).startswith("Watch this.You are provided")
    assert text_of(WATCHER, raw).endswith(f"Frame from 00:01:{BLOCK}\n\nIt shows")


def test_nobody_can_forge_a_video():
    text = "<video>{'type': 'video'}\ue0001\ue0010\ue002"
    prompt = WATCHER.chat([user(Video(frames(1)), text)])
    assert text in text_of(WATCHER, prompt)
    assert len(prompt.pictures) == 1


def test_endings_follow_a_video():
    prompt, endings = WATCHER.chat_endings([user(Video(frames(1)), "Is it grey?")], ["yes", "no"])
    assert len(prompt.pictures) == 1 and len(endings) == 2


def test_frames_are_pictures_that_are_never_split():
    """The oracle is the path of pictures: resized to `longest`, then to the tile."""
    sources = [WIDE, PIL.Image.fromarray(WIDE[:, :5])]
    shown = [part for part in watch(Video(sources), PLAN, CLOSED) if isinstance(part, Tiles)]
    whole = dataclasses.replace(PLAN, longest=16, splitting=False)
    for source, tiles in zip(sources, shown, strict=True):
        image = source if isinstance(source, PIL.Image.Image) else PIL.Image.fromarray(source)
        expected = prepare(image, whole)
        assert (tiles.rows, tiles.columns, len(tiles.frames)) == (0, 0, 1)
        np.testing.assert_array_equal(tiles.frames[0], expected.frames[0])
        assert tiles.key == expected.key


def test_frames_of_every_kind(tmp_path):
    PIL.Image.fromarray(frame(4)).save(tmp_path / "4.png")
    kinds = [
        tmp_path / "4.png",
        str(tmp_path / "4.png"),
        frame(4),
        PIL.Image.fromarray(frame(4)),
        Picture(frame(4)),
    ]
    for source in (kinds, tuple(kinds), np.stack([frame(4)] * 5)):
        shown = [part for part in watch(Video(source), PLAN, CLOSED) if isinstance(part, Tiles)]
        assert len({part.key for part in shown}) == 1 and len(shown) == 5


def test_only_chosen_frames_of_a_list_are_opened():
    listed = [frame(0), "no such file.png", "nor this.png", frame(3)]
    shown = watch(Video(listed, fps=2), PLAN, CLOSED)
    assert len([part for part in shown if isinstance(part, Tiles)]) == 2


# What is refused before a file is opened


@pytest.mark.parametrize("fps", [0, -1, float("inf"), float("nan"), "2"])
def test_a_rate_is_above_0(fps):
    with pytest.raises(BadSetting, match=r"fps is .*; give the frames a second"):
        Video(frames(1), fps=fps)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "has no frames"),
        (frame(0), r"shape \(48, 64, 3\)"),
        (17, "cannot be of type int"),
        (PIL.Image.new("RGB", (2, 2)), "cannot be of type Image"),
        (frames(65), "65 frames is too long; this checkpoint is shown 64: give fewer, or say by fps"),
    ],
)
def test_what_is_no_video(source, message):
    with pytest.raises(BadVideo, match=message):
        watch(Video(source), PLAN, CLOSED)


def test_a_broken_frame_names_itself():
    with pytest.raises(BadPicture, match=r"missing\.png: no such file"):
        watch(Video(["missing.png"]), PLAN, CLOSED)


@pytest.mark.parametrize("plan", [BESIDE_PLAN, TILES_PLAN], ids=["beside", "tiles"])
def test_a_checkpoint_without_video_names_those_with(plan):
    with pytest.raises(
        BadVideo, match=r"not trained with video: load one that was \(smolvlm2-256m, .*2\.2b\)"
    ):
        watch(Video("no matter what.mp4"), plan, CLOSED)


# Settings


def smolvlm2(settings):
    family = family_for("smolvlm")
    return family.images(
        family.config({"model_type": "smolvlm", "vision_config": {"image_size": 512}}, {}), settings
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
    assert smolvlm2(preprocessor(tmp_path)).video == RELEASED


def test_settings_that_are_left_out():
    assert smolvlm2({}).video is None
    assert smolvlm2({"video_sampling": {"max_frames": 8}}).video == dataclasses.replace(
        RELEASED, most_frames=8
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
    assert names_video(name) == is_video
    assert isinstance(as_visual(name), Video if is_video else Picture)


def test_items_of_a_raw_prompt(tmp_path):
    path = tmp_path / "clip.mp4"
    with pytest.raises(BadPicture, match="no such file"):
        to_part(str(path))
    path.touch()
    assert isinstance(to_part(str(path)), Video) and isinstance(to_part(path), Video)
    assert isinstance(to_part("http://example.com/clip.mp4"), Video)
    assert to_part("Here is clip.mp4") == "Here is clip.mp4"


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


KINDS = {
    "mp4": {},
    "mov": {"format": "mov", "codec": "mpeg4"},
    "mkv": {"format": "matroska"},
    "webm": {"format": "webm", "codec": "libvpx-vp9", "between": 0},
    "avi": {"format": "avi", "codec": "mpeg4"},
    "ts": {"format": "mpegts"},
    "one key": {"every_key": 1000},
    "all keys": {"every_key": 1, "between": 0},
}


@pytest.fixture(scope="module", params=KINDS, ids=str)
def clip(request):
    return video(50, **KINDS[request.param])


@pytest.mark.parametrize(
    "chosen", [[0], [49], [0, 24, 49], [3, 11, 12, 13, 30, 31], list(range(50))], ids=str
)
def test_every_frame_can_be_reached(clip, chosen):
    with open_video(clip, CLOSED) as file:
        assert (file.total, file.fps, file.duration) == (50, 25, 2.0)
        images = list(file.read(chosen))
    assert [number_of(image) for image in images] == chosen
    assert {(image.mode, image.size) for image in images} == {("RGB", SIZE)}


class Counting:
    """A container that counts the frames that it decodes, and decodes no more than `most`."""

    def __init__(self, container, most=1000):
        self.container, self.decoded, self.most = container, 0, most

    def __getattr__(self, name):
        return getattr(self.container, name)

    def decode(self, stream):
        for one in islice(self.container.decode(stream), self.most):
            self.decoded += 1
            yield one


def test_only_frames_after_the_last_key_frame_are_decoded():
    with open_video(video(50, every_key=10, between=0), CLOSED) as file:
        file.container = Counting(file.container)
        assert [number_of(image) for image in file.read([22, 23, 41])] == [22, 23, 41]
        assert file.container.decoded == 3 + 1 + 2


def test_frames_are_read_one_at_a_time():
    with open_video(video(20), CLOSED) as file:
        images = file.read([0, 19])
        file.container = Counting(file.container)
        next(images)
        assert file.container.decoded == 1


def test_what_there_is_of_a_cut_video_is_shown():
    """Its length is counted: what a file says of itself may be too much."""
    with open_video(video(50, format="matroska", codec="mpeg4", between=0)[:-600], CLOSED) as file:
        last = file.total - 1
        assert 30 < last < 49
        assert [number_of(image) for image in file.read([last - 1, last])] == [last - 1, last]


def test_where_frames_are_missing_at_the_end_the_last_one_stays():
    """Some packets hold no frame that is shown."""
    with open_video(video(20), CLOSED) as file:
        file.container = Counting(file.container, most=10)
        assert [number_of(image) for image in file.read([5, 12, 19])] == [5, 9, 9]
    with open_video(video(20), CLOSED) as file:
        file.container = Counting(file.container, most=0)
        with pytest.raises(BadVideo, match="is broken: none of its frames can be read"):
            list(file.read([5]))


@pytest.mark.parametrize("degrees", [0, 90, -90, 180])
def test_videos_of_phones_are_upright(degrees):
    with open_video(video(2, rotation=degrees), CLOSED) as file:
        (image,) = file.read([0])
    expected = np.rot90(frame(0), degrees // 90)
    assert np.asarray(image).shape == expected.shape
    assert np.abs(np.asarray(image, int) - expected).mean() < 12  # the corner is where it belongs


def test_a_video_file_in_a_prompt(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(video(75))
    shown = watch(Video(path), PLAN, CLOSED)
    assert said(shown).startswith(
        "You are provided the following series of three frames from a 0:00:03 [H:MM:SS]"
    )
    assert "Frame from 00:01:" in said(shown) and "Frame from 00:02:" in said(shown)  # the last is frame 74
    keys = [part.key for part in shown if isinstance(part, Tiles)]
    assert keys == [part.key for part in watch(Video(str(path)), PLAN, CLOSED) if isinstance(part, Tiles)]
    assert keys == [
        part.key for part in watch(Video(path.read_bytes()), PLAN, CLOSED) if isinstance(part, Tiles)
    ]


def test_a_video_in_a_data_uri():
    uri = "data:video/mp4;base64," + base64.b64encode(video(5)).decode()
    assert "one frames" in said(watch(Video(uri), PLAN, CLOSED))


def test_an_address_is_fetched_as_a_pictures_is(monkeypatch):
    got = []

    def get(self, url):
        got.append(url)
        return video(5)

    monkeypatch.setattr(Fetcher, "get", get)
    assert "one frames" in said(watch(Video("https://example.com/clip.mp4"), PLAN, Fetcher()))
    assert got == ["https://example.com/clip.mp4"]


@pytest.mark.usefixtures("needs_av")
def test_an_address_may_be_refused():
    with pytest.raises(BadPicture, match="remote pictures are off"):
        watch(Video("https://example.com/clip.mp4"), PLAN, CLOSED)


@pytest.mark.usefixtures("needs_av")
def test_a_gif_may_be_a_video(tmp_path):
    first, *rest = [PIL.Image.fromarray(frame(10 * index)) for index in range(4)]
    first.save(tmp_path / "a.gif", save_all=True, append_images=rest, duration=1000, loop=0)
    shown = watch(Video(tmp_path / "a.gif"), PLAN, CLOSED)
    assert "four frames from a 0:00:04" in said(shown)


# Files that are refused


@pytest.fixture
def strange(tmp_path):
    """Files that are no videos, or no good ones."""
    whole = video(100, between=0)
    (tmp_path / "whole.mp4").write_bytes(whole)
    contents = {
        "text.mp4": b"hello" * 100,
        "empty.mp4": b"",
        "cut.mp4": whole[:-200],  # what it needs to be read stands at its end
        "sound.mp4": sound(),
        "rare.mkv": video(3, codec="ffv1", format="matroska", between=0),
        "list.mp4": b"ffconcat version 1.0\nfile whole.mp4\n",
        "playlist.mp4": b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:9,\nwhole.mp4\n#EXT-X-ENDLIST\n",
        "none.mkv": video(0, format="matroska"),
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
def test_files_that_are_no_videos(strange, name, message):
    with pytest.raises(BadPicture, match=message) as refusal:
        watch(Video(strange / name), PLAN, CLOSED)
    assert name in str(refusal.value) and "\n" not in str(refusal.value)
    assert refusal.value.__suppress_context__ or refusal.value.__context__ is None


@pytest.mark.usefixtures("needs_av")
def test_a_broken_video():
    """Bytes in the middle that are no frames."""
    whole = bytearray(video(100))
    for start in range(whole.index(b"mdat") + 900, whole.index(b"moov") - 100):
        whole[start] = (37 * start) % 256
    with pytest.raises(BadVideo, match="is broken: its frames cannot be read to the end"):
        watch(Video(bytes(whole)), PLAN, CLOSED)


@pytest.mark.usefixtures("needs_av")
def test_a_video_that_is_too_long(monkeypatch):
    monkeypatch.setattr(video_file, "MOST_FRAMES", 40)
    with pytest.raises(BadVideo, match="has more than 40 frames: cut it shorter"):
        watch(Video(video(41)), PLAN, CLOSED)
    watch(Video(video(40)), PLAN, CLOSED)


@pytest.mark.usefixtures("needs_av")
def test_a_video_that_is_too_large(monkeypatch):
    monkeypatch.setattr(video_file, "MOST_PIXELS", 64 * 48 - 1)
    with pytest.raises(BadVideo, match="64 x 48 pixels; at most 3,071 are read: make it smaller"):
        watch(Video(video(2)), PLAN, CLOSED)


@pytest.mark.usefixtures("needs_av")
def test_a_files_rate_is_its_own():
    with pytest.raises(BadSetting, match="fps is 2, but a file says its own"):
        watch(Video(video(2), fps=2), PLAN, CLOSED)


def test_without_pyav(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtra, match=r"needs an optional part: pip install 'idefics\[video\]'"):
        watch(Video("clip.mp4"), PLAN, CLOSED)
    assert "two frames" in said(watch(Video(frames(2)), PLAN, CLOSED))
