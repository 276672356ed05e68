"""The fixture of the fake internet."""

import pytest

from untrusted.fake_internet import FakeInternet, run_server


@pytest.fixture
def fake_internet(monkeypatch):
    with run_server() as outer, run_server() as inner:
        yield FakeInternet(monkeypatch, outer, inner)


@pytest.fixture(scope="session")
def vlm():
    import idefics

    vlm = idefics.load("demo", remote_images="off")
    yield vlm
    vlm.engine.close()
