"""Pictures from the clipboard and from a webcam, in a real browser."""

import base64

import pytest
from playwright.sync_api import expect

from page.browser import BROWSER_MARKS, choose_example, click_run, open_tab

pytestmark = BROWSER_MARKS
COPY_SCRIPT = """async (data) => {
    const bytes = await (await fetch(`data:image/png;base64,${data}`)).blob();
    await navigator.clipboard.write([new ClipboardItem({"image/png": bytes})]);
}"""


@pytest.fixture
def copy_to_clipboard(page, page_url, bundled_pictures):
    """Puts a bundled picture on the clipboard."""
    page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=page_url)
    return lambda name: page.evaluate(
        COPY_SCRIPT, base64.b64encode(bundled_pictures[name].read_bytes()).decode()
    )


def ask_whether_day_or_night(page):
    page.locator("#ask-words textarea").fill("Is it day or night?")
    click_run(page, "ask")
    expect(page.locator("#ask-answer textarea")).to_have_value("Night.")


def test_a_picture_is_taken_from_the_clipboard_by_its_button(page, copy_to_clipboard):
    copy_to_clipboard("tower.png")
    open_tab(page, "Ask")
    page.locator("#ask-picture").get_by_label("Paste from clipboard").click()
    expect(page.locator("#ask-cost")).to_contain_text("12 tokens")
    ask_whether_day_or_night(page)


@pytest.mark.parametrize("focus", ["#ask-picture", "#ask-words textarea"])
def test_a_picture_is_pasted_anywhere_on_a_tab(page, copy_to_clipboard, focus):
    copy_to_clipboard("tower.png")
    open_tab(page, "Ask")
    page.locator(focus).focus()
    page.keyboard.press("Control+V")
    expect(page.locator("#ask-cost")).to_contain_text("12 tokens")
    ask_whether_day_or_night(page)


def test_a_pasted_picture_takes_the_place_of_another(page, copy_to_clipboard):
    copy_to_clipboard("tower.png")
    open_tab(page, "Ask")
    choose_example(page, "ask", 1)
    before = page.locator("#ask-picture img").get_attribute("src")
    page.keyboard.press("Control+V")
    expect(page.locator("#ask-picture img")).not_to_have_attribute("src", before)
    ask_whether_day_or_night(page)


@pytest.mark.parametrize("focus", ["#chat-box textarea", "#chat-talk"])
def test_a_picture_is_pasted_into_a_conversation(page, copy_to_clipboard, focus):
    cost = page.locator("#chat-cost", has_text="12 tokens; the model reads")
    for _ in range(8):  # a page that has only just come does not listen yet
        copy_to_clipboard("tower.png")
        page.locator(focus).focus()
        page.keyboard.press("Control+V")
        page.wait_for_timeout(4000)
        if cost.count():
            break
    expect(cost).to_be_visible()
    page.locator("#chat-box textarea").fill("Is it day or night?")
    page.locator("#chat-box textarea").press("Enter")
    expect(page.get_by_test_id("bot").last).to_contain_text("Night.")
    expect(page.locator("#chat-talk img")).to_have_count(1)


def test_pasted_text_stays_text(page, copy_to_clipboard):
    open_tab(page, "Ask")
    page.locator("#ask-words textarea").fill("Is it day or night?")
    page.locator("#ask-words textarea").press("Control+A")
    page.keyboard.press("Control+X")
    page.keyboard.press("Control+V")
    expect(page.locator("#ask-words textarea")).to_have_value("Is it day or night?")


def take_webcam_photo(page, box):
    """Takes a picture with the webcam by clicks."""
    box.get_by_text("Click to Access Webcam").click()
    page.wait_for_function("() => [...document.querySelectorAll('video')].some(one => one.videoWidth > 0)")
    box.get_by_label("capture photo").click()


def test_a_picture_is_taken_by_the_webcam(page):
    open_tab(page, "Ask")
    page.locator("#ask-picture").get_by_label("Capture from camera").click()
    take_webcam_photo(page, page.locator("#ask-picture"))
    expect(page.locator("#ask-cost")).to_contain_text("tokens")
    page.locator("#ask-words textarea").fill("What color is it?")
    click_run(page, "ask")
    expect(page.locator("#ask-note")).to_contain_text("written")


def test_a_conversation_sees_what_the_webcam_sees(page):
    page.locator("#chat-more > button").click()
    for count in (1, 2):
        take_webcam_photo(page, page.locator("#chat-webcam"))
        expect(page.locator("#chat-box img")).to_have_count(count)
    expect(page.locator("#chat-cost")).to_contain_text("together 24")
    page.locator("#chat-box textarea").fill("What color is it?")
    click_run(page, "chat")
    expect(page.locator("#chat-note")).to_contain_text("written")
    expect(page.locator("#chat-talk img")).to_have_count(2)


def test_a_conversation_is_given_a_picture_by_its_address(page, bundled_pictures):
    page.locator("#chat-more > button").click()
    data = base64.b64encode(bundled_pictures["tower.png"].read_bytes()).decode()
    page.locator("#chat-address textarea, #chat-address input").fill(f"data:image/png;base64,{data}")
    page.locator("#chat-fetch").click()
    expect(page.locator("#chat-cost")).to_contain_text("12 tokens")


def test_a_long_text_that_is_pasted_stays_text(page, page_url):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=page_url)
    page.evaluate("navigator.clipboard.writeText('word '.repeat(400))")
    page.locator("#chat-box textarea").focus()
    page.keyboard.press("Control+V")
    expect(page.locator("#chat-box textarea")).to_have_value("word " * 400)
