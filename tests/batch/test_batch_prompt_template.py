"""Prompts with fields: what is filled in, and each way in which a field can be wrong."""

from pathlib import Path

import pytest

from idefics.batch.prompt_template import PromptTemplate
from idefics.batch.rows import BatchRow, Media
from idefics.errors import BadPrompt, BadSetting


def make_row(path="photos/pets/cat.v2.jpg", name="", is_file=True, **columns):
    media = Media(path=path, read=bytes, file=Path(path) if is_file else None)
    return BatchRow(name=name or path, media=media, columns=columns)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("What is this?", "What is this?"),
        ("", ""),
        ("What colour is the {item}?", "What colour is the red cup?"),
        ("{item} {n} {item}", "red cup 3 red cup"),
        ("{name} in {folder}", "cat.v2 in pets"),
        ("Improve: {caption}", "Improve: an old text"),
        ("{{item}} {{{item}}} }}{{", "{item} {red cup} }{"),
        ('Give {{"colour": ...}} for {item}', 'Give {"colour": ...} for red cup'),
        ("{a column}", "with spaces"),
        ("{braces}", "{item}"),
    ],
)
def test_render(template, expected):
    row = make_row(item="red cup", n=3, **{"a column": "with spaces", "braces": "{item}"})
    assert PromptTemplate(template).render(row, "an old text") == expected


def test_fields():
    template = PromptTemplate("{b} {a} {b} {{c}} {caption}")
    assert template.fields == ("b", "a", "caption")
    assert template.needs_caption
    assert not PromptTemplate("{{caption}}").needs_caption


def test_a_column_goes_before_what_the_file_says():
    row = make_row(name="rows.csv#1", caption="of the table", folder=7)
    assert PromptTemplate("{caption} {folder} {name}").render(row, None) == "of the table 7 cat.v2"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("photos.zip/cat.jpg", "cat photos.zip"),
        ("docs/book.pdf#page=3", "book docs"),
        ("https://example.com/pets/cat.jpg", "cat pets"),
    ],
)
def test_the_name_of_a_picture_without_a_file(path, expected):
    assert PromptTemplate("{name} {folder}").render(make_row(path, is_file=False), None) == expected


def test_the_folder_of_a_file_in_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "pets").mkdir()
    monkeypatch.chdir(tmp_path / "pets")
    assert PromptTemplate("{folder}").render(make_row("cat.jpg"), None) == "pets"
    assert PromptTemplate("{folder}").render(make_row("../cat.jpg"), None) == tmp_path.name


@pytest.mark.parametrize(
    ("template", "caption", "message"),
    [
        (
            "{colour}",
            None,
            "a.jpg has no column 'colour', which {colour} of the prompt stands for; it has item, none",
        ),
        ("{caption}", None, "a.jpg has no sidecar with a text, which {caption} of the prompt stands for"),
        (
            "{caption}",
            " \n",
            "the sidecar of a.jpg, which {caption} of the prompt stands for, is empty: fill it in",
        ),
        (
            "{none}",
            None,
            "the column 'none' of a.jpg is empty: fill it in, or leave the field out of the prompt",
        ),
        ("{blank}", None, "the column 'blank' of a.jpg is empty"),
        ("{list}", None, "the column 'list' of a.jpg is neither text nor a number"),
    ],
)
def test_a_field_without_a_value(template, caption, message):
    row = make_row("a.jpg", item="cup", none=None, blank=" ", list=[1])
    with pytest.raises(BadPrompt) as caught:
        PromptTemplate(template).render(row, caption)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_a_row_without_columns():
    with pytest.raises(
        BadPrompt, match=r"a\.jpg has no column 'x', which \{x\} of the prompt stands for; it has no columns$"
    ):
        PromptTemplate("{x}").render(make_row("a.jpg"), None)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{a.b}", "the field {a.b} of the prompt has an attribute: write the name of a column alone"),
        ("{a[0]}", "the field {a[0]} of the prompt has an index"),
        ("{a!r}", "the field {a!r} of the prompt has a conversion"),
        ("{a:>5}", "the field {a:>5} of the prompt has a format"),
        ("{}", "the prompt has a field without a name, {}: write {column}, or {{}} for braces"),
        ("{ }", "the prompt has a field without a name"),
        ("a { b", "the prompt has a single { at character 3: write {{ for a brace, or {column} for a field"),
        ("a } b", "the prompt has a single } at character 3: write }} for a brace"),
        ("{a", "the prompt has a single { at character 1"),
        ("{a{b}}", "the prompt has a single { at character 1"),
    ],
)
def test_what_is_no_field_is_refused_when_the_template_is_made(template, message):
    with pytest.raises(BadSetting) as caught:
        PromptTemplate(template)
    assert str(caught.value).startswith(message)
