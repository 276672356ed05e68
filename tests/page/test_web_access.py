"""The page for everybody: axe-core finds nothing serious in any view and theme; all of it works by keyboard."""

from pathlib import Path

import axe_playwright_python
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
    wait_until,
)

pytestmark = BROWSER_MARKS
AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
COLOR_RULES = ["color-contrast", "link-in-text-block"]  # the themes differ in colours alone


def find_violations(page, rules=RULES):
    """What axe-core finds that is serious or critical: rule, and the elements."""
    if not page.evaluate("Boolean(window.axe)"):
        page.evaluate(AXE)
    results = page.evaluate(
        "rules => axe.run(document, {runOnly: rules, resultTypes: ['violations']})", rules
    )
    return [
        f"{one['id']}: {node['html'][:150]} {node['failureSummary']}"
        for one in results["violations"]
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]


def open_conversation(page, pictures):
    """A conversation with answers, a ranking and two pictures."""
    add_pictures(page, pictures["picnic.png"], pictures["tower.png"])
    send(page, "Is it day or night?")
    expect(last_turn(page).locator(".answer-text")).to_have_text("Night.")
    choose_task(page, "Classify")
    send(page, "tower, cars, office")
    expect(last_turn(page).locator(".bar")).to_have_count(3)


def show_map(page):
    """The map of the last answer, with a word chosen."""
    turn = last_turn(page)
    turn.get_by_role("button", name="Show where").click()
    turn.locator(".where-word").first.click()
    expect(turn.locator(".where-progress")).to_be_hidden()


def open_menu(page):
    """The menu of the first conversation in the drawer."""
    page.locator("[data-drawer=history]").click()
    page.locator(".saved [aria-expanded]").click()


def sample(page):
    """The settings with the fields of sampling."""
    page.locator("[data-drawer=settings]").click()
    page.get_by_role("radio", name="Vary").check()


def use_recipe(page):
    """The drawer of examples with two of them."""
    page.locator("[data-drawer=examples]").click()
    page.get_by_role("button", name="JSON receipt").click()
    expect(page.locator(".example")).to_have_count(2)


@pytest.mark.parametrize("size", [DESKTOP_SIZE, PHONE_SIZE], ids=["laptop", "phone"])
def test_axe_finds_nothing_serious(web_browser, web_url, bundled_pictures, size):
    options = {"viewport": size, "reduced_motion": "reduce", "bypass_csp": True}
    with open_page(web_browser, web_url, **options) as page:
        found = {}

        def check(name):
            for theme, rules in (("dark", COLOR_RULES), ("light", RULES)):
                page.emulate_media(color_scheme=theme)
                found[f"{name}, {theme}"] = find_violations(page, rules)

        expect(page.locator("#model")).to_contain_text("demo")
        check("start")
        open_conversation(page, bundled_pictures)
        check("conversation")
        show_map(page)
        check("map")
        page.locator(".turn").first.get_by_role("button", name="Compare").click()
        expect(page.locator(".column").last).to_contain_text("By the picture's size")
        page.get_by_label("Change one thing:").select_option(label="at a glance")
        expect(page.locator(".column dt")).to_have_count(10)
        check("comparison")
        page.locator(".compare").get_by_role("button", name="Close").click()
        send(page, "tower")
        check("what is missing")
        last_turn(page).get_by_role("button", name="Delete").click()
        check("undo")
        page.locator("#add").click()
        check("add")
        page.keyboard.press("Escape")
        expect(page.locator("#add-menu")).to_be_hidden()
        drawers = page.locator(".composer-tools [data-drawer]:visible, .tools [data-drawer]:visible")
        for name in [one.get_attribute("data-drawer") for one in drawers.all()]:
            {"history": open_menu, "settings": sample, "examples": use_recipe}.get(
                name, lambda page, name=name: page.locator(f"[data-drawer={name}]").click()
            )(page)
            expect(page.locator(f"#drawer-{name}")).to_be_visible()
            check(f"drawer {name}")
            close_drawer(page)
        for link in page.locator(".views a:visible").all()[1:]:
            link.click()
            expect(link).to_have_attribute("aria-current", "page")
            expect(page.locator("#view h1, #view h2").first).to_be_visible()
            check(f"view {link.inner_text()}")
        assert {name: list_ for name, list_ in found.items() if list_} == {}


def test_every_key_does_what_the_list_says(web_page, bundled_pictures):
    keyboard = web_page.keyboard
    expect(web_page.locator("#model")).to_contain_text("demo")
    keyboard.press("?")
    drawer = web_page.locator("#drawer-shortcuts")
    expect(drawer.locator("dt")).to_have_count(18)
    expect(drawer.get_by_role("heading", name="Pictures")).to_be_visible()
    close_drawer(web_page)
    keyboard.press("/")
    expect(web_page.locator("#words")).to_be_focused()
    keyboard.type("? / s n")  # in a text field a character is a character
    expect(web_page.locator("#words")).to_have_value("? / s n")
    keyboard.press("Alt+ArrowDown")
    expect(web_page.locator("input[value=caption]")).to_be_checked()
    keyboard.press("Alt+ArrowUp")
    keyboard.press("Alt+ArrowUp")
    expect(web_page.locator("input[value=chat]")).to_be_checked()  # the one before the first is the last
    expect(web_page.locator("#words")).to_be_focused()
    add_pictures(web_page, bundled_pictures["tower.png"], bundled_pictures["statue.png"])
    for key, name in (("Alt+PageDown", "tower.png"), ("Alt+PageUp", "statue.png")):
        keyboard.press(key)
        expect(web_page.locator(".picture-name")).to_contain_text(name)
    keyboard.press("Control+k")
    expect(web_page.locator("#drawer-history")).to_be_visible()
    close_drawer(web_page)
    keyboard.press("Control+/")
    expect(drawer).to_be_visible()
    close_drawer(web_page)
    web_page.locator("#conversation").focus()
    keyboard.press("+")
    expect(web_page.locator("#add-menu :focus")).to_contain_text("pictures")
    for key, name in (
        ("ArrowDown", "folder"),
        ("End", "Paste"),
        ("ArrowDown", "pictures"),
        ("ArrowUp", "Paste"),
    ):
        keyboard.press(key)
        expect(web_page.locator("#add-menu :focus")).to_contain_text(name)
    keyboard.press("Escape")
    expect(web_page.locator("#add-menu")).to_be_hidden()
    web_page.locator("#conversation").focus()
    for key, shown in (("s", "#drawer-settings"), ("c", "#drawer-code"), ("+", "#add-menu")):
        keyboard.press(key)
        expect(web_page.locator(shown)).to_be_visible()
        close_drawer(web_page)
        expect(web_page.locator(shown)).to_be_hidden()
        web_page.locator("#conversation").focus()
    keyboard.press("n")
    expect(web_page.locator("#welcome")).to_be_visible()
    expect(web_page.locator("#words")).to_be_focused()


def test_single_keys_can_be_turned_off(web_page):
    web_page.locator("[data-drawer=shortcuts]").click()
    web_page.get_by_role("checkbox", name="Single keys").uncheck()
    close_drawer(web_page)
    web_page.keyboard.press("s")
    web_page.keyboard.press("Control+k")
    expect(web_page.locator("#drawer-history")).to_be_visible()
    assert web_page.locator("#drawer-settings").count() == 0


def test_a_conversation_by_keyboard_alone(web_page, bundled_pictures):
    """From a picture to an answer, to a name for the conversation, and back to it."""
    keyboard = web_page.keyboard
    add_pictures(web_page, bundled_pictures["tower.png"])
    expect(web_page.locator("#words")).to_be_focused()
    keyboard.type("Is it day or night?")
    keyboard.press("Enter")
    expect(last_turn(web_page).locator(".answer-text")).to_have_text("Night.")
    expect(web_page.locator("#words")).to_be_focused()
    keyboard.press("Control+k")
    more = web_page.locator(".saved [aria-expanded]")
    expect(more).to_be_visible()
    while not more.evaluate("node => node === document.activeElement"):
        keyboard.press("Tab")
    keyboard.press("Enter")
    keyboard.press("Tab")
    keyboard.press("Enter")
    keyboard.type("My tower")
    keyboard.press("Enter")
    expect(web_page.locator(".saved-title")).to_have_text("My tower")
    expect(web_page.locator(".saved-open")).to_be_focused()
    keyboard.press("Enter")
    expect(web_page.locator("#drawer-history")).to_have_count(0)
    expect(web_page.locator("#words")).to_be_focused()


def test_the_focus_stays_where_it_was_put_after_a_drawer_closed(web_page):
    web_page.locator("[data-drawer=settings]").click()
    expect(web_page.locator("#drawer-settings")).to_be_visible()
    # As by a fast hand: the dialog says later that it is closed.
    web_page.evaluate("document.querySelector('dialog').close(), document.querySelector('#words').focus()")
    expect(web_page.locator("dialog")).to_have_count(0)
    expect(web_page.locator("#words")).to_be_focused()


def hold(page, path):
    """Holds the requests for a file of the page; returns them."""
    held = []
    page.route(f"**/ui/{path}", lambda route: held.append(route))
    return held


def test_keys_that_come_before_the_page_knows_them_are_not_lost(web_page):
    held = hold(web_page, "shortcuts.js")
    web_page.reload()
    web_page.keyboard.press("Alt+ArrowDown")
    web_page.keyboard.press("Alt+ArrowDown")
    wait_until(web_page, lambda: held)
    held[0].continue_()
    expect(web_page.locator("input[value=complete]")).to_be_checked()


def test_what_is_pressed_twice_while_it_loads_opens_once(web_page, bundled_pictures):
    held = hold(web_page, "settings.js")
    for _ in range(2):
        web_page.locator("[data-drawer=settings]").click()
    wait_until(web_page, lambda: held)
    held[0].continue_()
    expect(web_page.locator("#drawer-settings")).to_be_visible()
    web_page.evaluate("async () => void (await import('/ui/settings.js'))")
    expect(web_page.locator("dialog")).to_have_count(1)
    close_drawer(web_page)
    add_pictures(web_page, bundled_pictures["tower.png"])
    send(web_page, "Is it day or night?")
    held = hold(web_page, "compare.js")
    for _ in range(2):
        last_turn(web_page).get_by_role("button", name="Compare").click()
    wait_until(web_page, lambda: held)
    held[0].continue_()
    expect(web_page.locator(".column dt")).to_have_count(10)
    web_page.locator(".compare").get_by_role("button", name="Close").click()
    expect(web_page.locator("#panel")).to_be_hidden()
