"""A server that goes away and comes back at its address: before, between and in the middle of answers."""

import threading
import time

import pytest
import uvicorn
from playwright.sync_api import expect

from idefics.page.static_files import mount_page
from idefics.server.app import create_app
from idefics.server.settings import Settings
from page.browser import (
    BROWSER_MARKS,
    SlowModel,
    add_pictures,
    choose_task,
    is_idle,
    last_turn,
    open_page,
    send,
    wait_until,
)

pytestmark = BROWSER_MARKS
GONE = ["net::ERR_"]
NO_ANSWER = "The server does not answer. If it was stopped, start it again; what is on this page stays."


class Server:
    """A server with the page that can be stopped, and started again at its address."""

    def __init__(self, demo):
        self.demo, self.port = demo, 0
        self.start()

    def start(self):
        """Starts it, each time at the same port."""
        app = create_app(self.demo, Settings(model="demo"))
        mount_page(app)
        options = {"log_level": "critical", "ws": "none", "timeout_graceful_shutdown": 0}
        self.server = uvicorn.Server(uvicorn.Config(app, port=self.port, **options))
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive()
            time.sleep(0.01)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]

    def stop(self):
        """Stops it; requests that run are cut off."""
        self.server.should_exit = True
        self.thread.join()


@pytest.fixture(scope="module")
def server(demo_model):
    """The server of this file."""
    server = Server(demo_model)
    yield server
    server.stop()


@pytest.fixture
def page(web_browser, server):
    """The page, whose console may complain about the server that is gone."""
    with open_page(web_browser, f"http://127.0.0.1:{server.port}", expected=GONE) as page:
        yield page


def test_between_two_answers(page, server, bundled_pictures):
    add_pictures(page, bundled_pictures["tower.png"])
    send(page, "Is it day or night?")
    expect(last_turn(page).locator(".answer-text")).to_have_text("Night.")
    server.stop()
    try:
        send(page, "What is in this image?")
        expect(last_turn(page).locator(".error")).to_have_text(NO_ANSWER)
        expect(page.locator(".answer-text").first).to_have_text("Night.")
        page.locator("[data-drawer=history]").click()  # not loaded yet
        expect(page.locator(".toast p")).to_contain_text("this part of the page cannot be loaded")
    finally:
        server.start()
    last_turn(page).get_by_role("button", name="Try again").click()
    expect(last_turn(page).locator(".answer-text")).to_have_text("A tower.")
    page.locator("[data-drawer=history]").click()
    expect(page.locator(".saved-title")).to_have_text("Is it day or night?")
    page.reload()
    expect(page.locator(".answer-text")).to_have_text(["Night.", "A tower."])


def test_in_the_middle_of_an_answer(page, server, bundled_pictures, demo_model, monkeypatch):
    slow = SlowModel(monkeypatch, demo_model)
    slow.seconds_per_step = 0.05
    add_pictures(page, bundled_pictures["puppy.png"])
    choose_task(page, "Write")
    send(page)
    text = last_turn(page).locator(".answer-text")
    wait_until(page, lambda: len(text.inner_text()) > 20)
    server.stop()
    try:
        error = last_turn(page).locator(".error")
        expect(error).to_have_text("The connection to the server broke off before the answer was complete.")
        slow.seconds_per_step = 0
        story = demo_model.write(bundled_pictures["puppy.png"]).text
        assert len(text.inner_text()) > 20 and story.startswith(text.inner_text())  # what came stays
        wait_until(page, lambda: is_idle(demo_model))
    finally:
        server.start()
    last_turn(page).get_by_role("button", name="Try again").click()
    expect(text).to_have_text(story)
    expect(error).to_be_hidden()


def test_before_the_page_knows_the_model(web_browser, server):
    with open_page(web_browser, f"http://127.0.0.1:{server.port}", expected=GONE) as page:
        page.route("**/v1/models", lambda route: route.abort())
        page.reload()
        expect(page.locator(".toast p")).to_have_text(NO_ANSWER)
        page.unroute("**/v1/models")
        page.get_by_role("button", name="Try again").click()
        expect(page.locator("#model")).to_contain_text("demo")
        expect(page.locator(".toast")).to_have_count(0)
