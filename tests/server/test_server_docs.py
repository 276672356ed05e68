"""`/docs` names every route and field, and loads nothing from other hosts."""

import re
from html import unescape
from html.parser import HTMLParser

import pytest


class Page(HTMLParser):
    """The tags, links, anchors and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.anchors, self.text = set(), [], set(), ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        named = dict(attrs)
        self.links += [named[name] for name in ("href", "src") if name in named]
        self.anchors |= {named["id"]} if "id" in named else set()

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def answer(client):
    return client.get("/docs")


def test_the_page_needs_no_script_and_no_other_host(answer):
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    page = Page(answer.text)
    assert not page.tags & {"script", "link", "img", "iframe", "object"}
    assert {link for link in page.links if not link.startswith("#")} == {"openapi.json"}
    assert {link[1:] for link in page.links if link.startswith("#")} <= page.anchors
    assert not re.search(r"\bon\w+=|@import|url\(", answer.text)
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none';")
    assert "script-src" not in policy


def test_the_page_names_every_route_and_field(client, answer):
    text = unescape(Page(answer.text).text)
    document = client.get("/openapi.json").json()
    for path, methods in document["paths"].items():
        for method in methods:
            assert f"{method.upper()} {path}" in text
    for name, schema in document["components"]["schemas"].items():
        assert name in text
        for field in schema.get("properties", {}):
            assert field in text
    assert "list of" in text


def test_descriptions_are_escaped(client):
    from idefics.server.docs_page import render_docs_page

    field = {"type": "string", "description": "<script>alert(1)</script>", "default": "<b>"}
    schemas = {"One": {"type": "object", "required": ["a<b"], "properties": {"a<b": field}}}
    text = render_docs_page(
        {"info": {"title": "<i>", "version": "1"}, "paths": {}, "components": {"schemas": schemas}}
    )
    assert not Page(text).tags & {"script", "b", "i"}
    assert "<script>alert(1)</script>" in unescape(text)
    assert "a<b (required)" in Page(text).text


@pytest.mark.parametrize("path", ["/redoc", "/docs/oauth2-redirect"])
def test_fastapis_own_pages_are_off(client, path):
    assert client.get(path).status_code == 404
