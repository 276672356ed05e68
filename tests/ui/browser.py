"""A page that is served, and a browser that looks at it."""

import shutil
import threading
import time
from contextlib import contextmanager

import uvicorn

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DESKTOP, PHONE = {"width": 1280, "height": 860}, {"width": 390, "height": 844}
TABS = ["Chat", "Caption", "Ask", "Classify", "Write", "Few-shot", "Batch"]


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
