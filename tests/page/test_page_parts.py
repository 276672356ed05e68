"""The code behind the tabs, without a browser."""

import json
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

import idefics
from idefics.errors import BadPicture, BadPrompt, BadRequest, BadSetting
from idefics.messages import Picture, assistant, user
from idefics.page import batch, chat_turns, classify, few_shot_examples, picture_sources
from idefics.page.backend import PageBackend, PageSettings
from idefics.page.batch_results import BatchJob, BatchResult, run_batch, to_csv, to_jsonl
from idefics.page.formatting import format_answer_cost
from idefics.page.generation_controls import non_default_generation_kwargs, read_checkpoint_sampling
from idefics.page.picture_sources import PictureSources
from idefics.page.uploaded_picture import UploadedPicture
from idefics.processing.fetch import Fetcher
from idefics.tasks.shots import read_shots
from models import doctags
from shared_engine import cancel_all_requests

DEFAULT_OPTIONS = {
    "max_new_tokens": 64.0,
    "temperature": 0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0,
    "seed": None,
    "repetition_penalty": 1,
    "detail": "high",
}


def test_defaults_are_left_out_of_the_code():
    assert non_default_generation_kwargs(DEFAULT_OPTIONS, 64) == {}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"max_new_tokens": 7.0}, {"max_new_tokens": 7}),
        ({"seed": 3.0, "top_p": 0.5}, {}),  # greedy obeys neither
        ({"temperature": 0.5, "seed": 3.0, "top_k": 5.0}, {"temperature": 0.5, "seed": 3, "top_k": 5}),
        ({"strategy": "greedy", "temperature": 0.5, "num_beams": 4}, {}),
        ({"strategy": "beams", "temperature": 0.5, "num_beams": 4.0}, {"num_beams": 4}),
        ({"strategy": "sampling", "temperature": 0.5, "num_beams": 4}, {"temperature": 0.5}),
        ({"detail": "low", "repetition_penalty": 1.2}, {"detail": "low", "repetition_penalty": 1.2}),
    ],
)
def test_options_of_other_strategies_are_left_out(changed, said):
    assert non_default_generation_kwargs(DEFAULT_OPTIONS | changed, 64) == said


def test_a_checkpoint_may_suggest_to_sample(tmp_path):
    file = tmp_path / "generation_config.json"
    assert read_checkpoint_sampling(tmp_path) == {}
    file.write_text(json.dumps({"temperature": 0.6, "do_sample": False}))
    assert read_checkpoint_sampling(tmp_path) == {}
    file.write_text(
        json.dumps({"temperature": 0.6, "do_sample": True, "top_k": 20, "top_p": None, "eos_token_id": 2})
    )
    assert read_checkpoint_sampling(tmp_path) == {"temperature": 0.6, "top_k": 20}


def test_turns_become_messages_unchanged(uploaded_picture):
    turns = [
        chat_turns.make_user_turn([uploaded_picture("tower.png")], "What is it?"),
        chat_turns.make_turn("assistant", "A tower."),
        chat_turns.make_turn("user", "Really?"),
    ]
    turns = chat_turns.with_conversation_id(turns, "17")
    back = json.loads(json.dumps(turns))
    back[0]["content"][1]["file"]["url"] = "http://somewhere/else"  # a browser adds it
    found = chat_turns.to_messages(chat_turns.normalize_turns(back), lambda one: Picture(one.name))
    assert [(m.role, [p if isinstance(p, str) else p.source for p in m.parts]) for m in found] == [
        ("user", ["tower.png", "What is it?"]),
        ("assistant", ["A tower."]),
        ("user", ["Really?"]),
    ]
    assert chat_turns.normalize_turns(back) == turns
    assert chat_turns.get_or_create_conversation_id(back) == "17"
    assert chat_turns.turns_up_to_question(turns, 1) == turns[:1]
    assert chat_turns.turns_up_to_question(turns, 2) == turns


def test_an_empty_question_is_refused(uploaded_picture):
    with pytest.raises(BadPrompt, match="question is empty"):
        chat_turns.make_user_turn([uploaded_picture("tower.png")], "  ")


def write_zip(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as pack:
        for name, data in files.items():
            pack.writestr(name, data)
    return UploadedPicture(str(path), path.name)


def test_a_zip_gives_its_pictures_and_writes_nothing(tmp_path):
    given = write_zip(
        tmp_path / "a.zip",
        {
            "b/two.jpg": b"2",
            "one.PNG": b"1",
            "../../up.png": b"x",
            "/etc/root.png": b"r",
            "..\\back.png": b"x",
            "__MACOSX/._one.png": b"x",
            ".hidden.png": b"x",
            "notes.txt": b"x",
            "inner.zip": b"x",
        },
    )
    with PictureSources([given]) as sources:
        assert {entry.name: entry.read() for entry in sources.entries} == {
            "a.zip/b/two.jpg": b"2",
            "a.zip/one.PNG": b"1",
            "a.zip//etc/root.png": b"r",  # a name, and no path: it is never written
        }
        assert sources.num_skipped_by_format == {"other": 6}
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_skipped_files_are_counted_by_format(tmp_path):
    """The formats are those of the command line, as far as untrusted files may have them."""
    png, heic = b"\x89PNG\r\n\x1a\n", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    members = {"a.jfif": b"1", "b.apng": b"2", "photo": png, "IMG.HEIC": heic, "x.nef": b"3", "phone": heic}
    given = write_zip(tmp_path / "a.zip", {**members, "notes.txt": b"4", "README": b"5"})
    (tmp_path / "alone").write_bytes(png)
    (tmp_path / "x.avif").write_bytes(b"6")
    files = [
        given,
        UploadedPicture(str(tmp_path / "alone"), "alone"),
        UploadedPicture(str(tmp_path / "x.avif"), "x.avif"),
    ]
    with PictureSources(files) as sources:
        names = [entry.name for entry in sources.entries]
        assert names == ["a.zip/a.jfif", "a.zip/b.apng", "a.zip/photo", "alone"]
        assert sources.num_skipped_by_format == {"HEIC": 2, "camera RAW": 1, "other": 2, "AVIF": 1}
    assert batch._describe_skipped_files(sources.num_skipped_by_format) == (
        "6 files skipped: 2 HEIC (not read here: convert to JPEG), 1 camera RAW (not read here: convert to JPEG), "
        "1 AVIF (not read here: convert to JPEG), 2 that are not pictures."
    )


def test_sizes_that_a_zip_claims_are_not_trusted(tmp_path, monkeypatch):
    monkeypatch.setattr(picture_sources, "MAX_PICTURE_BYTES", 1000)
    given = write_zip(tmp_path / "a.zip", {"bomb.png": b"0" * 100_000, "fine.png": b"1" * 1000})
    data = bytearray((tmp_path / "a.zip").read_bytes())
    place = data.index(b"PK\x01\x02")  # the directory's entry of the bomb
    data[place + 24 : place + 28] = (900).to_bytes(4, "little")
    (tmp_path / "a.zip").write_bytes(data)
    with PictureSources([given]) as sources:
        bomb, fine = sources.entries
        with pytest.raises(BadPicture, match=r"bomb\.png is broken in the zip"):
            bomb.read()
        assert len(fine.read()) == 1000


@pytest.mark.parametrize(
    ("limit", "value", "words"),
    [
        ("MAX_ZIP_MEMBERS", 2, "holds 3 files"),
        ("MAX_UNPACKED_BYTES", 2, "unpacks to 3 bytes"),
        ("MAX_PICTURES", 2, "3 pictures"),
    ],
)
def test_a_zip_with_too_much_in_it_is_refused(tmp_path, monkeypatch, limit, value, words):
    monkeypatch.setattr(picture_sources, limit, value)
    given = write_zip(tmp_path / "a.zip", {f"{number}.png": b"x" for number in range(3)})
    with pytest.raises(BadRequest, match=words):
        PictureSources([given])


def test_an_invalid_zip_is_reported(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"hello")
    with pytest.raises(BadRequest, match=r"a\.zip is not a zip"):
        PictureSources([UploadedPicture(str(tmp_path / "a.zip"), "a.zip")])


def test_batch_results_have_answers_or_errors(page_backend, demo_model, bundled_pictures, tmp_path):
    files = {"tower.png": bundled_pictures["tower.png"].read_bytes(), "broken.png": b"no picture"}
    with PictureSources([write_zip(tmp_path / "a.zip", files)]) as sources:
        found = {
            row.image: row
            for row in run_batch(
                page_backend, "me", "batch", sources.entries, batch.make_batch_job("caption", "")
            )
        }
    assert found["a.zip/tower.png"] == BatchResult(
        "a.zip/tower.png", demo_model.caption(bundled_pictures["tower.png"]).text
    )
    assert found["a.zip/broken.png"].error.startswith("a.zip/broken.png is not a picture")
    assert not page_backend._running


def test_a_row_shows_the_whole_page_of_a_checkpoint_that_writes_doctags(bundled_pictures, tmp_path):
    vlm = idefics.load(doctags.write_checkpoint(tmp_path / "doctags"))
    page_backend = PageBackend(vlm, PageSettings("doctags", Fetcher(policy="off", untrusted=True)))
    with PictureSources(
        [write_zip(tmp_path / "a.zip", {"tower.png": bundled_pictures["tower.png"].read_bytes()})]
    ) as sources:
        (row,) = run_batch(page_backend, "me", "batch", sources.entries, batch.make_batch_job("caption", ""))
    assert row.text == doctags.PAGE_TEXT
    assert doctags.PAGE_TEXT in to_csv([row]).decode()
    cancel_all_requests(vlm.engine)


def test_a_stopped_batch_yields_no_more_results(page_backend, bundled_pictures):
    asked = []

    def read():
        asked.append(1)
        if len(asked) == 3:
            page_backend.stop_tab("me", "batch")
        return bundled_pictures["tower.png"].read_bytes()

    entries = [SimpleNamespace(name=str(number), read=read) for number in range(1000)]
    found = list(
        run_batch(
            page_backend, "me", "batch", entries, BatchJob(task="caption", options={"max_new_tokens": 3})
        )
    )
    assert len(found) <= len(asked) < 100
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("idefics-prepare")]


def test_a_job_without_its_text_is_refused():
    with pytest.raises(BadPrompt, match="question is empty"):
        batch.make_batch_job("ask", " ")
    with pytest.raises(BadSetting, match="1 label given"):
        batch.make_batch_job("classify", "cat")
    assert batch.make_batch_job("classify", "cat, dog").labels == ["cat", "dog"]
    assert batch.make_batch_job("caption", "left over").words == ""


def test_labels_are_split_at_lines_or_commas():
    assert classify.parse_labels("cat, dog") == ["cat", "dog"]
    assert classify.parse_labels("red, round\nblue, square\n") == ["red, round", "blue, square"]


def test_tables_have_every_row_and_escape_formulas():
    found = [
        BatchResult("=cmd.png", '=HYPERLINK("x")', labels={"-a": 0.25, "b": 0.75}),
        BatchResult("b.png", error="b.png is broken"),
        BatchResult("c.png", "two\nlines, and ünïcode"),
    ]
    assert [json.loads(line) for line in to_jsonl(found).decode().splitlines()] == [
        {"image": "=cmd.png", "text": '=HYPERLINK("x")', "labels": {"-a": 0.25, "b": 0.75}},
        {"image": "b.png", "error": "b.png is broken"},
        {"image": "c.png", "text": "two\nlines, and ünïcode"},
    ]
    import csv
    import io

    table = list(csv.reader(io.StringIO(to_csv(found).decode("utf-8-sig"))))
    assert table[0] == ["image", "text", "error", "'-a", "b"]
    assert table[1] == ["'=cmd.png", '\'=HYPERLINK("x")', "", "0.250000", "0.750000"]
    assert table[3] == ["c.png", "two\nlines, and ünïcode", "", "", ""]


def test_examples_are_saved_and_loaded(page_backend, uploaded_picture, tmp_path):
    some = [
        few_shot_examples.make_example(page_backend, uploaded_picture("tower.png"), "What?", " A tower. "),
        few_shot_examples.make_example(page_backend, uploaded_picture("door.png"), "", "x"),
    ]
    (tmp_path / "shots.jsonl").write_bytes(few_shot_examples.to_jsonl(some))
    back = few_shot_examples.read_examples(
        page_backend, [UploadedPicture(str(tmp_path / "shots.jsonl"), "shots.jsonl")]
    )
    assert [(one.question, one.answer) for one in back] == [("What?", "A tower."), ("", "x")]
    assert [Path(one.upload.path).read_bytes() for one in back] == [
        Path(one.upload.path).read_bytes() for one in some
    ]
    assert len(read_shots(tmp_path / "shots.jsonl")) == 2


def test_an_example_never_opens_a_file_of_this_machine(
    page_backend, uploaded_picture, bundled_pictures, tmp_path
):
    secret = tmp_path / "secret.png"
    secret.write_bytes(bundled_pictures["door.png"].read_bytes())
    file = tmp_path / "shots.jsonl"
    named = UploadedPicture(str(file), "shots.jsonl")
    for image in (str(secret), "secret.png", "../secret.png"):
        file.write_text(json.dumps({"image": image, "answer": "x"}) + "\n")
        with pytest.raises(BadPicture, match="choose that picture together"):
            few_shot_examples.read_examples(page_backend, [named])
    file.write_text(json.dumps({"image": "http://127.0.0.1:1/secret.png", "answer": "x"}) + "\n")
    with pytest.raises(BadPicture, match="may not be fetched"):
        few_shot_examples.read_examples(page_backend, [named])
    file.write_text(json.dumps({"image": "tower.png", "answer": "x"}) + "\n")
    assert few_shot_examples.read_examples(page_backend, [named, uploaded_picture("tower.png")])[
        0
    ].upload == uploaded_picture("tower.png")


def test_the_error_for_a_broken_file_of_examples_names_it(page_backend, tmp_path):
    (tmp_path / "x.jsonl").write_text("{")
    with pytest.raises(BadPrompt, match=r"^mine\.jsonl, line 1"):
        few_shot_examples.read_examples(
            page_backend, [UploadedPicture(str(tmp_path / "x.jsonl"), "mine.jsonl")]
        )
    with pytest.raises(BadPrompt, match=r"0 \.jsonl files were given"):
        few_shot_examples.read_examples(page_backend, [])


def test_too_many_examples_are_refused(page_backend, uploaded_picture):
    one = few_shot_examples.make_example(page_backend, uploaded_picture("tower.png"), "", "x")
    with pytest.raises(BadPrompt, match="33 examples"):
        few_shot_examples.check_num_examples([one] * 33)


def test_a_stop_before_the_stream_exists_takes_effect(page_backend, demo_model):
    def ask():
        page_backend.stop_tab("me", "ask")
        return demo_model.chat([user("Tell me all.")], stream=True, max_new_tokens=500)

    *_, answer = page_backend.stream_answer("me", "ask", 500, ask)
    assert answer.finish == "cancelled"
    assert "stopped" in format_answer_cost(answer)


def test_a_session_that_ends_stops_only_its_own_answers(page_backend, demo_model):
    def ask():
        return demo_model.chat([user("What is it?"), assistant("A tower."), user("Where?")], stream=True)

    mine, yours = (
        page_backend.stream_answer("me", "ask", 64, ask),
        page_backend.stream_answer("you", "ask", 64, ask),
    )
    next(mine), next(yours)
    page_backend.stop_session("me")
    page_backend.stop_tab("you", "chat")
    *_, answer = yours
    assert answer.finish != "cancelled"
    list(mine)
    assert not page_backend._running


def test_an_answer_acquires_and_releases_an_admission_slot(page_backend, uploaded_picture):
    taken = []

    class FakeSlot:
        def __init__(self, end, pictures, tokens):
            taken.append((pictures, tokens))

        def __enter__(self):
            taken.append("in")

        def __exit__(self, *_):
            taken.append("out")

    object.__setattr__(page_backend.settings, "admission_slot", FakeSlot)
    picture = page_backend.open_upload(uploaded_picture("tower.png"))
    *_, answer = page_backend.stream_answer(
        "me", "ask", 50, lambda: page_backend.start_task("ask", picture, "What?", {})
    )
    assert taken == [(1, answer.usage.prompt_tokens + 50), "in", "out"]
