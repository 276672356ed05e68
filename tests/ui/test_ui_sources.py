"""Pictures from the clipboard and from a webcam, in a real browser."""

import base64

import pytest
from playwright.sync_api import expect

from ui.browser import BROWSER, example, run, tab

pytestmark = BROWSER
COPY = """async (data) => {
    const bytes = await (await fetch(`data:image/png;base64,${data}`)).blob();
    await navigator.clipboard.write([new ClipboardItem({"image/png": bytes})]);
}"""


@pytest.fixture
def copied(page, address, bundled):
    """Puts a bundled picture on the clipboard."""
    page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=address)
    return lambda name: page.evaluate(COPY, base64.b64encode(bundled[name].read_bytes()).decode())


def ask_whether_day_or_night(page):
    page.locator("#ask-words textarea").fill("Is it day or night?")
    run(page, "ask")
    expect(page.locator("#ask-answer textarea")).to_have_value("Night.")


def test_a_picture_is_taken_from_the_clipboard_by_its_button(page, copied):
    copied("tower.png")
    tab(page, "Ask")
    page.locator("#ask-picture").get_by_label("Paste from clipboard").click()
    expect(page.locator("#ask-cost")).to_contain_text("12 tokens")
    ask_whether_day_or_night(page)


@pytest.mark.parametrize("focus", ["#ask-picture", "#ask-words textarea"])
def test_a_picture_is_pasted_anywhere_on_a_tab(page, copied, focus):
    copied("tower.png")
    tab(page, "Ask")
    page.locator(focus).focus()
    page.keyboard.press("Control+V")
    expect(page.locator("#ask-cost")).to_contain_text("12 tokens")
    ask_whether_day_or_night(page)


def test_a_pasted_picture_takes_the_place_of_another(page, copied):
    copied("tower.png")
    tab(page, "Ask")
    example(page, "ask", 1)
    before = page.locator("#ask-picture img").get_attribute("src")
    page.keyboard.press("Control+V")
    expect(page.locator("#ask-picture img")).not_to_have_attribute("src", before)
    ask_whether_day_or_night(page)


@pytest.mark.parametrize("focus", ["#chat-box textarea", "#chat-talk"])
def test_a_picture_is_pasted_into_a_conversation(page, copied, focus):
    cost = page.locator("#chat-cost", has_text="12 tokens; the model reads")
    for _ in range(8):  # a page that has only just come does not listen yet
        copied("tower.png")
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


def test_pasted_words_stay_words(page, copied):
    tab(page, "Ask")
    page.locator("#ask-words textarea").fill("Is it day or night?")
    page.locator("#ask-words textarea").press("Control+A")
    page.keyboard.press("Control+X")
    page.keyboard.press("Control+V")
    expect(page.locator("#ask-words textarea")).to_have_value("Is it day or night?")


def photograph(page, box):
    """Takes what the webcam sees, as a person does."""
    box.get_by_text("Click to Access Webcam").click()
    page.wait_for_function("() => [...document.querySelectorAll('video')].some(one => one.videoWidth > 0)")
    box.get_by_label("capture photo").click()


def test_a_picture_is_taken_by_the_webcam(page):
    tab(page, "Ask")
    page.locator("#ask-picture").get_by_label("Capture from camera").click()
    photograph(page, page.locator("#ask-picture"))
    expect(page.locator("#ask-cost")).to_contain_text("tokens")
    page.locator("#ask-words textarea").fill("What color is it?")
    run(page, "ask")
    expect(page.locator("#ask-note")).to_contain_text("written")


def test_a_conversation_sees_what_the_webcam_sees(page):
    page.locator("#chat-more > button").click()
    for count in (1, 2):
        photograph(page, page.locator("#chat-webcam"))
        expect(page.locator("#chat-box img")).to_have_count(count)
    expect(page.locator("#chat-cost")).to_contain_text("together 24")
    page.locator("#chat-box textarea").fill("What color is it?")
    run(page, "chat")
    expect(page.locator("#chat-note")).to_contain_text("written")
    expect(page.locator("#chat-talk img")).to_have_count(2)


def test_a_conversation_is_given_a_picture_by_its_address(page, bundled):
    page.locator("#chat-more > button").click()
    data = base64.b64encode(bundled["tower.png"].read_bytes()).decode()
    page.locator("#chat-address textarea, #chat-address input").fill(f"data:image/png;base64,{data}")
    page.locator("#chat-fetch").click()
    expect(page.locator("#chat-cost")).to_contain_text("12 tokens")


def test_a_long_text_that_is_pasted_stays_text(page, address):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=address)
    page.evaluate("navigator.clipboard.writeText('word '.repeat(400))")
    page.locator("#chat-box textarea").focus()
    page.keyboard.press("Control+V")
    expect(page.locator("#chat-box textarea")).to_have_value("word " * 400)
