"""The demo model, its pictures, a desk, and a browser before the page."""

from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from idefics.demo import pictures
from idefics.processing.fetch import Fetcher
from ui.browser import CHROMIUM, DESKTOP, FLAGS, opened, served


@pytest.fixture(scope="session")
def demo():
    """The demo model."""
    import idefics

    vlm = idefics.load("demo")
    yield vlm
    vlm.engine.close()


@pytest.fixture(scope="session")
def bundled() -> dict[str, Path]:
    """Names of the bundled pictures -> where they are."""
    return {path.name: path for path in pictures()}


@pytest.fixture
def desk(demo):
    """What the tabs share; nothing is fetched."""
    from idefics.ui.desk import Desk, Settings

    return Desk(demo, Settings("demo", Fetcher(policy="off", strangers=True)))


@pytest.fixture
def given(bundled):
    """A bundled picture as if a browser had sent it, by its name."""
    from idefics.ui.given import Given

    return lambda name: Given(str(bundled[name]), name)


@pytest.fixture(scope="module")
def address(demo):
    """Where the page is served that the tests of a file look at."""
    from idefics.ui.app import application
    from idefics.ui.desk import Settings

    with served(application(demo, Settings("demo", Fetcher(policy="any", strangers=True)))) as address:
        yield address


@pytest.fixture(scope="module")
def chromium(address):
    """A browser with a webcam. It comes after the page, for in its thread no other event loop can run."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium, address):
    """The page, in a browser that knows nothing yet. Nothing may be asked for elsewhere."""
    strangers = []
    page = opened(chromium, address, strangers, viewport=DESKTOP)
    yield page
    page.context.close()
    assert strangers == []
