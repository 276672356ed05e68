"""Few-shot examples in the page: recipes, editing, and the file that all of idefics reads."""

import json

from playwright.sync_api import expect

import idefics
from idefics import Shot
from idefics.cli.main import run
from page.browser import (
    BROWSER_MARKS,
    PHONE_SIZE,
    add_pictures,
    choose_task,
    close_drawer,
    drop_files,
    last_turn,
    open_page,
    send,
    wait_until,
)

pytestmark = BROWSER_MARKS
FUN_FACT = "An image of a tower. Fun fact: towers sway a little in the wind."


def open_examples(page):
    """Opens the drawer of examples and returns it."""
    page.get_by_role("button", name="Examples").click()
    return page.locator("#drawer-examples")


def expect_answers(drawer, *answers):
    """Waits until the drawer has these answers, in this order."""
    fields = drawer.locator("textarea")
    expect(fields).to_have_count(len(answers))
    for index, answer in enumerate(answers):
        expect(fields.nth(index)).to_have_value(answer)


def test_one_click_on_a_recipe_changes_the_answer(web_page, demo_model, bundled_pictures):
    add_pictures(web_page, bundled_pictures["statue.png"])
    drawer = open_examples(web_page)
    drawer.get_by_role("button", name="Fun fact").click()
    expect(drawer.locator("textarea")).to_have_value(FUN_FACT)
    close_drawer(web_page)
    expect(web_page.locator("#num-examples")).to_have_text("1")
    send(web_page)  # the recipe chose its task
    shots = [Shot(bundled_pictures["tower.png"], FUN_FACT)]
    wanted = demo_model.with_shots(shots).caption(bundled_pictures["statue.png"]).text
    assert "Fun fact" in wanted
    expect(last_turn(web_page).locator(".answer-text")).to_have_text(wanted)
    expect(last_turn(web_page).locator(".shots")).to_have_text("after 1 example")


def test_a_recipe_hides_no_question_that_was_typed(web_page):
    web_page.locator("#words").fill("What is it?")
    drawer = open_examples(web_page)
    drawer.get_by_role("button", name="Fun fact").click()
    expect(drawer.locator(".example")).to_have_count(1)
    close_drawer(web_page)
    expect(web_page.locator("#words")).to_have_value("What is it?")


def test_every_recipe_is_answered(web_page, bundled_pictures):
    add_pictures(web_page, bundled_pictures["vegetables.png"])
    for number, name in enumerate(("JSON receipt", "Count things", "Another language"), 1):
        drawer = open_examples(web_page)
        drawer.get_by_role("button", name=name).click()
        expect(drawer.get_by_text(f"From “{name}”.")).to_be_visible()
        expect(drawer.locator(".example")).to_have_count(2)
        if name == "JSON receipt":
            answers = [one.input_value() for one in drawer.locator("textarea").all()]
            assert [json.loads(answer)["total"] for answer in answers] == [7.8, 32.5]
        close_drawer(web_page)
        expect(web_page.locator("#words")).not_to_have_value("")
        web_page.locator("#words").press("Enter")
        expect(web_page.locator(".turn")).to_have_count(number)
        expect(last_turn(web_page).locator(".meta")).to_contain_text("tokens read")
        expect(last_turn(web_page).locator(".shots")).to_have_text("after 2 examples")


def test_examples_are_edited_moved_deleted_and_brought_back(web_page, bundled_pictures):
    drawer = open_examples(web_page)
    files = [str(bundled_pictures[name]) for name in ("tower.png", "door.png")]
    drawer.locator(".example-files").set_input_files(files)
    expect(drawer.locator(".example")).to_have_count(2)
    expect(drawer.get_by_label("Answer 1")).to_be_focused()
    expect(drawer.get_by_text("Without an answer it is not used.").first).to_be_visible()
    expect(web_page.locator("#num-examples")).to_be_hidden()
    drawer.get_by_label("Answer 1").press_sequentially("A tower.")
    drawer.get_by_label("Answer 2").fill("A door.")
    drawer.get_by_label("Question 2").fill("What is in the middle?")
    expect(drawer.get_by_text("Without an answer it is not used.").first).to_be_hidden()
    drawer.get_by_role("button", name="Move example 2 up").focus()
    web_page.keyboard.press("Enter")
    expect_answers(drawer, "A door.", "A tower.")
    expect(drawer.get_by_role("button", name="Move example 1 down")).to_be_focused()
    drawer.get_by_role("button", name="Delete example 1").click()
    expect_answers(drawer, "A tower.")
    drawer.get_by_role("button", name="Undo").last.click()
    expect_answers(drawer, "A door.", "A tower.")
    expect(drawer.get_by_label("Question 1")).to_have_value("What is in the middle?")
    drawer.get_by_role("button", name="Fun fact").click()
    expect(drawer.locator(".example")).to_have_count(1)
    drawer.get_by_role("button", name="Undo").click()
    expect_answers(drawer, "A door.", "A tower.")
    drawer.get_by_role("button", name="Remove all").click()
    expect(drawer.locator(".example")).to_have_count(0)
    drawer.get_by_role("button", name="Undo").last.click()
    expect_answers(drawer, "A door.", "A tower.")
    close_drawer(web_page)
    expect(web_page.locator(":not(dialog) > #toasts, :not(dialog) > #announcer")).to_have_count(2)


def test_an_answer_becomes_an_example(web_page, bundled_pictures):
    add_pictures(web_page, bundled_pictures["picnic.png"])
    choose_task(web_page, "Ask")
    send(web_page, "What is in this image?")
    expect(last_turn(web_page).locator(".meta")).to_be_visible()
    drawer = open_examples(web_page)
    drawer.get_by_role("button", name="Use the picture and its answer").click()
    expect_answers(drawer, "A couple, a basket and a sandwich.")
    expect(drawer.get_by_label("Question 1")).to_have_value("What is in this image?")


def test_a_picture_that_is_dropped_on_the_drawer_is_an_example(web_page, bundled_pictures):
    drawer = open_examples(web_page)
    expect(drawer).to_be_visible()
    picnic = bundled_pictures["picnic.png"].read_bytes()
    drop_files(web_page, "#drawer-examples", {"picnic.png": (picnic, "image/png")})
    expect(drawer.get_by_label("Answer 1")).to_be_focused()
    expect(web_page.locator("#welcome")).to_be_visible()  # the conversation has none


def test_no_drawer_stands_over_another_view(web_page):
    heading = web_page.get_by_role("heading", name="Ask the camera")
    web_page.get_by_role("link", name="Live").click()
    expect(heading).to_be_visible()
    web_page.get_by_role("link", name="Pictures").click()
    expect(web_page.locator("#welcome")).to_be_visible()
    drawer = open_examples(web_page)
    expect(drawer).to_be_visible()
    web_page.go_back()  # closes the drawer alone
    expect(drawer).to_have_count(0)
    expect(web_page.locator("#welcome")).to_be_visible()
    web_page.go_back()
    expect(heading).to_be_visible()


def test_own_recipes_are_kept_in_the_browser(web_page):
    drawer = open_examples(web_page)
    drawer.get_by_role("button", name="Save as a recipe").click()  # the name is missing
    drawer.get_by_label("Name of the recipe").fill("Mine")
    web_page.keyboard.press("Enter")
    expect(drawer.locator(".error")).to_have_text("There are no examples yet: add one, then save them.")
    drawer.get_by_role("button", name="Fun fact").click()
    expect(drawer.get_by_text("From “Fun fact”.")).to_be_visible()
    drawer.get_by_label("Answer 1").fill("A tower.")
    expect(drawer.get_by_text("From “Fun fact”.")).to_be_hidden()
    drawer.get_by_label("Name of the recipe").fill("Mine")
    web_page.keyboard.press("Enter")
    expect(drawer.get_by_role("button", name="Mine", exact=True)).to_be_visible()
    expect(drawer.get_by_text("The recipe Mine is saved.")).to_be_in_viewport(ratio=1)
    web_page.evaluate("sessionStorage.clear()")  # as in another window
    web_page.reload()
    drawer = open_examples(web_page)
    drawer.get_by_role("button", name="Mine", exact=True).click()
    expect(web_page.get_by_role("radio", name="Caption", include_hidden=True)).to_be_checked()
    expect_answers(drawer, "A tower.")
    drawer.get_by_label("Answer 1").fill("Another tower.")
    drawer.get_by_label("Name of the recipe").fill("Mine")
    web_page.keyboard.press("Enter")
    expect(drawer.get_by_text("The recipe Mine is replaced.")).to_be_visible()
    replaced = drawer.get_by_role("button", name="Mine", exact=True).element_handle()
    drawer.get_by_role("button", name="Undo").click()
    wait_until(web_page, lambda: not replaced.evaluate("button => button.isConnected"))
    drawer.get_by_role("button", name="Mine", exact=True).click()
    expect(drawer.get_by_label("Answer 1")).to_have_value("A tower.")
    drawer.locator(".toast").get_by_role("button", name="Close").click()
    drawer.get_by_role("button", name="Delete the recipe Mine").click()
    expect(drawer.get_by_role("button", name="Mine", exact=True)).to_have_count(0)
    drawer.get_by_role("button", name="Undo").click()
    expect(drawer.get_by_role("button", name="Mine", exact=True)).to_be_visible()


def test_the_saved_file_is_the_shots_file_of_all_of_idefics(
    web_page, demo_model, bundled_pictures, tmp_path, capsys
):
    picture, question = bundled_pictures["statue.png"], "What is in this image?"
    drawer = open_examples(web_page)
    drawer.locator(".shots-file").set_input_files(
        [bundled_pictures["tower.png"].parent / "shots.jsonl", bundled_pictures["tower.png"]]
    )
    expect(drawer.get_by_label("Answer 1")).to_have_value(FUN_FACT)
    drawer.get_by_label("Question 1").fill("What do you see?\u2028")
    with web_page.expect_download() as download:
        drawer.get_by_role("button", name="Save shots.jsonl").click()
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    [row] = [json.loads(line) for line in path.read_text().split("\n") if line]
    assert row["image"].startswith("data:image/png;base64,") and row["answer"] == FUN_FACT
    shots = idefics.read_shots(path)
    wanted = demo_model.with_shots(shots).ask(picture, question).text
    assert wanted != demo_model.ask(picture, question).text
    assert run(["ask", str(picture), question, "--shots", str(path), "--model", "demo"]) == 0
    assert capsys.readouterr().out.strip() == wanted
    drawer.get_by_role("button", name="Delete example 1").click()
    drawer.locator(".shots-file").set_input_files(path)
    expect(drawer.get_by_label("Answer 1")).to_have_value(FUN_FACT)
    close_drawer(web_page)
    add_pictures(web_page, picture)
    send(web_page, question)
    expect(last_turn(web_page).locator(".answer-text")).to_have_text(wanted)


WRONG_FILES = {
    '{"image": "a.png"}': 'shots.jsonl, line 1 needs an "image" and an "answer"',
    '\n{"image"': "shots.jsonl, line 2 is not JSON",
    '{"image": "a/b.png", "answer": "x"}': "shots.jsonl, line 1 names a/b.png: choose that picture together",
    '{"image": "data:,x", "answer": "x"}': "line 1: the picture is not a base64 data URI",
    "": "shots.jsonl holds no examples",
}


def test_a_wrong_file_is_said_by_its_line(web_page):
    drawer = open_examples(web_page)
    for text, wrong in WRONG_FILES.items():
        file = {"name": "shots.jsonl", "mimeType": "", "buffer": text.encode()}
        drawer.locator(".shots-file").set_input_files(file)
        expect(drawer.locator(".error")).to_contain_text(wrong)


def test_no_more_than_a_request_takes(web_page, bundled_pictures):
    drawer = open_examples(web_page)
    drawer.locator(".example-files").set_input_files([str(bundled_pictures["tower.png"])] * 17)
    expect(drawer.locator(".error")).to_have_text("A question takes at most 15 examples: 2 left out.")
    expect(drawer.locator(".example")).to_have_count(15)


def test_it_fits_a_small_phone(web_browser, web_url):
    with open_page(web_browser, web_url, viewport=PHONE_SIZE | {"width": 360}, has_touch=True) as page:
        drawer = open_examples(page)
        drawer.get_by_role("button", name="Count things").tap()
        expect(drawer.locator(".example")).to_have_count(2)
        assert page.evaluate("document.querySelector('#drawer-examples').scrollWidth <= innerWidth")
