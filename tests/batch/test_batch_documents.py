"""DocTags become Markdown, HTML and JSON; malformed or cut-off pages lose no text, and are noted."""

import json
import random

import pytest
from docling_core.types.doc.doctags import DocTagsDocument
from docling_core.types.doc.document import DoclingDocument

from idefics.batch.documents import DocTagsPage, describe_cut, join_pages
from models.doctags import PAGE_TEXT

ARTICLE = """<doctag><page_header><loc_60><loc_20><loc_440><loc_30>Annals of Tests</page_header>
<title><loc_60><loc_40><loc_440><loc_60>Counting sheep</title>
<section_header_level_1><loc_60><loc_70><loc_200><loc_80>1 Introduction</section_header_level_1>
<text><loc_60><loc_90><loc_440><loc_140>Sheep are counted (P < 0.05, n > 3) in file_names.</text>
<unordered_list><list_item><loc_70><loc_150><loc_440><loc_160>one sheep</list_item>
<list_item><loc_70><loc_165><loc_440><loc_175>two sheep</list_item>
</unordered_list>
<ordered_list><list_item><loc_70><loc_180><loc_440><loc_190>first fence</list_item>
<list_item><loc_70><loc_195><loc_440><loc_205>second fence</list_item>
</ordered_list>
<section_header_level_2><loc_60><loc_210><loc_200><loc_220>1.1 Method</section_header_level_2>
<formula><loc_60><loc_230><loc_440><loc_240>n = \\frac{s}{2}</formula>
<code><loc_60><loc_250><loc_440><loc_290><_C_>#include <stdio.h>
int count(int a, int b) { return a<b && b>0; }</code>
<otsl><loc_60><loc_300><loc_440><loc_340><ched>Farm<ched>Sheep<lcel><nl>
<fcel>North<fcel>many<fcel>few<nl>
<caption><loc_60><loc_345><loc_440><loc_355>Table 1: Sheep.</caption></otsl>
<picture><loc_60><loc_360><loc_440><loc_440><photograph>
<caption><loc_60><loc_445><loc_440><loc_455>Figure 1: A sheep.</caption></picture>
<footnote><loc_60><loc_460><loc_440><loc_470>1 Lambs count.</footnote>
<page_footer><loc_60><loc_480><loc_440><loc_490>7</page_footer>
</doctag>"""

ARTICLE_MARKDOWN = """# Counting sheep

## 1 Introduction

Sheep are counted (P &lt; 0.05, n &gt; 3) in file\\_names.

- one sheep
- two sheep

1. first fence
2. second fence

### 1.1 Method

$$n = \\frac{s}{2}$$

```
#include <stdio.h>
int count(int a, int b) { return a<b && b>0; }
```

Table 1: Sheep.

| Farm   | Sheep   | Sheep   |
|--------|---------|---------|
| North  | many    | few     |

Figure 1: A sheep.

<!-- image -->

Photograph

1 Lambs count.
"""


def make_page(doctags, name="scan.pdf#page=1", *, is_cut_off=False):
    return DocTagsPage(name=name, doctags=doctags, is_cut_off=is_cut_off)


def to_markdown(doctags):
    return join_pages([make_page(doctags)], "markdown")


def test_an_article_as_markdown():
    assert to_markdown(ARTICLE) == ARTICLE_MARKDOWN
    assert describe_cut(make_page(ARTICLE)) == ""


def test_the_page_of_the_tiny_checkpoint():
    table = "| a   | b   |\n|-----|-----|\n"
    assert to_markdown(PAGE_TEXT) == f"hi\n\n{table}"
    pages = [make_page(PAGE_TEXT), make_page("<doctag></doctag>"), make_page(PAGE_TEXT)]
    assert join_pages(pages, "markdown") == f"hi\n\n{table.strip()}\n\nhi\n\n{table}"


def test_a_well_formed_page_is_read_as_docling_core_reads_it():
    """But for what its reader removes: here the code and the comparison, which are left out."""
    plain = ARTICLE.replace("P < 0.05, n > 3", "p").replace("#include <stdio.h>", "").replace("a<b", "a")
    document = DoclingDocument.load_from_doctags(DocTagsDocument.from_doctags_and_image_pairs([plain], None))
    assert to_markdown(plain) == document.export_to_markdown() + "\n"


def test_html_has_the_title_and_the_texts():
    text = join_pages([make_page(ARTICLE), make_page("<text>Page two</text>")], "html", title="sheep")
    assert text.startswith("<!DOCTYPE html>") and text.endswith("</html>\n")
    assert "<title>sheep</title>" in text
    assert "<h1>Counting sheep</h1>" in text and "<li>one sheep</li>" in text
    assert "a&lt;b &amp;&amp; b&gt;0" in text and "<p>Page two</p>" in text


def test_json_has_all_elements_and_their_locations():
    pages = [make_page(ARTICLE), make_page("<text><loc_0><loc_250><loc_500><loc_500>b</text>")]
    document = DoclingDocument.model_validate_json(text := join_pages(pages, "json", title="sheep"))
    assert json.loads(text)["schema_name"] == "DoclingDocument" and document.name == "sheep"
    assert {number: (page.size.width, page.size.height) for number, page in document.pages.items()} == {
        1: (1, 1),
        2: (1, 1),
    }
    texts = {item.text: item for item in document.texts}
    assert "Annals of Tests" in texts and "7" in texts
    title, last = texts["Counting sheep"].prov[0], texts["b"].prov[0]
    assert (title.page_no, title.bbox.as_tuple()) == (1, (0.12, 0.08, 0.88, 0.12))
    assert (last.page_no, last.bbox.as_tuple()) == (2, (0, 0.5, 1, 1))
    assert document.tables[0].captions[0].resolve(document).text == "Table 1: Sheep."


def test_doctags_are_joined_as_docling_core_splits_them():
    text = join_pages(
        [make_page(PAGE_TEXT), make_page("<text>cut"), make_page("<doctag>c</doctag>")], "doctags"
    )
    assert text == PAGE_TEXT.removesuffix("</doctag>") + "<page_break><text>cut<page_break>c</doctag>\n"
    document = DocTagsDocument.from_multipage_doctags_and_images(text.strip(), None)
    assert [page.tokens for page in document.pages] == [PAGE_TEXT[8:-9], "<text>cut", "c"]
    assert join_pages([make_page(PAGE_TEXT)], "doctags") == f"{PAGE_TEXT}\n"


TABLE = "<otsl><fcel>a<fcel>b<nl><fcel>c"
HEAD = "| a   | b   |\n|-----|-----|\n"


@pytest.mark.parametrize(
    ("doctags", "markdown", "unclosed"),
    [
        ("<doctag><text>one</text><text>two", "one\n\ntwo", "a text"),
        ("<doctag><text>one</text><text>two</te", "one\n\ntwo", "a text"),
        ("<doctag><text>one</text><section_hea", "one", ""),
        (f"<doctag>{TABLE}", f"{HEAD}| c   |     |", "a table"),
        (f"{TABLE}<fcel>", f"{HEAD}| c   |     |", "a table"),
        (f"{TABLE}<nl><caption>T 1", f"T 1\n\n{HEAD}| c   |     |", "a table"),
        ("<unordered_list><list_item>x</list_item><list_item>y", "- x\n- y", "a list"),
        ("<picture><loc_1><loc_2><caption>Fig", "Fig\n\n<!-- image -->", "a picture"),
        ("<code><_C_>x = 1;", "```\nx = 1;\n```", "a text"),
        ("<formula>x^2", "$$x^2$$", "a text"),
        ("<inline><text>As</text><formula>x", "As $x$", "a text"),
    ],
)
def test_what_was_cut_off_is_kept_and_noted(doctags, markdown, unclosed):
    assert to_markdown(doctags) == f"{markdown}\n"
    page = make_page(doctags, "book.pdf#page=3")
    assert describe_cut(page) == (f"book.pdf#page=3 is cut off in {unclosed}" if unclosed else "")
    assert describe_cut(make_page(doctags, "x", is_cut_off=True)).startswith("x is cut off")


@pytest.mark.parametrize(
    ("doctags", "markdown"),
    [
        ("just words", "just words"),
        ("<doctag>before<text>x</text>after</doctag>", "before\n\nx\n\nafter"),
        ("<text>x <b>bold</b> y</text>", "x &lt;b&gt;bold&lt;/b&gt; y"),
        ("<text>one<text>two</text>", "one\n\ntwo"),
        ("<text>so <formula>x</formula> is</text>", "so x is"),
        ("<list_item>x</list_item><list_item>y</list_item><text>z</text>", "- x\n- y\n\nz"),
        ("<list_item><text>x</text></list_item>", "- x"),
        ("<paragraph>p</paragraph><reference>[1] r</reference>", "p\n\n[1] r"),
        ("<section_header_level_0>h</section_header_level_0>", "## h"),
        (
            "<document_index><fcel>Intro<fcel>one<nl></document_index>",
            "| Intro   | one   |\n|---------|-------|",
        ),
        ("<picture><caption>no\nlocation</caption></picture>", "no location\n\n<!-- image -->"),
        ("<picture><loc_9><loc_9><loc_3><loc_3></picture>", "<!-- image -->"),
        ("<picture><logo><smiles>CCO</smiles></picture>", "<!-- image -->\n\nLogo\n\nCCO"),
        (
            "<chart><bar_chart><otsl><fcel>a<nl></otsl></chart>",
            "<!-- image -->\n\nBar chart\n\n| a   |\n|-----|",
        ),
        ("<otsl><fcel><fcel>b<nl><nl><fcel>c<nl></otsl>", "|    | b   |\n|----|-----|\n| c  |     |"),
        (
            "<otsl><fcel><formula>x</formula> y<fcel>a < b<nl></otsl>",
            "| x y   | a < b   |\n|-------|---------|",
        ),
        (
            "<otsl><fcel>a<fcel>b<nl><fcel>c<ucel><nl><fcel>d<nl></otsl>",
            f"{HEAD}| c   | b   |\n| d   |     |",
        ),
        ("<otsl><caption>A</caption><caption>B</caption><fcel>a<fcel>b<nl></otsl>", f"A\n\n{HEAD}\nB"),
        ("<otsl>a<fcel>b<nl></otsl>", "| a   | b   |\n|-----|-----|"),
        ("<fcel>a<nl>", "| a   |\n|-----|"),
        (
            "<key_value_region><key_0>Name<link_1></key_0><value_1>Bo</value_1></key_value_region>",
            "Name\n\nBo",
        ),
    ],
)
def test_malformed_pages_lose_no_text(doctags, markdown):
    assert to_markdown(doctags) == f"{markdown}\n"
    assert describe_cut(make_page(doctags)) == ""


TAG_NAMES = [
    "doctag",
    "title",
    "text",
    "list_item",
    "caption",
    "footnote",
    "formula",
    "code",
    "checkbox_selected",
    "ordered_list",
    "picture",
    "chart",
    "unordered_list",
    "otsl",
    "fcel",
    "ched",
    "ecel",
    "lcel",
    "ucel",
    "xcel",
    "nl",
    "inline",
    "paragraph",
    "document_index",
    "key_value_region",
    "key_0",
    "value_1",
    "link_1",
    "bar_chart",
    "_C_",
    "b",
    "loc_1",
    "loc_500",
    "loc_30",
    "section_header_level_1",
    "smiles",
    "page_break",
    "rhed",
]


def make_tag_soup(seed):
    """Words between tags in any order, and the words."""
    rng = random.Random(seed)
    parts, words = [], []
    for number in range(rng.randint(0, 30)):
        if rng.random() < 0.35:
            words.append(f"w{number}x")
            parts.append(rng.choice(["", " ", "\n"]) + words[-1] + rng.choice(["", "\n", " < 3 "]))
        else:
            parts.append(f"<{rng.choice(['', '', '/'])}{rng.choice(TAG_NAMES)}>")
    return "".join(parts), words


@pytest.mark.parametrize("to", ["markdown", "html", "json"])
def test_tag_soup_is_read_without_loss(to):
    for seed in range(150):
        doctags, words = make_tag_soup(seed)
        text = join_pages([make_page(doctags)], to)
        assert not [word for word in words if word not in text], doctags
