"""The list of earlier conversations, in a real browser."""

import shutil
from pathlib import Path

import pytest
from playwright.sync_api import expect

from page.browser import (
    BROWSER_MARKS,
    DESKTOP_SIZE,
    SlowModel,
    choose_example,
    click_run,
    open_page,
    wait_until,
)

pytestmark = BROWSER_MARKS


def ask_in_new_conversation(page, number):
    """Asks an example's question in a new conversation, and waits until it is saved."""
    before = saved_conversations(page)
    page.locator("#chat-new").click()
    expect(page.get_by_test_id("user")).to_have_count(0)
    choose_example(page, "chat", number)
    click_run(page, "chat")
    wait_until(page, lambda: saved_conversations(page) == before + 1)


def saved_conversations(page):
    return page.evaluate("(JSON.parse(localStorage.getItem('idefics.conversations')) ?? []).length")


def visible_answers(page):
    return page.get_by_test_id("bot")


def conversation_titles(page):
    return [
        text.partition(" (")[0].strip() for text in page.locator("#chat-history label").all_text_contents()
    ]


def open_history(page):
    page.locator("#chat-earlier > button").click()
    expect(page.locator("#chat-delete")).to_be_visible()


def choose_conversation(page, words):
    page.locator("#chat-history label", has_text=words).click()


def reload_page(page):
    page.reload()
    page.locator("#chat-run").wait_for()


def test_the_list_is_hidden_while_it_is_empty(page):
    expect(page.locator("#chat-run")).to_be_enabled()
    expect(page.locator("#chat-earlier")).to_be_hidden()


def test_a_conversation_is_continued_after_a_reload(page):
    ask_in_new_conversation(page, 0)
    ask_in_new_conversation(page, 1)
    reload_page(page)
    open_history(page)
    wait_until(
        page, lambda: conversation_titles(page) == ["What color is the star?", "What is in this image?"]
    )
    assert visible_answers(page).count() == 0
    choose_conversation(page, "What is in this image?")
    expect(visible_answers(page)).to_have_text("A tower.")
    wait_until(page, lambda: page.locator("#chat-talk img").evaluate("image => image.naturalWidth"))
    page.locator("#chat-box textarea").fill("Is it day or night?")
    page.locator("#chat-box textarea").press("Enter")
    expect(visible_answers(page).last).to_have_text("Night.")
    wait_until(
        page, lambda: conversation_titles(page) == ["What is in this image?", "What color is the star?"]
    )
    reload_page(page)
    open_history(page)
    choose_conversation(page, "What is in this image?")
    expect(visible_answers(page)).to_have_text(["A tower.", "Night."])


def test_a_conversation_that_is_edited_stays_one(page):
    ask_in_new_conversation(page, 0)
    page.get_by_label("Edit").locator("visible=true").click()  # of the question; an answer has none
    page.locator("#chat-talk textarea").fill("Is it day or night?")
    page.get_by_label("Submit").click()
    expect(visible_answers(page)).to_have_text("Night.")
    expect(page.locator("#chat-talk img")).to_have_count(1)
    open_history(page)
    wait_until(page, lambda: conversation_titles(page) == ["Is it day or night?"])
    page.get_by_label("Edit").locator("visible=true").click()
    page.locator("#chat-talk textarea").fill("")
    page.get_by_label("Submit").click()  # of nothing: the question stays as it was
    expect(page.get_by_test_id("user").first).to_contain_text("Is it day or night?")
    expect(page.locator("#chat-talk img")).to_have_count(1)


def test_one_is_deleted_and_then_all(page):
    for number in range(3):
        ask_in_new_conversation(page, number)
    open_history(page)
    choose_conversation(page, "What color is the star?")
    expect(visible_answers(page)).to_have_text("Green.")
    page.locator("#chat-delete").click()
    expect(visible_answers(page)).to_have_count(0)
    wait_until(page, lambda: conversation_titles(page) == ["Where is the puppy?", "What is in this image?"])
    page.once("dialog", lambda dialog: dialog.dismiss())
    page.locator("#chat-clear").click()
    assert len(conversation_titles(page)) == 2
    page.once("dialog", lambda dialog: dialog.accept())
    page.locator("#chat-clear").click()
    expect(page.locator("#chat-earlier")).to_be_hidden()
    reload_page(page)
    expect(page.locator("#chat-run")).to_be_enabled()
    expect(page.locator("#chat-earlier")).to_be_hidden()
    assert saved_conversations(page) == 0


def test_deleted_pictures_are_named(page, bundled_pictures, tmp_path):
    shutil.copy(bundled_pictures["tower.png"], tmp_path / "my tower.png")
    with page.expect_response("**/gradio_api/upload*") as uploaded:
        page.locator("#chat-box input[type=file]").set_input_files(tmp_path / "my tower.png")
    expect(page.locator("#chat-cost")).to_contain_text("my tower.png: 12 tokens")
    (path,) = uploaded.value.json()
    page.locator("#chat-box textarea").fill("Is it day or night?")
    click_run(page, "chat")
    wait_until(page, lambda: saved_conversations(page) == 1)
    Path(path).unlink()
    reload_page(page)
    open_history(page)
    choose_conversation(page, "Is it day or night?")
    expect(visible_answers(page)).to_have_text("Night.")
    expect(page.locator("#chat-note")).to_contain_text("pictures were deleted")
    expect(page.locator("#chat-note")).to_contain_text("my tower.png")
    page.locator("#chat-box textarea").fill("What is it?")
    click_run(page, "chat")
    expect(page.get_by_test_id("toast-body")).to_contain_text(
        "The picture my tower.png has been deleted from the server: upload it again"
    )
    expect(page.locator("#chat-box textarea")).to_have_value("What is it?")
    expect(visible_answers(page)).to_have_text("Night.")


FILL_STORAGE_SCRIPT = """(most) => {
    const old = (number) => ({id: `old ${number}`, when: number, turns: [
        {role: "user", content: [{type: "text", text: `Question ${number}`}], metadata: {id: `old ${number}`}}
    ]});
    localStorage.setItem("idefics.conversations", JSON.stringify([...Array(50).keys()].reverse().map(old)));
    for (let size = most; size >= 1; size = Math.floor(size / 2)) {
        try { while (true) localStorage.setItem("filler", (localStorage.getItem("filler") ?? "") + "x".repeat(size)); }
        catch {}
    }
}"""


@pytest.mark.parametrize("size", [0, 2**20], ids=["room", "no room"])
def test_the_oldest_conversations_are_deleted_first(page, size):
    page.evaluate(FILL_STORAGE_SCRIPT, size)
    choose_example(page, "chat", 0)
    click_run(page, "chat")
    expect(visible_answers(page)).to_have_text("A tower.")
    open_history(page)
    wait_until(page, lambda: "What is in this image?" in conversation_titles(page))
    left = conversation_titles(page)
    assert left == [
        "What is in this image?",
        *(f"Question {number}" for number in range(49, 50 - len(left), -1)),
    ]
    assert len(left) < 50 if size else len(left) == 50


def test_a_conversation_with_foreign_files_is_refused_with_a_message(page):
    ask_in_new_conversation(page, 0)
    page.evaluate("""() => {
        const key = "idefics.conversations";
        localStorage.setItem(key, localStorage.getItem(key).replaceAll('"path":"', '"path":"/elsewhere'));
    }""")
    reload_page(page)
    open_history(page)
    choose_conversation(page, "What is in this image?")
    expect(page.locator("#chat-note")).to_contain_text("its pictures are not on this server")


def test_two_windows_of_a_browser_keep_both_and_another_browser_sees_none(page, chromium_browser, page_url):
    window = page.context.new_page()
    window.goto(page_url)
    window.locator("#chat-run").wait_for()
    ask_in_new_conversation(page, 0)
    ask_in_new_conversation(window, 1)
    reload_page(page)
    open_history(page)
    wait_until(
        page, lambda: conversation_titles(page) == ["What color is the star?", "What is in this image?"]
    )
    other = open_page(chromium_browser, page_url, [], viewport=DESKTOP_SIZE)
    try:
        expect(other.locator("#chat-earlier")).to_be_hidden()
    finally:
        other.context.close()


def test_the_list_is_disabled_while_an_answer_runs(page, demo_model, monkeypatch):
    ask_in_new_conversation(page, 0)
    open_history(page)
    slow = SlowModel(monkeypatch, demo_model)
    slow.resume_event.clear()
    try:
        page.locator("#chat-box textarea").fill("Is it day or night?")
        click_run(page, "chat")
        for control in ("#chat-new", "#chat-delete", "#chat-clear", "#chat-history input"):
            expect(page.locator(control)).to_be_disabled()
    finally:
        slow.resume_event.set()
    expect(visible_answers(page).last).to_have_text("Night.")
    for control in ("#chat-new", "#chat-delete", "#chat-clear", "#chat-history input"):
        expect(page.locator(control)).to_be_enabled()
