"""The page shows DocTags as text; the browser does not read them as HTML."""

import re

import pytest
from playwright.sync_api import expect

import idefics
from idefics.page.chat_turns import WORD_JOINER
from idefics.processing.fetch import Fetcher
from models import doctags
from models.doctags import PAGE_TEXT
from page.browser import BROWSER_MARKS, choose_example, click_run, field_value, open_tab, serve_app

pytestmark = BROWSER_MARKS


@pytest.fixture(scope="module")
def page_url(tmp_path_factory):
    from idefics.page.app import create_page_app
    from idefics.page.backend import PageSettings

    vlm = idefics.load(doctags.write_checkpoint(tmp_path_factory.mktemp("doctags")))
    with serve_app(
        create_page_app(vlm, PageSettings("doctags", Fetcher(policy="off", untrusted=True)))
    ) as address:
        yield address
    vlm.engine.close()


def last_turn_text(page, who):
    """The text of the last turn, without invisible characters."""
    return page.get_by_test_id(who).last.inner_text().strip().replace(WORD_JOINER, "")


def test_a_conversation_shows_a_whole_page(page):
    choose_example(page, "chat")
    click_run(page, "chat")
    expect(page.get_by_test_id("bot").last).to_have_text(re.compile("<.?/doctag>"))
    expect(page.locator("#chat-note")).to_contain_text("written")
    assert last_turn_text(page, "bot") == PAGE_TEXT


def test_what_a_person_writes_is_shown_and_read_as_it_is(page):
    """Tags in a question are not read as HTML, and no script in it runs."""
    words = '<code>a</code> <img src=x onerror="window.ran = 1"><script>window.ran = 1</script> 1 < 2 <otsl>'
    page.locator("#chat-box textarea").fill(words)
    page.locator("#chat-box textarea").press("Enter")
    expect(page.locator("#chat-note")).to_contain_text("written")
    assert last_turn_text(page, "user") == words
    assert page.evaluate("window.ran") is None


def test_what_is_copied_is_the_text_itself(page, page_url):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=page_url)
    choose_example(page, "chat")
    click_run(page, "chat")
    expect(page.locator("#chat-note")).to_contain_text("written")
    page.locator("#chat-talk").get_by_label("Copy message").last.click()
    assert page.evaluate("navigator.clipboard.readText()") == PAGE_TEXT
    page.evaluate("navigator.clipboard.writeText('')")
    page.get_by_test_id("bot").last.click(click_count=3)
    page.keyboard.press("Control+c")
    assert page.evaluate("navigator.clipboard.readText()").strip() == PAGE_TEXT


def test_an_answer_is_a_whole_page(page):
    open_tab(page, "Ask")
    choose_example(page, "ask")
    expect(page.locator("#ask-words textarea")).not_to_have_value("")
    click_run(page, "ask")
    expect(page.locator("#ask-note")).to_contain_text("written")
    assert field_value(page, "#ask-answer") == PAGE_TEXT
