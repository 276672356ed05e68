"""The page in a browser: each task, from the first screen and from the composer."""

from playwright.sync_api import expect

from page.browser import BROWSER_MARKS, add_pictures, choose_task, last_turn, send

pytestmark = BROWSER_MARKS


def test_one_click_on_a_card_runs_it(web_page, demo_model, bundled_pictures):
    web_page.locator(".card", has_text="Is it day or night?").click()
    expect(last_turn(web_page).locator(".answer-text")).to_have_text("Night.")
    expect(web_page.locator("#welcome")).to_be_hidden()
    expect(web_page.locator("#stage .picture-name")).to_contain_text("tower.png · 384 × 384")
    assert demo_model.ask(bundled_pictures["tower.png"], "Is it day or night?").text == "Night."


def test_every_task_gives_the_models_answer(web_page, demo_model, bundled_pictures):
    picture = bundled_pictures["picnic.png"]
    add_pictures(web_page, picture)
    wanted = {
        ("Ask", "What is on the left?"): demo_model.ask(picture, "What is on the left?").text,
        ("Caption", ""): demo_model.caption(picture).text,
        ("Continue", "This is an image of"): demo_model.complete(picture, "This is an image of").text,
        ("Write", ""): demo_model.write(picture).text,
    }
    for (label, words), answer in wanted.items():
        choose_task(web_page, label)
        send(web_page, words)
        expect(last_turn(web_page).locator(".task-name")).to_have_text(label)
        expect(last_turn(web_page).locator(".answer-text")).to_have_text(answer)
    choose_task(web_page, "Classify")
    send(web_page, "cars, a couple, office")
    ranking = demo_model.classify(picture, ["cars", "a couple", "office"], calibrated=True)
    expect(last_turn(web_page).locator(".bar-label")).to_have_text([one.label for one in ranking])
