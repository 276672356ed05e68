"""Conversations stay in the browser: reloads, the drawer, files, two windows, and browsers that refuse to keep them."""

import json
import re
from contextlib import contextmanager

from playwright.sync_api import expect

from page.browser import (
    BROWSER_MARKS,
    Complaints,
    SlowModel,
    add_pictures,
    choose_task,
    close_drawer,
    last_turn,
    open_page,
    send,
    wait_until,
    wait_until_saved,
)

pytestmark = BROWSER_MARKS
ADDRESS = re.compile(r"/#/c/\w{9}$")
STORY = "Use the image to write a story."


def ask(page, path, question="Is it day or night?", answer="Night."):
    """Adds a picture, asks about it, and waits until the conversation is kept."""
    add_pictures(page, path)
    send(page, question)
    expect(last_turn(page).locator(".answer-text")).to_have_text(answer)
    expect(page).to_have_url(ADDRESS)


def open_drawer(page):
    """Opens the drawer of conversations."""
    page.locator("[data-drawer=history]").click()
    return page.locator("#drawer-history")


@contextmanager
def open_window(page, address):
    """Another window of the same browser."""
    window = page.context.new_page()
    window.set_default_timeout(15_000)
    complaints = Complaints(window, page.url.partition("#")[0])
    window.goto(address)
    yield window
    assert complaints.found == []
    window.close()


def test_a_reload_loses_nothing(web_page, bundled_pictures):
    ask(web_page, bundled_pictures["tower.png"])
    add_pictures(web_page, bundled_pictures["statue.png"])
    choose_task(web_page, "Classify")
    send(web_page, "tower, statue")
    expect(last_turn(web_page).locator(".bar")).to_have_count(2)
    before = web_page.locator(".answer").all_inner_texts()
    choose_task(web_page, "Write")
    web_page.locator("#words").press_sequentially("Write about ")
    wait_until_saved(web_page)
    web_page.reload()
    expect(web_page.locator(".turn")).to_have_count(2)
    assert web_page.locator(".answer").all_inner_texts() == before
    expect(web_page.locator(".picture-name")).to_contain_text("statue.png")
    assert (
        web_page.locator(".strip img").first.evaluate("node => node.decode().then(() => node.naturalWidth)")
        == 384
    )
    expect(web_page.locator("input[name=task]:checked + span")).to_have_text("Write")
    expect(web_page.locator("#words")).to_have_value("Write about ")
    web_page.locator(".strip button").first.click()
    choose_task(web_page, "Ask")
    send(web_page, "What is in this image?")
    expect(last_turn(web_page).locator(".answer-text")).to_have_text("A tower.")


def test_what_is_added_while_it_is_saved_is_saved_too(web_page):
    """A card adds the picture and its question at once: the saving of the picture is still under way."""
    for words, answer in (
        ("Is it day or night?", "Night."),
        ("What does this picture show?", "A large couple"),
    ):
        web_page.locator(".card", has_text=words).click()
        expect(last_turn(web_page).locator(".answer-text")).to_contain_text(answer)
        expect(web_page).to_have_url(ADDRESS)
        web_page.reload()
        expect(last_turn(web_page).locator(".answer-text")).to_contain_text(answer)
        web_page.locator("#new-conversation").click()
    titles = open_drawer(web_page).locator(".saved-title")
    expect(titles).to_have_text(["Caption: picnic.png", "Is it day or night?"])


HOLD = """() => {
    indexedDB.open("idefics").onsuccess = ({target: {result: database}}) => {
        const store = database.transaction("conversations", "readwrite").objectStore("conversations");
        const again = () => { store.count().onsuccess = again; window.isHeld = true; };
        again();
    };
}"""


def test_what_the_database_has_not_taken_yet_survives_a_reload(web_page, bundled_pictures):
    ask(web_page, bundled_pictures["tower.png"])
    web_page.evaluate(HOLD)  # until the page is left, no other transaction begins
    wait_until(web_page, lambda: web_page.evaluate("Boolean(window.isHeld)"))
    send(web_page, "What is in this image?")
    expect(last_turn(web_page).locator(".answer-text")).to_have_text("A tower.")
    web_page.reload()
    expect(web_page.locator(".answer-text")).to_have_text(["Night.", "A tower."])
    assert web_page.evaluate("Object.keys(localStorage)") == []


def test_a_reload_in_the_middle_of_an_answer_keeps_what_is_there(
    web_page, bundled_pictures, demo_model, monkeypatch
):
    slow = SlowModel(monkeypatch, demo_model)
    slow.seconds_per_step = 0.05
    add_pictures(web_page, bundled_pictures["puppy.png"])
    choose_task(web_page, "Write")
    send(web_page, STORY)
    choose_task(web_page, "Ask")
    send(web_page, "Is it day or night?")  # waits for the story
    text = web_page.locator(".answer-text").first
    wait_until(web_page, lambda: len(text.inner_text()) > 40)
    seen = text.inner_text()
    web_page.reload()
    expect(web_page.locator(".turn")).to_have_count(2)
    assert text.inner_text().startswith(seen)
    slow.seconds_per_step = 0
    assert demo_model.write(bundled_pictures["puppy.png"], STORY).text.startswith(text.inner_text())
    for number in (0, 1):
        turn = web_page.locator(".turn").nth(number)
        expect(turn.locator(".meta")).to_contain_text("not complete: the page was closed or reloaded")
    expect(web_page.locator("#stop")).to_be_hidden()
    web_page.get_by_role("button", name="Try again").last.click()
    expect(last_turn(web_page).locator(".meta")).to_contain_text("written")
    expect(last_turn(web_page).locator(".meta")).not_to_contain_text("reloaded")


def test_conversations_are_listed_searched_named_and_opened(web_page, bundled_pictures):
    ask(web_page, bundled_pictures["tower.png"])
    first_url = web_page.url
    web_page.locator("#new-conversation").click()
    expect(web_page.locator("#welcome")).to_be_visible()
    ask(web_page, bundled_pictures["statue.png"], "What is in this image?", "A statue.")
    assert web_page.url != first_url
    drawer = open_drawer(web_page)
    expect(drawer.locator(".saved-title")).to_have_text(["What is in this image?", "Is it day or night?"])
    for words, titles in {
        "NIGHT": ["Is it day or night?"],
        "statue": ["What is in this image?"],  # an answer
        "tower.png": ["Is it day or night?"],  # a picture
        "nothing like it": [],
    }.items():
        drawer.get_by_role("searchbox").fill(words)
        expect(drawer.locator(".saved-title")).to_have_text(titles)
    drawer.get_by_role("searchbox").fill("")
    drawer.get_by_role("button", name="Rename, export or delete Is it day or night?").click()
    drawer.get_by_role("button", name="Rename", exact=True).click()
    web_page.keyboard.type("The tower")
    web_page.keyboard.press("Enter")
    expect(drawer.locator(".saved-title").last).to_have_text("The tower")
    drawer.get_by_text("The tower").click()
    expect(web_page).to_have_url(first_url)
    expect(web_page.locator(".picture-name")).to_contain_text("tower.png")
    expect(last_turn(web_page).locator(".answer-text")).to_have_text("Night.")
    expect(web_page.locator("#words")).to_be_focused()
    web_page.go_back()
    expect(last_turn(web_page).locator(".answer-text")).to_have_text("A statue.")
    web_page.reload()
    expect(open_drawer(web_page).locator(".saved-title")).to_have_text(
        ["What is in this image?", "The tower"]
    )


def test_deleting_a_conversation_is_undone_with_its_picture(web_page, bundled_pictures):
    ask(web_page, bundled_pictures["tower.png"])
    drawer = open_drawer(web_page)
    drawer.locator("[aria-expanded]").click()
    drawer.get_by_role("button", name="Delete", exact=True).click()
    expect(web_page.locator("#welcome")).to_be_visible()
    expect(drawer).to_contain_text("Is it day or night? is deleted.")
    expect(drawer.get_by_role("button", name="Undo")).to_be_focused()
    web_page.keyboard.press("Enter")
    expect(drawer.locator(".saved-title")).to_have_text("Is it day or night?")
    expect(web_page).to_have_url(ADDRESS)
    web_page.reload()
    expect(web_page.locator(".frame img")).to_have_js_property("naturalWidth", 384)
    drawer = open_drawer(web_page)
    drawer.locator("[aria-expanded]").click()
    drawer.get_by_role("button", name="Delete", exact=True).click()
    expect(drawer.get_by_role("button", name="Undo")).to_be_focused()
    web_page.reload()
    expect(open_drawer(web_page)).to_contain_text("Nothing here yet")


def open_other(page, drawer):
    """Opens the conversation that is not in hand, and waits until its turns are shown."""
    turn = page.locator(".turn").first
    shown = turn.get_attribute("data-turn")
    drawer.locator(".saved-open:not([aria-current])").click()
    expect(turn).not_to_have_attribute("data-turn", shown)


def export(page, drawer, label):
    """The text of a conversation's file."""
    with page.expect_download() as download:
        drawer.get_by_role("button", name=label).click()
    return download.value.suggested_filename, download.value.path().read_text()


def test_a_conversation_is_exported_and_imported(web_page, bundled_pictures, tmp_path):
    ask(web_page, bundled_pictures["tower.png"])
    choose_task(web_page, "Classify")
    send(web_page, "tower, *statue*")
    expect(last_turn(web_page).locator(".bar")).to_have_count(2)
    answers = web_page.locator(".answer").all_inner_texts()
    drawer = open_drawer(web_page)
    drawer.locator("[aria-expanded]").click()
    name, markdown = export(web_page, drawer, "Markdown")
    assert name == "Is-it-day-or-night.md"
    assert markdown.startswith(
        "# Is it day or night?\n\n## Ask: Is it day or night?\n\nPicture: tower.png\n\n> Night.\n\n"
    )
    assert "## Classify: tower, \\*statue\\*" in markdown
    assert re.search(r"> \d+\.\d % tower\n> \d+\.\d % \\\*statue\\\*", markdown)
    name, text = export(web_page, drawer, "JSON with pictures")
    assert name == "Is-it-day-or-night.json"
    assert json.loads(text)["conversation"]["pictures"][0]["blob"].startswith("data:image/png;base64,")
    (tmp_path / name).write_text(text)
    (tmp_path / "other.json").write_text('{"format": "another"}')
    with web_page.expect_file_chooser() as chooser:
        drawer.get_by_role("button", name="Import").click()
    chooser.value.set_files([tmp_path / name, tmp_path / "other.json"])
    expect(drawer.locator(".hint")).to_have_text(
        "1 conversation imported. other.json is not a conversation that was exported from this page."
    )
    expect(drawer.locator(".saved")).to_have_count(2)
    open_other(web_page, drawer)
    expect(web_page.locator(".turn")).to_have_count(2)
    assert web_page.locator(".answer").all_inner_texts() == answers
    expect(web_page.locator(".frame img")).to_have_js_property("naturalWidth", 384)


def test_settings_of_an_imported_conversation_are_words_of_a_shell(web_page, bundled_pictures, tmp_path):
    ask(web_page, bundled_pictures["tower.png"])
    drawer = open_drawer(web_page)
    drawer.locator("[aria-expanded]").click()
    _, text = export(web_page, drawer, "JSON with pictures")
    exported = json.loads(text)
    exported["conversation"]["turns"][0]["settings"]["detail"] = "low; echo $HOME"
    (tmp_path / "sent.json").write_text(json.dumps(exported))
    with web_page.expect_file_chooser() as chooser:
        drawer.get_by_role("button", name="Import").click()
    chooser.value.set_files([tmp_path / "sent.json"])
    open_other(web_page, drawer)
    last_turn(web_page).get_by_role("button", name="Code").click()
    expect(web_page.get_by_label("Command line", exact=True)).to_contain_text("--detail 'low; echo $HOME'")


def test_a_conversation_that_is_left_is_answered_to_the_end(
    web_page, bundled_pictures, demo_model, monkeypatch
):
    slow = SlowModel(monkeypatch, demo_model)
    add_pictures(web_page, bundled_pictures["tower.png"])
    slow.resume_event.clear()
    send(web_page, "Is it day or night?")
    expect(web_page).to_have_url(ADDRESS)
    web_page.locator("#new-conversation").click()
    expect(web_page.locator("#welcome")).to_be_visible()
    slow.resume_event.set()
    web_page.go_back()
    expect(last_turn(web_page).locator(".answer-text")).to_have_text("Night.")
    expect(last_turn(web_page).locator(".meta")).not_to_contain_text("reloaded")


def test_two_windows_have_two_conversations(web_page, web_url, bundled_pictures):
    ask(web_page, bundled_pictures["tower.png"])
    with open_window(web_page, web_url) as window:
        expect(window.locator("#welcome")).to_be_visible()
        ask(window, bundled_pictures["statue.png"], "What is in this image?", "A statue.")
        expect(open_drawer(window).locator(".saved")).to_have_count(2)
    web_page.reload()
    expect(web_page.locator(".answer-text")).to_have_text(["Night."])


def test_two_windows_of_one_conversation_are_merged(web_page, bundled_pictures, demo_model, monkeypatch):
    ask(web_page, bundled_pictures["tower.png"])
    with open_window(web_page, web_page.url) as window:
        expect(window.locator(".answer-text")).to_have_text("Night.")
        said = "This conversation is also open in another window. What one adds appears in both."
        expect(window.locator(".toast p")).to_have_text(said)
        send(window, "What is in this image?")
        expect(web_page.locator(".answer-text")).to_have_text(["Night.", "A tower."])
        slow = SlowModel(monkeypatch, demo_model)
        slow.resume_event.clear()
        send(window, "What is on the left?")
        expect(last_turn(web_page).locator(".meta")).to_contain_text("another window is writing this answer")
        slow.resume_event.set()
        expect(last_turn(window).locator(".meta")).to_contain_text("written")
        expect(last_turn(web_page).locator(".meta")).to_have_text(
            last_turn(window).locator(".meta").inner_text()
        )
        web_page.locator(".turn").first.get_by_role("button", name="Delete").click()
        expect(window.locator(".turn")).to_have_count(2)
        send(web_page, "Is it day or night?")
        expect(window.locator(".turn")).to_have_count(3)
        expect(last_turn(window).locator(".answer-text")).to_have_text("Night.")
    web_page.reload()
    expect(web_page.locator(".turn")).to_have_count(3)


def test_what_two_windows_change_at_once_is_kept(web_page, bundled_pictures, demo_model, monkeypatch):
    ask(web_page, bundled_pictures["tower.png"])
    slow = SlowModel(monkeypatch, demo_model)
    with open_window(web_page, web_page.url) as window:
        expect(window.locator(".answer-text")).to_have_text("Night.")
        slow.resume_event.clear()
        send(window, "What is in this image?")
        send(web_page, "What is on the left?")
        for page in (web_page, window):
            expect(page.locator(".turn[data-status=waiting]")).to_have_count(1)
        slow.resume_event.set()
        for page in (web_page, window):
            expect(page.locator(".turn")).to_have_count(3)
            expect(page.locator(".turn[data-status=done]")).to_have_count(3)
        texts = [sorted(page.locator(".answer-text").all_inner_texts()) for page in (web_page, window)]
        assert texts[0] == texts[1] and "A tower." in texts[0]


def test_a_conversation_that_another_window_deletes(web_page, bundled_pictures):
    ask(web_page, bundled_pictures["tower.png"])
    url = web_page.url
    with open_window(web_page, url) as window:
        drawer = open_drawer(window)
        drawer.locator("[aria-expanded]").click()
        drawer.get_by_role("button", name="Delete", exact=True).click()
        expect(drawer.get_by_role("button", name="Undo")).to_be_visible()
    expect(web_page.locator(".toast p").last).to_have_text(
        "This conversation was deleted in another window. With your next question it is kept again."
    )
    expect(last_turn(web_page).locator(".answer-text")).to_have_text("Night.")
    with open_window(web_page, url) as window:
        expect(window.locator(".toast p")).to_contain_text("There is no such conversation in this browser")
        expect(window.locator("#welcome")).to_be_visible()
    send(web_page, "What is in this image?")
    expect(last_turn(web_page).locator(".answer-text")).to_have_text("A tower.")
    wait_until_saved(web_page)
    web_page.reload()
    expect(web_page.locator(".answer-text")).to_have_text(["Night.", "A tower."])


FORBID = """
    IDBFactory.prototype.open = () => { throw new DOMException("denied", "SecurityError"); };
    for (const name of ["localStorage", "sessionStorage"]) {
        Object.defineProperty(window, name, {get() { throw new DOMException("denied", "SecurityError"); }});
    }
"""


def test_a_browser_that_keeps_nothing(web_browser, web_url, bundled_pictures):
    with open_page(web_browser, web_url) as page:
        page.add_init_script(FORBID)
        page.reload()
        add_pictures(page, bundled_pictures["tower.png"])
        said = (
            "The browser does not let this page keep conversations, as in some private windows: they end with the "
            "page."
        )
        expect(page.locator(".toast p")).to_have_text(said)
        send(page, "Is it day or night?")
        expect(last_turn(page).locator(".answer-text")).to_have_text("Night.")
        page.locator("[data-drawer=settings]").click()
        page.get_by_role("radio", name="Vary").check()
        close_drawer(page)
        send(page, "What is in this image?")
        expect(last_turn(page).locator(".meta")).to_contain_text("seed")
        assert page.locator(".toast").count() == 1  # said once
        page.locator("#new-conversation").click()
        drawer = open_drawer(page)
        expect(drawer.locator(".hint")).to_have_text(said)
        expect(drawer.locator(".saved-title")).to_have_text("Is it day or night?")
        drawer.locator(".saved-open").click()
        expect(page.locator(".turn")).to_have_count(2)


def test_a_browser_without_space_left(web_page, web_url, bundled_pictures):
    session = web_page.context.new_cdp_session(web_page)
    session.send("Storage.overrideQuotaForOrigin", {"origin": web_url, "quotaSize": 1000})
    add_pictures(web_page, bundled_pictures["tower.png"])
    expect(web_page.locator(".toast p")).to_contain_text("The browser has no space left")
    send(web_page, "Is it day or night?")
    expect(last_turn(web_page).locator(".answer-text")).to_have_text("Night.")
    session.send("Storage.overrideQuotaForOrigin", {"origin": web_url})
    send(web_page, "What is in this image?")
    expect(web_page).to_have_url(ADDRESS)
    expect(last_turn(web_page).locator(".answer-text")).to_have_text("A tower.")
    web_page.reload()
    expect(web_page.locator(".answer-text")).to_have_text(["Night.", "A tower."])
