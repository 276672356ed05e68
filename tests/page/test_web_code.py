"""The code that the page shows for an answer: it runs, and gives that answer."""

import contextlib
import io
import json
import shutil
import subprocess
import sys

import PIL.Image
import pytest
from playwright.sync_api import expect

import idefics
from idefics.cli.main import run
from page.browser import (
    BROWSER_MARKS,
    add_pictures,
    answer_with,
    choose_task,
    close_drawer,
    last_turn,
    open_page,
    send,
)

pytestmark = [*BROWSER_MARKS, pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")]
LANGUAGES = ("Python", "Command line", "curl")


@pytest.fixture
def folder(tmp_path, bundled_pictures, monkeypatch):
    """The working folder of the code, with the pictures under an awkward name too."""
    for name, path in bundled_pictures.items():
        (tmp_path / name).write_bytes(path.read_bytes())
    (tmp_path / "it's a tower.png").write_bytes(bundled_pictures["tower.png"].read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read_snippets(page):
    """Opens the code of the last answer: language -> code."""
    last_turn(page).get_by_role("button", name="Code").click()
    snippets = {name: page.get_by_label(name, exact=True).inner_text() for name in LANGUAGES}
    close_drawer(page)
    return snippets


def run_python(code, monkeypatch, vlm):
    """What a script prints; it loads the model that is there already."""
    monkeypatch.setattr(idefics, "load", lambda name: vlm if name == "demo" else pytest.fail(name))
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, "snippet", "exec"), {})
    return printed.getvalue().strip()


def run_shell(code, folder):
    """What a shell command prints."""
    done = subprocess.run(
        ["bash", "-c", code], cwd=folder, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL
    )
    return done.stdout.strip()


# In place of the program: prints its arguments, each with a zero byte at its end, and its standard input.
PRINT_COMMAND = "idefics() { printf '%s\\0' \"$@\"; cat; }\n"


def run_command_line(code, folder, monkeypatch, vlm):
    """What a command of `idefics` prints: a shell reads it, and this process runs it with its model."""
    *arguments, typed = run_shell(PRINT_COMMAND + code, folder).split("\0")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed.encode())))

    def load(flags, _):
        assert flags.model == "demo"
        return vlm

    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert run(arguments, load) == 0
    return printed.getvalue().strip()


def set_fields(page, **values):
    """Sets fields of the settings: radio buttons by value, others by text."""
    page.locator("[data-drawer=settings]").click()
    expect(page.locator("#drawer-settings")).to_be_visible()
    for name, value in values.items():
        radio = page.locator(f'input[name="{name}"][type=radio][value="{value}"]')
        if radio.count():
            radio.check()
        else:
            page.locator(f'input[name="{name}"]').fill(str(value))
    close_drawer(page)


CASES = [
    ("Ask", "picnic.png", "What is on the 'left'?", {"detail": "low", "maxNewTokens": 9}),
    ("Continue", "it's a tower.png", 'This "is" an image of\nit\'s', {}),
    ("Write", "puppy.png", "-short $HOME `date`", {"strategy": "sampling", "seed": 5, "temperature": 1.5}),
    ("Caption", "statue.png", "", {"strategy": "beams", "numBeams": 3}),
]


@pytest.mark.parametrize(("label", "name", "words", "settings"), CASES, ids=[case[0] for case in CASES])
def test_the_code_of_a_text_gives_it(
    web_browser, web_url, folder, demo_model, monkeypatch, label, name, words, settings
):
    with open_page(web_browser, web_url) as page:
        add_pictures(page, folder / name)
        set_fields(page, **settings)
        choose_task(page, label)
        send(page, words)
        expect(last_turn(page).locator(".meta")).to_contain_text("written")
        answer = last_turn(page).locator(".answer-text").inner_text()
        snippets = read_snippets(page)
    assert run_python(snippets["Python"], monkeypatch, demo_model) == answer
    assert json.loads(run_shell(snippets["curl"], folder))["text"].strip() == answer
    assert run_command_line(snippets["Command line"], folder, monkeypatch, demo_model) == answer


@pytest.mark.parametrize("words", ["red, round, vegetables", "red, round\nvegetables\nit's"])
def test_the_code_of_a_ranking_gives_it(web_page, folder, demo_model, monkeypatch, words):
    add_pictures(web_page, folder / "vegetables.png")
    choose_task(web_page, "Classify")
    web_page.locator("#words").fill(words)
    web_page.locator("#send").click()
    labels = last_turn(web_page).locator(".bar-label")
    expect(labels.first).to_be_visible()
    ranked = labels.all_inner_texts()
    snippets = read_snippets(web_page)
    printed = run_python(snippets["Python"], monkeypatch, demo_model)
    assert [line.partition("% ")[2] for line in printed.splitlines()] == ranked
    answer = json.loads(run_shell(snippets["curl"], folder))
    assert [row["label"] for row in answer["labels"]] == ranked
    printed = run_command_line(snippets["Command line"], folder, monkeypatch, demo_model)
    assert ranked[0] in printed.splitlines()[0]


def test_the_code_of_a_chat_gives_its_last_answer(web_page, folder, demo_model, monkeypatch):
    add_pictures(web_page, folder / "it's a tower.png")
    choose_task(web_page, "Chat")
    send(web_page, "What is in this image?")
    expect(last_turn(web_page).locator(".answer-text")).to_have_text("A tower.")
    add_pictures(web_page, folder / "statue.png")
    send(web_page, 'And in this one? Say it\'s "so".')
    expect(web_page.locator(".turn")).to_have_count(2)
    expect(last_turn(web_page).locator(".meta")).to_contain_text("written")
    answer = last_turn(web_page).locator(".answer-text").inner_text()
    snippets = read_snippets(web_page)
    assert run_python(snippets["Python"], monkeypatch, demo_model) == answer
    said = json.loads(run_shell(snippets["curl"], folder))
    assert said["choices"][0]["message"]["content"] == answer
    printed = run_command_line(snippets["Command line"], folder, monkeypatch, demo_model)
    assert printed.splitlines()[-1] == answer


def test_the_code_with_examples_reads_those_of_its_answer(web_page, folder, demo_model, monkeypatch):
    add_pictures(web_page, folder / "statue.png")
    web_page.locator("[data-drawer=examples]").click()
    web_page.get_by_role("button", name="Fun fact").click()
    expect(web_page.locator(".example")).to_have_count(1)
    close_drawer(web_page)
    choose_task(web_page, "Caption")
    send(web_page)
    expect(last_turn(web_page).locator(".meta")).to_contain_text("written")
    answer = last_turn(web_page).locator(".answer-text").inner_text()
    web_page.locator("[data-drawer=examples]").click()
    web_page.get_by_role("button", name="Count things").click()  # those of later questions
    expect(web_page.locator(".example")).to_have_count(2)
    close_drawer(web_page)
    web_page.locator(".toast").get_by_role("button", name="Close").click()  # it lies over the answer
    snippets = read_snippets(web_page)
    last_turn(web_page).get_by_role("button", name="Code").click()
    with web_page.expect_download() as download:
        web_page.get_by_role("button", name="Save shots.jsonl").click()
    download.value.save_as(folder / "shots.jsonl")
    assert answer != demo_model.caption(folder / "statue.png").text
    assert run_python(snippets["Python"], monkeypatch, demo_model) == answer
    assert json.loads(run_shell(snippets["curl"], folder))["text"].strip() == answer
    assert "--shots shots.jsonl" in snippets["Command line"]


def test_a_picture_that_was_changed_is_saved_as_it_was_sent(web_page, folder, demo_model, monkeypatch):
    PIL.Image.open(folder / "tower.png").save(folder / "tower.tif")
    add_pictures(web_page, folder / "tower.tif")
    send(web_page, "What is in this image?")
    expect(last_turn(web_page).locator(".answer-text")).to_have_text("A tower.")
    last_turn(web_page).get_by_role("button", name="Code").click()
    with web_page.expect_download() as download:
        web_page.get_by_role("button", name="tower.jpg").click()
    download.value.save_as(folder / "tower.jpg")
    code = web_page.get_by_label("Python", exact=True).inner_text()
    assert "'tower.jpg'" in code
    assert run_python(code, monkeypatch, demo_model) == "A tower."


def test_pictures_of_one_name_are_two_files(web_page, folder, bundled_pictures):
    (folder / "more").mkdir()
    (folder / "more" / "tower.png").write_bytes(bundled_pictures["door.png"].read_bytes())
    add_pictures(web_page, folder / "tower.png")
    add_pictures(web_page, folder / "more" / "tower.png")
    expect(web_page.locator(".strip button")).to_have_count(2)
    choose_task(web_page, "Chat")
    send(web_page, "What is in these images?")
    expect(last_turn(web_page).locator(".meta")).to_contain_text("written")
    assert "Picture('tower.png'), Picture('tower-2.png')" in read_snippets(web_page)["Python"]


def test_a_turn_that_failed_is_no_part_of_the_chat(web_page, folder, demo_model, monkeypatch):
    add_pictures(web_page, folder / "tower.png")
    choose_task(web_page, "Chat")
    events = [{"choices": [{"delta": {"content": "Half of an"}}]}, {"error": {"message": "the server stops"}}]
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    web_page.route(
        "**/chat/completions", lambda route: route.fulfill(body=body, content_type="text/event-stream")
    )
    send(web_page, "Is it day or night?")
    expect(last_turn(web_page).locator(".error")).to_have_text("The server stops.")
    web_page.unroute("**/chat/completions")
    send(web_page, "What is in this image?")
    expect(last_turn(web_page).locator(".answer-text")).to_have_text("A tower.")
    snippets = read_snippets(web_page)
    assert "Half of an" not in "".join(snippets.values())
    assert run_python(snippets["Python"], monkeypatch, demo_model) == "A tower."


def test_the_code_of_what_is_not_sent_yet(web_page, folder):
    add_pictures(web_page, folder / "tower.png")
    set_fields(web_page, strategy="sampling")
    web_page.locator("#words").fill("What is it?")
    web_page.locator("[data-drawer=code]").click()
    code = web_page.get_by_label("Python", exact=True)
    expect(code).to_contain_text("vlm.ask('tower.png', 'What is it?', temperature=0.8, top_p=0.95)")


def test_the_model_is_named_as_it_was_given_to_the_server(web_browser, web_url, bundled_pictures):
    load = {
        "model": "owner/model",
        "revision": "v2",
        "adapter": None,
        "quantize": "int8",
        "dtype": "bfloat16",
    }
    with open_page(web_browser, web_url) as page:
        card = page.request.get(f"{web_url}/v1/models").json()["data"][0]
        served = {**card, "id": "our-model", "load": load, "needs_key": True}
        flags = {**served, "id": "flags", "parent": "our-model", "load": {**load, "adapter": "flags-adapter"}}
        page.route("**/v1/models", lambda route: route.fulfill(json={"data": [served, flags]}))
        page.reload()
        add_pictures(page, bundled_pictures["tower.png"])
        answer_with(page, "Night.")
        send(page, "Is it day or night?")
        expect(last_turn(page).locator(".meta")).to_contain_text("written")
        snippets = read_snippets(page)
        assert (
            "idefics.load('owner/model', revision='v2', quantize='int8', dtype='bfloat16')"
            in snippets["Python"]
        )
        assert (
            "--model owner/model --revision v2 --quantize int8 --dtype bfloat16" in snippets["Command line"]
        )
        assert '-H "Authorization: Bearer $IDEFICS_API_KEY"' in snippets["curl"]
        assert "our-model" not in snippets["curl"]
        page.get_by_label("Model").select_option("flags")
        send(page, "Is it day or night?")
        expect(last_turn(page).locator(".meta")).to_contain_text("flags")
        snippets = read_snippets(page)
        assert "adapter='flags-adapter'" in snippets["Python"]
        assert "--form-string model=flags" in snippets["curl"]
