"""`--pages 1-3,7` selects pages of documents, and leaves pictures alone."""

import re

import pytest

from idefics.batch.rows import BatchRow
from idefics.batch.run_settings import PageSelection, SelectedPages
from idefics.errors import BadSetting


@pytest.mark.parametrize(
    ("text", "pages"),
    [
        ("3", [3]),
        ("1-3,7", [1, 2, 3, 7]),
        (" 9 , 2-2", [2, 9]),
        ("8-", [8, 9, 10, 11, 12]),
        ("12-14", [12]),
        ("40", []),
    ],
)
def test_numbers_and_ranges(text, pages):
    selection = PageSelection.parse(text)
    assert [page for page in range(1, 13) if page in selection] == pages


@pytest.mark.parametrize("text", ["", "0", "3-1", "-3", "a", "1,,2", "1-2-3", "1.5", "0-2"])
def test_anything_else_is_refused(text):
    message = f"pages is {text!r}; give numbers from 1 and ranges of them, such as 1-3,7 or 5-"
    with pytest.raises(BadSetting, match=f"^{re.escape(message)}$"):
        PageSelection.parse(text)


class ThreePagesAndAPicture:
    def __iter__(self):
        names = ["a.pdf#page=1", "a.pdf#page=2", "a.pdf#page=10", "page=2.png", "broken.pdf"]
        return (BatchRow(name=name, media=None) for name in names)

    def describe_skipped(self):
        return "1 video"


def test_pages_are_selected_and_other_rows_are_kept():
    rows = SelectedPages(ThreePagesAndAPicture(), PageSelection.parse("2-9"))
    for _ in range(2):
        assert [row.name for row in rows] == ["a.pdf#page=2", "page=2.png", "broken.pdf"]
    assert rows.count_rows() == 3
    assert rows.describe_skipped() == "1 video"
