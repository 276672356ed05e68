"""The page's files: how they are served, and what the first view costs."""

import re

import numpy as np
import PIL.Image
import pytest
from starlette.testclient import TestClient

from draw_page_cards import CARDS, draw_cards
from idefics.page.static_files import STATIC_FOLDER, StaticFile, drop_comments, mount_page
from idefics.server.app import create_app
from idefics.server.settings import Settings
from page.browser import BROWSER_MARKS, open_page, wait_until

MAX_BYTES, MAX_REQUESTS, MAX_FIRST_PAINT = 100_000, 10, 0.3


@pytest.fixture
def web_client(web_app):
    with TestClient(web_app, base_url="http://127.0.0.1") as client:
        yield client


@pytest.mark.parametrize("path", ["/", "/ui/app.js", "/ui/style.css", "/ui/pictures/tower.png"])
def test_files_have_their_type_policy_and_etag(web_client, path):
    response = web_client.get(path)
    assert response.status_code == 200
    kind = {"/": "text/html", "js": "text/javascript", "css": "text/css", "png": "image/png"}
    assert response.headers["content-type"].startswith(kind[path.rpartition(".")[2]])
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'self'; img-src 'self' blob: data:;")
    assert "unsafe" not in policy and "http" not in policy
    assert response.headers["cache-control"] == "no-cache"
    again = web_client.get(path, headers={"if-none-match": response.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert web_client.head(path).status_code == 200


def test_texts_are_compressed_for_those_who_accept_it(web_client):
    plain = web_client.get("/ui/app.js", headers={"accept-encoding": "identity"})
    assert plain.text == drop_comments((STATIC_FOLDER / "app.js").read_text())
    packed = web_client.get("/ui/app.js", headers={"accept-encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip" and packed.content == plain.content
    assert int(packed.headers["content-length"]) < len(plain.content) / 2
    assert packed.headers["vary"] == "Accept-Encoding"


def test_comments_indents_and_blank_lines_are_not_sent():
    source = (
        "/**\n * What it does.\n */\nlet a = 1; // goes\n\n  // goes\n  /* goes */\nb = '/* stays */; // stays';\n"
        "if (a) {\n  b();\n\t// goes\n    c = '  ';\n}\n"
    )
    wanted = "let a = 1;\nb = '/* stays */; // stays';\nif (a) {\nb();\nc = '  ';\n}\n"
    assert drop_comments(source) == wanted


def test_other_servers_are_allowed_by_name_alone(demo_model):
    app = create_app(demo_model, Settings(model="demo", compare_with="http://Box:8001/, https://gpu.example"))
    mount_page(app)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        policy = client.get("/").headers["content-security-policy"].split("; ")
        assert "connect-src 'self' http://box:8001 https://gpu.example" in policy
        assert "default-src 'self'" in policy
        (card,) = client.get("/v1/models").json()["data"]
    assert card["compare_with"] == ["http://box:8001", "https://gpu.example"]


@pytest.mark.parametrize(
    "path", ["/ui/nope.js", "/ui/../static_files.py", "/ui/%2e%2e/static_files.py", "/ui/"]
)
def test_nothing_else_is_served(web_client, path):
    assert web_client.get(path).status_code == 404


def test_the_html_has_no_script_or_style_inside():
    html = (STATIC_FOLDER / "index.html").read_text()
    assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=", html)
    for path in STATIC_FOLDER.glob("*.js"):
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", path.read_text()
        ), path


def test_only_one_module_sends_requests():
    senders = {path.name for path in STATIC_FOLDER.glob("*.js") if re.search(r"\bfetch\(", path.read_text())}
    assert senders == {"api.js"}


def test_modules_stay_small():
    long = {path.name for path in STATIC_FOLDER.glob("*.js") if len(path.read_text().splitlines()) >= 300}
    assert not long


def test_the_pictures_of_the_cards_are_the_bundled_ones():
    drawn, stored = np.asarray(draw_cards(), float), np.asarray(PIL.Image.open(CARDS).convert("RGB"), float)
    assert drawn.shape == stored.shape
    assert np.abs(drawn - stored).mean() < 3  # of 255: what the compression loses


def test_the_page_is_behind_the_key(demo_model):
    app = create_app(demo_model, Settings(model="demo", api_key="secret"))
    mount_page(app)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        for path in ("/", "/ui/app.js", "/v1/models"):
            assert client.get(path).status_code == 401
        refused = client.get("/", headers={"accept": "text/html"})
        assert refused.headers["www-authenticate"].startswith("Basic")  # a browser asks for it
        assert client.get("/", auth=("anyone", "secret")).status_code == 200


def bytes_sent(path):
    file = StaticFile.read(path)
    return len(file.compressed or file.content)


def measure_first_paint(page, address):
    """Seconds from the navigation to the first pixels; the browser's copies are checked with the server again."""
    page.goto(address)
    wait_until(page, lambda: page.evaluate("performance.getEntriesByType('paint').length"))
    return page.evaluate("performance.getEntriesByType('paint')[0].startTime") / 1000


class TestInABrowser:
    pytestmark = BROWSER_MARKS

    def test_budgets(self, web_browser, web_url, capsys):
        """Bytes as they are sent, those of modules that are loaded when used included."""
        with open_page(web_browser, web_url) as page:  # the browser's own start is not the page's
            page.wait_for_load_state("networkidle")
        with web_browser.new_context() as context:
            page, requests = context.new_page(), []
            page.on("request", lambda request: requests.append(request.url))
            page.goto(web_url, wait_until="networkidle")
            num_requests = len(requests)
            first_bytes = page.evaluate(
                """() => [...performance.getEntriesByType("resource"), performance.getEntriesByType("navigation")[0]]
                    .reduce((sum, entry) => sum + entry.encodedBodySize, 0)"""
            )
            first_paint = min(measure_first_paint(page, web_url) for _ in range(3))
        all_bytes = sum(map(bytes_sent, STATIC_FOLDER.iterdir()))
        with capsys.disabled():
            print(
                f"\npage: {all_bytes:,} bytes in all, {first_bytes:,} and {num_requests} requests for the first view, "
                f"first paint after {first_paint:.2f} s"
            )
        assert all_bytes < MAX_BYTES
        assert num_requests <= MAX_REQUESTS
        assert first_paint < MAX_FIRST_PAINT
