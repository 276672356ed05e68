"""The server's page in a real browser: its key, its limits, and the engine that it shares with the API."""

import httpx
import pytest
from playwright.sync_api import Error, expect

from idefics.server.app import create_app
from idefics.server.settings import Settings
from page.browser import (
    BROWSER_MARKS,
    DESKTOP_SIZE,
    SlowModel,
    choose_example,
    click_run,
    open_page,
    open_tab,
    remove_stop_ids,
    serve_app,
    wait_until,
)

pytestmark = BROWSER_MARKS
API_KEY = "mellon"
CHAT, HELLO = "/v1/chat/completions", {"model": "demo", "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture(scope="module")
def app(demo_model):
    from idefics.cli.serve import _mount_page

    settings = Settings(model="demo", ui=True, api_key=API_KEY, requests_at_once=1)
    app = create_app(demo_model, settings)
    _mount_page(app, demo_model, settings, "http://127.0.0.1:8000")
    return app


@pytest.fixture(scope="module")
def page_url(app):
    with serve_app(app) as address:
        yield address


@pytest.fixture
def admission(app):
    return app.state.service.admission


@pytest.fixture
def page(chromium_browser, page_url):
    """The page in a browser that sends the key."""
    foreign_urls = []
    page = open_page(
        chromium_browser,
        page_url,
        foreign_urls,
        viewport=DESKTOP_SIZE,
        http_credentials={"username": "me", "password": API_KEY},
    )
    yield page
    page.context.close()
    assert foreign_urls == []


@pytest.fixture
def api_client(page_url):
    """A client of the API, with the key."""
    with httpx.Client(base_url=page_url, headers={"Authorization": f"Bearer {API_KEY}"}) as client:
        yield client


def read_metric(api, name):
    """The value of a counter or gauge in /metrics."""
    lines = [line for line in api.get("/metrics").text.splitlines() if line.startswith(name)]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def test_a_browser_asks_for_the_key(chromium_browser, page_url):
    context = chromium_browser.new_context()
    try:
        with pytest.raises(Error, match="ERR_INVALID_AUTH_CREDENTIALS"):  # nobody is there to answer
            context.new_page().goto(page_url)
    finally:
        context.close()


def test_a_wrong_key_is_refused_with_a_message(chromium_browser, page_url):
    context = chromium_browser.new_context(http_credentials={"username": "me", "password": "friend"})
    try:
        page = context.new_page()
        assert page.goto(page_url).status == 401
        expect(page.locator("body")).to_contain_text(
            "API key is missing or wrong: reload the page and enter it"
        )
        assert page.locator("#chat-run").count() == 0
    finally:
        context.close()


def test_a_question_takes_a_slot_of_the_servers_admission_control(
    page, api_client, admission, demo_model, monkeypatch
):
    SlowModel(monkeypatch, demo_model)
    remove_stop_ids(monkeypatch, demo_model)
    open_tab(page, "Ask")
    choose_example(page, "ask", 2)
    click_run(page, "ask")
    wait_until(page, lambda: admission.usage["tokens"])
    assert (len(admission.slots), admission.usage["pictures"]) == (1, 1)
    # The API and the page share one engine.
    wait_until(page, lambda: read_metric(api_client, "idefics_batch ") == 1)
    assert read_metric(api_client, "idefics_visits ") == 1
    refused = api_client.post(CHAT, json=HELLO)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    page.locator("#ask-stop").click()
    expect(page.locator("#ask-note")).to_contain_text("stopped")
    wait_until(page, lambda: not admission.slots)
    assert (admission.usage["pictures"], admission.usage["tokens"]) == (0, 0)
    assert read_metric(api_client, "idefics_visits ") == 0


@pytest.mark.parametrize("place", ["chat", "ask", "classify", "batch"])
def test_a_full_server_is_reported(page, api_client, admission, place):
    open_tab(page, place.capitalize())
    if place == "batch":
        page.locator("#batch-example").click()
        expect(page.locator("#batch-files")).to_contain_text("vegetables")
    else:
        choose_example(page, place)
    refusals, there = read_metric(api_client, "idefics_refusals_total"), admission.acquire_slot(lambda: None)
    try:
        click_run(page, place)
        expect(page.get_by_test_id("toast-body")).to_contain_text("server is busy with 1 requests")
        expect(page.get_by_test_id("toast-body")).to_contain_text("try again in")
        expect(page.locator(f"#{place}-run")).to_be_enabled()
    finally:
        admission.release_slot(there)
    assert read_metric(api_client, "idefics_refusals_total") == refusals + 1
    click_run(page, place)
    done = page.locator("#batch-progress" if place == "batch" else f"#{place}-note")
    expect(done).to_contain_text("7 of 7" if place == "batch" else "read")
