"""Recorded answers of released checkpoints: every entry renders; a made-up one is found right and wrong."""

import hashlib
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest

from evaluation.spoilt_checkpoints import DEMO_FOLDERS
from idefics.catalog import CATALOG, find_entry
from idefics.errors import BadPicture
from idefics.evaluate.check import known_answers
from idefics.evaluate.check.checks import CheckSubject
from idefics.evaluate.check.known_answers import known_answer_checks, make_check, read_known_answers
from idefics.generation.load_settings import LoadSettings
from idefics.processing.fetch import Fetcher
from models import checkpoint_folders
from models.released import RELEASED_BY_NAME

TOLERANCES, ANSWERS = read_known_answers()
NAME_BY_CHECKPOINT = {entry.hub_id: entry.name for entry in CATALOG if entry.hub_id}
CPU = LoadSettings(device="cpu", dtype="float32")
PICTURE = (DEMO_FOLDERS["demo"].parent / "pictures" / "shapes.png").read_bytes()
IDS = [f"{answer.checkpoint.rpartition('/')[2]}: {answer.name}" for answer in ANSWERS]


@pytest.fixture(scope="module")
def get_processor(tmp_path_factory):
    """The processor of a tiny copy of a catalogue row, or of a demo."""

    @cache
    def make(name):
        folder = DEMO_FOLDERS.get(name) or checkpoint_folders.write_hub_layout(
            tmp_path_factory.mktemp("row") / name, RELEASED_BY_NAME[name]
        )
        return CheckSubject(str(folder), CPU).processor

    return make


def test_what_is_recorded():
    counts = {}
    for answer in ANSWERS:
        counts[answer.checkpoint] = counts.get(answer.checkpoint, 0) + 1
    assert counts == {
        "HuggingFaceM4/idefics-9b": 2,
        "HuggingFaceM4/idefics-9b-instruct": 2,
        "HuggingFaceM4/idefics2-8b": 3,
        "HuggingFaceM4/idefics2-8b-base": 1,
        "HuggingFaceM4/Idefics3-8B-Llama3": 2,
        "HuggingFaceTB/SmolVLM-Instruct": 1,
        "HuggingFaceTB/SmolVLM2-256M-Video-Instruct": 1,
        "demo": 4,
        "demo-idefics1": 4,
    }
    assert TOLERANCES["demo"] < TOLERANCES["float32"] < TOLERANCES["bfloat16"] < TOLERANCES["quantized"]


@pytest.mark.parametrize("answer", ANSWERS, ids=IDS)
def test_an_entry_is_complete_and_renders(get_processor, answer):
    assert (answer.ids is None) == (answer.logprobs is None)
    assert answer.ids is None or len(answer.ids) == len(answer.logprobs)
    assert answer.texts or answer.contains
    assert answer.recorded_in
    assert {"repository", "commit", "file"} == answer.source.keys()
    for picture in answer.pictures:
        assert picture.keys() in ({"url", "sha256"}, {"bundled"})
    processor = get_processor(NAME_BY_CHECKPOINT.get(answer.checkpoint, answer.checkpoint))
    prompt = processor.encode_raw(answer.fill_items([np.zeros((8, 8, 3), np.uint8)] * 2))
    assert len(prompt.pictures) == len(answer.pictures)
    images = processor.tokenizer.token_to_id("<image>")
    assert {prompt.ids[p] for positions in prompt.image_token_positions for p in positions} == {images}
    subject = SimpleNamespace(entry=find_entry_of(answer), settings=CPU)
    fitting = [check.name for check in known_answer_checks(subject)]
    assert f"answer: {answer.name}" in fitting


def find_entry_of(answer):
    return find_entry(NAME_BY_CHECKPOINT.get(answer.checkpoint, answer.checkpoint))


@pytest.fixture(scope="module")
def demo():
    subject = CheckSubject("demo", CPU, fetch=True)
    yield subject
    subject.close()


@pytest.fixture
def online(monkeypatch):
    """An internet of one picture."""
    monkeypatch.setattr(Fetcher, "get", lambda self, url: PICTURE)


@pytest.fixture
def made_up():
    """The demo's answer about the bundled picture, as if that were on the internet."""
    [answer] = [one for one in ANSWERS if (one.checkpoint, one.name) == ("demo", "shapes")]
    url = {"url": "https://example.org/a.png", "sha256": hashlib.sha256(PICTURE).hexdigest()}
    return replace(answer, pictures=[url])


def test_a_recorded_answer(demo, online, made_up):
    outcome = make_check(made_up).run(demo)
    assert (outcome.status, outcome.limit) == ("ok", "0.2")
    wrong = replace(made_up, logprobs=[made_up.logprobs[0] - 0.25, *made_up.logprobs[1:]])
    outcome = make_check(wrong).run(demo)
    assert outcome.status == "off"
    assert outcome.details[0].startswith(f"token 1 (id {made_up.ids[0]}) has log-probability")


def test_a_recorded_text(demo, online, made_up):
    """One of the recorded texts is what the model prefers at each token, or nearly."""
    texts = [" Nothing.", " A red circle, a blue square and a green star."]
    text = replace(made_up, ids=None, logprobs=None, texts=texts, note="what is not known")
    outcome = make_check(text).run(demo)
    assert (outcome.status, outcome.limit) == ("ok", "0.4")
    assert outcome.measured == "0 from ' A red circle, a blue square and a green star.'"
    outcome = make_check(replace(text, texts=texts[:1])).run(demo)
    assert outcome.status == "off"
    assert outcome.details[0].startswith("the model prefers another token to one of ' Nothing.' by ")
    assert outcome.details[1] == "note: what is not known"


def test_a_part_of_a_text(demo, online, made_up):
    part = replace(made_up, ids=None, logprobs=None, texts=None, contains="blue square")
    assert make_check(part).run(demo).status == "ok"
    outcome = make_check(replace(part, contains="blue circle")).run(demo)
    assert (outcome.status, outcome.limit) == ("off", "a text with 'blue circle'")


def test_recorded_prompt_ids(demo, online, made_up):
    outcome = make_check(replace(made_up, prompt_ids=[1, 2, 3])).run(demo)
    assert (outcome.status, outcome.details) == ("off", ("the prompt has other token ids",))


def test_pictures_are_fetched_on_consent_only(demo, made_up, monkeypatch):
    monkeypatch.setattr(Fetcher, "get", lambda self, url: pytest.fail("fetched"))
    outcome = make_check(made_up).run(CheckSubject("demo", CPU))
    assert (outcome.status, outcome.measured) == ("skipped", known_answers.NEEDS_FETCH)


def test_a_picture_that_changed(demo, online, made_up):
    other = replace(made_up, pictures=[{"url": "https://example.org/a.png", "sha256": "0" * 64}])
    outcome = make_check(other).run(demo)
    assert outcome.status == "skipped"
    assert "is another picture now: sha256" in outcome.measured


def test_the_hash_of_a_picture_that_is_not_known_is_reported(demo, online, made_up):
    other = replace(made_up, pictures=[{"url": "https://example.org/a.png", "sha256": None}])
    outcome = make_check(other).run(demo)
    assert outcome.status == "ok"
    assert outcome.measured.endswith(hashlib.sha256(PICTURE).hexdigest())


def test_a_picture_that_cannot_be_fetched(demo, made_up, monkeypatch):
    def fail(self, url):
        raise BadPicture(f"{url} cannot be fetched")

    monkeypatch.setattr(Fetcher, "get", fail)
    outcome = make_check(made_up).run(demo)
    assert (outcome.status, outcome.measured) == ("skipped", "https://example.org/a.png cannot be fetched")
