"""The report of a batch run: one page of HTML with all that it shows, read from a file without a server; thumbnails."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from jinja2 import Environment, FileSystemLoader

from idefics.batch.output_file import replace_file
from idefics.batch.records import OutputRecord, RowScore, RunSummary, compact_json, escape_surrogates
from idefics.batch.report_charts import RecordStatistics
from idefics.errors import BadPicture, BadSetting

if TYPE_CHECKING:
    import PIL.Image


FOLDER = Path(__file__).parent
MAX_ROWS = 50_000
REPORT_MARK = b"<!-- a report of idefics -->"  # at the beginning of the page
MAX_TEXT, MAX_PROBABILITIES, MAX_REFERENCES = 2_000, 5, 10
ENVIRONMENT = Environment(
    loader=FileSystemLoader(FOLDER), autoescape=True, trim_blocks=True, lstrip_blocks=True
)


def write_report(
    path: Path,
    records: Iterable[OutputRecord],
    run: RunSummary,
    thumbnails: Callable[[OutputRecord], bytes | None],
    scores: Callable[[OutputRecord], RowScore | None] = lambda _: None,
) -> None:
    """Writes the report of a run as one file of HTML; an older file is replaced once the new one is complete.

    The table has the first 50,000 rows, 10,000 thumbnails and 2,000 characters of each text; the page says so where
    there are more. The charts count all rows. Memory does not depend on the number of rows.

    Args:
        path: where the page is written.
        records: the rows, in the order of the table; iterated once.
        run: what the page says about the run.
        thumbnails: returns the JPEG file of a record's thumbnail, such as `make_thumbnail` makes;
            None if there is none.
        scores: returns how right a record's answer is; None: that is not known.

    Raises:
        OutputError: the page cannot be written.
    """
    replace_file(path, partial(write_page, records=records, run=run, thumbnails=thumbnails, scores=scores))


def check_report_path(path: Path) -> None:
    """Checks that a report may be written to a path.

    Raises:
        BadSetting: its name does not end like a page's, or the file exists and is no report.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise BadSetting(f"the report {path} is a page of HTML: give it a name that ends in .html")
    if path.exists() and path.stat().st_size:
        with path.open("rb") as file:
            if REPORT_MARK not in file.read(1000):
                raise BadSetting(f"{path} exists and is no report of a run: name another file for the report")


def write_page(
    file: BinaryIO,
    *,
    records: Iterable[OutputRecord],
    run: RunSummary,
    thumbnails: Callable[[OutputRecord], bytes | None],
    scores: Callable[[OutputRecord], RowScore | None] = lambda _: None,
) -> None:
    """Writes the page of `write_report` to an open file; `thumbnails` is called after each record."""
    style = read_report_style()
    script = (FOLDER / "report.js").read_text(encoding="utf-8")
    statistics = RecordStatistics()
    chunks = ENVIRONMENT.get_template("report.html.jinja").generate(
        run=run,
        duration=format_duration(run.seconds),
        settings={name: compact_json(value) for name, value in run.settings.items()},
        rows=_json_rows(
            records, statistics, thumbnails, scores
        ),  # iterated before the template reads the statistics
        statistics=statistics,
        max_rows=MAX_ROWS,
        max_thumbnails=MAX_THUMBNAILS,
        style=style,
        script=script,
        style_hash=content_hash(style),
        script_hash=content_hash(script),
        as_json=_script_json,
    )
    for chunk in chunks:
        file.write(escape_surrogates(chunk).encode())


def read_report_style() -> str:
    """The style sheet that all reports have in common."""
    return (FOLDER / "report.css").read_text(encoding="utf-8")


def content_hash(text: str) -> str:
    """The hash of an inline style or script that a Content-Security-Policy allows (CSP Level 3, 2.3.1)."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _script_json(value: object) -> str:
    """A value as JSON inside a script element, which no text can end: "<" is written as an escape."""
    return compact_json(value).replace("<", "\\u003c")


def _json_rows(
    records: Iterable[OutputRecord],
    statistics: RecordStatistics,
    thumbnails: Callable[[OutputRecord], bytes | None],
    scores: Callable[[OutputRecord], RowScore | None],
) -> Iterator[str]:
    """The rows of the table as JSON arrays, as report.js reads them; counts all records in `statistics`."""
    prompt, num_thumbnails = None, 0
    for record in records:
        statistics.add(record)
        if statistics.num_rows > MAX_ROWS:
            continue
        thumbnail = thumbnails(record) if num_thumbnails < MAX_THUMBNAILS else None
        num_thumbnails += thumbnail is not None
        score = scores(record)
        row = [
            record.path,
            "" if record.id == record.path else record.id,
            None if record.prompt == prompt else record.prompt,  # None: that of the row before
            None if record.text is None else _cut(record.text),
            "" if record.finish == "stop" else record.finish or "",
            record.tokens,
            record.seconds,
            list((record.probabilities or {}).items())[:MAX_PROBABILITIES],
            record.error_type or "",
            _cut(record.error or ""),
            record.notes,
            "" if thumbnail is None else base64.b64encode(thumbnail).decode(),
        ]
        if score is not None:
            row += [score.score, [_cut(one) for one in score.references[:MAX_REFERENCES]]]
        prompt = record.prompt
        yield (",\n" if statistics.num_rows > 1 else "") + _script_json(row)


def _cut(text: str) -> str:
    """The text, or its first 2,000 characters and how many it has."""
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}... ({len(text):,} characters)"


def format_duration(seconds: float) -> str:
    """A duration for people: "3.2 s", "4 min 5 s", "2 h 3 min"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


THUMBNAIL_PIXELS, JPEG_QUALITY = 64, 60
MAX_PICTURE_PIXELS = 2**28  # width x height; a larger picture has no thumbnail
MAX_THUMBNAILS = 10_000  # of one report


def make_thumbnail(data: bytes, name: str, *, untrusted: bool = False) -> bytes | None:
    """Makes a thumbnail of at most 64 x 64 pixels.

    Args:
        data: the bytes of a picture file, in any format that this installation reads.
        name: of the file; its suffix tells a camera RAW from a TIFF.
        untrusted: whether it is of an untrusted sender: then fewer formats are read, and the work is bounded.

    Returns:
        The bytes of a JPEG file without metadata; None if the picture cannot be read, or is a video.
    """
    from idefics.processing.picture_files import decode_trusted, decode_untrusted
    from idefics.processing.untrusted import MAX_UNTRUSTED_PIXELS

    file = io.BytesIO(data)
    try:
        if untrusted:
            image = decode_untrusted(file, name, MAX_UNTRUSTED_PIXELS).image
        else:
            image = decode_trusted(file, name, MAX_PICTURE_PIXELS, min_side=THUMBNAIL_PIXELS).image
    except BadPicture:
        return None
    return encode_thumbnail(image, THUMBNAIL_PIXELS)


def encode_thumbnail(image: PIL.Image.Image, pixels: int) -> bytes:
    """A picture, of at most `pixels` a side, as a JPEG file without metadata."""
    from PIL.Image import Resampling

    image = image.copy()
    image.thumbnail((pixels, pixels), Resampling.BICUBIC)
    image.info.clear()  # Pillow would write its comment and colour profile
    file = io.BytesIO()
    image.save(file, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return file.getvalue()
