"""What belongs to a conversation stays with it when another one is opened: undo, a comparison, files, questions."""

from playwright.sync_api import expect

from page.browser import (
    BROWSER_MARKS,
    SlowModel,
    add_pictures,
    close_drawer,
    drop_files,
    last_turn,
    send,
    wait_until,
    wait_until_saved,
)

pytestmark = BROWSER_MARKS
# Pictures are decoded once `decode()` was called.
HOLD_DECODING = """() => {
    const decoded = new Promise((resolve) => (window.decode = resolve));
    const {createImageBitmap} = window;
    window.createImageBitmap = async (...args) => (await decoded, createImageBitmap(...args));
}"""


def ask_about_the_tower(page, pictures):
    add_pictures(page, pictures["tower.png"])
    send(page, "Is it day or night?")
    expect(last_turn(page).locator(".answer-text")).to_have_text("Night.")
    expect(page).not_to_have_url(page.url.partition("#")[0])
    page.wait_for_url("**/#/c/*")


def test_undo_goes_with_its_conversation(web_page, bundled_pictures):
    ask_about_the_tower(web_page, bundled_pictures)
    add_pictures(web_page, bundled_pictures["statue.png"])
    undo = web_page.get_by_role("button", name="Undo")
    last_turn(web_page).get_by_role("button", name="Delete").click()
    expect(undo).to_have_count(1)
    web_page.get_by_role("button", name="Remove the picture").click()
    expect(undo).to_have_count(2)
    web_page.locator("#new-conversation").click()
    expect(web_page.locator("#welcome")).to_be_visible()
    expect(undo).to_have_count(0)


def test_a_comparison_closes_with_its_conversation_and_its_answer(web_page, bundled_pictures):
    ask_about_the_tower(web_page, bundled_pictures)
    panel = web_page.locator("#panel")
    last_turn(web_page).get_by_role("button", name="Compare").click()
    expect(panel).to_be_visible()
    expect(web_page.locator("#conversation")).to_be_hidden()
    web_page.locator("#new-conversation").click()
    expect(panel).to_be_hidden()
    web_page.go_back()
    last_turn(web_page).get_by_role("button", name="Compare").click()
    expect(panel).to_be_visible()
    web_page.evaluate(
        """async () => {
            const {state} = (await import("/ui/app.js")).app; // as another window does
            state.removeTurn(state.conversation.turns[0]);
        }"""
    )
    expect(panel).to_be_hidden()
    expect(web_page.locator(".suggestions")).to_be_visible()


def test_a_comparison_stays_in_front_while_a_picture_is_added(web_page, bundled_pictures):
    ask_about_the_tower(web_page, bundled_pictures)
    last_turn(web_page).get_by_role("button", name="Compare").click()
    expect(web_page.locator("#panel")).to_be_visible()
    add_pictures(web_page, bundled_pictures["statue.png"])
    expect(web_page.locator("#conversation")).to_be_hidden()


def drop_slowly(page, pictures):
    """Drops a picture that is not decoded before the page calls `decode`."""
    page.evaluate(HOLD_DECODING)
    drop_files(page, "#stage", {"door.png": (pictures["door.png"].read_bytes(), "image/png")})
    expect(page.locator(".toast")).to_contain_text("Preparing door.png · ")


def test_a_file_goes_to_the_conversation_that_it_was_dropped_into(web_page, bundled_pictures):
    ask_about_the_tower(web_page, bundled_pictures)
    drop_slowly(web_page, bundled_pictures)
    web_page.locator("#new-conversation").click()
    web_page.evaluate("decode()")
    expect(web_page.locator(".toast p")).to_have_text("door.png added to the conversation that you left.")
    expect(web_page.locator("#welcome")).to_be_visible()
    web_page.get_by_role("button", name="Open").click()
    expect(web_page.locator(".picture-name")).to_contain_text("door.png")
    wait_until_saved(web_page)
    web_page.reload()
    expect(web_page.locator(".strip button")).to_have_count(2)


def test_a_file_for_a_deleted_conversation_is_dropped(web_page, bundled_pictures):
    ask_about_the_tower(web_page, bundled_pictures)
    drop_slowly(web_page, bundled_pictures)
    web_page.locator("[data-drawer=history]").click()
    drawer = web_page.locator("#drawer-history")
    drawer.locator("[aria-expanded]").click()
    drawer.get_by_role("button", name="Delete", exact=True).click()
    expect(drawer.get_by_role("button", name="Undo")).to_be_visible()
    close_drawer(web_page)
    web_page.evaluate("decode()")
    expect(web_page.locator(".toast")).to_have_count(0)
    wait_until_saved(web_page)
    web_page.reload()
    web_page.locator("[data-drawer=history]").click()
    expect(drawer).to_contain_text("Nothing here yet")


def test_files_that_take_long_are_cancelled(web_page, bundled_pictures):
    add_pictures(web_page, bundled_pictures["tower.png"])
    drop_slowly(web_page, bundled_pictures)
    web_page.get_by_role("button", name="Cancel").click()
    web_page.evaluate("decode()")
    expect(web_page.locator(".toast")).to_have_count(0)
    assert web_page.locator("#stage .picture-name").inner_text().startswith("tower.png")
    expect(web_page.locator("#composer-note")).to_be_empty()


def test_all_questions_of_a_conversation_that_is_left_are_answered(
    web_page, bundled_pictures, demo_model, monkeypatch
):
    slow = SlowModel(monkeypatch, demo_model)
    asked = []
    web_page.on(
        "requestfinished", lambda request: asked.append(request.url) if "/tasks/" in request.url else None
    )
    add_pictures(web_page, bundled_pictures["tower.png"])
    slow.resume_event.clear()
    send(web_page, "Is it day or night?")
    send(web_page, "What is in this image?")
    web_page.wait_for_url("**/#/c/*")
    web_page.locator("#new-conversation").click()
    expect(web_page.locator("#announcer")).to_have_text("Looking at the picture.")
    slow.resume_event.set()
    wait_until(web_page, lambda: len(asked) == 2)
    expect(web_page.locator("#announcer")).to_have_text(
        "Looking at the picture."
    )  # what was left says nothing
    web_page.go_back()
    expect(web_page.locator(".answer-text")).to_have_text(["Night.", "A tower."])


def test_the_logo_leads_to_the_start(web_page, bundled_pictures):
    ask_about_the_tower(web_page, bundled_pictures)
    web_page.get_by_role("link", name="idefics").click()
    expect(web_page.locator("#welcome")).to_be_visible()
    web_page.locator("[data-drawer=history]").click()
    web_page.locator(".saved-open").click()
    expect(last_turn(web_page).locator(".answer-text")).to_have_text("Night.")
    web_page.get_by_role("link", name="Live").click()
    expect(web_page.locator(".live")).to_be_visible()
    web_page.get_by_role("link", name="idefics").click()
    expect(web_page.locator("#welcome")).to_be_visible()


def test_settings_of_two_windows(web_page, web_url):
    window = web_page.context.new_page()
    window.goto(web_url)
    for page in (web_page, window):
        page.locator("[data-drawer=settings]").click()
    web_page.get_by_role("radio", name="Vary").check()
    expect(window.get_by_role("radio", name="Vary")).to_be_checked()
    window.get_by_role("radio", name="At a glance").check()
    expect(web_page.get_by_role("radio", name="At a glance")).to_be_checked()
    web_page.get_by_role("checkbox", name="Fair to long labels").check()
    web_page.reload()
    settings = web_page.evaluate("JSON.parse(localStorage['idefics.settings'])")
    assert (settings["strategy"], settings["detail"], settings["lengthNormalized"]) == (
        "sampling",
        "low",
        True,
    )
    window.close()
