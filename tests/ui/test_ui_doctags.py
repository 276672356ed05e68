"""The page shows DocTags as the text that they are: no browser takes them for its own tags."""

import re

import pytest
from playwright.sync_api import expect

import idefics
from idefics.processing.fetch import Fetcher
from idefics.ui.talk import WORD_JOINER
from models import doctags
from models.doctags import PAGE
from ui.browser import BROWSER, example, run, served, tab, value

pytestmark = BROWSER


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    from idefics.ui.app import application
    from idefics.ui.desk import Settings

    vlm = idefics.load(doctags.write(tmp_path_factory.mktemp("doctags")))
    with served(application(vlm, Settings("doctags", Fetcher(policy="off", strangers=True)))) as address:
        yield address
    vlm.engine.close()


def shown(page, who):
    """The text of the last turn, without what nobody sees."""
    return page.get_by_test_id(who).last.inner_text().strip().replace(WORD_JOINER, "")


def test_a_conversation_shows_a_whole_page(page):
    example(page, "chat")
    run(page, "chat")
    expect(page.get_by_test_id("bot").last).to_have_text(re.compile("<.?/doctag>"))
    expect(page.locator("#chat-note")).to_contain_text("written")
    assert shown(page, "bot") == PAGE


def test_what_a_person_writes_is_shown_and_read_as_it_is(page):
    """No tag of theirs becomes the browser's, and nothing in it runs."""
    words = '<code>a</code> <img src=x onerror="window.ran = 1"><script>window.ran = 1</script> 1 < 2 <otsl>'
    page.locator("#chat-box textarea").fill(words)
    page.locator("#chat-box textarea").press("Enter")
    expect(page.locator("#chat-note")).to_contain_text("written")
    assert shown(page, "user") == words
    assert page.evaluate("window.ran") is None


def test_what_is_copied_is_the_text_itself(page, address):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=address)
    example(page, "chat")
    run(page, "chat")
    expect(page.locator("#chat-note")).to_contain_text("written")
    page.locator("#chat-talk").get_by_label("Copy message").last.click()
    assert page.evaluate("navigator.clipboard.readText()") == PAGE
    page.evaluate("navigator.clipboard.writeText('')")
    page.get_by_test_id("bot").last.click(click_count=3)
    page.keyboard.press("Control+c")
    assert page.evaluate("navigator.clipboard.readText()").strip() == PAGE


def test_an_answer_is_a_whole_page(page):
    tab(page, "Ask")
    example(page, "ask")
    expect(page.locator("#ask-words textarea")).not_to_have_value("")
    run(page, "ask")
    expect(page.locator("#ask-note")).to_contain_text("written")
    assert value(page, "#ask-answer") == PAGE
