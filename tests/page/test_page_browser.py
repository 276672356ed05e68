"""The page in a real browser: every tab, by clicks."""

import base64
import csv
import io
import json
import re

from playwright.sync_api import expect

from idefics.tasks.shots import read_shots
from page.browser import BROWSER_MARKS, SlowModel, choose_example, click_run, field_value, open_tab, write_zip

pytestmark = BROWSER_MARKS


def test_an_uploaded_picture_is_captioned(page, demo_model, bundled_pictures):
    open_tab(page, "Caption")
    page.locator("#caption-picture input[type=file]").set_input_files(bundled_pictures["statue.png"])
    expect(page.locator("#caption-cost")).to_contain_text(
        f"takes {demo_model.cost(bundled_pictures['statue.png'])} tokens"
    )
    click_run(page, "caption")
    expect(page.locator("#caption-note")).to_contain_text("written")
    assert field_value(page, "#caption-answer") == demo_model.caption(bundled_pictures["statue.png"]).text


def test_a_caption_is_continued(page, demo_model, bundled_pictures):
    open_tab(page, "Caption")
    choose_example(page, "caption")
    click_run(page, "caption")
    expect(page.locator("#caption-note")).to_contain_text("written")
    assert (
        field_value(page, "#caption-answer")
        == demo_model.complete(bundled_pictures["puppy.png"], "This is an image of").text
    )


def test_a_question_is_answered_by_keyboard_alone(page):
    open_tab(page, "Ask")
    page.locator("#ask-examples button").nth(2).press("Enter")
    expect(page.locator("#ask-cost")).to_contain_text("tokens")
    page.locator("#ask-words textarea").fill("Is it day or night?")
    page.locator("#ask-words textarea").press("Enter")
    expect(page.locator("#ask-answer textarea")).to_have_value("Night.")


def test_a_picture_is_fetched_by_its_address(page, page_url, bundled_pictures):
    open_tab(page, "Ask")
    data = base64.b64encode(bundled_pictures["tower.png"].read_bytes()).decode()
    page.locator("#ask-address textarea, #ask-address input").fill(f"data:image/png;base64,{data}")
    page.locator("#ask-fetch").click()
    expect(page.locator("#ask-cost")).to_contain_text("12 tokens")
    page.locator("#ask-words textarea").fill("Is it day or night?")
    click_run(page, "ask")
    expect(page.locator("#ask-answer textarea")).to_have_value("Night.")


def test_missing_inputs_are_reported(page):
    open_tab(page, "Ask")
    click_run(page, "ask")
    expect(page.get_by_test_id("toast-body")).to_contain_text("No picture was given")
    expect(page.locator("#ask-run")).to_be_enabled()


def test_an_invalid_address_is_reported(page):
    open_tab(page, "Ask")
    page.locator("#ask-address textarea, #ask-address input").fill("photo.png")
    page.locator("#ask-fetch").click()
    expect(page.get_by_test_id("toast-body")).to_contain_text("is not an address")


def test_the_error_for_an_invalid_picture_names_the_file(page, tmp_path):
    (tmp_path / "letter.png").write_text("Dear Sir or Madam")
    open_tab(page, "Ask")
    page.locator("#ask-picture input[type=file]").set_input_files(tmp_path / "letter.png")
    expect(page.get_by_test_id("toast-body")).to_contain_text("letter.png is not a picture that can be read")
    page.locator("#ask-words textarea").fill("What is it?")
    click_run(page, "ask")
    expect(page.get_by_test_id("toast-body")).to_contain_text("Error (2)")
    expect(page.locator("#ask-run")).to_be_enabled()


def test_labels_are_ranked(page, demo_model, bundled_pictures):
    open_tab(page, "Classify")
    choose_example(page, "classify")
    click_run(page, "classify")
    labels = ["animals", "vegetables", "city landscape", "cars", "office"]
    ranking = demo_model.classify(bundled_pictures["vegetables.png"], labels, calibrated=True)
    expect(page.locator("#classify-answer")).to_contain_text(ranking.best)
    shown = page.locator("#classify-answer").inner_text()
    assert [shown.index(one.label) for one in ranking] == sorted(shown.index(one.label) for one in ranking)


def test_a_strategy_shows_its_controls(page, demo_model, bundled_pictures):
    open_tab(page, "Write")
    choose_example(page, "write")
    expect(page.locator("#write-temperature")).to_be_hidden()
    page.get_by_label("Beam search").check()
    expect(page.locator("#write-num-beams")).to_be_visible()
    expect(page.locator("#write-temperature")).to_be_hidden()
    page.get_by_label("Sampling").check()
    expect(page.locator("#write-num-beams")).to_be_hidden()
    page.locator("#write-seed input").fill("5")
    page.locator("#write-temperature input[type=number]").fill("1.5")
    page.locator("#write-temperature input[type=number]").press("Tab")
    click_run(page, "write")
    expect(page.locator("#write-note")).to_contain_text("written")
    wanted = demo_model.write(bundled_pictures["door.png"], temperature=1.5, top_p=0.95, seed=5).text
    assert field_value(page, "#write-answer") == wanted


def test_show_code_matches_the_question(page):
    open_tab(page, "Ask")
    choose_example(page, "ask")
    page.locator("#ask-code > button").click()
    expect(page.locator("#ask-python")).to_contain_text("vlm.ask('picnic.png', 'What is on the left?')")
    page.get_by_role("tab", name="Command line").locator("visible=true").click()
    expect(page.locator("#ask-command")).to_contain_text("idefics ask picnic.png 'What is on the left?'")


def test_a_conversation_with_pictures_at_two_turns(page, bundled_pictures):
    choose_example(page, "chat")
    expect(page.locator("#chat-cost")).to_contain_text("tower.png: 12 tokens")
    click_run(page, "chat")
    expect(page.get_by_test_id("bot").last).to_have_text(re.compile("A tower."))
    page.locator("#chat-box input[type=file]").set_input_files(
        [bundled_pictures["statue.png"], bundled_pictures["door.png"]], timeout=20_000
    )
    expect(page.locator("#chat-cost")).to_contain_text("together 24")
    page.locator("#chat-box textarea").fill("And in the first image?")
    page.locator("#chat-box textarea").press("Enter")
    expect(page.get_by_test_id("bot")).to_have_count(2)
    expect(page.locator("#chat-note")).to_contain_text("written")
    alts = page.locator("#chat-talk img").evaluate_all("images => images.map(image => image.alt)")
    assert alts == ["A tower at night", "A statue", "A wooden entrance at night, and a pumpkin"]


def test_a_turn_is_retried_edited_and_undone(page, demo_model, monkeypatch):
    slow = SlowModel(monkeypatch, demo_model)
    choose_example(page, "chat")
    click_run(page, "chat")
    expect(page.get_by_test_id("bot").last).to_have_text(re.compile("A tower."))
    expect(page.locator("#chat-note")).to_contain_text("written")
    page.locator("#chat-box textarea").fill("Is it day or night?")
    page.locator("#chat-box textarea").press("Enter")
    expect(page.get_by_test_id("bot").last).to_have_text(re.compile("Night."))
    expect(page.locator("#chat-note")).to_contain_text("written")
    note = page.locator("#chat-note").inner_text()
    slow.seconds_per_token = 0.3  # so that the note says another time
    page.get_by_label("Retry").last.click()
    expect(page.locator("#chat-note")).not_to_have_text(note)
    expect(page.locator("#chat-note")).to_contain_text("written")
    slow.seconds_per_token = 0.0
    expect(page.get_by_test_id("bot")).to_have_count(2)
    expect(page.get_by_test_id("bot").last).to_have_text(re.compile("Night."))
    page.get_by_label("Edit").locator("visible=true").last.click()
    field = page.locator("#chat-talk textarea")
    field.fill("Where is it?")
    page.get_by_label("Submit").click()
    expect(page.get_by_test_id("bot").last).to_have_text(re.compile("In the middle."))
    expect(page.get_by_test_id("bot")).to_have_count(2)
    page.get_by_label("Undo").last.click()
    expect(page.get_by_test_id("bot")).to_have_count(1)
    expect(page.locator("#chat-box textarea")).to_have_value("Where is it?")


def test_examples_are_followed_saved_and_loaded(page, demo_model, bundled_pictures, tmp_path):
    open_tab(page, "Few-shot")
    choose_example(page, "few-shot", 1)
    expect(page.locator("#few-shot-gallery img")).to_have_count(2)
    click_run(page, "few-shot")
    expect(page.locator("#few-shot-note")).to_contain_text("written")
    answer = field_value(page, "#few-shot-answer")
    assert answer == "1 DOOR, 1 PUMPKIN"
    with page.expect_download() as download:
        page.locator("#few-shot-save").click()
    download.value.save_as(tmp_path / "shots.jsonl")
    shots = read_shots(tmp_path / "shots.jsonl")
    assert [shot.answer for shot in shots] == ["1 STATUE", "1 TOMATO, 1 CORN COB, 1 CARROT, 1 EGGPLANT"]
    assert demo_model.with_shots(shots).caption(bundled_pictures["door.png"]).text == answer
    page.locator("#few-shot-remove").click()
    expect(page.locator("#few-shot-gallery img")).to_have_count(1)
    with page.expect_file_chooser() as chooser:
        page.locator("#few-shot-load").click()
    chooser.value.set_files(tmp_path / "shots.jsonl")
    expect(page.locator("#few-shot-gallery img")).to_have_count(2)


def test_an_example_is_added(page, bundled_pictures):
    open_tab(page, "Few-shot")
    page.locator("#few-shot-shown input[type=file]").set_input_files(bundled_pictures["tower.png"])
    expect(page.locator("#few-shot-shown img")).to_be_visible()
    page.locator("#few-shot-add").click()
    expect(page.get_by_test_id("toast-body")).to_contain_text("The example has no answer")
    page.locator("#few-shot-said textarea").fill("1 TOWER")
    page.locator("#few-shot-add").click()
    expect(page.locator("#few-shot-gallery img")).to_have_count(1)
    expect(page.locator("#few-shot-said textarea")).to_have_value("")


def test_a_zip_is_captioned_and_failed_rows_have_errors(page, demo_model, bundled_pictures, tmp_path):
    files = {path.name: path.read_bytes() for path in bundled_pictures.values()}
    files |= {"notes.txt": b"hello", "sub/broken.png": files["tower.png"][:200], "../../escape.png": b"x"}
    open_tab(page, "Batch")
    page.locator("#batch-files input[type=file]").set_input_files(write_zip(tmp_path / "photos.zip", files))
    expect(page.locator("#batch-files")).to_contain_text("photos")
    click_run(page, "batch")
    expect(page.locator("#batch-progress")).to_contain_text(
        "8 of 8 pictures, 1 without an answer. 2 files skipped"
    )
    expect(page.locator("#batch-table")).to_contain_text("None: photos.zip/sub/broken.png")
    with page.expect_download() as download:
        page.locator("#batch-jsonl").click()
    rows = [json.loads(line) for line in download.value.path().read_text().splitlines()]
    by_name = {row["image"]: row for row in rows}
    assert len(rows) == 8
    for name, path in bundled_pictures.items():
        assert by_name[f"photos.zip/{name}"]["text"] == demo_model.caption(path).text
    assert "broken" in by_name["photos.zip/sub/broken.png"]["error"]
    with page.expect_download() as download:
        page.locator("#batch-csv").click()
    table = list(csv.DictReader(io.StringIO(download.value.path().read_text("utf-8-sig"))))
    assert [row["image"] for row in table] == [row["image"] for row in rows]


def test_a_folder_is_classified(page, bundled_pictures, tmp_path):
    for name in ("tower.png", "vegetables.png"):
        (tmp_path / name).write_bytes(bundled_pictures[name].read_bytes())
    open_tab(page, "Batch")
    page.locator("#batch-folder input[type=file]").set_input_files(tmp_path)
    page.locator("#batch-task").get_by_label("Say which of some labels").check()
    page.locator("#batch-words textarea").fill("vegetables, cars")
    click_run(page, "batch")
    expect(page.locator("#batch-progress")).to_contain_text("2 of 2 pictures")
    expect(page.locator("#batch-table")).to_contain_text("vegetables")
