"""The demo model, its pictures, the backend of the page, and a browser that has it open."""

from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from idefics.demo import pictures
from idefics.processing.fetch import Fetcher
from page import web
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
def page_backend(demo_model):
    """The backend of a page that fetches no addresses."""
    from idefics.page.backend import PageBackend, PageSettings

    return PageBackend(demo_model, PageSettings("demo", Fetcher(policy="off", untrusted=True)))


@pytest.fixture
def uploaded_picture(bundled_pictures):
    """Makes an uploaded picture from the name of a bundled one."""
    from idefics.page.uploaded_picture import UploadedPicture

    return lambda name: UploadedPicture(str(bundled_pictures[name]), name)


@pytest.fixture(scope="module")
def page_url(demo_model):
    """The address of a page that serves the tests of one file."""
    from idefics.page.app import create_page_app
    from idefics.page.backend import PageSettings

    with serve_app(
        create_page_app(demo_model, PageSettings("demo", Fetcher(policy="any", untrusted=True)))
    ) as address:
        yield address


@pytest.fixture(scope="module")
def chromium_browser(page_url):
    """A browser with a webcam, started after the page: in its thread no other event loop can run."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM_PATH, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium_browser, page_url):
    """The page in a new browser context; fails if it sends requests to other servers."""
    foreign_urls = []
    page = open_page(chromium_browser, page_url, foreign_urls, viewport=DESKTOP_SIZE)
    yield page
    page.context.close()
    assert foreign_urls == []


@pytest.fixture(scope="module")
def web_app(demo_model):
    """The server's application with the page."""
    from idefics.page.static_files import mount_static_page
    from idefics.server.app import create_app
    from idefics.server.settings import Settings

    app = create_app(demo_model, Settings(model="demo"))
    mount_static_page(app)
    return app


@pytest.fixture(scope="module")
def web_url(web_app):
    """The address of a server with the page, for the tests of one file."""
    with web.serve_app(web_app) as address:
        yield address


@pytest.fixture(scope="module")
def web_browser(web_url):
    """A browser with a camera, started after the server: in its thread no other event loop can run."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=web.CHROMIUM_PATH,
            args=web.CHROMIUM_FLAGS,
            ignore_default_args=["--hide-scrollbars"],
        )
        yield browser
        browser.close()


@pytest.fixture
def web_page(web_browser, web_url):
    """The page in a new browser context; fails on console errors and requests to other servers."""
    with web.open_page(web_browser, web_url) as page:
        yield page
