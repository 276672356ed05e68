"""Serves the page and drives it in a browser."""

import shutil
import threading
import time
import zipfile
from contextlib import contextmanager
from dataclasses import replace

import pytest
import uvicorn
from playwright.sync_api import expect

CHROMIUM_PATH = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
BROWSER_MARKS = [
    pytest.mark.browser,
    # On a machine with much to do Gradio's frontend loses an input or a click now and then. The summary counts reruns.
    pytest.mark.flaky(reruns=2),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # between Gradio and pandas
    pytest.mark.skipif(CHROMIUM_PATH is None, reason="no Chromium: apt-get install chromium"),
]
CHROMIUM_FLAGS = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
DESKTOP_SIZE, PHONE_SIZE = {"width": 1280, "height": 860}, {"width": 390, "height": 844}
TAB_NAMES = ["Chat", "Caption", "Ask", "Classify", "Write", "Few-shot", "Batch"]
expect.set_options(timeout=30_000)


@contextmanager
def serve_app(app):
    """The address of an application while it runs in a thread."""
    config = uvicorn.Config(app, port=0, log_level="error", ws="none", timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def open_page(browser, address, foreign_urls, **context):
    """Opens the page in a new browser context; requests to other servers are recorded in `foreign_urls`."""
    page = browser.new_context(**context).new_page()
    page.set_default_timeout(30_000)

    def note(request):
        if not request.url.startswith((address, "data:", "blob:")):
            foreign_urls.append(request.url)

    page.on("request", note)
    page.goto(address)
    page.locator("#chat-run").wait_for()
    return page


def open_tab(page, name):
    """Opens a tab by a click."""
    page.get_by_role("tab", name=name, exact=True).click()


def field_value(page, selector):
    """The value of a text field."""
    return page.locator(f"{selector} textarea").input_value()


def choose_example(page, tab_id, number=0):
    """Clicks an example and waits until its picture is loaded, which its token cost shows."""
    page.locator(f"#{tab_id}-examples button").nth(number).click()
    expect(page.locator(f"#{tab_id}-cost")).to_contain_text("tokens")


def click_run(page, tab_id):
    page.locator(f"#{tab_id}-run").click()


def write_zip(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


class SlowModel:
    """Delays each token of a model by `seconds_per_token` seconds, and until `resume_event` is set."""

    def __init__(self, monkeypatch, demo):
        self.resume_event, self.seconds_per_token = threading.Event(), 0.05
        self.resume_event.set()
        step = demo.engine.step

        def slowly():
            self.resume_event.wait(20)
            time.sleep(self.seconds_per_token)
            step()

        monkeypatch.setattr(demo.engine, "step", slowly)


def remove_stop_ids(monkeypatch, demo):
    """Removes the stop ids, so that answers end at `max_new_tokens`."""
    submit = demo.engine.submit

    def endless(request, **how):
        return submit(replace(request, stop_ids=frozenset()), **how)

    monkeypatch.setattr(demo.engine, "submit", endless)


def is_idle(demo):
    """Whether the engine has no request left."""
    return not demo.engine.is_busy and not demo.engine._state_by_handle


def wait_until(page, condition):
    for _ in range(400):
        if condition():
            return
        page.wait_for_timeout(25)
    raise AssertionError("it never came to that")
