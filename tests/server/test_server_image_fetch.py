"""`/v1/images/fetch`: the file of a picture at an address, within the policy of fetching."""

import base64

import pytest

from idefics.demo import pictures
from idefics.processing.fetch import Fetcher
from server.request_bodies import picture_data_uri

FETCH = "/v1/images/fetch"


def data_uri(data, kind="image/png"):
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def test_the_file_is_sent_as_it_is(client):
    response = client.post(FETCH, {"image_url": picture_data_uri("tower")})
    (tower,) = (path for path in pictures() if path.name == "tower.png")
    assert response.status_code == 200
    assert response.content == tower.read_bytes()
    assert response.headers["content-type"] == "image/png"
    assert response.headers["x-content-type-options"] == "nosniff"


def test_a_fetched_picture_is_sent(client, monkeypatch):
    data = pictures()[0].read_bytes()
    asked = []

    def get(self, url):
        asked.append(url)
        return data

    monkeypatch.setattr(Fetcher, "get", get)
    response = client.post(FETCH, {"image_url": "https://example.com/a"})
    assert (response.content, asked) == (data, ["https://example.com/a"])


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://example.com/a.png", "remote pictures are off"),
        (data_uri(b"<html>not a picture</html>", "text/html"), "not a picture"),
        (data_uri(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"), "SVG"),
        ("file:///etc/passwd", "neither a data URI"),
    ],
    ids=["off", "html", "svg", "file"],
)
def test_what_may_not_be_fetched_is_refused(client, url, words):
    response = client.post(FETCH, {"image_url": url})
    assert response.status_code == 400
    assert words in response.json()["error"]["message"]


def test_a_picture_counts_while_it_is_fetched(client, app):
    admission = app.state.service.admission
    slot = admission.acquire_slot(lambda: None, pictures=admission.limits["pictures"])
    try:
        assert client.post(FETCH, {"image_url": picture_data_uri("tower")}).status_code == 429
    finally:
        admission.release_slot(slot)
