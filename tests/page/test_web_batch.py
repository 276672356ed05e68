"""Batch runs on the page: a contact sheet of pictures with their answers, which becomes a report."""

import csv
import io
import json
import re
import warnings
import zipfile
from contextlib import contextmanager

import pytest
from playwright.sync_api import expect

from idefics import Shot
from idefics.page.static_files import mount_page
from idefics.server.app import create_app
from idefics.server.settings import Settings
from page.browser import (
    BROWSER_MARKS,
    FAST_TIMERS,
    SlowModel,
    close_drawer,
    drop_files,
    open_page,
    serve_app,
    wait_until,
)
from page.test_web_access import find_violations
from page.test_web_screens import OVERFLOWS, SCREENS, SIZES

pytestmark = BROWSER_MARKS
NAMES = {"a/1.png": "vegetables.png", "b/1.png": "tower.png", "b/2.png": "puppy.png", "b/10.png": "puppy.png"}
LABELS = "animals, vegetables, city landscape"


@pytest.fixture(scope="module")
def web_app(demo_model, tmp_path_factory):
    """A server that has batches."""
    app = create_app(demo_model, Settings(model="demo", batches=tmp_path_factory.mktemp("batches")))
    mount_page(app)
    return app


@pytest.fixture(scope="module")
def web_url(web_app):
    """The address of that server."""
    with serve_app(web_app) as address:
        yield address


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


@contextmanager
def open_batches(browser, address, **options):
    """The view of batches, with short timers that run ten times as fast."""
    with open_page(browser, address, path="/#/batch", init_script=FAST_TIMERS, **options) as page:
        expect(page.get_by_role("button", name="Start")).to_be_visible()
        yield page


@pytest.fixture
def batch_page(web_browser, web_url):
    """The view of batches."""
    with open_batches(web_browser, web_url) as page:
        yield page


@pytest.fixture
def abortable_page(web_browser, web_url):
    """The view of batches, for tests that abort its requests."""
    with open_batches(web_browser, web_url, expected=["net::ERR_FAILED"]) as page:
        yield page


@pytest.fixture
def shared_page(web_browser, web_url):
    """The view of batches, for tests with two windows: they have the time to answer each other that the page gives."""
    with open_page(web_browser, web_url, path="/#/batch") as page:
        expect(page.get_by_role("button", name="Start")).to_be_visible()
        yield page


def choose_pictures(page, path):
    """Chooses a file or a folder by its field, and waits until the page has read it."""
    name = "#batch-folder" if path.is_dir() else "#batch-files"
    page.locator(name).set_input_files(path)
    expect(page.locator(".chosen")).to_be_visible()


def start(page, task="Classify", words=LABELS):
    page.locator(".batch label.chip", has_text=task).click()
    if words:
        page.locator("#batch-words").fill(words)
    page.get_by_role("button", name="Start").click()


def run_folder(page, folder):
    """Classifies the folder, and waits for the end."""
    choose_pictures(page, folder)
    start(page)
    expect(page.locator(".run-progress")).to_have_text("4 answers · 1 failed")


def card(page, path):
    return page.locator(".sheet > li", has=page.get_by_text(path, exact=True))


def answer(page, path):
    return card(page, path).locator(".row-answer")


def expect_paths(page, *paths):
    """Waits until the sheet shows these pictures, in this order."""
    expect(page.locator(".sheet > li:visible .row-path")).to_have_text(paths)


def wait_until_stored(page):
    """Waits until the browser has stored what the page gave it: reading begins after what was to be written before."""
    page.evaluate("async () => void (await (await import('/ui/batch-store.js')).listRuns())")


def saved(page, name):
    """The content of the file that a button saves."""
    with page.expect_download() as download:
        page.get_by_role("button", name=name, exact=True).click()
    return download.value.path().read_bytes()


def test_a_folder_is_classified_and_saved(batch_page, folder):
    choose_pictures(batch_page, folder)
    expect(batch_page.locator(".chosen")).to_contain_text(
        re.compile("5 pictures, .* · 1 other file left out")
    )
    expect(batch_page.locator(".previews")).to_contain_text("no preview")
    expect(batch_page.get_by_role("radio", name="Caption")).to_be_checked()  # the task that needs no words
    start(batch_page)
    expect(batch_page.locator(".run-progress")).to_have_text("4 answers · 1 failed")
    paths = ["trip/a/1.png", "trip/b/1.png", "trip/b/2.png", "trip/b/10.png", "trip/broken.png"]
    expect_paths(batch_page, *paths)
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
    assert [row["path"] for row in rows if row["error_type"] == "BadPicture"] == ["trip/broken.png"]
    assert json.loads(rows[0]["settings"]) == {"calibrated": True, "detail": "high"}
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
    wait_until_stored(batch_page)
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
    answer(batch_page, "trip/a/1.png").fill('=1+1, "two"')
    answer(batch_page, "trip/a/1.png").press("Enter")
    row = next(csv.DictReader(io.StringIO(saved(batch_page, "CSV").decode(), newline="")))
    assert (row["text"], row["model_text"]) == ('\'=1+1, "two"', "vegetables")
    report = saved(batch_page, "Report").decode()
    assert "<dt>corrected</dt><dd>1</dd>" in report and '=1+1, \\"two\\"' in report
    batch_page.get_by_role("button", name="Undo the change of trip/a/1.png").click()
    expect(answer(batch_page, "trip/a/1.png")).to_have_value("vegetables")


def test_a_picture_of_the_sheet_is_opened_from_here_and_from_the_server(batch_page, folder):
    choose_pictures(batch_page, folder / "a")
    start(batch_page, "Caption", "")
    expect(batch_page.locator(".run-progress")).to_have_text("1 answer")
    for _ in range(2):
        batch_page.get_by_role("button", name="Open a/1.png in Pictures").click()
        expect(batch_page.locator(".picture-name")).to_contain_text("1.png · 384 × 384")
        expect(batch_page.locator("#words")).to_be_focused()
        expect(batch_page).to_have_url(re.compile("#/c/"))  # the conversation is kept
        batch_page.go_back()
        batch_page.reload()  # now the browser has a thumbnail alone


def test_the_sheet_is_filtered_and_sorted(batch_page, folder):
    run_folder(batch_page, folder)
    bar = batch_page.locator(".chart-bar", has_text="animals")
    expect(bar.locator("b")).to_have_text("2")
    bar.click()
    expect_paths(batch_page, "trip/b/2.png", "trip/b/10.png")
    expect(batch_page.get_by_text("2 of 5 pictures shown")).to_be_visible()
    bar.click()
    batch_page.get_by_role("combobox", name="Show").select_option("Failed")
    expect_paths(batch_page, "trip/broken.png")
    batch_page.get_by_role("combobox", name="Show").select_option("All pictures")
    batch_page.get_by_role("combobox", name="Order").select_option("Answer")
    expect(batch_page.locator(".sheet > li:visible .row-path").first).to_have_text("trip/b/2.png")
    batch_page.get_by_label("Find in paths and answers").fill("B/1")
    expect_paths(batch_page, "trip/b/10.png", "trip/b/1.png")


def test_a_zip_that_is_dropped_is_unpacked(batch_page, bundled_pictures):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path, name in NAMES.items():
            method = zipfile.ZIP_DEFLATED if path.startswith("b") else zipfile.ZIP_STORED
            archive.write(bundled_pictures[name], path, method)
        archive.writestr("__MACOSX/._1.png", "no picture")
        archive.writestr("notes.txt", "no picture")
    assert drop_files(batch_page, "#view", {"trip.zip": (packed.getvalue(), "application/zip")})
    expect(batch_page.locator(".chosen")).to_contain_text("4 pictures")
    start(batch_page, "Ask", "What is in this image?")
    expect(batch_page.locator(".run-progress")).to_have_text("4 answers")
    expect_paths(batch_page, "a/1.png", "b/1.png", "b/2.png", "b/10.png")
    expect(answer(batch_page, "b/1.png")).to_have_value("A tower.")
    expect(batch_page.locator(".chart-bar")).to_have_count(2)


def test_a_picture_that_is_pasted_belongs_to_the_run(batch_page):
    batch_page.evaluate(
        """async path => {
            const data = await (await fetch(path)).blob();
            const transfer = new DataTransfer();
            transfer.items.add(new File([data], "image.png", {type: "image/png"}));
            document.body.dispatchEvent(new ClipboardEvent("paste", {clipboardData: transfer, bubbles: true}));
        }""",
        "/ui/pictures/tower.png",
    )
    expect(batch_page.locator(".chosen")).to_contain_text("1 picture")


def test_files_of_one_name_are_told_apart(batch_page, bundled_pictures):
    chosen = batch_page.locator(".chosen")
    for name, said in (("tower.png", "1 picture"), ("puppy.png", "2 pictures")):
        drop_files(batch_page, "#view", {"1.png": (bundled_pictures[name].read_bytes(), "image/png")})
        expect(chosen).to_contain_text(said)
    drop_files(batch_page, "#view", {"clip.mp4": (b"a video", "video/mp4")})
    expect(chosen).to_contain_text("3 pictures")
    drop_files(batch_page, "#view", {"broken.zip": (b"no zip", "application/zip")})
    expect(batch_page.get_by_role("alert")).to_contain_text("broken.zip is not a zip that can be read")
    expect(chosen).to_contain_text("3 pictures")
    start(batch_page, "Ask", "What is in this image?")
    expect(answer(batch_page, "1.png")).to_have_value("A tower.")
    expect(answer(batch_page, "1 (2).png")).to_have_value(re.compile("puppy"))
    expect(card(batch_page, "clip.mp4")).to_contain_text("clip.mp4 is a video: add it under Pictures.")


def zip_of(*entries):
    """A zip of (path, bytes), paths more than once too."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for path, content in entries:
            archive.writestr(path, content)
    return packed.getvalue()


def drop_zip(page, content):
    drop_files(page, "#view", {"pictures.zip": (content, "application/zip")})


def test_pictures_of_one_path_are_told_apart_also_in_a_run(batch_page, bundled_pictures):
    tower, puppy, door = (bundled_pictures[f"{name}.png"].read_bytes() for name in ("tower", "puppy", "door"))
    size = max(len(tower), len(puppy))
    two = zip_of(("1.png", tower.ljust(size, b"\0")), ("1.png", puppy.ljust(size, b"\0")))
    drop_zip(batch_page, two)
    expect(batch_page.locator(".chosen")).to_contain_text("2 pictures")
    start(batch_page, "Ask", "What is in this image?")
    expect(answer(batch_page, "1.png")).to_have_value("A tower.")
    expect(answer(batch_page, "1 (2).png")).to_have_value(re.compile("puppy"))
    drop_zip(batch_page, zip_of(("1.png", door), ("1.png", tower), ("2.png", door)))
    expect(batch_page.locator(".run-progress")).to_have_text("5 answers")
    expect_paths(batch_page, "1.png", "1 (2).png", "1 (3).png", "1 (4).png", "2.png")
    drop_zip(batch_page, two)
    expect(batch_page.get_by_role("alert")).to_have_text("2 pictures are in this run already.")
    expect(batch_page.locator(".run-progress")).to_have_text("5 answers")


def declare(content, offset, value):
    """A zip whose only entry declares another size: at 20 the packed one, at 24 the unpacked one (APPNOTE 4.3.12)."""
    at = content.index(b"PK\1\2") + offset
    return content[:at] + value.to_bytes(4, "little") + content[at + 4 :]


def test_a_zip_is_not_trusted(batch_page):
    bomb = zip_of(("bomb.png", b"\0" * 100_000))
    for content, why in [
        (
            declare(bomb, 24, 1 << 30),
            "bomb.png has 1,024 MB unpacked, and at most 256 MB are read from a zip.",
        ),
        (declare(bomb, 24, 99), "bomb.png is damaged in the zip."),
    ]:
        drop_zip(batch_page, content)
        expect(batch_page.locator(".chosen")).to_contain_text("1 picture")
        start(batch_page, "Caption", "")
        expect(batch_page.locator(".failed")).to_contain_text(why)
        batch_page.get_by_role("link", name="All runs").click()
        expect(batch_page.locator(".runs a").first).to_contain_text("Caption1 picture · 1 failed")
    drop_zip(batch_page, declare(bomb, 20, 1 << 20))  # more than the zip has: entries may share their bytes
    expect(batch_page.get_by_role("alert")).to_contain_text("pictures.zip is not a zip that can be read")


def test_removed_pictures_are_brought_back_and_a_folder_without_pictures_is_named(batch_page, folder):
    choose_pictures(batch_page, folder)
    expect(batch_page.locator(".chosen")).to_contain_text("5 pictures")
    batch_page.get_by_role("button", name="Remove all").click()
    expect(batch_page.locator(".chosen")).to_be_hidden()
    expect(batch_page.get_by_role("button", name="Choose files or a zip")).to_be_focused()
    batch_page.get_by_role("button", name="Undo").click()
    expect(batch_page.locator(".chosen")).to_contain_text("5 pictures")
    (folder / "texts").mkdir()
    (folder / "texts" / "a.txt").write_text("no picture")
    choose_pictures(batch_page, folder / "texts")
    expect(batch_page.get_by_role("alert")).to_have_text("There are no pictures among those files.")


def test_examples_and_the_question_of_the_composer_are_those_of_a_run(
    batch_page, demo_model, bundled_pictures
):
    batch_page.get_by_role("button", name="Examples").click()
    batch_page.get_by_role("button", name="Fun fact").click()
    expect(batch_page.locator(".example")).to_have_count(1)
    close_drawer(batch_page)
    expect(batch_page.get_by_role("button", name="Examples: 1")).to_be_visible()
    expect(batch_page.get_by_role("radio", name="Caption")).to_be_checked()
    statue = bundled_pictures["statue.png"]
    choose_pictures(batch_page, statue)
    batch_page.get_by_role("button", name="Start").click()
    tower, fact = (
        bundled_pictures["tower.png"],
        "An image of a tower. Fun fact: towers sway a little in the wind.",
    )
    wanted = demo_model.with_shots([Shot(tower, fact)]).caption(statue).text
    expect(answer(batch_page, "statue.png")).to_have_value(wanted)
    expect(batch_page.get_by_text("after 1 example")).to_be_visible()
    (row,) = (json.loads(line) for line in saved(batch_page, "JSONL").splitlines())
    assert row["settings"] == {"shots": 1, "detail": "high", "max_new_tokens": 64}
    batch_page.reload()  # the examples are those of the run, whatever those of the conversation are
    batch_page.locator("#batch-more").set_input_files(
        {"name": "2.png", "mimeType": "image/png", "buffer": statue.read_bytes()}
    )
    expect(answer(batch_page, "2.png")).to_have_value(wanted)
    batch_page.get_by_role("link", name="Pictures").click()
    batch_page.locator("label.chip", has_text="Ask").click()
    batch_page.locator("#words").fill("What is it?")
    height = batch_page.locator("#words").bounding_box()["height"]
    batch_page.get_by_role("link", name="Batch").click()
    expect(batch_page.locator("#batch-words")).to_have_value("What is it?")
    batch_page.locator(".batch label.chip", has_text="Caption").click()
    batch_page.get_by_role("link", name="Pictures", exact=True).click()
    expect(batch_page.locator("#words")).to_be_visible()
    assert batch_page.locator("#words").bounding_box()["height"] == height


def open_another(page):
    """Another window with the run of this one."""
    wait_until_stored(page)
    other = page.context.new_page()
    other.goto(page.url)
    return other


# How often another window answered that it sends pictures.
COUNT_ANSWERS = """() => {
    window.numAnswers = 0;
    new BroadcastChannel("idefics.batches").onmessage = ({data}) => (window.numAnswers += Boolean(data.sends));
}"""


def unsent(page):
    return page.locator(".row-body .hint:visible", has_text="Not sent yet")


def test_two_windows_show_one_run(shared_page, folder):
    held = []
    shared_page.route("**/v1/files", lambda route: held.append(route))
    choose_pictures(shared_page, folder / "b")
    start(shared_page)
    expect(shared_page.locator(".run-progress")).to_have_text("0 of 3 · 3 to send")
    other = open_another(shared_page)
    other.evaluate(COUNT_ANSWERS)
    expect(unsent(other)).to_have_count(3)
    expect(other).to_have_title(re.compile("^0 of 3 · "))
    # It asks again and again whether they are still to be sent.
    wait_until(other, lambda: other.evaluate("numAnswers") > 2)
    expect(unsent(other)).to_have_count(3)
    held[0].continue_()
    expect(other.locator(".run-progress")).to_have_text("3 answers")
    expect(card(other, "b/2.png").locator("img")).to_be_visible()
    answer(other, "b/1.png").fill("tower")
    answer(other, "b/1.png").press("Enter")
    expect(answer(shared_page, "b/1.png")).to_have_value("tower")
    shared_page.unroute("**/v1/files")
    other.locator("#batch-more").set_input_files(folder / "a" / "1.png")
    expect(answer(shared_page, "1.png")).to_have_value("vegetables")
    shared_page.bring_to_front()
    shared_page.get_by_role("button", name="Delete", exact=True).click()
    expect(other.get_by_text("The run was deleted in another window.")).to_be_visible()
    expect(other.locator(".runs a")).to_have_count(0)
    shared_page.get_by_role("button", name="Undo", exact=True).click()
    expect(answer(shared_page, "b/1.png")).to_have_value("tower")


LIST_UNSENT = """async () => {
    const {listUnsent} = await import("/ui/batch-store.js");
    return [...(await listUnsent(location.hash.split("/")[2]))];
}"""


def test_another_window_cancels_and_sends_what_a_closed_one_has_not(shared_page, folder):
    shared_page.route("**/v1/files", lambda route: None)
    choose_pictures(shared_page, folder / "b")
    start(shared_page)
    expect(unsent(shared_page)).to_have_count(3)
    other = open_another(shared_page)
    other.get_by_role("button", name="Cancel").click()
    expect(shared_page.get_by_text("Cancelled before it was sent.")).to_have_count(3)
    expect(other.get_by_text("Cancelled before it was sent.")).to_have_count(3)
    drop_files(shared_page, "#view", {"new.png": ((folder / "a" / "1.png").read_bytes(), "image/png")})
    expect(unsent(other)).to_have_count(1)
    wait_until(shared_page, lambda: "new.png" in shared_page.evaluate(LIST_UNSENT))
    shared_page.close()
    expect(answer(other, "new.png")).to_have_value("vegetables")
    expect(other.locator(".run-progress")).to_have_text("1 answer · 3 failed")


def test_what_was_not_kept_is_named_and_found_in_another_folder(abortable_page, folder):
    abortable_page.evaluate(
        """() => {
            const put = IDBObjectStore.prototype.put;
            IDBObjectStore.prototype.put = function (...given) {
                if (this.name === "files") throw new DOMException("full", "QuotaExceededError");
                return put.apply(this, given);
            };
        }"""
    )
    abortable_page.route("**/v1/files", lambda route: None)
    choose_pictures(abortable_page, folder)
    start(abortable_page)
    expect(unsent(abortable_page)).to_have_count(4)
    wait_until_stored(abortable_page)
    abortable_page.reload()
    expect(abortable_page.get_by_text("The page was left before this picture was sent")).to_have_count(4)
    abortable_page.unroute("**/v1/files")
    abortable_page.locator("#batch-more-folder").set_input_files(folder / "b")
    expect(abortable_page.locator(".run-progress")).to_have_text("3 answers · 2 failed")
    expect(answer(abortable_page, "trip/b/1.png")).to_have_value("city landscape")


def test_sending_goes_on_when_the_server_is_back(abortable_page, folder):
    abortable_page.route("**/v1/files", lambda route: route.abort())
    choose_pictures(abortable_page, folder / "b")
    start(abortable_page)
    expect(abortable_page.locator("progress + .error")).to_contain_text("The server does not answer.")
    expect(abortable_page.locator(".run-progress")).to_have_text("0 of 3 · 3 to send")
    abortable_page.unroute("**/v1/files")
    expect(abortable_page.locator(".run-progress")).to_have_text("3 answers")
    expect(abortable_page.locator("progress + .error")).to_be_hidden()


def test_what_failed_on_the_server_is_sent_again_from_there(batch_page, folder):
    error = {"code": "batch_expired", "message": "it took too long"}
    lines = [{"custom_id": f"b/{name}.png", "response": None, "error": error} for name in (1, 2, 10)]
    results = {"data": lines, "last": 3, "has_more": False, "status": "in_progress"}
    batch_page.route("**/results?*", lambda route: route.fulfill(json=results))
    choose_pictures(batch_page, folder / "b")
    start(batch_page)
    expect(batch_page.locator(".run-progress")).to_have_text("0 answers · 3 failed")
    batch_page.unroute("**/results?*")
    wait_until_stored(batch_page)
    batch_page.reload()
    expect(card(batch_page, "b/2.png").locator(".failed")).to_contain_text("It took too long.")
    begun = []
    batch_page.on("request", lambda sent: begun.append(sent) if sent.url.endswith("/v1/batches") else None)
    retry = batch_page.get_by_role("button", name="Retry b/2.png")
    retry.evaluate("button => { button.click(); button.click(); }")
    expect(batch_page.locator(".run-progress")).to_have_text("1 answer · 2 failed")
    expect(answer(batch_page, "b/2.png")).to_have_value("animals")
    assert len(begun) == 1


def test_what_was_not_sent_is_sent_again(web_browser, web_url, folder):
    with open_batches(web_browser, web_url, expected=["status of 500"]) as page:
        page.route("**/v1/files", lambda route: route.fulfill(status=500, json={}))
        choose_pictures(page, folder / "b")
        start(page)
        expect(page.locator(".run-progress")).to_have_text("0 answers · 3 failed")
        expect(card(page, "b/2.png").locator(".failed")).to_contain_text("answered with status 500")
        page.unroute("**/v1/files")
        page.get_by_role("button", name="Retry b/2.png").click()
        expect(page.locator(".run-progress")).to_have_text("1 answer · 2 failed")
        page.get_by_role("button", name="Retry 2 pictures").click()
        expect(page.locator(".run-progress")).to_have_text("3 answers")
        report = saved(page, "Report").decode()
        assert "3 written, 0 failed" in report


def test_a_run_is_cancelled_and_goes_on_after_a_reload(web_browser, web_url, folder, demo_model, monkeypatch):
    slow = SlowModel(monkeypatch, demo_model)
    with open_batches(web_browser, web_url) as page:
        slow.resume_event.clear()
        choose_pictures(page, folder / "b")
        start(page)
        expect(page.get_by_text("Waiting for its answer")).to_have_count(3)
        expect(page.locator(".run-progress")).to_have_text("0 of 3")
        page.reload()
        expect(page.get_by_text("Waiting for its answer")).to_have_count(3)
        with page.expect_response("**/cancel"):
            page.get_by_role("button", name="Cancel").click()
        slow.resume_event.set()
        expect(page.locator(".run-progress")).to_have_text("3 answers")  # lines in hand are answered
        expect(page.get_by_role("button", name="Cancel")).to_be_hidden()


def test_a_run_is_deleted_and_brought_back(batch_page, folder):
    choose_pictures(batch_page, folder / "a")
    start(batch_page, "Caption", "")
    expect(batch_page.locator(".run-progress")).to_have_text("1 answer")
    batch_page.get_by_role("button", name="Delete", exact=True).click()
    expect(batch_page.get_by_role("heading", name="One question, many pictures")).to_be_visible()
    expect(batch_page.locator(".runs a")).to_have_count(0)
    batch_page.get_by_role("button", name="Undo", exact=True).click()
    expect(answer(batch_page, "a/1.png")).to_have_value(re.compile("tomato"))
    batch_page.get_by_role("link", name="All runs").click()
    expect(batch_page.locator(".runs a")).to_contain_text("Caption1 picture")


AGE_DELETED = """async () => {
    const opening = indexedDB.open("idefics-batch");
    await new Promise((resolve) => (opening.onsuccess = resolve));
    const transaction = opening.result.transaction("runs", "readwrite");
    const runs = transaction.objectStore("runs");
    runs.getAll().onsuccess = ({target: {result}}) => {
        for (const run of result) runs.put({...run, deletedAt: 1});
    };
    await new Promise((resolve) => (transaction.oncomplete = resolve));
    opening.result.close();
}"""


def test_what_is_deleted_for_good_is_deleted_on_the_server(batch_page, web_url, folder):
    def list_all(kind):
        return batch_page.request.get(f"{web_url}/v1/{kind}").json()["data"]

    def ids():
        return {file["id"] for file in list_all("files")}

    before = ids()
    choose_pictures(batch_page, folder / "a")
    start(batch_page, "Caption", "")
    expect(batch_page.locator(".run-progress")).to_have_text("1 answer")
    wait_until(batch_page, lambda: list_all("batches")[0]["status"] == "completed")
    assert len(ids() - before) == 2
    batch_page.get_by_role("button", name="Delete", exact=True).click()
    expect(batch_page.get_by_role("heading", name="One question, many pictures")).to_be_visible()
    batch_page.evaluate(AGE_DELETED)  # as if it was long ago
    batch_page.reload()
    wait_until(batch_page, lambda: ids() == before)


def test_what_is_missing_is_said_and_gets_the_focus(batch_page, folder):
    batch_page.get_by_role("button", name="Start").click()
    expect(batch_page.get_by_role("alert")).to_contain_text("There are no pictures yet")
    expect(batch_page.get_by_role("button", name="Choose files or a zip")).to_be_focused()
    choose_pictures(batch_page, folder / "a")
    start(batch_page, words="tower")
    expect(batch_page.get_by_role("alert")).to_contain_text("type at least two")
    expect(batch_page.locator("#batch-words")).to_be_focused()


def test_without_batches_the_page_says_what_to_do(web_browser, demo_model):
    app = create_app(demo_model, Settings(model="demo"))
    mount_page(app)
    with serve_app(app) as address, open_page(web_browser, address, path="/#/batch") as page:
        expect(page.locator(".batch")).to_contain_text("idefics serve --ui --batches FOLDER")
        assert page.get_by_role("button", name="Start").count() == 0


@pytest.mark.parametrize(("size", "theme"), [("laptop", "light"), ("phone", "dark"), ("wide", "light")])
def test_every_view_fits_and_is_accessible(web_browser, web_url, folder, size, theme):
    SCREENS.mkdir(parents=True, exist_ok=True)
    with open_page(
        web_browser, web_url, path="/#/batch", viewport=SIZES[size], color_scheme=theme, bypass_csp=True
    ) as page:

        def take(name):
            page.screenshot(path=SCREENS / f"{name}-{size}-{theme}.png")
            assert not page.evaluate(OVERFLOWS), name
            view = page.locator("#view")
            assert view.evaluate("view => view.scrollWidth <= view.clientWidth"), name
            assert find_violations(page) == [], name

        choose_pictures(page, folder)
        expect(page.locator(".previews > *")).to_have_count(5)
        start(page, words="tower")
        take("batch-start")
        start(page)
        expect(page.locator(".run-progress")).to_have_text("4 answers · 1 failed")
        answer(page, "trip/a/1.png").fill("a market, seen from above, with everything that is on it")
        page.keyboard.press("Enter")
        page.locator(".chart-bar", has_text="animals").focus()
        take("batch-run")
        page.get_by_role("link", name="All runs").click()
        expect(page.locator(".runs a")).to_contain_text("5 pictures · 1 failed")
        take("batch-runs")


def test_a_run_by_keyboard_alone(batch_page, folder):
    choose_pictures(batch_page, folder / "b")
    batch_page.get_by_role("button", name="Choose files or a zip").focus()
    for key in ("Tab", "Tab", "Tab", "ArrowRight", "ArrowRight", "Tab"):  # folder, remove all, chips, labels
        batch_page.keyboard.press(key)
    expect(batch_page.locator("#batch-words")).to_be_focused()
    batch_page.keyboard.type(LABELS)
    batch_page.keyboard.press("Tab")
    batch_page.keyboard.press("Enter")
    expect(batch_page.get_by_role("heading", name=f"Classify: {LABELS}")).to_be_focused()
    expect(batch_page.locator("#announcer")).to_have_text("3 answers")
    answer(batch_page, "b/1.png").focus()
    batch_page.keyboard.press("Control+a")
    batch_page.keyboard.type("tower")
    batch_page.keyboard.press("Enter")
    expect(answer(batch_page, "b/2.png")).to_be_focused()
    expect(card(batch_page, "b/1.png")).to_contain_text("edited")
    batch_page.keyboard.press("Shift+Tab")
    expect(batch_page.get_by_role("button", name="Open b/2.png in Pictures")).to_be_focused()
    batch_page.keyboard.press("Shift+Tab")
    expect(batch_page.get_by_role("button", name="Undo the change of b/1.png")).to_be_focused()
    batch_page.keyboard.press("Enter")
    expect(answer(batch_page, "b/1.png")).to_have_value("city landscape")
    expect(answer(batch_page, "b/1.png")).to_be_focused()


def test_a_server_that_goes_away_is_named_and_asked_again(abortable_page, folder):
    abortable_page.route("**/results?*", lambda route: route.abort())
    choose_pictures(abortable_page, folder / "a")
    start(abortable_page, "Caption", "")
    expect(abortable_page.locator("progress + .error")).to_contain_text("The server does not answer.")
    expect(abortable_page.locator(".run-progress")).to_have_text("0 of 1")
    abortable_page.unroute("**/results?*")
    expect(abortable_page.locator(".run-progress")).to_have_text("1 answer")
    expect(abortable_page.locator("progress + .error")).to_be_hidden()
