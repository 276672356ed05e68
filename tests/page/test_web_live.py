"""The view of the camera: answers one after the other, dropped pictures, refusals in words."""

import re
from datetime import datetime, timedelta

import pytest
from playwright.sync_api import expect

from page.browser import (
    BROWSER_MARKS,
    FAST_TIMERS,
    PHONE_SIZE,
    SlowModel,
    answer_with,
    is_idle,
    open_page,
    wait_until,
)

pytestmark = BROWSER_MARKS
TASKS = "/v1/images/tasks/ask"
NOON = datetime(2026, 1, 1, 12)


@pytest.fixture
def live_page(web_page):
    """The page at the view of the camera."""
    web_page.get_by_role("link", name="Live").click()
    expect(web_page.get_by_role("heading", name="Ask the camera")).to_be_visible()
    return web_page


def note_requests(page):
    """The requests for answers, as they are sent."""
    sent = []
    page.on("request", lambda request: sent.append(request) if TASKS in request.url else None)
    return sent


NOTE_FIELDS = """() => {
    window.fields = {};
    const append = FormData.prototype.append;
    FormData.prototype.append = function (name, value, ...rest) {
        window.fields[name] = value instanceof Blob ? value.type : value;
        append.call(this, name, value, ...rest);
    };
}"""


def press_start(page):
    """Starts the answers, and waits until the camera gives pictures."""
    page.get_by_role("button", name="Start").click()
    wait_until(page, lambda: page.locator("video").evaluate("node => node.videoWidth") > 0)


def test_what_the_camera_sees_is_answered_until_it_is_stopped(live_page, demo_model):
    sent = note_requests(live_page)
    live_page.evaluate(NOTE_FIELDS)
    live_page.get_by_label("Question or instruction").fill("Is it day or night?")
    live_page.get_by_label("Longest answer").select_option("8 tokens")
    press_start(live_page)
    wait_until(live_page, lambda: len(sent) >= 3)
    expect(live_page.locator(".live-answer")).not_to_be_empty()
    expect(live_page.locator(".meta")).to_have_text(re.compile(r"^answered in (under )?\d+(\.\d)? s$"))
    fields = live_page.evaluate("window.fields")
    assert fields["words"] == "Is it day or night?" and fields["max_new_tokens"] == 8
    assert fields["image"] == "image/jpeg"
    live_page.get_by_role("button", name="Stop").click()
    expect(live_page.get_by_role("button", name="Start")).to_be_visible()
    wait_until(live_page, lambda: is_idle(demo_model))
    num_sent = len(sent)
    live_page.wait_for_timeout(300)
    assert len(sent) == num_sent
    assert live_page.locator("video").evaluate("node => node.srcObject.active") is False  # the camera is off


def test_pictures_are_dropped_while_an_answer_comes(live_page, demo_model, monkeypatch):
    slow = SlowModel(monkeypatch, demo_model)
    slow.resume_event.clear()
    sent = note_requests(live_page)
    press_start(live_page)
    wait_until(live_page, lambda: len(sent) == 1)
    expect(live_page.locator(".meta")).to_have_text(re.compile(r"^looking… [1-9]\d* s$"))
    assert len(sent) == 1
    live_page.get_by_role("button", name="Stop").click()
    expect(live_page.get_by_role("button", name="Start")).to_be_visible()
    slow.resume_event.set()
    wait_until(live_page, lambda: is_idle(demo_model))


def test_the_interval_is_kept_and_equal_answers_are_one_line(live_page):
    answer_with(live_page, "A green ", "ball.")
    sent = note_requests(live_page)
    live_page.clock.install(time=NOON - timedelta(minutes=1))
    live_page.clock.pause_at(NOON)
    live_page.get_by_role("combobox", name="Answers").select_option("every second")
    press_start(live_page)
    expect(live_page.locator(".live-answer")).to_have_text("A green ball.")
    times = live_page.locator(".live-earlier time")
    expect(times).to_have_text(["12:00:00"])
    live_page.clock.run_for(999)
    assert len(sent) == 1
    live_page.clock.run_for(1)
    expect(times).to_have_text(["12:00:01"])  # the equal answer is no line of its own
    assert len(sent) == 2
    live_page.unroute("**/v1/images/tasks/*")
    answer_with(live_page, "A red ball.")
    live_page.clock.run_for(1000)
    expect(live_page.locator(".live-earlier span")).to_have_text(["A red ball.", "A green ball."])


def test_on_a_phone_the_answer_is_under_the_camera(web_browser, web_url):
    with open_page(web_browser, web_url, path="/#/live", viewport=PHONE_SIZE) as page:
        answer_with(page, "A green ball.")
        press_start(page)
        expect(page.locator(".live-answer")).to_have_text("A green ball.")
        camera, answer = (page.locator(name).bounding_box() for name in (".live-picture", ".live-answer"))
        assert 0 <= answer["y"] - camera["y"] - camera["height"] < 40


def test_leaving_the_view_turns_the_camera_off(live_page, demo_model):
    press_start(live_page)
    stream = live_page.evaluate_handle("document.querySelector('video').srcObject")
    live_page.get_by_role("link", name="Pictures").click()
    expect(live_page.locator("#welcome")).to_be_visible()
    assert stream.evaluate("stream => stream.active") is False
    wait_until(live_page, lambda: is_idle(demo_model))


def test_a_moment_is_taken_into_the_conversation(live_page):
    answer_with(live_page, "A green ball.")
    press_start(live_page)
    live_page.get_by_role("button", name="Ask more about this moment").click()
    expect(live_page.locator(".picture-name")).to_contain_text("camera.jpg · 640 × 480")
    expect(live_page.locator("#words")).to_be_focused()


REFUSALS = {
    "NotAllowedError": "The browser did not allow the camera: allow it in the address bar, then press Start.",
    "NotFoundError": "No camera was found: connect one, then press Start.",
    "NotReadableError": "The camera cannot be used: another program may have it. Close that, then press Start.",
}


def test_a_camera_that_is_refused_is_said_in_words(live_page):
    for name, said in REFUSALS.items():
        live_page.evaluate(
            """name => {
                navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException("no", name));
            }""",
            name,
        )
        live_page.get_by_role("button", name="Start").click()
        expect(live_page.locator(".live .error")).to_have_text(said)
        expect(live_page.get_by_role("button", name="Start")).to_be_visible()
    live_page.evaluate("Object.defineProperty(navigator, 'mediaDevices', {value: undefined})")
    live_page.get_by_role("button", name="Start").click()
    expect(live_page.locator(".live .error")).to_contain_text("only to pages at https://")


def test_a_server_that_goes_away_is_asked_again(web_browser, web_url):
    options = {"expected": ["ERR_FAILED", "status of 400"], "init_script": FAST_TIMERS}
    with open_page(web_browser, web_url, path="/#/live", **options) as page:
        page.route("**/v1/images/tasks/*", lambda route: route.abort())
        press_start(page)
        expect(page.locator(".live .error")).to_contain_text("The server does not answer.")
        expect(page.locator(".live .error")).to_contain_text("Trying again…")
        page.unroute("**/v1/images/tasks/*")
        answer_with(page, "A green ball.")
        expect(page.locator(".live-answer")).to_have_text("A green ball.")
        expect(page.locator(".live .error")).to_be_hidden()
        page.unroute("**/v1/images/tasks/*")
        page.get_by_label("Question or instruction").fill("word " * 3000)  # more than the model reads
        expect(page.locator(".live .error")).to_contain_text("tokens")
        expect(page.get_by_role("button", name="Start")).to_be_visible()  # that will not pass by itself


def hold_camera(page):
    """Lets the camera answer only after `window.goOn()`; the streams that it gave are in `window.streams`."""
    page.evaluate(
        """() => {
            const devices = navigator.mediaDevices;
            const open = devices.getUserMedia.bind(devices);
            const held = new Promise((resolve) => (window.goOn = resolve));
            window.streams = [];
            devices.getUserMedia = async (wanted) => {
                await held;
                window.streams.push(await open(wanted));
                return window.streams.at(-1);
            };
        }"""
    )


def streams_are_active(page):
    return page.evaluate("streams.map((stream) => stream.active)")


def test_a_camera_that_comes_late_is_turned_off(live_page, demo_model):
    hold_camera(live_page)
    for name in ("Start", "Stop", "Start"):
        live_page.get_by_role("button", name=name).click()
    live_page.evaluate("goOn()")
    wait_until(live_page, lambda: streams_are_active(live_page) == [False, True])
    live_page.get_by_role("button", name="Stop").click()
    assert streams_are_active(live_page) == [False, False]
    hold_camera(live_page)
    live_page.get_by_role("button", name="Start").click()
    live_page.get_by_role("link", name="Pictures").click()
    expect(live_page.locator("#welcome")).to_be_visible()
    live_page.evaluate("goOn()")
    wait_until(live_page, lambda: False in streams_are_active(live_page))
    assert True not in streams_are_active(live_page)
    wait_until(live_page, lambda: is_idle(demo_model))


def test_answers_leave_no_listeners(live_page):
    answer_with(live_page, "A green ball.")
    sent = note_requests(live_page)
    live_page.evaluate(
        """() => {
            window.numListeners = 0;
            for (const [name, step] of [["addEventListener", 1], ["removeEventListener", -1]]) {
                const original = AbortSignal.prototype[name];
                AbortSignal.prototype[name] = function (...given) {
                    window.numListeners += step;
                    return original.apply(this, given);
                };
            }
        }"""
    )
    press_start(live_page)
    wait_until(live_page, lambda: len(sent) > 6)
    assert live_page.evaluate("numListeners") <= 2  # the camera's, and that of a wait


def test_a_camera_that_goes_away_is_said_and_one_is_chosen(live_page):
    answer_with(live_page, "A green ball.")
    live_page.evaluate(
        """() => {
            const devices = navigator.mediaDevices;
            const open = devices.getUserMedia.bind(devices);
            devices.enumerateDevices = async () =>
                ["front", "back"].map((label) => ({ kind: "videoinput", deviceId: label, label }));
            window.wanted = [];
            devices.getUserMedia = (wanted) => {
                window.wanted.push(wanted.video.deviceId?.exact ?? wanted.video.facingMode);
                return open({ video: true });
            };
        }"""
    )
    press_start(live_page)
    live_page.get_by_role("combobox", name="Camera").select_option("back")
    wait_until(live_page, lambda: live_page.evaluate("wanted.join()") == "environment,back")
    expect(live_page.get_by_role("button", name="Ask more about this moment")).to_be_visible()
    live_page.evaluate(
        "document.querySelector('video').srcObject.getTracks()[0].dispatchEvent(new Event('ended'))"
    )
    expect(live_page.locator(".live .error")).to_have_text(
        "The camera is gone: connect it again, then press Start."
    )
    live_page.get_by_label("Question or instruction").fill("Is it day?")
    live_page.get_by_role("link", name="Pictures").click()
    live_page.get_by_role("link", name="Live").click()
    expect(live_page.get_by_label("Question or instruction")).to_have_value("Is it day?")


def test_the_view_that_was_chosen_last_is_shown(web_page):
    held = []
    web_page.route("**/ui/batch.js", lambda route: held.append(route))
    web_page.get_by_role("link", name="Batch").click()
    wait_until(web_page, lambda: held)
    web_page.get_by_role("link", name="Live").click()
    expect(web_page.get_by_role("heading", name="Ask the camera")).to_be_visible()
    held[0].continue_()
    web_page.evaluate("async () => void (await import('/ui/batch.js'))")
    assert web_page.locator("#view > *").count() == 1
    expect(web_page.get_by_role("heading", name="Ask the camera")).to_be_visible()
