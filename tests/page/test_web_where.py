"""Show where: heat over the picture, by word and by label, with pointer, touch and keyboard."""

import re

import PIL.Image
from playwright.sync_api import expect

from page.browser import (
    BROWSER_MARKS,
    PHONE_SIZE,
    SlowModel,
    add_pictures,
    choose_task,
    is_idle,
    last_turn,
    open_page,
    send,
    wait_until,
)

pytestmark = BROWSER_MARKS
QUESTION, ANSWER = "What is in this image?", "A couple, a basket and a sandwich."
# Opacity of the map at a point, of which x and y are shares of its width and height.
OPACITY_AT = """([x, y]) => {
    const canvas = document.querySelector("canvas.where-map");
    const pixel = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
    pixel.drawImage(canvas, x * canvas.width, y * canvas.height, 1, 1, 0, 0, 1, 1);
    return pixel.getImageData(0, 0, 1, 1).data[3];
}"""
BASKET, COUPLE, GROUND = [0.17, 0.5], [0.5, 0.2], [0.85, 0.85]


def show_where(page, picture, question=QUESTION):
    """Asks and presses "Show where"; returns the turn."""
    add_pictures(page, picture)
    send(page, question)
    turn = last_turn(page)
    turn.get_by_role("button", name="Show where").click()
    return turn


IS_SHOWN = """node => {
    const [box, view] = [node, node.closest("#conversation")].map((one) => one.getBoundingClientRect());
    return box.top >= view.top && box.bottom <= view.bottom;
}"""


def expect_complete(turn):
    """Waits until the map is as fine as it gets."""
    expect(turn.locator(".where-place")).to_contain_text("Map of")
    expect(turn.locator(".where-progress")).to_be_hidden()


def expect_opaquer(page, point, other):
    """Waits until the map has more heat at a point than at another."""
    wait_until(page, lambda: page.evaluate(OPACITY_AT, point) > page.evaluate(OPACITY_AT, other) + 50)


def test_each_word_has_its_map(web_page, demo_model, bundled_pictures):
    turn = show_where(web_page, bundled_pictures["picnic.png"])
    expect_complete(turn)
    expect(turn.locator(".where-place")).to_have_text("Map of the whole answer: most at the top")
    expect(turn.locator(".where")).to_contain_text(
        "Point at a word for its own map, or go back to it with Shift Tab. Orange: covering this changes"
    )
    for part in (turn.locator(".answer-text"), turn.get_by_role("button", name="Hide")):
        assert part.evaluate(IS_SHOWN)
    expect(web_page.locator(".light")).to_have_class("light dimmed")
    expect_opaquer(web_page, COUPLE, GROUND)
    words = demo_model.explain(bundled_pictures["picnic.png"], QUESTION, ANSWER).words
    assert turn.locator(".where-word").all_inner_texts() == [word.text for word in words]
    turn.locator(".where-word", has_text="basket").hover()
    expect(turn.locator(".where-place")).to_have_text("Map of “basket”: most on the left")
    expect(turn.locator(".where-share")).to_contain_text("From the picture 100 % · from the words alone 0 %")
    expect(web_page.get_by_role("img", name="Map of “basket”: most on the left")).to_be_visible()
    expect_opaquer(web_page, BASKET, COUPLE)
    turn.locator(".where-word", has_text="and").first.hover()
    share = round(100 * words[4].words_share)
    expect(turn.locator(".where-share")).to_contain_text(f"from the words alone {share} %")
    expect(turn.locator(".where-place")).to_have_text("Map of “and”: no single part decides")
    wait_until(web_page, lambda: web_page.evaluate(OPACITY_AT, COUPLE) < 20)


def test_a_label_has_its_map(web_page, bundled_pictures):
    add_pictures(web_page, bundled_pictures["picnic.png"])
    choose_task(web_page, "Classify")
    send(web_page, "a basket, a couple, a car")
    turn = last_turn(web_page)
    turn.get_by_role("button", name="Show where").click()
    expect_complete(turn)
    best = turn.locator(".bar-label").first.inner_text()
    expect(turn.locator(".where-place")).to_contain_text(f"Map of “{best}”")
    turn.locator(".bar", has_text="a basket").locator(".track").hover()
    expect(turn.locator(".where-place")).to_contain_text("Map of “a basket”")
    expect(turn.locator("[data-shown]")).to_have_text("a basket")
    turn.get_by_role("button", name="Hide").click()
    expect(turn.locator(".where-word, .bar-label[role]")).to_have_count(0)
    assert turn.locator(".bar-label").count() == 3


def test_the_keyboard_alone(web_page, bundled_pictures):
    add_pictures(web_page, bundled_pictures["picnic.png"])
    send(web_page, QUESTION)
    turn = last_turn(web_page)
    opener = turn.get_by_role("button", name="Show where")
    expect(opener).to_be_visible()
    while web_page.evaluate("document.activeElement.textContent") != "Show where":
        web_page.keyboard.press("Shift+Tab")
    web_page.keyboard.press("Enter")
    expect_complete(turn)
    while web_page.evaluate("document.activeElement.className") != "where-word":
        web_page.keyboard.press("Shift+Tab")
    for _ in range(3):
        web_page.keyboard.press("ArrowRight")
    expect(turn.locator(":focus")).to_have_text("basket")
    expect(turn.locator(":focus")).to_have_accessible_name("basket: most on the left")
    expect(turn.locator(".where-place")).to_contain_text("Map of “basket”")
    web_page.keyboard.press("Enter")
    expect(turn.locator("[aria-pressed=true]")).to_have_text("basket")
    web_page.keyboard.press("Escape")
    expect(opener).to_be_focused()
    expect(turn.locator(".where, .where-word")).to_have_count(0)
    expect(turn.locator(".answer-text")).to_have_text(ANSWER)
    expect(web_page.locator(".light")).to_have_class("light")
    expect(web_page.locator("canvas.where-map")).to_have_count(0)


def test_a_tap_chooses_a_word_and_another_lets_it_go(web_browser, web_url, bundled_pictures):
    with open_page(
        web_browser,
        web_url,
        viewport=PHONE_SIZE | {"width": 360},
        has_touch=True,
        reduced_motion="reduce",
        color_scheme="dark",
    ) as page:
        turn = show_where(page, bundled_pictures["picnic.png"])
        expect_complete(turn)
        expect(turn.locator(".where")).to_contain_text("Tap a word for its own map.")
        words = turn.locator(".where-word").all()
        assert all(word.evaluate(IS_SHOWN) and word.bounding_box()["height"] >= 24 for word in words)
        turn.locator(".where-word", has_text="basket").tap()
        expect(turn.locator(".where-place")).to_contain_text("“basket”")
        assert page.evaluate(
            "document.querySelector('#conversation').scrollWidth <= document.querySelector('#conversation').clientWidth"
        )
        turn.locator(".where-word", has_text="basket").tap()
        expect(turn.locator(".where-place")).to_contain_text("the whole answer")


def test_on_a_small_phone_the_map_is_large_enough(web_browser, web_url, bundled_pictures):
    with open_page(web_browser, web_url, viewport={"width": 360, "height": 640}, has_touch=True) as page:
        add_pictures(page, bundled_pictures["tower.png"])
        turn = show_where(page, bundled_pictures["picnic.png"])
        expect_complete(turn)
        assert page.locator(".frame").bounding_box()["height"] > 110
        turn.get_by_role("button", name="Hide").click()
        expect(page.locator(".strip")).to_be_visible()


def test_it_can_be_stopped(web_page, demo_model, bundled_pictures, monkeypatch):
    slow = SlowModel(monkeypatch, demo_model)
    add_pictures(web_page, bundled_pictures["picnic.png"])
    send(web_page, QUESTION)
    turn = last_turn(web_page)
    expect(turn.get_by_role("button", name="Show where")).to_be_visible()
    slow.resume_event.clear()
    turn.get_by_role("button", name="Show where").click()
    expect(turn.locator(".where-progress")).to_contain_text(re.compile(r" · \d+ s"))

    def has_map_or_steps():
        has_map = "Map of" in turn.locator(".where-place").inner_text()
        slow.num_allowed_steps = int(not has_map)
        return has_map

    wait_until(web_page, has_map_or_steps)  # coarse: the rest is not computed
    expect(turn.locator(".where-progress")).to_contain_text("of 67")
    turn.get_by_role("button", name="Stop").click()
    expect(turn.locator(".where-progress")).to_be_hidden()
    slow.resume_event.set()
    wait_until(web_page, lambda: is_idle(demo_model))
    expect(turn.locator(".where-place")).to_contain_text("Map of")


def test_it_goes_on_after_a_stop_before_the_first_map(web_page, demo_model, bundled_pictures, monkeypatch):
    slow = SlowModel(monkeypatch, demo_model)
    add_pictures(web_page, bundled_pictures["picnic.png"])
    send(web_page, QUESTION)
    turn = last_turn(web_page)
    expect(turn.get_by_role("button", name="Show where")).to_be_visible()
    slow.resume_event.clear()
    turn.get_by_role("button", name="Show where").click()
    stop = turn.locator(".where-stop")
    stop.click()
    expect(turn.locator(".where-progress")).to_contain_text("Stopped before the first map.")
    expect(turn.get_by_text("Orange:")).to_be_hidden()
    expect(stop).to_be_focused()
    slow.resume_event.set()
    stop.click()
    expect_complete(turn)


def test_the_fast_method_says_that_it_is_an_approximation(web_page, bundled_pictures):
    turn = show_where(web_page, bundled_pictures["picnic.png"])
    expect_complete(turn)
    web_page.route("**/tasks/explain", lambda route: held.append(route))
    held = []
    turn.get_by_label("Method").select_option(label="Fast: an approximation")
    expect(turn.locator(".where")).to_contain_text("Approximation: what was read for the words")
    wait_until(web_page, lambda: held)
    expect(web_page.locator("canvas.where-map")).to_have_count(0)  # that of the other method
    expect(turn.locator(".where-place")).to_be_empty()
    expect(turn.get_by_role("button", name="Save as PNG")).to_be_disabled()
    held[0].continue_()
    expect_complete(turn)
    turn.locator(".where-word", has_text="basket").hover()
    expect(turn.locator(".where-place")).to_have_text("Map of “basket”: most on the left")


def test_a_map_is_saved_as_png(web_page, bundled_pictures):
    turn = show_where(web_page, bundled_pictures["picnic.png"])
    expect_complete(turn)
    turn.locator(".where-word", has_text="basket").click()
    turn.get_by_label("Opacity").fill("0.5")
    with web_page.expect_download() as download:
        turn.get_by_role("button", name="Save as PNG").click()
    assert download.value.suggested_filename == "where-picnic.png"
    with PIL.Image.open(download.value.path()) as image:
        assert image.format == "PNG" and image.width == 1280 and image.height > 1280
        red, _, blue = image.convert("RGB").getpixel((int(BASKET[0] * 1280), int(BASKET[1] * 1280)))[:3]
        assert red > 1.5 * blue
        assert image.convert("L").crop((0, 1281, 1280, image.height)).getextrema()[0] < 80  # the caption


def test_an_error_stands_where_the_map_would_be(web_browser, web_url, bundled_pictures):
    with open_page(web_browser, web_url, expected=["status of 429"]) as page:
        error = {"error": {"message": "server busy: try again in 2 seconds", "code": "rate_limit_exceeded"}}
        page.route("**/tasks/explain", lambda route: route.fulfill(status=429, json=error))
        turn = show_where(page, bundled_pictures["picnic.png"])
        expect(turn.locator(".where .error")).to_have_text("Server busy: try again in 2 seconds.")


def test_another_picture_hides_the_map_and_asking_again_removes_it(web_page, bundled_pictures):
    turn = show_where(web_page, bundled_pictures["picnic.png"])
    expect_complete(turn)
    expect(web_page.locator("canvas.where-map")).to_have_count(1)
    add_pictures(web_page, bundled_pictures["tower.png"])
    expect(web_page.locator("canvas.where-map")).to_have_count(0)
    web_page.get_by_role("list", name="All pictures").get_by_role("button").first.click()
    expect(web_page.locator("canvas.where-map")).to_have_count(1)
    turn.get_by_role("button", name="Try again").click()
    expect(web_page.locator("canvas.where-map, .where")).to_have_count(0)
    expect(turn.locator(".answer-text")).to_have_text(ANSWER)


def test_a_later_turn_of_a_chat_has_maps(web_page, demo_model, bundled_pictures):
    picture, second = bundled_pictures["picnic.png"], "Is it day or night?"
    asked = []
    web_page.route("**/explain", lambda route: (asked.append(route.request.post_data), route.continue_()))
    add_pictures(web_page, picture)
    choose_task(web_page, "Chat")
    send(web_page, QUESTION)
    expect(last_turn(web_page).locator(".answer-text")).to_have_text(ANSWER)
    send(web_page, second)
    expect(web_page.locator(".turn[data-status=done]")).to_have_count(2)
    turn = last_turn(web_page)
    answer = turn.locator(".answer-text").inner_text()
    turn.get_by_role("button", name="Show where").click()
    expect_complete(turn)
    expect(web_page.locator("canvas.where-map")).to_have_count(1)
    assert f'[{{"question":"{QUESTION}","answer":"{ANSWER}"}}]' in asked[0]
    words = demo_model.explain(picture, second, answer, earlier=[(QUESTION, ANSWER)]).words
    assert turn.locator(".where-word").all_inner_texts() == [word.text for word in words]
    share = round(100 * words[0].words_share)
    turn.locator(".where-word").first.hover()
    expect(turn.locator(".where-share")).to_contain_text(f"from the words alone {share} %")
    add_pictures(web_page, bundled_pictures["tower.png"])
    send(web_page, "And here?")
    expect(web_page.locator(".turn[data-status=done]")).to_have_count(3)
    expect(last_turn(web_page).get_by_role("button", name="Show where")).to_have_count(0)  # two pictures


def test_only_what_the_model_wrote_has_maps(web_page, demo_model, bundled_pictures):
    words = "This is an image of"
    add_pictures(web_page, bundled_pictures["picnic.png"])
    choose_task(web_page, "Continue")
    send(web_page, words)
    turn = last_turn(web_page)
    turn.get_by_role("button", name="Show where").click()
    expect_complete(turn)
    written = demo_model.complete(bundled_pictures["picnic.png"], words).text.removeprefix(words)
    assert turn.locator(".where-word").all_inner_texts() == written.split()
    assert turn.locator(".answer-text").evaluate("node => node.firstChild.textContent") == f"{words} "
