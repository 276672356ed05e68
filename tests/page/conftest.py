"""The demo model, its pictures, a desk, and a browser before the page."""

from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from idefics.demo import pictures
from idefics.processing.fetch import Fetcher
from page.browser import CHROMIUM_FLAGS, CHROMIUM_PATH, DESKTOP_SIZE, open_page, serve_app


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


@pytest.fixture
def desk(demo_model):
    """What the tabs share; nothing is fetched."""
    from idefics.page.backend import PageBackend, PageSettings

    return PageBackend(demo_model, PageSettings("demo", Fetcher(policy="off", untrusted=True)))


@pytest.fixture
def uploaded_picture(bundled_pictures):
    """A bundled picture as if a browser had sent it, by its name."""
    from idefics.page.uploaded_picture import UploadedPicture

    return lambda name: UploadedPicture(str(bundled_pictures[name]), name)


@pytest.fixture(scope="module")
def page_url(demo_model):
    """Where the page is served that the tests of a file look at."""
    from idefics.page.app import create_page_app
    from idefics.page.backend import PageSettings

    with serve_app(
        create_page_app(demo_model, PageSettings("demo", Fetcher(policy="any", untrusted=True)))
    ) as address:
        yield address


@pytest.fixture(scope="module")
def chromium_browser(page_url):
    """A browser with a webcam. It comes after the page, for in its thread no other event loop can run."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM_PATH, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium_browser, page_url):
    """The page, in a browser that knows nothing yet. Nothing may be asked for elsewhere."""
    strangers = []
    page = open_page(chromium_browser, page_url, strangers, viewport=DESKTOP_SIZE)
    yield page
    page.context.close()
    assert strangers == []
