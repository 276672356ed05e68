"""The server's page in a real browser: its key, its limits, and the engine that it shares with the API."""

import httpx
import pytest
from playwright.sync_api import Error, expect

from idefics.server.app import create_app
from idefics.server.settings import Settings
from ui.browser import BROWSER, DESKTOP, Slow, example, no_end, opened, run, served, tab, wait_until

pytestmark = BROWSER
KEY = "mellon"
CHAT, HELLO = "/v1/chat/completions", {"model": "demo", "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture(scope="module")
def app(demo):
    from idefics.cli.serve import _add_page

    settings = Settings(model="demo", ui=True, api_key=KEY, requests_at_once=1)
    app = create_app(demo, settings)
    _add_page(app, demo, settings, "http://127.0.0.1:8000")
    return app


@pytest.fixture(scope="module")
def address(app):
    with served(app) as address:
        yield address


@pytest.fixture
def admission(app):
    return app.state.service.admission


@pytest.fixture
def page(chromium, address):
    """The page, in a browser of somebody who knows the key."""
    strangers = []
    page = opened(
        chromium, address, strangers, viewport=DESKTOP, http_credentials={"username": "me", "password": KEY}
    )
    yield page
    page.context.close()
    assert strangers == []


@pytest.fixture
def api(address):
    """A client of the API, with the key."""
    with httpx.Client(base_url=address, headers={"Authorization": f"Bearer {KEY}"}) as client:
        yield client


def counted(api, name):
    """What /metrics says of a counter or gauge."""
    lines = [line for line in api.get("/metrics").text.splitlines() if line.startswith(name)]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def test_a_browser_asks_for_the_key(chromium, address):
    context = chromium.new_context()
    try:
        with pytest.raises(Error, match="ERR_INVALID_AUTH_CREDENTIALS"):  # nobody is there to answer
            context.new_page().goto(address)
    finally:
        context.close()


def test_a_wrong_key_is_refused_in_words(chromium, address):
    context = chromium.new_context(http_credentials={"username": "me", "password": "friend"})
    try:
        page = context.new_page()
        assert page.goto(address).status == 401
        expect(page.locator("body")).to_contain_text(
            "API key is missing or wrong: reload the page and give it"
        )
        assert page.locator("#chat-run").count() == 0
    finally:
        context.close()


def test_a_question_takes_a_place_among_the_servers_requests(page, api, admission, demo, monkeypatch):
    Slow(monkeypatch, demo)
    no_end(monkeypatch, demo)
    tab(page, "Ask")
    example(page, "ask", 2)
    run(page, "ask")
    wait_until(page, lambda: admission.tokens)
    assert (len(admission.places), admission.pictures) == (1, 1)
    wait_until(page, lambda: counted(api, "idefics_batch ") == 1)  # it is in the engine that the API asks
    assert counted(api, "idefics_visits ") == 1
    refused = api.post(CHAT, json=HELLO)
    assert (refused.status_code, refused.json()["error"]["message"][:10]) == (429, "1 requests")
    page.locator("#ask-stop").click()
    expect(page.locator("#ask-note")).to_contain_text("stopped")
    wait_until(page, lambda: not admission.places)
    assert (admission.pictures, admission.tokens) == (0, 0)
    assert counted(api, "idefics_visits ") == 0


@pytest.mark.parametrize("place", ["chat", "ask", "classify", "batch"])
def test_where_there_is_no_room_it_is_said(page, api, admission, place):
    tab(page, place.capitalize())
    if place == "batch":
        page.locator("#batch-example").click()
        expect(page.locator("#batch-files")).to_contain_text("vegetables")
    else:
        example(page, place)
    refusals, there = counted(api, "idefics_refusals_total"), admission.enter(lambda: None)
    try:
        run(page, place)
        expect(page.get_by_test_id("toast-body")).to_contain_text("1 requests are being answered or wait")
        expect(page.get_by_test_id("toast-body")).to_contain_text("ask again in")
        expect(page.locator(f"#{place}-run")).to_be_enabled()
    finally:
        admission.leave(there)
    assert counted(api, "idefics_refusals_total") == refusals + 1
    run(page, place)
    done = page.locator("#batch-progress" if place == "batch" else f"#{place}-note")
    expect(done).to_contain_text("7 of 7" if place == "batch" else "read")
