"""What strangers give the page, in a real browser."""

import pytest
from PIL import Image
from playwright.sync_api import expect

from ui.browser import BROWSER, example, run, tab, value, zipped

pytestmark = BROWSER
TOAST = "toast-body"


def test_an_error_does_not_cover_the_conversation(page):
    example(page, "chat")
    run(page, "chat")
    expect(page.get_by_test_id("bot")).to_have_text("A tower.")
    page.locator("#chat-box textarea").fill("why " * 3000)
    run(page, "chat")
    expect(page.get_by_test_id(TOAST)).to_contain_text("send fewer pictures or less text")
    expect(page.locator("#chat-box textarea")).to_have_value("why " * 2999 + "why")
    expect(page.get_by_test_id("bot")).to_have_text("A tower.")
    assert page.get_by_test_id("status-tracker").get_by_text("Error").locator("visible=true").count() == 0


def test_a_huge_picture_is_refused_beside_the_box(page, tmp_path):
    Image.new("1", (9000, 6000)).save(tmp_path / "huge.png")
    page.locator("#chat-box input[type=file]").set_input_files(tmp_path / "huge.png")
    expect(page.locator("#chat-cost")).to_contain_text(
        "huge.png has 9000 x 6000 pixels; at most 40,000,000 are read"
    )
    assert page.get_by_test_id(TOAST).count() == 0
    page.locator("#chat-box textarea").fill("What is it?")
    run(page, "chat")
    expect(page.get_by_test_id(TOAST)).to_contain_text("huge.png has 9000 x 6000 pixels")
    expect(page.locator("#chat-box textarea")).to_have_value("What is it?")


@pytest.mark.parametrize(
    ("labels", "said"),
    [("", "0 labels given"), ("cat,", "1 label given"), ("cat, dog, cat", "Labels given twice: cat")],
    ids=["none", "one", "twice"],
)
def test_labels_that_do_not_do_are_refused(page, labels, said):
    tab(page, "Classify")
    example(page, "classify")
    page.locator("#classify-words textarea").fill(labels)
    run(page, "classify")
    expect(page.get_by_test_id(TOAST)).to_contain_text(said)
    expect(page.locator("#classify-run")).to_be_enabled()


def test_any_script_is_a_label(page):
    labels = ["قطة", "🐱", "<b>cat</b>", "猫"]
    tab(page, "Classify")
    example(page, "classify")
    page.locator("#classify-words textarea").fill("\n".join(labels))
    run(page, "classify")
    expect(page.locator("#classify-note")).to_contain_text("read")
    for label in labels:
        expect(page.locator("#classify-answer")).to_contain_text(label)


def test_any_script_is_a_question(page, demo, bundled):
    question = "ما هذا؟ 👋🏽 <b>x</b> **y** </s><image>"
    tab(page, "Ask")
    example(page, "ask", 2)
    page.locator("#ask-words textarea").fill(question)
    run(page, "ask")
    expect(page.locator("#ask-note")).to_contain_text("written")
    assert value(page, "#ask-answer") == demo.ask(bundled["tower.png"], question).text
    assert (
        page.locator("#ask-words textarea").evaluate("field => getComputedStyle(field).unicodeBidi")
        == "plaintext"
    )


def test_archives_without_pictures_are_refused(page, tmp_path):
    (tmp_path / "torn.zip").write_bytes(b"PK but no more")
    zipped(tmp_path / "empty.zip", {})
    tab(page, "Batch")
    for name, said in (
        ("torn.zip", "torn.zip is not a zip that can be read"),
        ("empty.zip", "There is no picture in it"),
    ):
        page.locator("#batch-files input[type=file]").set_input_files(tmp_path / name)
        expect(page.locator("#batch-files")).to_contain_text(name.split(".")[0])
        run(page, "batch")
        expect(page.get_by_test_id(TOAST)).to_contain_text(said)
        expect(page.locator("#batch-run")).to_be_enabled()
        page.locator("#batch-files").get_by_label("Clear").locator("visible=true").first.click()
