"""The page's views in three sizes and two themes: nothing is cut off. Pictures of them are left in build/screens."""

from pathlib import Path

import pytest
from playwright.sync_api import expect

from page.browser import (
    BROWSER_MARKS,
    DESKTOP_SIZE,
    PHONE_SIZE,
    add_pictures,
    choose_task,
    close_drawer,
    last_turn,
    open_page,
    send,
)

pytestmark = BROWSER_MARKS
SCREENS = Path(__file__).parents[2] / "build" / "screens"
OVERFLOWS = """() => {
    const {scrollWidth, clientWidth, scrollHeight, clientHeight} = document.documentElement;
    return scrollWidth > clientWidth || scrollHeight > clientHeight;
}"""
SIZES = {"laptop": DESKTOP_SIZE, "phone": PHONE_SIZE, "wide": {"width": 2560, "height": 1300}}


@pytest.mark.parametrize("size", SIZES)
def test_every_view_fits(web_browser, web_url, bundled_pictures, size):
    SCREENS.mkdir(parents=True, exist_ok=True)
    with open_page(web_browser, web_url, viewport=SIZES[size], reduced_motion="reduce") as page:

        def take(name):
            for theme in ("dark", "light"):
                page.emulate_media(color_scheme=theme)
                page.screenshot(path=SCREENS / f"{name}-{size}-{theme}.png")
            assert not page.evaluate(OVERFLOWS), name
            unnamed = page.locator("img:visible:not([alt])").count()
            assert unnamed == 0, name

        expect(page.locator("#model")).to_contain_text("demo")
        take("start")
        add_pictures(page, bundled_pictures["picnic.png"], bundled_pictures["vegetables.png"])
        expect(page.locator(".picture-name")).to_contain_text("tokens")
        take("picture")
        choose_task(page, "Write")
        send(page)
        choose_task(page, "Classify")
        send(page, "animals, vegetables, city landscape, cars, office")
        expect(last_turn(page).locator(".bar")).to_have_count(5)
        expect(page.locator(".turn[data-status=done]")).to_have_count(2)
        take("answers")
        page.locator("[data-drawer=settings]").click()
        page.get_by_role("radio", name="Vary").check()
        take("settings")
        close_drawer(page)
        last_turn(page).get_by_role("button", name="Code").click()
        expect(page.get_by_label("curl", exact=True)).to_be_visible()
        take("code")
        close_drawer(page)
        last_turn(page).get_by_role("button", name="Show where").click()
        expect(last_turn(page).locator(".where-place")).to_be_visible()
        expect(last_turn(page).locator(".where-progress")).to_be_hidden()
        take("where")
        page.get_by_role("button", name="Examples").click()
        page.get_by_role("button", name="JSON receipt").click()
        expect(page.locator(".example")).to_have_count(2)
        take("examples")
        close_drawer(page)
        page.locator(".turn").first.get_by_role("button", name="Compare").click()
        expect(page.locator(".column dt")).to_have_count(10)
        take("compare")
        page.locator(".compare").get_by_role("button", name="Close").click()
        page.keyboard.press("Control+k")
        page.locator(".saved [aria-expanded]").click()
        take("conversations")
        close_drawer(page)
        page.keyboard.press("Control+/")
        expect(page.locator("#drawer-shortcuts")).to_be_visible()
        take("keyboard")
        close_drawer(page)
        page.get_by_role("link", name="Live").click()
        page.get_by_role("button", name="Start").click()
        expect(page.locator(".live-answer")).not_to_be_empty()
        page.get_by_role("button", name="Stop").click()
        take("live")
