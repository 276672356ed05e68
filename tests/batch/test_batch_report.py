"""The report of a batch run: what it counts and holds, and how it behaves in a browser."""

import base64
import hashlib
import io
import json
import os
import re
import tracemalloc
from dataclasses import replace
from datetime import UTC, datetime

import PIL.Image
import pytest
from PIL import ImageChops, ImageStat
from playwright.sync_api import expect, sync_playwright

from idefics.batch import report
from idefics.batch.records import OutputRecord, RowScore, RunSummary
from idefics.batch.report import format_duration, make_thumbnail, write_report
from idefics.batch.report_charts import RecordStatistics
from idefics.errors import OutputError
from page.browser import CHROMIUM_FLAGS, CHROMIUM_PATH, DESKTOP_SIZE, PHONE_SIZE

RUN = RunSummary(
    task="caption",
    model="demo",
    revision="abc",
    settings={"max_new_tokens": 20},
    command="idefics run photos --out out.csv",
    started=datetime(2026, 11, 29, 9, 30, tzinfo=UTC),
    seconds=3725.0,
    num_written=7000,
    num_failed=450,
    num_skipped=5,
    num_tokens=149_000,
)
ANSWER = OutputRecord(
    id="",
    path="cat.jpg",
    task="caption",
    prompt="Describe it.",
    text="A cat.",
    finish="stop",
    tokens=3,
    model="demo",
    revision="abc",
    settings={},
    seconds=0.5,
)
FAILURE = replace(
    ANSWER, text=None, tokens=None, seconds=None, error_type="BadPicture", error="it is empty (0 bytes)"
)
HOSTILE = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "<!--<script>",
    "\"'><b onclick='alert(1)'>&amp;&lt;\u2028{{ 7 * 7 }}{% raw %}",
]


def no_thumbnail(record):
    return None


def count(records):
    statistics = RecordStatistics()
    for record in records:
        statistics.add(record)
    return statistics


def chart_bars(records, title):
    (chart,) = [chart for chart in count(records).charts() if chart.title == title]
    return {bar.name: bar.count for bar in chart.bars}


def report_rows(path):
    return json.loads(re.search(r'<script id="rows"[^>]*>(.*?)</script>', path.read_text(), re.DOTALL)[1])


def test_labels_of_rankings_are_counted():
    records = [replace(ANSWER, text=f"{n % 3}", probabilities={f"{n % 3}": 1.0}) for n in range(8)]
    assert chart_bars(records, "Labels") == {"0": 3, "1": 3, "2": 2}
    many = [replace(ANSWER, text=f"{n}", probabilities={f"{n}": 1.0}) for n in range(35)]
    statistics = count([*many, many[34]])
    (chart,) = [chart for chart in statistics.charts() if chart.title == "Labels"]
    assert chart.note == "35 different, 5 less frequent ones not shown" and len(chart.bars) == 30
    assert (chart.bars[0].name, chart.bars[0].percent, chart.bars[1].percent) == ("34", 100.0, 50.0)
    assert statistics.labels()[0] == "34" and len(statistics.labels()) == 30


def test_few_short_answers_are_counted_as_labels():
    short = [replace(ANSWER, text=f"{number}") for number in range(30)]
    assert len(chart_bars(short, "Answers")) == len(count(short).labels()) == 30
    assert len(count([*short[:9], replace(ANSWER, text="x" * 40)]).labels()) == 10
    for records in ([*short, replace(ANSWER, text="30")], [*short[:9], replace(ANSWER, text="x" * 41)]):
        statistics = count([*records, *short[:9]])
        assert statistics.labels() == []
        assert "Answers" not in [chart.title for chart in statistics.charts()]
    assert len(count([*short, replace(ANSWER, text="0")]).labels()) == 30


def test_histograms():
    lengths = [replace(ANSWER, text="x" * length) for length in (2, 3, 3, 5)]
    assert chart_bars(lengths, "Length of the answers") == {"2": 1, "3": 2, "4": 0, "5": 1}
    long = [replace(ANSWER, text="x" * length) for length in (45, 149, 150, 239)]
    assert chart_bars(long, "Length of the answers") == {
        "0 to 49": 1,
        "50 to 99": 0,
        "100 to 149": 1,
        "150 to 199": 1,
        "200 to 249": 1,
    }
    times = [replace(ANSWER, seconds=seconds) for seconds in (0.3, 0.3, 0.31, 0.6)]
    assert chart_bars(times, "Time for a row") == {
        "0.3 to 0.4": 3,
        "0.4 to 0.5": 0,
        "0.5 to 0.6": 0,
        "0.6 to 0.7": 1,
    }
    many = [replace(ANSWER, text="x" * length) for length in range(1, 10_001)]
    assert list(chart_bars(many, "Length of the answers").items())[:2] == [
        ("0 to 499", 499),
        ("500 to 999", 500),
    ]
    assert len(chart_bars(many, "Length of the answers")) == 20
    same = [replace(ANSWER, seconds=0.0)] * 3
    assert chart_bars(same, "Time for a row") == {"0.000 to 0.001": 3}


def test_one_slow_row_does_not_flatten_the_histogram():
    seconds = [0.1] * 100 + [0.2] * 99 + [600.0]
    bars = chart_bars([replace(ANSWER, seconds=one) for one in seconds], "Time for a row")
    assert list(bars.items())[:2] == [("0.10 to 0.11", 100), ("0.11 to 0.12", 0)]
    assert list(bars.items())[-1] == ("0.20 or more", 100)
    assert sum(bars.values()) == 200


def test_notes_of_charts_and_common_prompts():
    statistics = count([ANSWER, replace(ANSWER, text="A big cat.", seconds=2.0), FAILURE])
    note_by_title = {chart.title: chart.note for chart in statistics.charts()}
    assert note_by_title == {
        "Answers": "2 different",
        "Errors": "1 different",
        "Length of the answers": "6 to 10 characters, median 6",
        "Time for a row": "0.5 to 2 seconds, median 0.5",
    }
    assert (statistics.num_rows, statistics.num_errors, statistics.prompt) == (3, 1, "Describe it.")
    assert count([ANSWER, replace(ANSWER, prompt=""), ANSWER]).prompt is None
    assert count([]).charts() == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.9, "59.9 s"), (59.97, "1 min 0 s"), (245, "4 min 5 s"), (7380, "2 h 3 min")],
)
def test_durations_for_people(seconds, text):
    assert format_duration(seconds) == text


def test_the_page_is_one_file_that_runs_only_its_own_script(tmp_path):
    path = tmp_path / "report.html"
    write_report(path, [ANSWER, FAILURE], RUN, no_thumbnail)
    page = path.read_text()
    assert not re.search(r"(src|href)=(?!\"data:,)", page) and "{{" not in page
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)[1]
    for name in ("script", "style"):
        content = re.search(rf"<{name}>(.*?)</{name}>", page, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; img-src data:;") and "unsafe" not in policy


def test_rows_of_the_page(tmp_path):
    path = tmp_path / "report.html"
    ranking = replace(
        ANSWER,
        id="7",
        text="a",
        probabilities=dict.fromkeys("abcdefg", 0.1),
        finish="length",
        notes=["n"],
    )
    long = replace(ANSWER, prompt="Why?", text="x" * 3000)
    name = os.fsdecode(b"\xff.jpg")
    run = replace(RUN, command=f"idefics run {name}")
    write_report(
        path,
        [ANSWER, ranking, long, replace(FAILURE, path=name)],
        run,
        lambda record: b"jpeg" if record.id else None,
    )
    answer, ranked, cut, failed = report_rows(path)
    assert answer == ["cat.jpg", "", "Describe it.", "A cat.", "", 3, 0.5, [], "", "", [], ""]
    assert ranked[1:5] == ["7", None, "a", "length"] and ranked[10:] == [["n"], "anBlZw=="]
    assert ranked[7] == [[letter, 0.1] for letter in "abcde"]
    assert cut[2:4] == ["Why?", "x" * 2000 + "... (3,000 characters)"]
    assert r"<dd>idefics run \udcff.jpg</dd>" in path.read_text()
    assert failed[0] == r"\udcff.jpg" and failed[2:4] == ["Describe it.", None]
    assert failed[8:10] == ["BadPicture", "it is empty (0 bytes)"]


def test_rows_and_thumbnails_are_bounded_and_the_page_says_so(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    monkeypatch.setattr(report, "MAX_ROWS", 5)
    monkeypatch.setattr(report, "MAX_THUMBNAILS", 2)
    write_report(path, [FAILURE, *[ANSWER] * 6], RUN, lambda record: None if record.error else b"x")
    rows = report_rows(path)
    assert len(rows) == 5 and [row[-1] for row in rows] == ["", "eA==", "eA==", "", ""]
    assert "The table has the first 5 of 7 rows;" in path.read_text()
    assert "at most 2 rows have a thumbnail" in path.read_text()
    write_report(path, [ANSWER] * 2, RUN, no_thumbnail)
    assert "The table has" not in path.read_text() and "have a thumbnail" not in path.read_text()


def test_memory_does_not_depend_on_the_number_of_rows(tmp_path):
    path = tmp_path / "report.html"
    records = (replace(ANSWER, text=f"{number:06}" * 300) for number in range(10_000))
    tracemalloc.start()
    write_report(path, records, RUN, no_thumbnail)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert path.stat().st_size > 18e6 and peak < 3e6


def test_a_report_that_fails_leaves_the_old_one(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError):
        write_report(path, [ANSWER, ANSWER], RUN, lambda record: 1 / 0)
    with pytest.raises(OutputError, match="no such file"):
        write_report(tmp_path / "no" / "report.html", [ANSWER], RUN, no_thumbnail)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def encode_picture(image, form, **how):
    file = io.BytesIO()
    image.save(file, form, **how)
    return file.getvalue()


def mean_difference(one, other):
    return ImageStat.Stat(ImageChops.difference(one, other).convert("L")).mean[0]


def test_thumbnails():
    wide = PIL.Image.new("RGBA", (400, 100), (255, 0, 0, 255))
    with PIL.Image.open(io.BytesIO(make_thumbnail(encode_picture(wide, "PNG"), "x.png"))) as small:
        assert (small.format, small.mode, small.size) == ("JPEG", "RGB", (64, 16))
        assert small.getpixel((32, 8))[0] > 240 and max(small.getpixel((32, 8))[1:]) < 20
    exif = PIL.Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a secret"
    turned = encode_picture(wide.convert("RGB"), "JPEG", exif=exif, comment=b"a secret")
    data = make_thumbnail(turned, "x.jpg")
    with PIL.Image.open(io.BytesIO(data)) as small:
        assert small.size == (16, 64) and not small.getexif() and b"secret" not in data
    tiny = encode_picture(wide.resize((10, 7)), "PNG")
    assert PIL.Image.open(io.BytesIO(make_thumbnail(tiny, "x.png"))).size == (10, 7)
    photo = PIL.Image.radial_gradient("L").resize((1600, 1200)).convert("RGB")
    data = make_thumbnail(encode_picture(photo, "JPEG"), "x.jpg")  # decoded at an eighth of its size
    with PIL.Image.open(io.BytesIO(data)) as small:
        assert small.size == (64, 48) and mean_difference(small, photo.resize((64, 48))) < 2
    assert make_thumbnail(b"", "x.jpg") is None
    assert make_thumbnail(turned[:200], "x.jpg") is None


def in_browser(test):
    """Marks a test that needs Chromium."""
    reason = "no Chromium: apt-get install chromium"
    return pytest.mark.browser(pytest.mark.skipif(CHROMIUM_PATH is None, reason=reason)(test))


@pytest.fixture(scope="module")
def chromium():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM_PATH, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def show_report(chromium, tmp_path):
    """Writes a report and opens it from its file; fails if the page logs, asks, fails, or requests anything."""
    events, contexts = [], []

    def show(records, run=RUN, thumbnails=no_thumbnail, scores=lambda _: None, **context):
        path = tmp_path / "a report #1.html"
        write_report(path, records, run, thumbnails, scores)
        contexts.append(chromium.new_context(**{"viewport": DESKTOP_SIZE} | context))
        page = contexts[-1].new_page()
        page.on("console", lambda message: events.append(message.text))
        page.on("pageerror", lambda error: events.append(str(error)))
        page.on("dialog", lambda dialog: (events.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: events.append(request.url))
        page.goto(path.as_uri())
        expect(page.locator("#status")).not_to_be_empty()
        assert events.pop(0) == path.as_uri()
        return page

    yield show
    for context in contexts:
        context.close()
    assert [event for event in events if not event.startswith("data:image/jpeg;base64,")] == []


def column(page, number):
    return page.locator(f"#body td:nth-child({number})").all_inner_texts()


@in_browser
def test_everything_that_is_shown_is_text(show_report):
    records = [
        replace(ANSWER, id=f"{text}id", path=f"{text}.jpg", prompt=text, text=text, finish=text, notes=[text])
        for text in HOSTILE
    ]
    records += [
        replace(ANSWER, path=text, text=text, probabilities={text: 0.75, f"{text}2": 0.25})
        for text in HOSTILE
    ]
    records += [replace(FAILURE, path=text, error_type=text, error=text) for text in HOSTILE]
    everything = "".join(HOSTILE)
    run = replace(
        RUN,
        task=everything,
        model=everything,
        revision=everything,
        command=everything,
        settings={everything: everything},
    )
    page = show_report(records, run)
    for row, text in enumerate(HOSTILE):
        cells = page.locator("#body tr").nth(row).locator("td")
        assert cells.nth(0).locator("p").all_text_contents() == [f"{text}.jpg", f"{text}id"]
        assert cells.nth(1).text_content() == text
        assert cells.nth(2).locator("p").all_text_contents() == [text, f"ended by: {text}", text]
        ranked = page.locator("#body tr").nth(row + 4)
        assert ranked.locator("li span:last-child").all_text_contents() == [text, f"{text}2"]
        assert page.locator("#body tr").nth(row + 8).locator(".error").text_content() == f"{text}: {text}"
        assert page.locator("g > title", has_text=f"{text}: 1").count() == 2  # a label and an error
        assert page.locator("optgroup option").nth(row).text_content() == text
    facts = dict(
        zip(
            page.locator(".facts dt").all_text_contents(),
            page.locator(".facts dd").all_text_contents(),
            strict=True,
        )
    )
    assert facts["command"] == facts["model"] == everything and facts[everything] == json.dumps(
        everything, ensure_ascii=False
    )
    assert page.title() == f"Batch run: {everything}, {everything}"
    assert page.locator("script").count() == 3 and page.locator("img, b").count() == 0
    page.select_option("#filter", label=HOSTILE[0])
    assert page.locator("#body p:first-child").all_text_contents()[::3] == [f"{HOSTILE[0]}.jpg", HOSTILE[0]]


@in_browser
def test_a_script_that_is_added_does_not_run(chromium, tmp_path):
    path = tmp_path / "report.html"
    write_report(path, [ANSWER], RUN, no_thumbnail)
    path.write_text(path.read_text().replace("</h1>", "</h1><script>window.ran = true</script>"))
    with chromium.new_context() as context:
        page = context.new_page()
        page.goto(path.as_uri())
        expect(page.locator("#body tr")).to_have_count(1)
        assert page.evaluate("window.ran") is None


def numbered(n, **fields):
    return replace(ANSWER, path=f"{n}.jpg", text=f"text {n}", tokens=n, seconds=n / 100, **fields)


@in_browser
def test_the_head_of_the_page(show_report):
    page = show_report([ANSWER, replace(FAILURE, path="dog.jpg")])
    assert page.locator(".figures dd").all_inner_texts() == ["2", "1", "1 h 2 min", "2.0", "40"]
    assert page.locator(".figures dt").all_inner_texts() == [
        *("rows", "failed", "duration", "rows a second", "tokens a second")
    ]
    expect(page.locator(".facts")).not_to_be_visible()
    page.get_by_text("About this run").click()
    expect(page.locator(".facts")).to_contain_text("idefics run photos --out out.csv")
    assert page.locator(".facts dt").all_text_contents() == [
        *("command", "prompt", "model", "revision", "max_new_tokens", "started", "this run")
    ]
    assert page.locator(".facts dd").all_text_contents()[4:] == [
        *("20", "2026-11-29 09:30:00 UTC", "7,000 written, 450 failed, 5 skipped")
    ]


@in_browser
def test_searching_filtering_sorting_and_turning_pages(show_report):
    records = [numbered(number) for number in range(250)]
    records[120] = replace(FAILURE, path="120.jpg", error="no such Picture")
    page = show_report(records)
    status = page.locator("#status")
    expect(status).to_have_text("1 to 100 of 250")
    assert column(page, 1) == [f"{number}.jpg" for number in range(100)]
    page.get_by_role("button", name="Next").click()
    page.get_by_role("button", name="Next").click()
    expect(page.locator("#page")).to_have_text("Page 3 of 3")
    assert column(page, 1) == [f"{number}.jpg" for number in range(200, 250)]
    assert page.get_by_role("button", name="Next").is_disabled()
    page.get_by_role("button", name="Previous").click()
    expect(status).to_have_text("101 to 200 of 250")

    head = page.get_by_role("columnheader", name="Picture")
    head.get_by_role("button").click()
    assert column(page, 1)[:12] == [f"{number}.jpg" for number in range(12)]  # numbers in their order
    assert head.get_attribute("aria-sort") == "ascending"
    page.get_by_role("button", name="Tokens").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") is None
    assert page.get_by_role("columnheader", name="Tokens").get_attribute("aria-sort") == "descending"
    assert column(page, 3)[:2] == ["249", "248"]
    for _ in range(2):
        page.get_by_role("button", name="Next").click()
    assert column(page, 1)[-1] == "120.jpg"  # a row without a value is the last in each direction
    page.keyboard.press("Shift+Tab")
    page.get_by_role("button", name="Tokens").click()
    assert column(page, 1)[0] == "0.jpg"  # in the order of the file
    page.get_by_role("button", name="Tokens").click()
    assert column(page, 1)[:2] == ["0.jpg", "1.jpg"]

    page.get_by_label("Search").fill("TEXT 24")
    expect(status).to_have_text("1 to 11 of 11")
    assert column(page, 1) == ["24.jpg", *[f"{number}.jpg" for number in range(240, 250)]]
    page.get_by_label("Search").fill("nothing like it")
    expect(status).to_have_text("No row matches")
    page.get_by_label("Search").fill("such picture")
    expect(status).to_have_text("1 to 1 of 1")
    page.get_by_label("Search").fill("")
    page.get_by_label("Show").select_option("failed")
    assert column(page, 1) == ["120.jpg"] and column(page, 2) == ["BadPicture: no such Picture"]
    page.get_by_label("Show").select_option("answered")
    expect(status).to_have_text("1 to 100 of 249")


@in_browser
def test_labels_can_be_shown_alone_and_sorted_by_probability(show_report):
    share_by_number = {0: 0.5, 1: 0.875, 2: 0.625, 3: 0.75}
    records = [
        replace(numbered(number), text=label, probabilities={label: share, "other": 1 - share})
        for (number, share), label in zip(share_by_number.items(), ["cat", "dog", "cat", "cat"], strict=True)
    ]
    page = show_report(records)
    page.get_by_label("Show").select_option("cat")
    assert column(page, 1) == ["0.jpg", "2.jpg", "3.jpg"]
    page.get_by_role("button", name="Probability").dblclick()
    assert column(page, 3) == ["75.0 %", "62.5 %", "50.0 %"]
    row = page.locator("#body tr").first
    assert row.locator("li span").all_text_contents() == ["75.0 %", "cat", "25.0 %", "other"]
    widths = row.locator("li rect").evaluate_all("all => all.map(one => one.getBoundingClientRect().width)")
    assert widths == pytest.approx([60, 20], abs=0.5)


@in_browser
def test_long_answers_open_at_a_click(show_report):
    page = show_report([replace(ANSWER, text="word " * 200, finish="length")])
    answer = page.locator(".answer")
    assert len(answer.text_content()) == 401
    page.get_by_role("button", name="Show all").click()
    assert answer.text_content() == "word " * 200
    expect(page.get_by_text("ended by: length")).to_be_visible()
    assert page.get_by_role("button", name="Show all").count() == 0


@in_browser
@pytest.mark.parametrize("kind", ["desktop", "phone", "dark"])
def test_the_page_fits_and_shows_thumbnails(show_report, kind):
    jpeg = make_thumbnail(encode_picture(PIL.Image.new("RGB", (300, 200), "red"), "PNG"), "x.png")
    records = [
        *[numbered(number, id=f"row {number}") for number in range(3)],
        replace(ANSWER, path="a" * 200, text="b" * 300, probabilities={"c" * 100: 1.0}),
        replace(FAILURE, error="d" * 300),
    ]
    run = replace(RUN, model="m" * 100, command="x" * 300, task="t" * 100)
    page = show_report(
        records,
        run,
        lambda record: jpeg,
        viewport=PHONE_SIZE if kind == "phone" else DESKTOP_SIZE,
        color_scheme="dark" if kind == "dark" else "light",
    )
    page.get_by_text("About this run").click()
    assert page.evaluate("document.documentElement.scrollWidth") == page.viewport_size["width"]
    pictures = page.locator("#body img")
    expect(pictures).to_have_count(5)
    sizes = pictures.evaluate_all("all => all.map(one => [one.naturalWidth, one.naturalHeight])")
    assert sizes == [[64, 43]] * 5
    color = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert color == ("rgb(20, 23, 26)" if kind == "dark" else "rgb(255, 255, 255)")


@in_browser
def test_ten_thousand_rows_are_light(show_report, tmp_path):
    page = show_report(
        (numbered(number) for number in range(10_000)), thumbnails=lambda record: os.urandom(2200)
    )
    assert (tmp_path / "a report #1.html").stat().st_size < 40e6
    assert page.locator("#body tr").count() == 100
    page.get_by_label("Search").fill("text 9999")
    expect(page.locator("#status")).to_have_text("1 to 1 of 1")


@in_browser
def test_scores_and_right_answers_and_the_wrong_ones(show_report):
    records = [replace(ANSWER, id=str(number), path=f"{number}.jpg") for number in range(3)]
    by_id = {
        "0": RowScore(1, ("A cat.", "A cat.")),
        "1": RowScore(0, (HOSTILE[0],)),
        "2": RowScore(0.3, ("A cat",)),
    }
    page = show_report(records, scores=lambda record: by_id[record.id])
    assert "Score" in page.locator("#head").inner_text()
    assert page.locator("td[data-title=Right]").all_inner_texts() == ["A cat.", HOSTILE[0], "A cat"]
    assert page.locator("td[data-title=Score]").all_inner_texts() == ["1.00", "0.00", "0.30"]
    page.select_option("#filter", value="wrong")
    assert page.locator("td[data-title=Score]").all_inner_texts() == ["0.00"]
    page.select_option("#filter", value="not right")
    assert page.locator("td[data-title=Score]").all_inner_texts() == ["0.00", "0.30"]
