"""Which model answers: adapters, another model after a restart, models of other servers, models that take videos."""

import json

import PIL.Image
import pytest
from playwright.sync_api import expect

from idefics.page.static_files import mount_page
from idefics.server.app import create_app
from idefics.server.settings import Settings
from page import browser
from page.browser import (
    BROWSER_MARKS,
    add_pictures,
    answer_with,
    choose_task,
    close_drawer,
    last_turn,
    open_page,
    send,
    wait_until,
    wait_until_saved,
)

pytestmark = BROWSER_MARKS


@pytest.fixture
def cards(web_page, web_url):
    """The models that the server lists; a test may change them."""
    cards = web_page.request.get(f"{web_url}/v1/models").json()["data"]
    web_page.route("**/v1/models", lambda route: route.fulfill(json={"data": cards}))
    return cards


def test_each_conversation_has_its_model(web_page, cards, bundled_pictures):
    asked = []
    web_page.on(
        "request", lambda request: asked.append(request.post_data) if "/tasks/" in request.url else None
    )
    cards.append({**cards[0], "id": "birds", "parent": "demo"})
    web_page.reload()
    choice = web_page.get_by_label("Model")
    expect(choice).to_have_value("demo")
    add_pictures(web_page, bundled_pictures["tower.png"])
    answer_with(web_page, "Night.")
    for number, (name, field) in enumerate((("demo", None), ("birds", 'name="model"\r\n\r\nbirds')), 1):
        choice.select_option(name)
        send(web_page, "Is it day or night?")
        expect(web_page.locator(".turn[data-status=done]")).to_have_count(number)
        assert field in asked[-1] if field else 'name="model"' not in asked[-1]
    expect(last_turn(web_page).locator(".meta")).to_contain_text("birds")
    web_page.locator("#new-conversation").click()
    expect(choice).to_have_value("demo")
    web_page.go_back()
    expect(choice).to_have_value("birds")
    web_page.reload()
    expect(choice).to_have_value("birds")
    with web_page.expect_request("**/tasks/explain") as explained:
        last_turn(web_page).get_by_role("button", name="Show where").click()
    expect(last_turn(web_page).locator(".where")).to_be_visible()
    assert 'name="model"\r\n\r\nbirds' in explained.value.post_data


@pytest.mark.parametrize("notice", ["focus", "question"])
def test_a_server_that_is_started_again_with_another_model(web_page, cards, bundled_pictures, notice):
    choose_task(web_page, "Chat")
    cards[0] = {**cards[0], "id": "base-model", "kind": "base", "is_demo": False, "num_parameters": 9e9}
    if notice == "focus":
        web_page.evaluate("dispatchEvent(new Event('focus'))")
    else:
        choose_task(web_page, "Ask")
        add_pictures(web_page, bundled_pictures["tower.png"])
        send(web_page, "Is it day or night?")
    expect(web_page.locator("#model")).to_have_text("base-model9.0B parameters")
    expect(web_page.locator("label.chip", has_text="Chat")).to_be_hidden()
    expect(web_page.locator("input[name=task]:checked + span")).to_have_text("Ask")


@pytest.fixture(scope="module")
def other_url(demo_model):
    """Another server, with a key; pages of every origin may use it."""
    settings = Settings(model="demo", name="other", api_key="secret", allowed_origins="*")
    with browser.serve_app(create_app(demo_model, settings)) as address:
        yield address


def test_an_answer_of_another_server_is_compared(web_browser, other_url, demo_model, bundled_pictures):
    app = create_app(demo_model, Settings(model="demo", compare_with=other_url))
    mount_page(app)
    with browser.serve_app(app) as address, web_browser.new_context() as context:
        page, sent = context.new_page(), []
        page.on("request", lambda request: sent.append(request))
        page.goto(address)
        add_pictures(page, bundled_pictures["tower.png"])
        send(page, "Is it day or night?")
        expect(last_turn(page).locator(".meta")).to_contain_text("written")
        assert not any(request.url.startswith(other_url) for request in sent)  # not before it is compared
        last_turn(page).get_by_role("button", name="Compare").click()
        host = other_url.removeprefix("http://")
        page.get_by_label(f"API key of {host}, which asks for one").fill("wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_label(f"API key of {host}")).to_be_empty()
        expect(page.get_by_label(f"API key of {host}")).to_be_focused()
        page.get_by_label(f"API key of {host}").fill("secret")
        page.keyboard.press("Enter")
        expect(page.get_by_label(f"API key of {host}")).to_have_count(0)
        expect(page.get_by_label("Change one thing:")).to_be_focused()
        expect(page.locator(".column").last.locator("h3")).to_have_text(f"other at {host}")
        expect(page.locator(".column").last.locator(".answer-text")).to_have_text("Night.")
        expect(page.get_by_role("button", name="Keep the new answer")).to_be_hidden()
        (task,) = [
            one for one in sent if one.url == f"{other_url}/v1/images/tasks/ask" and one.method == "POST"
        ]
        assert task.headers["authorization"] == "Bearer secret"
        assert (
            page.evaluate("Object.values({...localStorage, ...sessionStorage}).join().includes('secret')")
            is False
        )


def test_no_server_but_those_that_are_named(web_browser, web_url, other_url):
    with open_page(
        web_browser, web_url, expected=["Content Security Policy", "Fetch API cannot load"]
    ) as page:
        failed = page.evaluate("url => fetch(url).catch((error) => error.name)", f"{other_url}/health")
        assert failed == "TypeError"


def test_a_server_that_does_not_let_the_page_read_says_how(web_browser, demo_model, bundled_pictures):
    with browser.serve_app(create_app(demo_model, Settings(model="demo"))) as closed:
        app = create_app(demo_model, Settings(model="demo", compare_with=closed))
        mount_page(app)
        with browser.serve_app(app) as address, web_browser.new_context() as context:
            page = context.new_page()
            page.goto(address)
            add_pictures(page, bundled_pictures["tower.png"])
            answer_with(page, "Night.")
            send(page, "Is it day or night?")
            last_turn(page).get_by_role("button", name="Compare").click()
            expect(page.locator(".compare-problems .error")).to_have_text(
                f"{closed} does not answer this page. If it runs, start it with --allowed-origins {address}."
            )


def write_video(path, seconds):
    av = pytest.importorskip("av")
    with av.open(path, "w") as container:
        stream = container.add_stream("libvpx", rate=8)
        stream.width, stream.height, stream.pix_fmt = 1024, 48, "yuv420p"
        for number in range(8 * seconds):
            frame = av.VideoFrame.from_image(PIL.Image.new("RGB", (1024, 48), (10 * number, 0, 0)))
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_a_video_is_sent_as_a_video_where_the_model_takes_them(web_page, cards, tmp_path):
    write_video(tmp_path / "clip.webm", seconds=2)
    cards[0]["video"] = {"fps": 2, "max_frames": 3}
    web_page.reload()
    asked = []
    answer = {"choices": [{"delta": {"content": "It gets red."}, "finish_reason": "stop"}]}
    body = f"data: {json.dumps(answer)}\n\ndata: [DONE]\n\n"

    def reply(route):
        asked.append(route.request.post_data_json["messages"])
        route.fulfill(body=body, content_type="text/event-stream")

    web_page.route("**/chat/completions", reply)
    add_pictures(web_page, tmp_path / "clip.webm")
    note = "clip.webm · 512 × 24 · video: Chat sees 3 frames, the other tasks this one"
    expect(web_page.locator(".picture-name")).to_contain_text(note)
    choose_task(web_page, "Chat")
    send(web_page, "What happens?")
    expect(last_turn(web_page).locator(".answer-text")).to_have_text("It gets red.")
    expect(last_turn(web_page).get_by_role("button", name="Try again")).to_be_visible()
    expect(last_turn(web_page).get_by_role("button", name="Show where")).to_have_count(0)
    last_turn(web_page).get_by_role("button", name="Code").click()
    expect(web_page.get_by_label("Python", exact=True)).to_contain_text(
        "user(Video('clip.webm'), 'What happens?')"
    )
    close_drawer(web_page)
    wait_until_saved(web_page)
    web_page.reload()
    last_turn(web_page).get_by_role("button", name="Try again").click()
    wait_until(web_page, lambda: len(asked) == 2)
    expect(last_turn(web_page).locator(".answer-text")).to_have_text("It gets red.")
    for ((message,),) in zip(asked, strict=True):
        video, text = message["content"]
        assert text == {"type": "text", "text": "What happens?"}
        assert video["type"] == "video" and video["fps"] == pytest.approx(1.5, abs=0.1)
        assert len(set(video["video"])) == 3
        assert all(frame.startswith("data:image/jpeg;base64,") for frame in video["video"])
    assert asked[0] == asked[1]
