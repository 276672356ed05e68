"""The page in a real browser: every tab, by clicking as a person does."""

import csv
import io
import json
import re
import threading
import time
import zipfile
from dataclasses import replace

import pytest
from playwright.sync_api import expect, sync_playwright

from idefics.processing.fetch import Fetcher
from idefics.ui.app import application
from idefics.ui.desk import Settings
from ui.browser import CHROMIUM, DESKTOP, PHONE, TABS, opened, served, tab, value

pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # between Gradio and pandas
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium"),
]
expect.set_options(timeout=30_000)


@pytest.fixture(scope="module")
def address(demo):
    with served(application(demo, Settings("demo", Fetcher(policy="any", strangers=True)))) as address:
        yield address


@pytest.fixture(scope="module")
def chromium(address):
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium, address):
    """The page, in a browser that knows nothing yet. Nothing may be asked for elsewhere."""
    strangers = []
    page = opened(chromium, address, strangers, viewport=DESKTOP)
    yield page
    page.context.close()
    assert strangers == []


def example(page, place, number=0):
    """The example's picture is there when its cost is said."""
    page.locator(f"#{place}-examples button").nth(number).click()
    expect(page.locator(f"#{place}-cost")).to_contain_text("tokens")


def run(page, place):
    page.locator(f"#{place}-run").click()


def test_a_picture_of_ones_own_is_captioned(page, demo, bundled):
    tab(page, "Caption")
    page.locator("#caption-picture input[type=file]").set_input_files(bundled["statue.png"])
    expect(page.locator("#caption-cost")).to_contain_text(f"takes {demo.cost(bundled['statue.png'])} tokens")
    run(page, "caption")
    expect(page.locator("#caption-note")).to_contain_text("written")
    assert value(page, "#caption-answer") == demo.caption(bundled["statue.png"]).text


def test_words_are_continued(page, demo, bundled):
    tab(page, "Caption")
    example(page, "caption")
    run(page, "caption")
    expect(page.locator("#caption-note")).to_contain_text("written")
    assert value(page, "#caption-answer") == demo.complete(bundled["puppy.png"], "This is an image of").text


def test_a_question_is_answered_by_keyboard_alone(page):
    tab(page, "Ask")
    page.locator("#ask-examples button").nth(2).press("Enter")
    expect(page.locator("#ask-cost")).to_contain_text("tokens")
    page.locator("#ask-words textarea").fill("Is it day or night?")
    page.locator("#ask-words textarea").press("Enter")
    expect(page.locator("#ask-answer textarea")).to_have_value("Night.")


def test_a_picture_is_fetched_by_its_address(page, address, bundled):
    tab(page, "Ask")
    import base64

    data = base64.b64encode(bundled["tower.png"].read_bytes()).decode()
    page.locator("#ask-address textarea, #ask-address input").fill(f"data:image/png;base64,{data}")
    page.locator("#ask-fetch").click()
    expect(page.locator("#ask-cost")).to_contain_text("12 tokens")
    page.locator("#ask-words textarea").fill("Is it day or night?")
    run(page, "ask")
    expect(page.locator("#ask-answer textarea")).to_have_value("Night.")


def test_what_is_missing_is_said(page):
    tab(page, "Ask")
    run(page, "ask")
    expect(page.get_by_test_id("toast-body")).to_contain_text("There is no picture yet")
    expect(page.locator("#ask-run")).to_be_enabled()


def test_an_address_that_is_none_is_said(page):
    tab(page, "Ask")
    page.locator("#ask-address textarea, #ask-address input").fill("photo.png")
    page.locator("#ask-fetch").click()
    expect(page.get_by_test_id("toast-body")).to_contain_text("is no address")


def test_a_file_that_is_no_picture_is_refused_by_its_name(page, tmp_path):
    (tmp_path / "letter.png").write_text("Dear Sir or Madam")
    tab(page, "Ask")
    page.locator("#ask-picture input[type=file]").set_input_files(tmp_path / "letter.png")
    expect(page.get_by_test_id("toast-body")).to_contain_text("Letter.png is not a picture that can be read")
    page.locator("#ask-words textarea").fill("What is it?")
    run(page, "ask")
    expect(page.get_by_test_id("toast-body")).to_contain_text("Error (2)")
    expect(page.locator("#ask-run")).to_be_enabled()


def test_labels_are_ranked(page, demo, bundled):
    tab(page, "Classify")
    example(page, "classify")
    run(page, "classify")
    labels = ["animals", "vegetables", "city landscape", "cars", "office"]
    ranking = demo.classify(bundled["vegetables.png"], labels, calibrated=True)
    expect(page.locator("#classify-answer")).to_contain_text(ranking.best)
    shown = page.locator("#classify-answer").inner_text()
    assert [shown.index(one.label) for one in ranking] == sorted(shown.index(one.label) for one in ranking)


def test_a_strategy_brings_its_sliders(page, demo, bundled):
    tab(page, "Write")
    example(page, "write")
    expect(page.locator("#write-temperature")).to_be_hidden()
    page.get_by_label("Beam search").check()
    expect(page.locator("#write-num-beams")).to_be_visible()
    expect(page.locator("#write-temperature")).to_be_hidden()
    page.get_by_label("Sampling").check()
    expect(page.locator("#write-num-beams")).to_be_hidden()
    page.locator("#write-seed input").fill("5")
    page.locator("#write-temperature input[type=number]").fill("1.5")
    page.locator("#write-temperature input[type=number]").press("Tab")
    run(page, "write")
    expect(page.locator("#write-note")).to_contain_text("written")
    wanted = demo.write(bundled["door.png"], temperature=1.5, top_p=0.95, seed=5).text
    assert value(page, "#write-answer") == wanted


def test_code_is_shown_for_what_was_asked(page):
    tab(page, "Ask")
    example(page, "ask")
    page.locator("#ask-code > button").click()
    expect(page.locator("#ask-python")).to_contain_text("vlm.ask('picnic.png', 'What is on the left?')")
    page.get_by_role("tab", name="Command line").locator("visible=true").click()
    expect(page.locator("#ask-command")).to_contain_text("idefics ask picnic.png 'What is on the left?'")


def test_a_conversation_with_pictures_at_two_turns(page, bundled):
    example(page, "chat")
    expect(page.locator("#chat-cost")).to_contain_text("tower.png: 12 tokens")
    run(page, "chat")
    expect(page.get_by_test_id("bot").last).to_have_text(re.compile("A tower."))
    page.locator("#chat-box input[type=file]").set_input_files(
        [bundled["statue.png"], bundled["door.png"]], timeout=20_000
    )
    expect(page.locator("#chat-cost")).to_contain_text("together 24")
    page.locator("#chat-box textarea").fill("And in the first image?")
    page.locator("#chat-box textarea").press("Enter")
    expect(page.get_by_test_id("bot")).to_have_count(2)
    expect(page.locator("#chat-note")).to_contain_text("written")
    alts = page.locator("#chat-talk img").evaluate_all("images => images.map(image => image.alt)")
    assert alts == ["A tower at night", "A statue", "A door at night, and a pumpkin"]


def test_a_turn_is_retried_edited_and_taken_back(page):
    example(page, "chat")
    run(page, "chat")
    expect(page.get_by_test_id("bot").last).to_have_text(re.compile("A tower."))
    page.locator("#chat-box textarea").fill("Is it day or night?")
    page.locator("#chat-box textarea").press("Enter")
    expect(page.get_by_test_id("bot").last).to_have_text(re.compile("Night."))
    page.get_by_label("Retry").last.click()
    expect(page.locator("#chat-run")).to_be_enabled()
    expect(page.get_by_test_id("bot")).to_have_count(2)
    expect(page.get_by_test_id("bot").last).to_have_text(re.compile("Night."))
    page.get_by_label("Edit").last.click()
    field = page.locator("#chat-talk textarea")
    field.fill("Where is it?")
    page.get_by_label("Submit").click()
    expect(page.get_by_test_id("bot").last).to_have_text(re.compile("In the middle."))
    expect(page.get_by_test_id("bot")).to_have_count(2)
    page.get_by_label("Undo").last.click()
    expect(page.get_by_test_id("bot")).to_have_count(1)
    expect(page.locator("#chat-box textarea")).to_have_value("Where is it?")


def test_examples_are_followed_saved_and_loaded(page, demo, bundled, tmp_path):
    tab(page, "Few-shot")
    example(page, "few-shot", 1)
    expect(page.locator("#few-shot-gallery img")).to_have_count(2)
    run(page, "few-shot")
    expect(page.locator("#few-shot-note")).to_contain_text("written")
    answer = value(page, "#few-shot-answer")
    assert answer == "1 DOOR, 1 PUMPKIN"
    with page.expect_download() as download:
        page.locator("#few-shot-save").click()
    download.value.save_as(tmp_path / "shots.jsonl")
    from idefics.tasks.shots import read_shots

    shots = read_shots(tmp_path / "shots.jsonl")
    assert [shot.answer for shot in shots] == ["1 STATUE", "1 TOMATO, 1 CORN COB, 1 CARROT, 1 EGGPLANT"]
    assert demo.with_shots(shots).caption(bundled["door.png"]).text == answer
    page.locator("#few-shot-remove").click()
    expect(page.locator("#few-shot-gallery img")).to_have_count(1)
    with page.expect_file_chooser() as chooser:
        page.locator("#few-shot-load").click()
    chooser.value.set_files(tmp_path / "shots.jsonl")
    expect(page.locator("#few-shot-gallery img")).to_have_count(2)


def test_an_example_is_added(page, bundled):
    tab(page, "Few-shot")
    page.locator("#few-shot-shown input[type=file]").set_input_files(bundled["tower.png"])
    expect(page.locator("#few-shot-shown img")).to_be_visible()
    page.locator("#few-shot-add").click()
    expect(page.get_by_test_id("toast-body")).to_contain_text("The example has no answer")
    page.locator("#few-shot-said textarea").fill("1 TOWER")
    page.locator("#few-shot-add").click()
    expect(page.locator("#few-shot-gallery img")).to_have_count(1)
    expect(page.locator("#few-shot-said textarea")).to_have_value("")


def zipped(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def test_a_zip_is_labelled_and_failed_rows_say_why(page, demo, bundled, tmp_path):
    files = {path.name: path.read_bytes() for path in bundled.values()}
    files |= {"notes.txt": b"hello", "sub/broken.png": files["tower.png"][:200], "../../escape.png": b"x"}
    tab(page, "Batch")
    page.locator("#batch-files input[type=file]").set_input_files(zipped(tmp_path / "photos.zip", files))
    expect(page.locator("#batch-files")).to_contain_text("photos")
    run(page, "batch")
    expect(page.locator("#batch-progress")).to_contain_text(
        "8 of 8 pictures, 1 without an answer. 2 files left out"
    )
    with page.expect_download() as download:
        page.locator("#batch-jsonl").click()
    rows = [json.loads(line) for line in download.value.path().read_text().splitlines()]
    by_name = {row["image"]: row for row in rows}
    assert len(rows) == 8
    for name, path in bundled.items():
        assert by_name[f"photos.zip/{name}"]["text"] == demo.caption(path).text
    assert "broken" in by_name["photos.zip/sub/broken.png"]["error"]
    with page.expect_download() as download:
        page.locator("#batch-csv").click()
    table = list(csv.DictReader(io.StringIO(download.value.path().read_text("utf-8-sig"))))
    assert [row["image"] for row in table] == [row["image"] for row in rows]


def test_a_folder_is_classified(page, bundled, tmp_path):
    for name in ("tower.png", "vegetables.png"):
        (tmp_path / name).write_bytes(bundled[name].read_bytes())
    tab(page, "Batch")
    page.locator("#batch-folder input[type=file]").set_input_files(tmp_path)
    page.locator("#batch-task").get_by_label("Say which of some labels").check()
    page.locator("#batch-words textarea").fill("vegetables, cars")
    run(page, "batch")
    expect(page.locator("#batch-progress")).to_contain_text("2 of 2 pictures")
    expect(page.locator("#batch-table")).to_contain_text("vegetables")


class Slow:
    """Makes a model's answers slow, one token at a time. None comes while `going` is not set."""

    def __init__(self, monkeypatch, demo):
        self.going = threading.Event()
        self.going.set()
        step = demo.engine.step

        def slowly():
            self.going.wait(20)
            time.sleep(0.05)
            step()

        monkeypatch.setattr(demo.engine, "step", slowly)


def no_end(monkeypatch, demo):
    """Answers go on until they are as long as may be."""
    submit = demo.engine.submit

    def endless(request, **how):
        return submit(replace(request, stop_ids=frozenset()), **how)

    monkeypatch.setattr(demo.engine, "submit", endless)


def is_idle(demo):
    return not demo.engine.is_busy and not demo.engine._jobs


def wait_until(page, condition):
    for _ in range(400):
        if condition():
            return
        page.wait_for_timeout(25)
    raise AssertionError("it never came to that")


@pytest.mark.parametrize("place", ["chat", "ask"])
def test_stop_ends_the_request_itself(page, demo, monkeypatch, place):
    Slow(monkeypatch, demo)
    no_end(monkeypatch, demo)
    tab(page, place.capitalize())
    example(page, place)
    page.locator(f"#{place}-advanced > button").click()
    page.locator(f"#{place}-max-new-tokens input[type=number]").fill("900")
    page.locator(f"#{place}-max-new-tokens input[type=number]").press("Tab")
    answer = page.get_by_test_id("bot").last if place == "chat" else page.locator("#ask-answer textarea")
    run(page, place)
    wait_until(
        page, lambda: answer.count() and (answer.inner_text() if place == "chat" else answer.input_value())
    )
    assert not is_idle(demo)
    page.locator(f"#{place}-stop").click()
    expect(page.locator(f"#{place}-note")).to_contain_text("stopped")
    wait_until(page, lambda: is_idle(demo))
    expect(page.locator(f"#{place}-run")).to_be_enabled()
    expect(page.locator(f"#{place}-stop")).to_be_disabled()


def test_a_browser_that_leaves_ends_its_request(chromium, address, demo, monkeypatch):
    Slow(monkeypatch, demo)
    no_end(monkeypatch, demo)
    page = opened(chromium, address, [], viewport=DESKTOP)
    example(page, "chat")
    run(page, "chat")
    wait_until(page, lambda: not is_idle(demo))
    page.context.close()
    other = opened(chromium, address, [], viewport=DESKTOP)
    wait_until(other, lambda: is_idle(demo))
    other.context.close()


def test_a_batch_is_stopped(page, demo, bundled, tmp_path, monkeypatch):
    Slow(monkeypatch, demo)
    files = {f"{number:03}.png": bundled["tower.png"].read_bytes() for number in range(200)}
    tab(page, "Batch")
    page.locator("#batch-files input[type=file]").set_input_files(zipped(tmp_path / "many.zip", files))
    expect(page.locator("#batch-files")).to_contain_text("many")
    run(page, "batch")
    expect(page.locator("#batch-progress")).to_contain_text(re.compile(r"[1-9]\d* of 200"))
    page.locator("#batch-stop").click()
    expect(page.locator("#batch-run")).to_be_enabled()
    wait_until(page, lambda: is_idle(demo))
    assert "200 of 200" not in page.locator("#batch-progress").inner_text()
    expect(page.locator("#batch-jsonl")).to_be_enabled()


def test_two_browsers_at_once_do_not_meet(chromium, address, demo, monkeypatch):
    slow = Slow(monkeypatch, demo)
    pages = [opened(chromium, address, [], viewport=DESKTOP) for _ in range(2)]
    try:
        for number, page in enumerate(pages):
            tab(page, "Write")
            example(page, "write", number)
        slow.going.clear()
        for page in pages:
            run(page, "write")
        pages[0].locator("#write-stop").click()
        expect(pages[0].locator("#write-note")).to_contain_text("stopped")
        slow.going.set()
        expect(pages[1].locator("#write-note")).to_contain_text("written")
        assert "stopped" not in pages[1].locator("#write-note").inner_text()
        assert "tulip" in value(pages[1], "#write-answer")
        assert "tulip" not in value(pages[0], "#write-answer")
    finally:
        slow.going.set()
        for page in pages:
            page.context.close()


@pytest.mark.parametrize("look", ["desktop", "phone", "dark"])
def test_every_tab_fits_and_every_picture_has_words(chromium, address, look):
    """Screenshots are left in build/screens for a person to look at."""
    from pathlib import Path

    screens = Path(__file__).parents[2] / "build" / "screens"
    screens.mkdir(parents=True, exist_ok=True)
    options = {"viewport": PHONE if look == "phone" else DESKTOP}
    if look == "dark":
        options["color_scheme"] = "dark"
    strangers = []
    page = opened(chromium, address, strangers, **options)
    try:
        for name in TABS:
            place = name.lower()
            if look == "phone" and not page.get_by_role("tab", name=name, exact=True).is_visible():
                page.get_by_label("More tabs").click()
                page.locator(".overflow-dropdown button", has_text=name).click()
            else:
                tab(page, name)
            if name == "Batch":
                page.locator("#batch-example").click()
                expect(page.locator("#batch-files")).to_contain_text("vegetables")
                run(page, place)
                expect(page.locator("#batch-progress")).to_contain_text("7 of 7")
            else:
                example(page, place)
                page.wait_for_timeout(600)
                run(page, place)
                expect(page.locator(f"#{place}-note")).to_contain_text("read")
            page.wait_for_timeout(300)
            page.mouse.move(0, 0)
            page.screenshot(path=screens / f"{look}-{place}.png", full_page=True)
            width = page.evaluate("document.documentElement.scrollWidth")
            assert width <= options["viewport"]["width"], f"{name} is {width} wide"
            blank = page.locator("img:visible").evaluate_all(
                "all => all.filter(one => !one.alt).map(one => one.src)"
            )
            assert blank == []
    finally:
        page.context.close()
    assert strangers == []
