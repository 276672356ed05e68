"""The page in a real browser: stopped answers, closed browsers, and two browsers at once."""

import re

import pytest
from playwright.sync_api import expect

from page.browser import (
    BROWSER_MARKS,
    DESKTOP_SIZE,
    SlowModel,
    choose_example,
    click_run,
    field_value,
    is_idle,
    open_page,
    open_tab,
    remove_stop_ids,
    wait_until,
    write_zip,
)

pytestmark = BROWSER_MARKS


@pytest.mark.parametrize("place", ["chat", "ask"])
def test_stop_ends_the_request_itself(page, demo_model, monkeypatch, place):
    SlowModel(monkeypatch, demo_model)
    remove_stop_ids(monkeypatch, demo_model)
    open_tab(page, place.capitalize())
    choose_example(page, place)
    page.locator(f"#{place}-advanced > button").click()
    page.locator(f"#{place}-max-new-tokens input[type=number]").fill("900")
    page.locator(f"#{place}-max-new-tokens input[type=number]").press("Tab")
    answer = page.get_by_test_id("bot").last if place == "chat" else page.locator("#ask-answer textarea")
    click_run(page, place)
    wait_until(
        page, lambda: answer.count() and (answer.inner_text() if place == "chat" else answer.input_value())
    )
    assert not is_idle(demo_model)
    page.locator(f"#{place}-stop").click()
    expect(page.locator(f"#{place}-note")).to_contain_text("stopped")
    wait_until(page, lambda: is_idle(demo_model))
    expect(page.locator(f"#{place}-run")).to_be_enabled()
    expect(page.locator(f"#{place}-stop")).to_be_disabled()


def test_a_browser_that_leaves_ends_its_request(chromium_browser, page_url, demo_model, monkeypatch):
    SlowModel(monkeypatch, demo_model)
    remove_stop_ids(monkeypatch, demo_model)
    page = open_page(chromium_browser, page_url, [], viewport=DESKTOP_SIZE)
    choose_example(page, "chat")
    click_run(page, "chat")
    wait_until(page, lambda: not is_idle(demo_model))
    page.context.close()
    other = open_page(chromium_browser, page_url, [], viewport=DESKTOP_SIZE)
    wait_until(other, lambda: is_idle(demo_model))
    other.context.close()


def test_a_batch_is_stopped(page, demo_model, bundled_pictures, tmp_path, monkeypatch):
    SlowModel(monkeypatch, demo_model)
    files = {f"{number:03}.png": bundled_pictures["tower.png"].read_bytes() for number in range(200)}
    open_tab(page, "Batch")
    page.locator("#batch-files input[type=file]").set_input_files(write_zip(tmp_path / "many.zip", files))
    expect(page.locator("#batch-files")).to_contain_text("many")
    click_run(page, "batch")
    expect(page.locator("#batch-progress")).to_contain_text(re.compile(r"[1-9]\d* of 200"))
    page.locator("#batch-stop").click()
    expect(page.locator("#batch-run")).to_be_enabled()
    wait_until(page, lambda: is_idle(demo_model))
    assert "200 of 200" not in page.locator("#batch-progress").inner_text()
    expect(page.locator("#batch-jsonl")).to_be_enabled()


def test_two_browsers_at_once_get_their_own_answers(chromium_browser, page_url, demo_model, monkeypatch):
    slow = SlowModel(monkeypatch, demo_model)
    pages = [open_page(chromium_browser, page_url, [], viewport=DESKTOP_SIZE) for _ in range(2)]
    try:
        for number, page in enumerate(pages):
            open_tab(page, "Write")
            choose_example(page, "write", number)
        slow.resume_event.clear()
        for page in pages:
            click_run(page, "write")
        pages[0].locator("#write-stop").click()
        expect(pages[0].locator("#write-note")).to_contain_text("stopped")
        slow.resume_event.set()
        expect(pages[1].locator("#write-note")).to_contain_text("written")
        assert "stopped" not in pages[1].locator("#write-note").inner_text()
        assert "tulip" in field_value(pages[1], "#write-answer")
        assert "tulip" not in field_value(pages[0], "#write-answer")
    finally:
        slow.resume_event.set()
        for page in pages:
            page.context.close()
