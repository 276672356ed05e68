"""A page that is served, and a browser that looks at it."""

import shutil
import threading
import time
import zipfile
from contextlib import contextmanager
from dataclasses import replace

import pytest
import uvicorn
from playwright.sync_api import expect

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
BROWSER = [
    pytest.mark.browser,
    # On a machine with much to do Gradio's frontend loses an input or a click now and then. The summary counts reruns.
    pytest.mark.flaky(reruns=2),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # between Gradio and pandas
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium"),
]
FLAGS = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
DESKTOP, PHONE = {"width": 1280, "height": 860}, {"width": 390, "height": 844}
TABS = ["Chat", "Caption", "Ask", "Classify", "Write", "Few-shot", "Batch"]
expect.set_options(timeout=30_000)


@contextmanager
def served(app):
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


def opened(browser, address, strangers, **context):
    """A page in a browser of its own; addresses that it asks for elsewhere are written down in `strangers`."""
    page = browser.new_context(**context).new_page()
    page.set_default_timeout(30_000)

    def note(request):
        if not request.url.startswith((address, "data:", "blob:")):
            strangers.append(request.url)

    page.on("request", note)
    page.goto(address)
    page.locator("#chat-run").wait_for()
    return page


def tab(page, name):
    """Opens a tab, as a person does."""
    page.get_by_role("tab", name=name, exact=True).click()


def value(page, selector):
    """What stands in a text field."""
    return page.locator(f"{selector} textarea").input_value()


def example(page, place, number=0):
    """The example's picture is there when its cost is said."""
    page.locator(f"#{place}-examples button").nth(number).click()
    expect(page.locator(f"#{place}-cost")).to_contain_text("tokens")


def run(page, place):
    page.locator(f"#{place}-run").click()


def zipped(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


class Slow:
    """Makes a model's answers slow: `pause` seconds a token. None comes while `going` is not set."""

    def __init__(self, monkeypatch, demo):
        self.going, self.pause = threading.Event(), 0.05
        self.going.set()
        step = demo.engine.step

        def slowly():
            self.going.wait(20)
            time.sleep(self.pause)
            step()

        monkeypatch.setattr(demo.engine, "step", slowly)


def no_end(monkeypatch, demo):
    """Answers go on until they are as long as may be."""
    submit = demo.engine.submit

    def endless(request, **how):
        return submit(replace(request, stop_ids=frozenset()), **how)

    monkeypatch.setattr(demo.engine, "submit", endless)


def is_idle(demo):
    return not demo.engine.is_busy and not demo.engine._jobs


def wait_until(page, condition):
    for _ in range(400):
        if condition():
            return
        page.wait_for_timeout(25)
    raise AssertionError("it never came to that")
