"""The internet of a test."""

import pytest

from strangers.internet import Internet, serving


@pytest.fixture
def internet(monkeypatch):
    with serving() as outer, serving() as inner:
        yield Internet(monkeypatch, outer, inner)
