"""The page in a real browser: answers that are stopped, browsers that leave, and two at once."""

import re

import pytest
from playwright.sync_api import expect

from ui.browser import (
    BROWSER,
    DESKTOP,
    Slow,
    example,
    is_idle,
    no_end,
    opened,
    run,
    tab,
    value,
    wait_until,
    zipped,
)

pytestmark = BROWSER


@pytest.mark.parametrize("place", ["chat", "ask"])
def test_stop_ends_the_request_itself(page, demo, monkeypatch, place):
    Slow(monkeypatch, demo)
    no_end(monkeypatch, demo)
    tab(page, place.capitalize())
    example(page, place)
    page.locator(f"#{place}-advanced > button").click()
    page.locator(f"#{place}-max-new-tokens input[type=number]").fill("900")
    page.locator(f"#{place}-max-new-tokens input[type=number]").press("Tab")
    answer = page.get_by_test_id("bot").last if place == "chat" else page.locator("#ask-answer textarea")
    run(page, place)
    wait_until(
        page, lambda: answer.count() and (answer.inner_text() if place == "chat" else answer.input_value())
    )
    assert not is_idle(demo)
    page.locator(f"#{place}-stop").click()
    expect(page.locator(f"#{place}-note")).to_contain_text("stopped")
    wait_until(page, lambda: is_idle(demo))
    expect(page.locator(f"#{place}-run")).to_be_enabled()
    expect(page.locator(f"#{place}-stop")).to_be_disabled()


def test_a_browser_that_leaves_ends_its_request(chromium, address, demo, monkeypatch):
    Slow(monkeypatch, demo)
    no_end(monkeypatch, demo)
    page = opened(chromium, address, [], viewport=DESKTOP)
    example(page, "chat")
    run(page, "chat")
    wait_until(page, lambda: not is_idle(demo))
    page.context.close()
    other = opened(chromium, address, [], viewport=DESKTOP)
    wait_until(other, lambda: is_idle(demo))
    other.context.close()


def test_a_batch_is_stopped(page, demo, bundled, tmp_path, monkeypatch):
    Slow(monkeypatch, demo)
    files = {f"{number:03}.png": bundled["tower.png"].read_bytes() for number in range(200)}
    tab(page, "Batch")
    page.locator("#batch-files input[type=file]").set_input_files(zipped(tmp_path / "many.zip", files))
    expect(page.locator("#batch-files")).to_contain_text("many")
    run(page, "batch")
    expect(page.locator("#batch-progress")).to_contain_text(re.compile(r"[1-9]\d* of 200"))
    page.locator("#batch-stop").click()
    expect(page.locator("#batch-run")).to_be_enabled()
    wait_until(page, lambda: is_idle(demo))
    assert "200 of 200" not in page.locator("#batch-progress").inner_text()
    expect(page.locator("#batch-jsonl")).to_be_enabled()


def test_two_browsers_at_once_do_not_meet(chromium, address, demo, monkeypatch):
    slow = Slow(monkeypatch, demo)
    pages = [opened(chromium, address, [], viewport=DESKTOP) for _ in range(2)]
    try:
        for number, page in enumerate(pages):
            tab(page, "Write")
            example(page, "write", number)
        slow.going.clear()
        for page in pages:
            run(page, "write")
        pages[0].locator("#write-stop").click()
        expect(pages[0].locator("#write-note")).to_contain_text("stopped")
        slow.going.set()
        expect(pages[1].locator("#write-note")).to_contain_text("written")
        assert "stopped" not in pages[1].locator("#write-note").inner_text()
        assert "tulip" in value(pages[1], "#write-answer")
        assert "tulip" not in value(pages[0], "#write-answer")
    finally:
        slow.going.set()
        for page in pages:
            page.context.close()
