"""Earlier conversations, in a real browser."""

import shutil
from pathlib import Path

import pytest
from playwright.sync_api import expect

from ui.browser import BROWSER, DESKTOP, Slow, example, opened, run, wait_until

pytestmark = BROWSER


def ask(page, number):
    """Asks an example's question in a new conversation, and waits until the answer is kept."""
    before = kept(page)
    page.locator("#chat-new").click()
    expect(page.get_by_test_id("user")).to_have_count(0)
    example(page, "chat", number)
    run(page, "chat")
    wait_until(page, lambda: kept(page) == before + 1)


def kept(page):
    return page.evaluate("(JSON.parse(localStorage.getItem('idefics.conversations')) ?? []).length")


def answers(page):
    return page.get_by_test_id("bot")


def titles(page):
    return [
        text.partition(" (")[0].strip() for text in page.locator("#chat-history label").all_text_contents()
    ]


def unfold(page):
    page.locator("#chat-earlier > button").click()
    expect(page.locator("#chat-delete")).to_be_visible()


def pick(page, words):
    page.locator("#chat-history label", has_text=words).click()


def reload(page):
    page.reload()
    page.locator("#chat-run").wait_for()


def test_who_is_new_sees_no_list(page):
    expect(page.locator("#chat-run")).to_be_enabled()
    expect(page.locator("#chat-earlier")).to_be_hidden()


def test_a_conversation_is_gone_on_with_after_a_reload(page):
    ask(page, 0)
    ask(page, 1)
    reload(page)
    unfold(page)
    wait_until(page, lambda: titles(page) == ["What color is the star?", "What is in this image?"])
    assert answers(page).count() == 0
    pick(page, "What is in this image?")
    expect(answers(page)).to_have_text("A tower.")
    wait_until(page, lambda: page.locator("#chat-talk img").evaluate("image => image.naturalWidth"))
    page.locator("#chat-box textarea").fill("Is it day or night?")
    page.locator("#chat-box textarea").press("Enter")
    expect(answers(page).last).to_have_text("Night.")
    wait_until(page, lambda: titles(page) == ["What is in this image?", "What color is the star?"])
    reload(page)
    unfold(page)
    pick(page, "What is in this image?")
    expect(answers(page)).to_have_text(["A tower.", "Night."])


def test_a_conversation_that_is_edited_stays_one(page):
    ask(page, 0)
    page.get_by_label("Edit").locator("visible=true").click()  # of the question; an answer has none
    page.locator("#chat-talk textarea").fill("Is it day or night?")
    page.get_by_label("Submit").click()
    expect(answers(page)).to_have_text("Night.")
    expect(page.locator("#chat-talk img")).to_have_count(1)
    unfold(page)
    wait_until(page, lambda: titles(page) == ["Is it day or night?"])
    page.get_by_label("Edit").locator("visible=true").click()
    page.locator("#chat-talk textarea").fill("")
    page.get_by_label("Submit").click()  # of nothing: the question stays as it was
    expect(page.get_by_test_id("user").first).to_contain_text("Is it day or night?")
    expect(page.locator("#chat-talk img")).to_have_count(1)


def test_one_is_deleted_and_then_all(page):
    for number in range(3):
        ask(page, number)
    unfold(page)
    pick(page, "What color is the star?")
    expect(answers(page)).to_have_text("Green.")
    page.locator("#chat-delete").click()
    expect(answers(page)).to_have_count(0)
    wait_until(page, lambda: titles(page) == ["Where is the puppy?", "What is in this image?"])
    page.once("dialog", lambda dialog: dialog.dismiss())
    page.locator("#chat-clear").click()
    assert len(titles(page)) == 2
    page.once("dialog", lambda dialog: dialog.accept())
    page.locator("#chat-clear").click()
    expect(page.locator("#chat-earlier")).to_be_hidden()
    reload(page)
    expect(page.locator("#chat-run")).to_be_enabled()
    expect(page.locator("#chat-earlier")).to_be_hidden()
    assert kept(page) == 0


def test_pictures_that_are_no_longer_kept_are_named(page, bundled, tmp_path):
    shutil.copy(bundled["tower.png"], tmp_path / "my tower.png")
    with page.expect_response("**/gradio_api/upload*") as uploaded:
        page.locator("#chat-box input[type=file]").set_input_files(tmp_path / "my tower.png")
    expect(page.locator("#chat-cost")).to_contain_text("my tower.png: 12 tokens")
    (path,) = uploaded.value.json()
    page.locator("#chat-box textarea").fill("Is it day or night?")
    run(page, "chat")
    wait_until(page, lambda: kept(page) == 1)
    Path(path).unlink()
    reload(page)
    unfold(page)
    pick(page, "Is it day or night?")
    expect(answers(page)).to_have_text("Night.")
    expect(page.locator("#chat-note")).to_contain_text("No longer kept")
    expect(page.locator("#chat-note")).to_contain_text("my tower.png")
    page.locator("#chat-box textarea").fill("What is it?")
    run(page, "chat")
    expect(page.get_by_test_id("toast-body")).to_contain_text(
        "The picture my tower.png is no longer kept: show it again"
    )
    expect(page.locator("#chat-box textarea")).to_have_value("What is it?")
    expect(answers(page)).to_have_text("Night.")


FILL = """(most) => {
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
def test_the_oldest_go_first(page, size):
    page.evaluate(FILL, size)
    example(page, "chat", 0)
    run(page, "chat")
    expect(answers(page)).to_have_text("A tower.")
    unfold(page)
    wait_until(page, lambda: "What is in this image?" in titles(page))
    left = titles(page)
    assert left == [
        "What is in this image?",
        *(f"Question {number}" for number in range(49, 50 - len(left), -1)),
    ]
    assert len(left) < 50 if size else len(left) == 50


def test_a_conversation_from_elsewhere_is_refused_in_words(page):
    ask(page, 0)
    page.evaluate("""() => {
        const key = "idefics.conversations";
        localStorage.setItem(key, localStorage.getItem(key).replaceAll('"path":"', '"path":"/elsewhere'));
    }""")
    reload(page)
    unfold(page)
    pick(page, "What is in this image?")
    expect(page.locator("#chat-note")).to_contain_text("its pictures are not of this server")


def test_two_windows_of_a_browser_keep_both_and_another_browser_sees_none(page, chromium, address):
    window = page.context.new_page()
    window.goto(address)
    window.locator("#chat-run").wait_for()
    ask(page, 0)
    ask(window, 1)
    reload(page)
    unfold(page)
    wait_until(page, lambda: titles(page) == ["What color is the star?", "What is in this image?"])
    other = opened(chromium, address, [], viewport=DESKTOP)
    try:
        expect(other.locator("#chat-earlier")).to_be_hidden()
    finally:
        other.context.close()


def test_nothing_takes_a_conversation_from_under_an_answer(page, demo, monkeypatch):
    ask(page, 0)
    unfold(page)
    slow = Slow(monkeypatch, demo)
    slow.going.clear()
    try:
        page.locator("#chat-box textarea").fill("Is it day or night?")
        run(page, "chat")
        for control in ("#chat-new", "#chat-delete", "#chat-clear", "#chat-history input"):
            expect(page.locator(control)).to_be_disabled()
    finally:
        slow.going.set()
    expect(answers(page).last).to_have_text("Night.")
    for control in ("#chat-new", "#chat-delete", "#chat-clear", "#chat-history input"):
        expect(page.locator(control)).to_be_enabled()
