"""Small files for tests of the inputs of batch runs, and the rows that they become."""

import io
from pathlib import Path

import PIL.Image

from idefics.batch.sources.inputs import open_source
from idefics.batch.sources.settings import SourceSettings


def png(colour="red"):
    """The bytes of a small picture."""
    data = io.BytesIO()
    PIL.Image.new("RGB", (4, 4), colour).save(data, "PNG")
    return data.getvalue()


def write(path, data=b"picture"):
    """Writes a file, and makes its folder."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(data)


def open_rows(*inputs, **settings):
    """The rows of inputs; checks what holds for every input."""
    source = open_source(inputs, SourceSettings(**settings))
    rows = list(source)
    assert source.count_rows() in (None, len(rows)), "the count is that of the rows"
    assert len({row.name for row in rows}) == len(rows), "names are unique"
    assert [row.name for row in source] == [row.name for row in rows], (
        "each iteration begins at the beginning"
    )
    return rows


class FakeFetcher:
    """Answers each URL with itself."""

    def get(self, url):
        return f"fetched {url}".encode()
