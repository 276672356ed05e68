"""What pages for models often get wrong: each here as it should be."""

import io
import re

import PIL.Image
import pytest
from playwright.sync_api import expect

from page.browser import (
    BROWSER_MARKS,
    PHONE_SIZE,
    SlowModel,
    add_pictures,
    answer_with,
    choose_task,
    close_drawer,
    drop_files,
    is_idle,
    last_turn,
    open_page,
    send,
    wait_until,
)

pytestmark = BROWSER_MARKS
HOSTILE_ANSWER = (
    '<div style="position:fixed;inset:0">over everything</div> <doctag>kept</doctag> **bold** '
    '$$x^2$$ <img src=x onerror="document.title=1"> [link](http://example.com)'
)


def test_what_a_model_writes_is_text(web_page, bundled_pictures):
    add_pictures(web_page, bundled_pictures["tower.png"])
    answer_with(web_page, HOSTILE_ANSWER[:30], HOSTILE_ANSWER[30:])
    send(web_page, "<b>What</b> is it?")
    expect(last_turn(web_page).locator(".answer-text")).to_have_text(HOSTILE_ANSWER)
    expect(last_turn(web_page).locator(".question p")).to_have_text("<b>What</b> is it?")
    assert last_turn(web_page).locator(".answer-text").evaluate("node => node.childElementCount") == 0
    assert "script-src" not in web_page.content()


def test_what_is_typed_while_an_answer_comes_stays(web_page, bundled_pictures, demo_model, monkeypatch):
    slow = SlowModel(monkeypatch, demo_model)
    add_pictures(web_page, bundled_pictures["tower.png"])
    slow.resume_event.clear()
    send(web_page, "Is it day or night?")
    web_page.locator("#words").press_sequentially("What is in ")
    slow.resume_event.set()
    expect(last_turn(web_page).locator(".answer-text")).to_have_text("Night.")
    web_page.locator("#words").press_sequentially("this image?")
    expect(web_page.locator("#words")).to_have_value("What is in this image?")


def test_a_question_that_is_sent_while_busy_is_answered_next(
    web_page, bundled_pictures, demo_model, monkeypatch
):
    slow = SlowModel(monkeypatch, demo_model)
    add_pictures(web_page, bundled_pictures["tower.png"])
    slow.resume_event.clear()
    send(web_page, "Is it day or night?")
    send(web_page, "What is in this image?")
    expect(web_page.locator(".turn")).to_have_count(2)
    expect(last_turn(web_page)).to_contain_text("Waits until the answer before is complete")
    slow.resume_event.set()
    expect(web_page.locator(".answer-text")).to_have_text(["Night.", "A tower."])


def test_a_chat_whose_first_turn_was_stopped_still_has_its_picture(
    web_page, bundled_pictures, demo_model, monkeypatch
):
    slow = SlowModel(monkeypatch, demo_model)
    add_pictures(web_page, bundled_pictures["tower.png"])
    choose_task(web_page, "Chat")
    slow.resume_event.clear()
    send(web_page, "Is it day or night?")
    web_page.locator("#words").press("Escape")
    expect(last_turn(web_page)).to_contain_text("stopped")
    slow.resume_event.set()
    with web_page.expect_request("**/v1/chat/completions") as request:
        send(web_page, "Is it day or night?")
    assert "image_url" in request.value.post_data
    expect(last_turn(web_page).locator(".answer-text")).to_have_text("Night.")


def choose_setting(page, name, value):
    """Chooses one of the drawer's options."""
    page.locator("[data-drawer=settings]").click()
    page.locator(f'input[name="{name}"][value="{value}"]').check()
    close_drawer(page)


def test_sampling_has_another_seed_each_time_and_says_which(web_page, bundled_pictures, demo_model):
    add_pictures(web_page, bundled_pictures["puppy.png"])
    choose_setting(web_page, "strategy", "sampling")
    choose_task(web_page, "Write")
    seeds, texts = [], []
    for number in (1, 2):
        send(web_page)
        expect(web_page.locator(".turn")).to_have_count(number)
        expect(last_turn(web_page).locator(".meta")).to_contain_text("seed")
        seeds.append(int(re.search(r"seed (\d+)", last_turn(web_page).locator(".meta").inner_text())[1]))
        texts.append(last_turn(web_page).locator(".answer-text").inner_text())
    assert seeds[0] != seeds[1]
    for seed, text in zip(seeds, texts, strict=True):
        wanted = demo_model.write(bundled_pictures["puppy.png"], temperature=0.8, top_p=0.95, seed=seed)
        assert text == wanted.text
    last_turn(web_page).get_by_role("button", name="Code").click()
    expect(web_page.get_by_label("Python")).to_contain_text(f"temperature=0.8, top_p=0.95, seed={seeds[1]})")


def test_pictures_of_a_folder_keep_their_paths(web_page, bundled_pictures, tmp_path):
    for name, source in (("a/1.png", "tower.png"), ("b/1.png", "statue.png")):
        (tmp_path / "photos" / name).parent.mkdir(parents=True)
        (tmp_path / "photos" / name).write_bytes(bundled_pictures[source].read_bytes())
    (tmp_path / "photos" / "notes.txt").write_text("no picture")
    web_page.locator("#folder-input").set_input_files(tmp_path / "photos")
    expect(web_page.locator(".strip button")).to_have_count(2)
    names = [one.get_attribute("title") for one in web_page.locator(".strip button").all()]
    assert names == ["photos/a/1.png", "photos/b/1.png"]
    expect(web_page.locator(".picture-name")).to_contain_text("photos/b/1.png")


def test_a_picture_may_be_dropped_anywhere(web_page, bundled_pictures):
    data = bundled_pictures["tower.png"].read_bytes()
    targets = ["#welcome", "#composer", ".top", "#stage", "#conversation", "#words"]
    for number, target in enumerate(targets, 1):
        assert drop_files(web_page, target, {f"{number}.png": (data, "image/png")})
        expect(web_page.locator(".picture-name")).to_contain_text(f"{number}.png")
        expect(web_page.locator("#drop-hint")).to_be_hidden()
    assert len(web_page.context.pages) == 1
    expect(web_page.locator(".strip button")).to_have_count(len(targets))  # those before are still there


def test_a_file_that_is_no_picture_is_named(web_page):
    assert drop_files(web_page, "#welcome", {"letter.png": (b"Dear Sir or Madam", "image/png")})
    expect(web_page.locator("#composer-note")).to_have_text("letter.png is not a picture that can be read.")
    drop_files(web_page, "#welcome", {"holiday.zip": (b"PK", "application/zip")})
    expect(web_page.locator("#composer-note")).to_contain_text("holiday.zip is a zip: Batch asks")
    expect(web_page.locator("#composer-note").get_by_role("link", name="Open Batch")).to_be_visible()
    drop_files(web_page, "#welcome", {"empty.png": (b"", "image/png")})
    expect(web_page.locator("#composer-note")).to_have_text("empty.png is empty (0 bytes).")


def test_before_the_first_word_it_says_what_happens(web_page, bundled_pictures, demo_model, monkeypatch):
    slow, held = SlowModel(monkeypatch, demo_model), []
    web_page.route("**/v1/images/tasks/*", lambda route: held.append(route))
    add_pictures(web_page, bundled_pictures["tower.png"])
    slow.resume_event.clear()
    send(web_page, "Is it day or night?")
    progress = last_turn(web_page).locator(".progress-text")
    expect(progress).to_contain_text("Looking at the picture")  # before the server has said anything
    wait_until(web_page, lambda: held)
    held[0].continue_()
    expect(progress).to_contain_text(re.compile("Looking at the picture|Next in line"))
    expect(progress).to_contain_text(re.compile(r" · [1-9]\d* s$"))
    slow.resume_event.set()
    expect(progress).to_be_hidden()
    expect(last_turn(web_page).locator(".answer-text")).to_have_text("Night.")


def test_a_ranking_says_how_long_it_takes_and_can_be_stopped(
    web_page, bundled_pictures, demo_model, monkeypatch
):
    slow = SlowModel(monkeypatch, demo_model)
    add_pictures(web_page, bundled_pictures["tower.png"])
    choose_task(web_page, "Classify")
    slow.resume_event.clear()
    send(web_page, "tower, statue")
    progress = last_turn(web_page).locator(".progress-text")
    expect(progress).to_contain_text(re.compile(r" · [1-9]\d* s$"))
    last_turn(web_page).get_by_role("button", name="Stop").click()
    expect(last_turn(web_page).locator(".meta")).to_have_text("stopped")
    slow.resume_event.set()
    wait_until(web_page, lambda: is_idle(demo_model))


def test_a_question_says_its_picture_and_a_note_its_name(web_page, bundled_pictures, tmp_path):
    frames = [PIL.Image.new("L", (64, 48), shade) for shade in (90, 200)]
    add_pictures(web_page, bundled_pictures["tower.png"])
    add_pictures(web_page, save_picture(tmp_path / "moving.gif", 64, 48, save_all=True, append_images=frames))
    words = web_page.locator("#words")
    expect(words).to_have_attribute("placeholder", "Ask about the picture (picture 2 of 2)")
    web_page.locator(".strip button").first.click()
    expect(words).to_have_attribute("placeholder", "Ask about the picture (picture 1 of 2)")
    web_page.locator(".strip button").last.click()
    send(web_page, "What is in this image?")
    expect(last_turn(web_page).locator(".meta")).to_contain_text(
        "moving.gif has 3 frames, and only the first was read"
    )


def test_a_question_that_failed_is_edited(web_browser, web_url, bundled_pictures):
    with open_page(web_browser, web_url, expected=["status of 400"]) as page:
        add_pictures(page, bundled_pictures["tower.png"])
        choose_task(page, "Write")
        send(page, "word " * 3000)
        choose_task(page, "Ask")
        last_turn(page).get_by_role("button", name="Edit").click()
        words = page.locator("#words")
        expect(words).to_be_focused()
        expect(words).to_have_value(re.compile("^word word"))
        expect(page.locator("input[name=task]:checked + span")).to_have_text("Write")
        words.fill("")
        words.press("ArrowUp")
        expect(words).not_to_be_empty()


def test_parts_of_a_picture_are_counted(web_page, bundled_pictures):
    add_pictures(web_page, bundled_pictures["tower.png"])
    script = """async ([stage, done, total]) => {
        const {describeProgress} = await import("/ui/answers.js");
        const turn = {status: "waiting", startedAt: Date.now(), pictureIds: ["a"], progress: {stage, done, total}};
        return describeProgress(turn);
    }"""
    said = {
        ("pictures", 0, 1): "Looking at the picture…",
        ("queued", 0, 3): "Waiting: 3 questions before this one…",
        ("tiles", 5, 17): "Looking at the picture… part 5 of 17",
        ("prompt", 0, 900): "Thinking about the question…",
    }
    for progress, text in said.items():
        assert web_page.evaluate(script, list(progress)) == text


def test_a_new_question_shows_only_its_own_answer(web_page, bundled_pictures, demo_model, monkeypatch):
    slow = SlowModel(monkeypatch, demo_model)
    add_pictures(web_page, bundled_pictures["tower.png"])
    send(web_page, "Is it day or night?")
    expect(last_turn(web_page).locator(".answer-text")).to_have_text("Night.")
    slow.resume_event.clear()
    send(web_page, "What is in this image?")
    expect(web_page.locator(".turn")).to_have_count(2)
    expect(last_turn(web_page).locator(".answer-text")).to_be_hidden()
    web_page.locator("#words").press("Escape")
    expect(last_turn(web_page).locator(".meta")).to_have_text("stopped")
    slow.resume_event.set()
    wait_until(web_page, lambda: is_idle(demo_model))


def test_on_a_laptop_a_story_and_the_button_are_in_view(web_page, bundled_pictures):
    add_pictures(web_page, bundled_pictures["door.png"])
    choose_task(web_page, "Write")
    for number in (1, 2, 3):
        send(web_page)
        expect(web_page.locator(".turn")).to_have_count(number)
        expect(last_turn(web_page).locator(".meta")).to_contain_text("written")
        for part in (
            last_turn(web_page).locator(".answer-text"),
            web_page.locator("#send"),
            web_page.locator(".frame img"),
        ):
            expect(part).to_be_in_viewport(ratio=1)


def save_picture(path, width, height, **options):
    PIL.Image.new("RGB", (width, height), "teal").save(path, **options)
    return path


def test_a_picture_that_is_too_large_is_made_smaller(web_page, tmp_path):
    add_pictures(web_page, save_picture(tmp_path / "wall.jpg", 8000, 5100))
    expect(web_page.locator(".picture-name")).to_contain_text("made smaller, was 8000 × 5100")
    expect(web_page.locator(".picture-name")).to_contain_text("tokens")  # the server takes that size
    name = web_page.locator(".picture-name").inner_text()
    width, height = (int(number.replace(",", "")) for number in re.findall(r"[\d,]{4,}", name)[:2])
    assert 39_900_000 < width * height <= 40_000_000
    assert abs(width / height - 8000 / 5100) < 0.001


def test_avif_and_tiff_are_converted(web_page, tmp_path):
    add_pictures(web_page, save_picture(tmp_path / "sea.avif", 64, 48))
    expect(web_page.locator(".picture-name")).to_contain_text("sea.avif · 64 × 48 · was AVIF")
    choose_task(web_page, "Caption")
    send(web_page)
    expect(last_turn(web_page).locator(".meta")).to_contain_text("written")
    add_pictures(web_page, save_picture(tmp_path / "scan.tif", 64, 48))
    expect(web_page.locator(".picture-name")).to_contain_text("scan.tif · 64 × 48 · was TIFF")
    pages = [PIL.Image.new("L", (9, 9)) for _ in range(2)]
    add_pictures(web_page, save_picture(tmp_path / "pages.tif", 64, 48, save_all=True, append_images=pages))
    expect(web_page.locator(".picture-name")).to_contain_text("was TIFF, the first of its pages")
    drop_files(web_page, "#words", {"note.tif": (b"II*\0 Dear Sir", "image/tiff")})
    expect(web_page.locator("#composer-note")).to_have_text(
        "note.tif is broken: save it as PNG or JPEG and add that."
    )
    drop_files(web_page, "#words", {"photo.heic": (b"\0\0\0\x18ftypheic", "image/heic")})
    expect(web_page.locator("#composer-note")).to_have_text(
        "photo.heic: your browser cannot show HEIC files. Save it as JPEG or PNG and add that."
    )


def test_a_video_is_added_as_frames(web_page, tmp_path):
    av = pytest.importorskip("av")
    with av.open(tmp_path / "clip.webm", "w") as container:
        stream = container.add_stream("libvpx", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for shade in range(0, 256, 16):
            frame = av.VideoFrame.from_image(PIL.Image.new("RGB", (64, 48), (shade, shade, shade)))
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    web_page.locator("#file-input").set_input_files(tmp_path / "clip.webm")
    expect(web_page.locator(".strip button")).to_have_count(8)
    expect(web_page.locator(".picture-name")).to_contain_text("clip.webm at 1.9 s · 64 × 48")


def test_by_keyboard_alone(web_browser, web_url):
    with open_page(web_browser, web_url) as page:
        expect(page.locator("#model")).to_contain_text("demo")
        page.keyboard.press("Tab")
        expect(page.locator(".skip")).to_be_focused()
        page.locator(".card").first.focus()
        page.keyboard.press("Enter")
        expect(last_turn(page).locator(".answer-text")).to_have_text("Night.")
        expect(page.locator("#words")).to_be_focused()
        expect(page.locator("#announcer")).to_have_text("Night.")
        page.keyboard.type("What is in this image?")
        page.keyboard.press("Enter")
        expect(last_turn(page).locator(".answer-text")).to_have_text("A tower.")
        expect(page.locator("#words")).to_be_focused()
        page.locator("input[name=task]:checked").focus()
        page.keyboard.press("ArrowRight")
        expect(page.locator("input[value=caption]")).to_be_focused()
        ring = page.locator("input[value=caption] + span").evaluate("node => getComputedStyle(node).outline")
        assert "solid 3px" in ring
        page.locator("[data-drawer=settings]").press("Enter")
        expect(page.get_by_role("button", name="Close")).to_be_focused()
        page.keyboard.press("Tab")
        page.keyboard.press("ArrowDown")
        expect(page.locator("input[name=detail][value=auto]")).to_be_checked()
        page.keyboard.press("Escape")
        expect(page.locator("[data-drawer=settings]")).to_be_focused()


def test_an_answer_is_written_in_its_own_direction(web_page, bundled_pictures):
    add_pictures(web_page, bundled_pictures["tower.png"])
    for answer in ("قطة سوداء فوق الطاولة.", "חתול שחור על השולחן."):
        answer_with(web_page, answer)
        send(web_page, "ما هذا؟")
        said = last_turn(web_page).locator(".answer-text")
        expect(said).to_have_text(answer)
        for part in (said, last_turn(web_page).locator(".question p")):
            expect(part).to_have_css("direction", "rtl")


def test_names_of_files_are_text(web_page, bundled_pictures, tmp_path):
    path = tmp_path / "**bold** <i>x</i> [a](b).png".replace("/", "∕")
    path.write_bytes(bundled_pictures["tower.png"].read_bytes())
    add_pictures(web_page, path)
    expect(web_page.locator(".picture-name")).to_contain_text("tokens")
    assert web_page.locator(".picture-name").evaluate("node => node.childElementCount") == 0


def test_an_error_says_what_is_wrong_where_it_happened(web_browser, web_url, bundled_pictures):
    with open_page(web_browser, web_url, expected=["status of 400"]) as page:
        add_pictures(page, bundled_pictures["tower.png"])
        choose_setting(page, "strategy", "greedy")
        send(page, "word " * 3000)
        error = last_turn(page).locator(".error")
        expect(error).to_contain_text("tokens")
        assert re.match(r"[A-Z].*\.$", error.inner_text())
        expect(last_turn(page).get_by_role("button", name="Try again")).to_be_visible()


def test_a_server_that_is_gone_and_comes_back(web_browser, web_url, bundled_pictures):
    with open_page(web_browser, web_url, expected=["ERR_FAILED", "ERR_CONNECTION"]) as page:
        add_pictures(page, bundled_pictures["tower.png"])
        page.route("**/v1/**", lambda route: route.abort())
        send(page, "Is it day or night?")
        expect(last_turn(page).locator(".error")).to_contain_text("The server does not answer")
        page.unroute("**/v1/**")
        last_turn(page).get_by_role("button", name="Try again").click()
        expect(last_turn(page).locator(".answer-text")).to_have_text("Night.")
        expect(last_turn(page).locator(".error")).to_be_hidden()


def test_on_a_phone_targets_are_large_and_nothing_is_cut(web_browser, web_url, bundled_pictures):
    sizes = [PHONE_SIZE, {"width": 360, "height": 640}]
    with open_page(web_browser, web_url, viewport=sizes[0], has_touch=True, is_mobile=True) as page:
        expect(page.locator("#model")).to_contain_text("demo")
        expect(page.locator(".lead")).to_contain_text("Or begin with one of these")
        expect(page.get_by_text("Drop a picture anywhere")).to_be_hidden()
        for size in sizes:
            page.set_viewport_size(size)
            assert find_small_targets(page) == []
        add_pictures(page, bundled_pictures["tower.png"], bundled_pictures["door.png"])
        send(page, "Is it day or night?")
        expect(last_turn(page).locator(".meta")).to_contain_text("written")
        for size in sizes:
            page.set_viewport_size(size)
            assert find_small_targets(page) == []
            assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
            # The buttons are one row, the model another.
            assert page.locator(".top").bounding_box()["height"] < 88
        page.get_by_role("button", name="Help").tap()
        expect(page.locator("#drawer-shortcuts")).to_contain_text("or drop them anywhere")


def test_in_a_low_window_the_conversation_has_room(web_browser, web_url, bundled_pictures):
    with open_page(web_browser, web_url, viewport={"width": 640, "height": 360}) as page:
        add_pictures(page, bundled_pictures["tower.png"])
        send(page, "Is it day or night?")
        expect(last_turn(page).locator(".meta")).to_contain_text("written")
        assert page.locator("#conversation").bounding_box()["height"] >= 230
        last_turn(page).get_by_role("button", name="Show where").click()
        expect(page.locator(".dimmed")).to_be_visible()
        assert page.locator("#conversation").bounding_box()["height"] >= 230
        last_turn(page).get_by_role("button", name="Hide").click()
        expect(page.locator(".dimmed")).to_have_count(0)
        for part in (page.locator("#send"), page.locator("label.chip").first):
            expect(part).to_be_in_viewport(ratio=1)
        assert find_small_targets(page) == []


def find_small_targets(page):
    """Visible buttons, links and chips that are less than 44 pixels high or wide."""
    return page.evaluate(
        """() => [...document.querySelectorAll("button, a, label.chip")]
            .filter((node) => node.checkVisibility() && !node.matches(".skip"))
            .map((node) => [node.outerHTML.slice(0, 80), node.getBoundingClientRect()])
            .filter(([, box]) => box.width < 44 || box.height < 44)
            .map(([html, box]) => `${html} ${box.width} ${box.height}`)"""
    )


IS_FULL_SCREEN = "Boolean(document.fullscreenElement)"


def test_full_screen_shows_the_picture_large(web_page, bundled_pictures):
    add_pictures(web_page, bundled_pictures["tower.png"])
    web_page.get_by_role("button", name="Full screen").click()
    wait_until(web_page, lambda: web_page.evaluate(IS_FULL_SCREEN))
    wait_until(web_page, lambda: web_page.locator(".frame").bounding_box()["height"] >= 600)
    web_page.get_by_role("button", name="Leave full screen").click()
    wait_until(web_page, lambda: not web_page.evaluate(IS_FULL_SCREEN))
    expect(web_page.get_by_role("button", name="Leave full screen")).to_be_hidden()


def test_the_speed_of_a_short_answer_is_not_told(web_page, bundled_pictures):
    add_pictures(web_page, bundled_pictures["tower.png"])
    answer_with(web_page, "Night.")
    send(web_page, "Is it day or night?")
    meta = last_turn(web_page).locator(".meta")
    expect(meta).to_contain_text("9 tokens read · 3 written")
    assert "a second" not in meta.inner_text() and "0.0 s" not in meta.inner_text()


def test_a_picture_is_pasted(web_page, bundled_pictures):
    buffer = io.BytesIO()
    PIL.Image.open(bundled_pictures["tower.png"]).save(buffer, "PNG")
    web_page.evaluate(
        """async (bytes) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], "image.png", {type: "image/png"}));
            const event = new ClipboardEvent("paste", {clipboardData: transfer, bubbles: true, cancelable: true});
            document.querySelector("#words").dispatchEvent(event);
        }""",
        list(buffer.getvalue()),
    )
    expect(web_page.locator(".picture-name")).to_contain_text("image.png · 384 × 384")


def test_a_photo_is_taken(web_page):
    web_page.locator("#add").click()
    web_page.get_by_role("button", name="Take a photo").click()
    video = web_page.locator("dialog.camera video")
    wait_until(web_page, lambda: video.evaluate("node => node.videoWidth") > 0)
    web_page.get_by_role("button", name="Take the photo").click()
    expect(web_page.locator(".picture-name")).to_contain_text("photo.jpg")


def test_deleting_can_be_undone(web_page, bundled_pictures):
    add_pictures(web_page, bundled_pictures["tower.png"])
    send(web_page, "Is it day or night?")
    last_turn(web_page).get_by_role("button", name="Delete").click()
    expect(web_page.locator(".turn")).to_have_count(0)
    web_page.get_by_role("button", name="Undo").click()
    expect(last_turn(web_page).locator(".answer-text")).to_have_text("Night.")
    web_page.get_by_role("button", name="Remove the picture").click()
    expect(web_page.locator(".frame")).to_be_hidden()
    web_page.get_by_role("button", name="Undo").click()
    expect(web_page.locator("#words")).to_be_focused()
    expect(web_page.locator(".picture-name")).to_contain_text("tower.png")
