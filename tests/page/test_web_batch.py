"""Batch runs on the page: a contact sheet of pictures with their answers, which becomes a report."""

import csv
import io
import json
import zipfile

import pytest
from playwright.sync_api import expect

from idefics.page.static_files import mount_page
from idefics.server.app import create_app
from idefics.server.settings import Settings
from page.browser import BROWSER_MARKS, open_page

pytestmark = BROWSER_MARKS
NAMES = {"a/1.png": "vegetables.png", "b/1.png": "tower.png", "b/2.png": "puppy.png", "b/10.png": "puppy.png"}
LABELS = "animals, vegetables, city landscape"


@pytest.fixture(scope="module")
def web_app(demo_model, tmp_path_factory):
    """A server that has batches."""
    app = create_app(demo_model, Settings(model="demo", batches=tmp_path_factory.mktemp("batches")))
    mount_page(app)
    return app


@pytest.fixture
def folder(tmp_path, bundled_pictures):
    """A folder with four pictures, two of them of the same name, one that is broken, and a file that is none."""
    for path, name in NAMES.items():
        target = tmp_path / "trip" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(bundled_pictures[name].read_bytes())
    (tmp_path / "trip" / "broken.png").write_bytes(b"no picture")
    (tmp_path / "trip" / "notes.txt").write_text("not a picture")
    return tmp_path / "trip"


@pytest.fixture
def batch_page(web_browser, web_url):
    """The view of batches."""
    with open_page(web_browser, web_url, path="#/batch") as page:
        yield page


def start(page, task="Classify", words=LABELS):
    page.locator(".batch label.chip", has_text=task).click()
    if words:
        page.locator("#batch-words").fill(words)
    page.get_by_role("button", name="Start").click()


def run_folder(page, folder):
    """Classifies the folder, and waits for the end."""
    page.locator("#batch-folder").set_input_files(folder)
    start(page)
    expect(page.locator(".run-progress")).to_have_text("4 answers · 1 failed")


def card(page, path):
    return page.locator(".sheet > li", has=page.get_by_text(path, exact=True))


def answer(page, path):
    return card(page, path).locator(".row-answer")


def visible_paths(page):
    return page.locator(".sheet > li:visible .row-path").all_inner_texts()


def saved(page, name):
    """The content of the file that a button saves."""
    with page.expect_download() as download:
        page.get_by_role("button", name=name, exact=True).click()
    return download.value.path().read_bytes()


def test_a_folder_is_classified_and_saved(batch_page, folder):
    batch_page.locator("#batch-folder").set_input_files(folder)
    expect(batch_page.locator(".chosen")).to_contain_text("5 pictures")
    start(batch_page)
    expect(batch_page.locator(".run-progress")).to_have_text("4 answers · 1 failed")
    paths = ["trip/a/1.png", "trip/b/1.png", "trip/b/2.png", "trip/b/10.png", "trip/broken.png"]
    assert visible_paths(batch_page) == paths
    expect(answer(batch_page, "trip/a/1.png")).to_have_value("vegetables")
    expect(answer(batch_page, "trip/b/1.png")).to_have_value("city landscape")
    expect(card(batch_page, "trip/b/1.png").locator(".bar-value")).to_contain_text("%")
    broken = card(batch_page, "trip/broken.png")
    expect(broken.locator(".failed")).to_contain_text("broken.png is not a picture that can be read.")

    rows = list(csv.DictReader(io.StringIO(saved(batch_page, "CSV").decode(), newline="")))
    assert {row["path"]: row["text"] for row in rows} == {
        "trip/a/1.png": "vegetables",
        "trip/b/1.png": "city landscape",
        "trip/b/2.png": "animals",
        "trip/b/10.png": "animals",
        "trip/broken.png": "",
    }
    assert [row["path"] for row in rows if row["error_type"]] == ["trip/broken.png"]
    lines = [json.loads(line) for line in saved(batch_page, "JSONL").splitlines()]
    assert lines[0]["text"] == "vegetables" and max(lines[0]["probabilities"]) == "vegetables"
    assert lines[4]["text"] == "" and "not a picture" in lines[4]["error"]
    report = saved(batch_page, "Report").decode()
    assert "a report of idefics" in report and "trip/b/10.png" in report


def test_answers_are_edited_and_stay_after_a_reload(batch_page, folder):
    run_folder(batch_page, folder)
    answer(batch_page, "trip/a/1.png").fill("market")
    answer(batch_page, "trip/a/1.png").press("Enter")
    expect(answer(batch_page, "trip/b/1.png")).to_be_focused()
    expect(card(batch_page, "trip/a/1.png")).to_contain_text("edited")
    expect(batch_page.locator(".chart-bar", has_text="market")).to_be_visible()
    batch_page.reload()
    expect(answer(batch_page, "trip/a/1.png")).to_have_value("market")
    expect(card(batch_page, "trip/b/2.png").locator("img")).to_be_visible()
    expect(card(batch_page, "trip/broken.png").locator(".failed")).to_contain_text("is not a picture")
    texts = zipfile.ZipFile(io.BytesIO(saved(batch_page, "Texts")))
    assert texts.testzip() is None
    assert {name: texts.read(name) for name in texts.namelist()} == {
        "trip/a/1.txt": b"market\n",
        "trip/b/1.txt": b"city landscape\n",
        "trip/b/2.txt": b"animals\n",
        "trip/b/10.txt": b"animals\n",
    }
    batch_page.get_by_role("button", name="Undo the change of trip/a/1.png").click()
    expect(answer(batch_page, "trip/a/1.png")).to_have_value("vegetables")


def test_the_sheet_is_filtered_and_sorted(batch_page, folder):
    run_folder(batch_page, folder)
    bar = batch_page.locator(".chart-bar", has_text="animals")
    expect(bar.locator("b")).to_have_text("2")
    bar.click()
    assert visible_paths(batch_page) == ["trip/b/2.png", "trip/b/10.png"]
    expect(batch_page.get_by_text("2 of 5 pictures shown")).to_be_visible()
    bar.click()
    batch_page.get_by_role("combobox", name="Show").select_option("Failed")
    assert visible_paths(batch_page) == ["trip/broken.png"]
    batch_page.get_by_role("combobox", name="Show").select_option("All pictures")
    batch_page.get_by_role("combobox", name="Order").select_option("Answer")
    assert visible_paths(batch_page)[0] == "trip/b/2.png"
    batch_page.get_by_label("Find in paths and answers").fill("B/1")
    assert visible_paths(batch_page) == ["trip/b/10.png", "trip/b/1.png"]
