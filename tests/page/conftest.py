"""The demo model, its pictures, a server with the page, and a browser that has it open."""

from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from idefics.demo import pictures
from page import browser


@pytest.fixture(scope="session")
def demo_model():
    """The demo model."""
    import idefics

    vlm = idefics.load("demo")
    yield vlm
    vlm.engine.close()


@pytest.fixture(scope="session")
def bundled_pictures() -> dict[str, Path]:
    """Names of the bundled pictures -> where they are."""
    return {path.name: path for path in pictures()}


@pytest.fixture(scope="package")
def web_app(demo_model):
    """The server's application with the page."""
    from idefics.page.static_files import mount_page
    from idefics.server.app import create_app
    from idefics.server.settings import Settings

    app = create_app(demo_model, Settings(model="demo"))
    mount_page(app)
    return app


@pytest.fixture(scope="package")
def web_url(web_app):
    """The address of a server with the page."""
    with browser.serve_app(web_app) as address:
        yield address


@pytest.fixture(scope="package")
def web_browser():
    """A browser with a camera. No other event loop can run in its thread: it ends with the tests of this folder."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=browser.CHROMIUM_PATH,
            args=browser.CHROMIUM_FLAGS,
            ignore_default_args=["--hide-scrollbars"],
        )
        yield chromium
        chromium.close()


@pytest.fixture
def web_page(web_browser, web_url):
    """The page in a new browser context; fails on console errors and requests to other servers."""
    with browser.open_page(web_browser, web_url) as page:
        yield page
