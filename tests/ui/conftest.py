"""The demo model, its pictures, and a desk."""

from pathlib import Path

import pytest

from idefics.demo import pictures
from idefics.processing.fetch import Fetcher


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
