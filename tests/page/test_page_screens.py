"""Every tab on a desktop, on a phone and in dark mode; screenshots are left for inspection."""

from pathlib import Path

import pytest
from playwright.sync_api import expect

from page.browser import (
    BROWSER_MARKS,
    DESKTOP_SIZE,
    PHONE_SIZE,
    TAB_NAMES,
    choose_example,
    click_run,
    open_page,
    open_tab,
)

pytestmark = BROWSER_MARKS


@pytest.mark.parametrize("look", ["desktop", "phone", "dark"])
def test_every_tab_fits_and_every_picture_has_alternative_text(chromium_browser, page_url, look):
    """Screenshots are left in build/screens for inspection."""
    screens = Path(__file__).parents[2] / "build" / "screens"
    screens.mkdir(parents=True, exist_ok=True)
    options = {"viewport": PHONE_SIZE if look == "phone" else DESKTOP_SIZE}
    if look == "dark":
        options["color_scheme"] = "dark"
    foreign_urls = []
    page = open_page(chromium_browser, page_url, foreign_urls, **options)
    try:
        for name in TAB_NAMES:
            place = name.lower()
            if look == "phone" and not page.get_by_role("tab", name=name, exact=True).is_visible():
                page.get_by_label("More tabs").click()
                page.locator(".overflow-dropdown button", has_text=name).click()
            else:
                open_tab(page, name)
            if name == "Batch":
                page.locator("#batch-example").click()
                expect(page.locator("#batch-files")).to_contain_text("vegetables")
                click_run(page, place)
                expect(page.locator("#batch-progress")).to_contain_text("7 of 7")
            else:
                choose_example(page, place)
                page.wait_for_timeout(600)
                click_run(page, place)
                expect(page.locator(f"#{place}-note")).to_contain_text("read")
            if name == "Chat":
                page.locator("#chat-earlier > button").click()
                expect(page.locator("#chat-history label")).to_have_count(1)
            page.wait_for_timeout(300)
            page.mouse.move(0, 0)
            page.screenshot(path=screens / f"{look}-{place}.png", full_page=True)
            width = page.evaluate("document.documentElement.scrollWidth")
            assert width <= options["viewport"]["width"], f"{name} is {width} wide"
            blank = page.locator("img:visible").evaluate_all(
                "all => all.filter(one => !one.alt).map(one => one.src)"
            )
            assert blank == []
    finally:
        page.context.close()
    assert foreign_urls == []
