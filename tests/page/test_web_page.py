"""The page in a browser: each task, from the first screen and from the composer, by every way of input."""

import pytest
from playwright.sync_api import expect

from page.browser import (
    BROWSER_MARKS,
    DESKTOP_SIZE,
    PHONE_SIZE,
    add_pictures,
    choose_task,
    last_turn,
    open_page,
    send,
)

pytestmark = BROWSER_MARKS
LABELS = ["cars", "a couple", "office"]


def test_one_click_on_a_card_runs_it(web_page, demo_model, bundled_pictures):
    web_page.locator(".card", has_text="Is it day or night?").click()
    expect(last_turn(web_page).locator(".answer-text")).to_have_text("Night.")
    expect(web_page.locator("#welcome")).to_be_hidden()
    expect(web_page.locator("#stage .picture-name")).to_contain_text("tower.png · 384 × 384")
    assert demo_model.ask(bundled_pictures["tower.png"], "Is it day or night?").text == "Night."


def test_every_card_is_answered(web_page):
    for card in web_page.locator(".card").all():
        label = card.locator(".card-task").inner_text()
        card.click()
        expect(last_turn(web_page).locator(".task-name")).to_have_text(label)
        expect(last_turn(web_page).locator(".meta")).to_contain_text("tokens read")
        expect(web_page.locator("input[name=task]:checked + span")).to_have_text(label)
        web_page.locator("#new-conversation").click()
        expect(card).to_be_visible()


def test_the_header_says_which_model_answers(web_page):
    expect(web_page.locator("#model")).to_have_text("demo3.5M parametersknows only its picture book")
    expect(web_page.locator("label.chip", has_text="Read")).to_be_hidden()  # few models can
    expect(web_page).to_have_title("demo: ask your pictures")


def click_and_type(page, label, words):
    """Chooses a task by a click, types, and clicks the button."""
    choose_task(page, label)
    if words:
        page.locator("#words").fill(words)
    page.locator("#send").click()


def press_and_type(page, label, words):
    """The same by keyboard alone, from the text field and back to it."""
    expect(page.locator("#words")).to_be_focused()
    while page.evaluate("document.activeElement.name") != "task":
        page.keyboard.press("Shift+Tab")
    while page.locator("input[name=task]:checked + span").inner_text() != label:
        page.keyboard.press("ArrowRight")
    while page.evaluate("document.activeElement.id") != "words":
        page.keyboard.press("Tab")
    page.keyboard.type(words)
    page.keyboard.press("Enter")


WAYS = {
    "laptop": ({"viewport": DESKTOP_SIZE}, click_and_type),
    "phone": ({"viewport": PHONE_SIZE, "has_touch": True}, click_and_type),
    "keyboard": ({"viewport": DESKTOP_SIZE}, press_and_type),
}


@pytest.fixture(scope="module")
def answers(demo_model, bundled_pictures):
    """The answers of the model: task and words -> text."""
    picture = bundled_pictures["picnic.png"]
    return {
        ("Ask", "What is on the left?"): demo_model.ask(picture, "What is on the left?").text,
        ("Caption", ""): demo_model.caption(picture).text,
        ("Continue", "This is an image of"): demo_model.complete(picture, "This is an image of").text,
        ("Write", ""): demo_model.write(picture).text,
        ("Chat", "What is in this image?"): demo_model.ask(picture, "What is in this image?").text,
    }


@pytest.fixture(scope="module")
def ranking(demo_model, bundled_pictures):
    """The ranking of the model."""
    return demo_model.classify(bundled_pictures["picnic.png"], LABELS, calibrated=True)


@pytest.mark.parametrize("way", WAYS)
def test_every_task_gives_the_models_answer(web_browser, web_url, bundled_pictures, answers, ranking, way):
    context, do = WAYS[way]
    with open_page(web_browser, web_url, **context) as page:
        add_pictures(page, bundled_pictures["picnic.png"])
        for number, ((label, words), answer) in enumerate(answers.items(), 1):
            do(page, label, words)
            expect(page.locator(".turn")).to_have_count(number)
            expect(last_turn(page).locator(".task-name")).to_have_text(label)
            expect(last_turn(page).locator(".answer-text")).to_have_text(answer)
        do(page, "Classify", ", ".join(LABELS))
        expect(last_turn(page).locator(".bar-label")).to_have_text([one.label for one in ranking])
        expect(last_turn(page).locator(".bar-value").first).to_have_text(
            f"{next(iter(ranking)).probability:.0%}".replace("%", " %")
        )


def test_a_chat_remembers_its_turns_and_shows_each_picture_once(web_page, demo_model, bundled_pictures):
    requests = []
    web_page.on(
        "request", lambda request: requests.append(request) if "chat/completions" in request.url else None
    )
    add_pictures(web_page, bundled_pictures["tower.png"])
    choose_task(web_page, "Chat")
    send(web_page, "What is in this image?")
    expect(last_turn(web_page).locator(".answer-text")).to_have_text("A tower.")
    add_pictures(web_page, bundled_pictures["statue.png"])
    send(web_page, "And now?")
    expect(web_page.locator(".turn")).to_have_count(2)
    expect(last_turn(web_page).locator(".meta")).to_contain_text("written")
    first, answer, last = requests[-1].post_data_json["messages"]
    assert [part["type"] for part in first["content"]] == ["image_url", "text"]
    assert answer == {"role": "assistant", "content": "A tower."}
    assert [part["type"] for part in last["content"]] == ["image_url", "text"]
    assert first["content"][0] != last["content"][0]
    expect(last_turn(web_page).locator(".thumbnail")).to_have_count(1)


def test_a_chat_sees_as_many_pictures_as_a_request_takes(web_page, bundled_pictures):
    web_page.locator("#file-input").set_input_files([str(bundled_pictures["tower.png"])] * 18)
    expect(web_page.locator(".strip button")).to_have_count(18)
    choose_task(web_page, "Chat")
    expect(web_page.locator("#words")).to_have_attribute(
        "placeholder", "Talk about the pictures (the last 16 of 18)"
    )
    send(web_page, "What is in these images?")
    expect(last_turn(web_page).locator(".meta")).to_contain_text("written")
    expect(last_turn(web_page).locator(".thumbnail")).to_have_count(16)
    send(web_page, "And now?")
    expect(web_page.locator(".turn[data-status=done]")).to_have_count(2)


def test_back_closes_a_drawer(web_page):
    web_page.get_by_role("link", name="Live").click()
    expect(web_page.locator(".live")).to_be_visible()
    web_page.get_by_role("link", name="Pictures").click()
    expect(web_page.locator("#welcome")).to_be_visible()
    for close in (lambda: web_page.keyboard.press("Escape"), web_page.go_back):
        web_page.locator("[data-drawer=settings]").click()
        expect(web_page.locator("#drawer-settings")).to_be_visible()
        close()
        expect(web_page.locator("#drawer-settings")).to_have_count(0)
        expect(web_page.locator("#welcome")).to_be_visible()
    web_page.go_back()
    expect(web_page.locator(".live")).to_be_visible()


def test_suggestions_are_asked_by_a_click(web_page, bundled_pictures):
    add_pictures(web_page, bundled_pictures["tower.png"])
    web_page.get_by_role("button", name="What is in this image?").click()
    expect(last_turn(web_page).locator(".answer-text")).to_have_text("A tower.")


def test_what_is_missing_is_said_below_the_composer(web_page, bundled_pictures):
    note = web_page.locator("#composer-note")
    send(web_page, "Is it day or night?")
    expect(note).to_contain_text("There is no picture yet")
    expect(web_page.locator("#words")).to_have_value("Is it day or night?")
    add_pictures(web_page, bundled_pictures["tower.png"])
    expect(note).to_be_empty()
    choose_task(web_page, "Continue")
    send(web_page)
    expect(note).to_contain_text("First words missing")
    choose_task(web_page, "Classify")
    send(web_page, "tower")
    expect(note).to_contain_text("One label is no choice")
    choose_task(web_page, "Ask")
    expect(web_page.locator("#words")).to_have_value("Is it day or night?")  # each task keeps its words
    assert web_page.locator(".turn").count() == 0


def test_a_picture_is_fetched_from_an_address(web_browser, web_url, bundled_pictures):
    data = bundled_pictures["tower.png"].read_bytes()
    with open_page(web_browser, web_url, expected=["status of 400"]) as page:
        expect(page.locator("#model")).to_contain_text("demo")
        assert page.locator("#add-address").is_hidden()  # this server fetches nothing
        page.evaluate(
            "async () => (await import('/ui/sources.js')).askForAddress((await import('/ui/app.js')).app)"
        )
        page.get_by_label("Address of the picture").last.fill("https://example.com/a/tower%20one.png")
        page.get_by_role("button", name="Add", exact=True).click()
        expect(page.locator("dialog .error")).to_contain_text("remote pictures are off")
        page.route("**/v1/images/fetch", lambda route: route.fulfill(body=data, content_type="image/png"))
        page.get_by_role("button", name="Add", exact=True).click()
        expect(page.locator(".picture-name")).to_contain_text("tower one.png · 384 × 384")
        page.evaluate(
            "async () => (await import('/ui/sources.js')).askForAddress((await import('/ui/app.js')).app)"
        )
        page.get_by_label("Address of the picture").last.fill("https://example.com/100%.png")
        page.get_by_role("button", name="Add", exact=True).click()
        expect(page.locator(".picture-name")).to_contain_text("100%.png · 384 × 384")
