"""Compare: one answer stays, one thing is changed, both stand under one picture."""

import math
import re

from playwright.sync_api import expect

from idefics import Shot
from page.browser import (
    BROWSER_MARKS,
    PHONE_SIZE,
    SlowModel,
    add_pictures,
    choose_task,
    close_drawer,
    is_idle,
    last_turn,
    open_page,
    send,
    wait_until,
)

pytestmark = BROWSER_MARKS
QUESTION = "What is in this image?"
FUN_FACT = "An image of a tower. Fun fact: towers sway a little in the wind."


def compare_last(page):
    """Opens the comparison of the last answer; returns its panel."""
    last_turn(page).get_by_role("button", name="Compare").click()
    return page.locator(".compare")


def facts_of(column):
    """What stands below an answer, by its name."""
    return dict(
        zip(column.locator("dt").all_inner_texts(), column.locator("dd").all_inner_texts(), strict=True)
    )


def test_without_and_with_examples(web_page, demo_model, bundled_pictures):
    picture = bundled_pictures["statue.png"]
    add_pictures(web_page, picture)
    choose_task(web_page, "Caption")
    send(web_page)
    panel = compare_last(web_page)
    left, right = panel.locator(".column").first, panel.locator(".column").last
    change = panel.get_by_label("Change one thing:")
    expect(change).to_have_value("1")  # the first change that needs nothing more
    change.select_option("0")
    expect(panel).to_contain_text("There are no examples yet.")
    panel.get_by_role("button", name="Choose examples").click()
    web_page.get_by_role("button", name="Fun fact").click()
    expect(web_page.locator(".example")).to_have_count(1)
    close_drawer(web_page)
    expect(panel.get_by_label("Change one thing:")).to_be_focused()
    expect(left.locator("h3")).to_have_text("Without examples")
    expect(right.locator("h3")).to_have_text("With 1 example")
    vlm = demo_model.with_shots([Shot(bundled_pictures["tower.png"], FUN_FACT)])
    plain, shown = demo_model.caption(picture, logprobs=True), vlm.caption(picture, logprobs=True)
    expect(left.locator(".answer-text")).to_have_text(plain.text)
    expect(right.locator(".answer-text")).to_have_text(shown.text)
    expect(panel.locator("dt")).to_have_count(10)
    for column, answer, other in ((left, plain, shown), (right, shown, plain)):
        differing = [word for word in answer.text.split() if word not in other.text.split()]
        assert differing and column.locator("mark").all_inner_texts() == differing
    for column, answer in ((left, plain), (right, shown)):
        facts = facts_of(column)
        assert facts["Tokens read"] == str(answer.usage.prompt_tokens)
        assert facts["Tokens written"] == str(len(answer.tokens))
        assert abs(float(facts["Probability"].split()[0]) - 100 * math.exp(sum(answer.logprobs))) < 0.2
        assert facts["Time"].endswith(" s")
    change.press("Escape")
    expect(panel).to_be_hidden()


def test_another_detail_and_the_new_answer_is_kept(web_page, demo_model, bundled_pictures):
    add_pictures(web_page, bundled_pictures["picnic.png"])
    send(web_page, QUESTION)
    last_turn(web_page).get_by_role("button", name="Show where").click()
    expect(web_page.locator(".light.dimmed canvas")).to_be_visible()
    panel = compare_last(web_page)
    expect(web_page.locator(".light.dimmed, .light canvas")).to_have_count(0)
    expect(panel.get_by_label("Change one thing:")).to_be_focused()
    panel.get_by_label("Change one thing:").select_option(label="at a glance")
    right = panel.locator(".column").last
    expect(right.locator("h3")).to_have_text("At a glance")
    wanted = demo_model.ask(bundled_pictures["picnic.png"], QUESTION, detail="low").text
    expect(right.locator(".answer-text")).to_have_text(wanted)
    expect(right.locator("mark")).to_have_count(0 if wanted == "A couple, a basket and a sandwich." else 1)
    panel.get_by_label("Change one thing:").select_option(label="weigh several texts")
    expect(right.locator("dt")).to_have_count(5)
    panel.get_by_role("button", name="Keep the new answer").click()
    expect(panel).to_be_hidden()
    expect(web_page.locator(".turn")).to_have_count(2)
    beams = demo_model.ask(bundled_pictures["picnic.png"], QUESTION, num_beams=4).text
    expect(last_turn(web_page).locator(".answer-text")).to_have_text(beams)


def test_nothing_differs_from_an_answer_that_failed(web_browser, web_url, bundled_pictures):
    with open_page(web_browser, web_url, expected=["ERR_FAILED"]) as page:
        add_pictures(page, bundled_pictures["picnic.png"])
        send(page, QUESTION)
        expect(last_turn(page).locator(".meta")).to_contain_text("written")
        panel = compare_last(page)
        page.route("**/v1/images/tasks/*", lambda route: route.abort())
        panel.get_by_label("Change one thing:").select_option(label="at a glance")
        expect(panel.locator(".column .error:visible")).to_contain_text("The server does not answer")
        expect(panel.locator("mark")).to_have_count(0)


def test_rankings_are_compared_too(web_page, bundled_pictures):
    add_pictures(web_page, bundled_pictures["vegetables.png"])
    choose_task(web_page, "Classify")
    send(web_page, "vegetables, animals")
    panel = compare_last(web_page)
    panel.get_by_label("Change one thing:").select_option(label="at a glance")
    expect(panel.locator(".column").last.locator(".bar")).to_have_count(2)
    expect(panel.locator("option", has_text="vary")).to_have_count(0)
    expect(panel.locator(".column").last.locator("dt")).to_have_text(["Time", "Tokens read"])


def test_the_adapters_of_the_server_can_be_compared(web_browser, web_url, bundled_pictures):
    with open_page(web_browser, web_url, expected=["status of 404"]) as page:
        card = page.request.get(f"{web_url}/v1/models").json()["data"][0]
        page.route(
            "**/v1/models", lambda route: route.fulfill(json={"data": [card, {**card, "id": "birds"}]})
        )
        asked = []
        page.on(
            "request", lambda request: asked.append(request.post_data) if "/tasks/" in request.url else None
        )
        add_pictures(page, bundled_pictures["tower.png"])
        send(page, QUESTION)
        panel = compare_last(page)
        panel.get_by_label("Change one thing:").select_option(label="birds")
        expect(panel.locator("h3")).to_have_text(["demo", "birds"])
        error = panel.locator(".column").last.locator(".error")
        expect(error).to_contain_text("birds")  # this server has no such adapter
        assert 'name="model"\r\n\r\nbirds' in asked[-1]


def test_it_can_be_stopped_and_left(web_page, demo_model, bundled_pictures, monkeypatch):
    slow = SlowModel(monkeypatch, demo_model)
    add_pictures(web_page, bundled_pictures["picnic.png"])
    send(web_page, QUESTION)
    panel = compare_last(web_page)
    expect(panel.locator("dt")).to_have_count(10)
    slow.resume_event.clear()
    panel.get_by_label("Change one thing:").select_option(label="at a glance")
    expect(panel.locator(".column").last).to_contain_text(re.compile("Looking at the picture|Next in line"))
    panel.get_by_role("button", name="Stop").click()
    expect(panel.get_by_role("button", name="Stop")).to_be_hidden()
    slow.resume_event.set()
    wait_until(web_page, lambda: is_idle(demo_model))
    panel.get_by_role("button", name="Close").click()
    expect(web_page.locator("#words")).to_be_focused()
    expect(web_page.locator("#conversation")).to_be_visible()


def test_it_fits_a_small_phone(web_browser, web_url, bundled_pictures):
    with open_page(
        web_browser, web_url, viewport=PHONE_SIZE | {"width": 360}, has_touch=True, color_scheme="dark"
    ) as page:
        add_pictures(page, bundled_pictures["picnic.png"])
        send(page, QUESTION)
        panel = compare_last(page)
        panel.get_by_label("Change one thing:").select_option(label="at a glance")
        expect(panel.locator(".column").last.locator("dt")).to_have_count(5)
        assert page.evaluate("document.querySelector('#panel').scrollWidth <= innerWidth")
