"""The internet of a test."""

import pytest

from strangers.internet import Internet, serving


@pytest.fixture
def internet(monkeypatch):
    with serving() as outer, serving() as inner:
        yield Internet(monkeypatch, outer, inner)


@pytest.fixture(scope="session")
def vlm():
    import idefics

    vlm = idefics.load("demo", remote_images="off")
    yield vlm
    vlm.engine.close()
