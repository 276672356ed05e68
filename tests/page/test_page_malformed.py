"""Invalid and unusual input on the page, in a real browser."""

import pytest
from PIL import Image
from playwright.sync_api import expect

from page.browser import BROWSER_MARKS, choose_example, click_run, field_value, open_tab, write_zip

pytestmark = BROWSER_MARKS
TOAST_TEST_ID = "toast-body"


def test_an_error_does_not_cover_the_conversation(page):
    choose_example(page, "chat")
    click_run(page, "chat")
    expect(page.get_by_test_id("bot")).to_have_text("A tower.")
    page.locator("#chat-box textarea").fill("why " * 3000)
    click_run(page, "chat")
    expect(page.get_by_test_id(TOAST_TEST_ID)).to_contain_text("send fewer pictures or less text")
    expect(page.locator("#chat-box textarea")).to_have_value("why " * 2999 + "why")
    expect(page.get_by_test_id("bot")).to_have_text("A tower.")
    assert page.get_by_test_id("status-tracker").get_by_text("Error").locator("visible=true").count() == 0


def test_a_huge_picture_is_refused_next_to_its_box(page, tmp_path):
    Image.new("1", (9000, 6000)).save(tmp_path / "huge.png")
    page.locator("#chat-box input[type=file]").set_input_files(tmp_path / "huge.png")
    expect(page.locator("#chat-cost")).to_contain_text(
        "huge.png has 9000 x 6000 pixels; at most 40,000,000 are read"
    )
    assert page.get_by_test_id(TOAST_TEST_ID).count() == 0
    page.locator("#chat-box textarea").fill("What is it?")
    click_run(page, "chat")
    expect(page.get_by_test_id(TOAST_TEST_ID)).to_contain_text("huge.png has 9000 x 6000 pixels")
    expect(page.locator("#chat-box textarea")).to_have_value("What is it?")


@pytest.mark.parametrize(
    ("labels", "said"),
    [("", "0 labels given"), ("cat,", "1 label given"), ("cat, dog, cat", "Labels given twice: cat")],
    ids=["none", "one", "twice"],
)
def test_invalid_labels_are_refused(page, labels, said):
    open_tab(page, "Classify")
    choose_example(page, "classify")
    page.locator("#classify-words textarea").fill(labels)
    click_run(page, "classify")
    expect(page.get_by_test_id(TOAST_TEST_ID)).to_contain_text(said)
    expect(page.locator("#classify-run")).to_be_enabled()


def test_any_script_is_a_label(page):
    labels = ["قطة", "🐱", "<b>cat</b>", "猫"]
    open_tab(page, "Classify")
    choose_example(page, "classify")
    page.locator("#classify-words textarea").fill("\n".join(labels))
    click_run(page, "classify")
    expect(page.locator("#classify-note")).to_contain_text("read")
    for label in labels:
        expect(page.locator("#classify-answer")).to_contain_text(label)


def test_any_script_is_a_question(page, demo_model, bundled_pictures):
    question = "ما هذا؟ 👋🏽 <b>x</b> **y** </s><image>"
    open_tab(page, "Ask")
    choose_example(page, "ask", 2)
    page.locator("#ask-words textarea").fill(question)
    click_run(page, "ask")
    expect(page.locator("#ask-note")).to_contain_text("written")
    assert field_value(page, "#ask-answer") == demo_model.ask(bundled_pictures["tower.png"], question).text
    assert (
        page.locator("#ask-words textarea").evaluate("field => getComputedStyle(field).unicodeBidi")
        == "plaintext"
    )


def test_archives_without_pictures_are_refused(page, tmp_path):
    (tmp_path / "torn.zip").write_bytes(b"PK but no more")
    write_zip(tmp_path / "empty.zip", {})
    open_tab(page, "Batch")
    for name, said in (
        ("torn.zip", "torn.zip is not a zip that can be read"),
        ("empty.zip", "No picture was given"),
    ):
        page.locator("#batch-files input[type=file]").set_input_files(tmp_path / name)
        expect(page.locator("#batch-files")).to_contain_text(name.split(".")[0])
        click_run(page, "batch")
        expect(page.get_by_test_id(TOAST_TEST_ID)).to_contain_text(said)
        expect(page.locator("#batch-run")).to_be_enabled()
        page.locator("#batch-files").get_by_label("Clear").locator("visible=true").first.click()
