"""Drives the page in a browser."""

import base64
import json
import shutil
import threading
import time
from contextlib import contextmanager

import pytest
import uvicorn
from playwright.sync_api import expect

CHROMIUM_PATH = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
BROWSER_MARKS = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM_PATH is None, reason="no Chromium: apt-get install chromium"),
]
CHROMIUM_FLAGS = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
DESKTOP_SIZE, PHONE_SIZE = {"width": 1280, "height": 720}, {"width": 390, "height": 844}
# Polls and pauses after errors take a tenth of their time; what people need time for, such as to undo, stays.
FAST_TIMERS = """
    const wait = setTimeout;
    window.setTimeout = (work, time, ...rest) => wait(work, time > 5000 ? time : time / 10, ...rest);
"""
TIMEOUT = 15_000  # milliseconds
expect.set_options(timeout=TIMEOUT)


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


class Complaints:
    """What a page must not do: errors in its console, and requests to other servers."""

    def __init__(self, page, address, expected=()):
        self.found, self.expected = [], list(expected)
        page.on("pageerror", lambda error: self.found.append(str(error)))
        page.on("console", self._note_message)
        page.on("request", lambda request: self._note_request(request.url, address))

    def _note_message(self, message):
        if message.type in ("error", "warning") and not any(one in message.text for one in self.expected):
            self.found.append(message.text)

    def _note_request(self, url, address):
        if not url.startswith((address, "data:", "blob:")):
            self.found.append(f"request to {url}")


@contextmanager
def open_page(browser, address, *, path="/", expected=(), init_script="", **options):
    """The page in a new browser context; fails at the end if it did what it must not.

    Args:
        expected: parts of console messages that the test provokes, such as "status of 429".
        init_script: runs before the scripts of each page of the context.
        options: of the context.
    """
    context = browser.new_context(**{"viewport": DESKTOP_SIZE, **options})
    if init_script:
        context.add_init_script(init_script)
    page = context.new_page()
    page.set_default_timeout(TIMEOUT)
    complaints = Complaints(page, address, expected)
    page.goto(address + path)
    try:
        yield page
        assert complaints.found == []
    finally:
        context.close()


def choose_task(page, label):
    """Chooses a task chip."""
    page.locator("label.chip", has_text=label).click()


def add_pictures(page, *paths):
    """Adds pictures by the menu's file field, and waits until the last is on the stage."""
    page.locator("#file-input").set_input_files([str(path) for path in paths])
    expect(page.locator("#stage .picture-name")).to_contain_text(paths[-1].name)


def close_drawer(page):
    """Closes a drawer or dialog by Escape, and waits until it is gone."""
    page.keyboard.press("Escape")
    expect(page.locator("dialog")).to_have_count(0)


def send(page, text=""):
    """Types a text into the composer and sends it; the turn that it adds comes a moment later."""
    if text:
        page.locator("#words").fill(text)
    page.locator("#words").press("Enter")


def last_turn(page):
    """The last turn of the conversation."""
    return page.locator(".turn").last


def answer_with(page, *texts):
    """Lets the routes of tasks answer with these texts, whatever is asked."""
    events = [{"text": text} for text in texts]
    usage = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
    events.append({"text": "", "finish_reason": "stop", "usage": usage})
    lines = [f"data: {json.dumps(event)}\n\n" for event in events]
    body = "".join([*lines, "data: [DONE]\n\n"])
    page.route(
        "**/v1/images/tasks/*", lambda route: route.fulfill(body=body, content_type="text/event-stream")
    )


class SlowModel:
    """Delays each step of a model by `seconds_per_step` seconds, and until `resume_event` is set.

    Attributes:
        num_allowed_steps: steps that it takes although `resume_event` is not set.
    """

    def __init__(self, monkeypatch, demo):
        self.resume_event, self.seconds_per_step, self.num_allowed_steps = threading.Event(), 0.0, 0
        self.resume_event.set()
        step = demo.engine.step

        def slowly():
            while demo.engine.step is slowly and not self.resume_event.wait(0.01):  # not after the test
                if self.num_allowed_steps:
                    self.num_allowed_steps -= 1
                    break
            time.sleep(self.seconds_per_step)
            step()

        monkeypatch.setattr(demo.engine, "step", slowly)


def is_idle(demo):
    """Whether the engine has no request left."""
    return not demo.engine.is_busy and not demo.engine._state_by_handle


def wait_until(page, condition):
    """Waits until a condition holds, while the browser goes on."""
    deadline = time.monotonic() + TIMEOUT / 1000
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        page.wait_for_timeout(25)


def wait_until_saved(page):
    """Waits until the browser has stored the conversations of the page."""
    page.evaluate("async () => void (await (await import('/ui/saving.js')).saveAll())")


def drop_files(page, selector, files):
    """Drops files on an element: {path in a folder: (bytes, media type)}. Returns whether the page took them itself."""
    transfer = page.evaluate_handle(
        """files => {
            const transfer = new DataTransfer();
            for (const [name, base64, type] of files) {
                const bytes = Uint8Array.from(atob(base64), (char) => char.charCodeAt(0));
                transfer.items.add(new File([bytes], name, {type}));
            }
            return transfer;
        }""",
        [[name, base64.b64encode(data).decode(), kind] for name, (data, kind) in files.items()],
    )
    return page.evaluate(
        """([selector, transfer]) => {
            const options = {dataTransfer: transfer, bubbles: true, cancelable: true};
            const target = document.querySelector(selector);
            const over = new DragEvent("dragover", options);
            target.dispatchEvent(over);
            const drop = new DragEvent("drop", options);
            target.dispatchEvent(drop);
            return over.defaultPrevented && drop.defaultPrevented;
        }""",
        [selector, transfer],
    )
