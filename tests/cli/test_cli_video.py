"""Videos on the command line, in place of pictures."""

import sys

import pytest

from idefics.errors import BadVideo
from idefics.messages import Video
from processing.videos_tiny import encode_video


@pytest.fixture
def video_folder(photo_folder):
    """The photo folder with clip.mp4, one.mp4, and broken.mp4, which is not a video."""
    for name in ("clip.mp4", "one.mp4"):
        (photo_folder / name).write_bytes(encode_video(5))
    (photo_folder / "broken.mp4").write_bytes(b"hello")
    return photo_folder


@pytest.mark.usefixtures("video_folder")
@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["ask", "clip.mp4", "What happens?"], "ask clip What happens?"),
        (["caption", "clip.mp4"], "caption clip"),
        (["generate", "clip.mp4", "It shows"], "clip It shows"),
        (["classify", "clip.mp4", "--labels", "cat,dog"], "cat"),
    ],
)
def test_videos_are_accepted_in_place_of_pictures(run_idefics, argv, said):
    done = run_idefics(*argv)
    assert (done.exit_code, done.stdout, done.stderr) == (0, f"{said}\n", "")
    (call,) = done.vlm.calls
    assert isinstance((call.items if argv[0] == "generate" else call.image)[0], Video)


@pytest.mark.usefixtures("video_folder")
def test_invalid_videos_are_reported_and_the_others_answered(run_idefics):
    done = run_idefics("caption", "a.png", "clip.mp4", "broken.mp4", "missing.mp4", "one.mp4")
    names = ["a.png: caption a", "clip.mp4: caption clip", "one.mp4: caption one"]
    assert (done.exit_code, done.stdout.splitlines()) == (2, names)
    assert done.error_lines == [
        "idefics caption: missing.mp4: no such file",
        "idefics caption: broken.mp4 is not a video that can be read: give MP4, MOV, WebM, MKV or AVI",
    ]


@pytest.mark.usefixtures("video_folder")
def test_a_folder_gives_pictures_only_and_a_pattern_what_matches(run_idefics):
    assert run_idefics("caption", "o*.mp4").stdout == "one.mp4: caption one\n"
    assert "mp4" not in run_idefics("caption", ".").stdout


@pytest.mark.usefixtures("video_folder")
def test_a_video_in_a_conversation(run_idefics, send_stdin):
    send_stdin(b"/image clip.mp4\nWhat happens?\n")
    done = run_idefics("chat")
    assert (done.exit_code, done.stderr) == (0, "")
    assert isinstance(done.vlm.calls[0].messages[0].parts[0], Video)


@pytest.mark.usefixtures("video_folder")
def test_without_pyav_pictures_are_still_answered(run_idefics, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    done = run_idefics("caption", "clip.mp4", "a.png")
    assert (done.exit_code, done.stdout) == (2, "a.png: caption a\n")
    (line,) = done.error_lines
    assert line.endswith(
        "clip.mp4: reading a video file needs an optional dependency: pip install 'idefics[video]'"
    )


@pytest.mark.usefixtures("video_folder")
def test_where_the_model_refuses_videos_pictures_are_answered(run_idefics):
    class Still(type(run_idefics("caption", "a.png").vlm)):
        def run(self, task, image, words="", **options):
            why = BadVideo("this checkpoint was not trained with video")
            answers = super().run(task, image, words, **options)
            return [
                why if isinstance(one, Video) else answer for one, answer in zip(image, answers, strict=True)
            ]

    done = run_idefics("caption", "a.png", "clip.mp4", "b.png", vlm=Still())
    assert (done.exit_code, done.stdout) == (2, "a.png: caption a\nb.png: caption b\n")
    assert done.error_lines == ["idefics caption: clip.mp4: this checkpoint was not trained with video"]


@pytest.mark.usefixtures("video_folder")
def test_the_error_of_the_demo_names_models_trained_on_video(demo_model, run_idefics):
    done = run_idefics("ask", "clip.mp4", "What happens?", vlm=demo_model)
    assert (done.exit_code, done.stdout) == (2, "")
    (line,) = done.error_lines
    assert line.startswith(
        "idefics ask: clip.mp4: this checkpoint was not trained with video: load one that was"
    )
    assert "smolvlm2-500m" in line


@pytest.mark.usefixtures("video_folder")
def test_a_video_is_recognized_by_its_content(run_idefics, send_stdin, photo_folder):
    for name in ("clip", "clip.jpg"):
        (photo_folder / name).write_bytes((photo_folder / "clip.mp4").read_bytes())
        for argv in (["ask", name, "What happens?"], ["generate", name, "It shows"]):
            done = run_idefics(*argv)
            assert (done.exit_code, done.stderr) == (0, "")
            (call,) = done.vlm.calls
            assert isinstance((call.items if argv[0] == "generate" else call.image)[0], Video)
    send_stdin((photo_folder / "clip.mp4").read_bytes())
    done = run_idefics("caption", "-")
    assert (done.exit_code, done.stderr) == (0, "")
    assert isinstance(done.vlm.calls[0].image[0], Video)
    (photo_folder / "shots.jsonl").write_text('{"image": "clip.jpg", "answer": "A film."}')
    done = run_idefics("caption", "a.png", "--shots", "shots.jsonl")
    assert isinstance(done.vlm.shots[0].picture, Video)


def test_a_video_without_a_suffix_in_a_folder_is_counted_as_one(run_idefics, video_folder):
    (video_folder / "folder" / "clip").write_bytes((video_folder / "clip.mp4").read_bytes())
    done = run_idefics("caption", "folder")
    assert "1 video (to include one, name it)" in done.stderr
