"""`idefics read` converts pages to documents: end to end, with a tiny checkpoint that writes DocTags."""

import json
import os
import shlex
import signal
import sys

import PIL.Image
import pytest
from docling_core.types.doc.document import DoclingDocument

import idefics
from idefics.cli.main import run
from idefics.tasks.read import TASK
from models import doctags
from models.doctags import PAGE_TEXT

PAGE_MARKDOWN = "hi\n\n| a   | b   |\n|-----|-----|"
NUM_PAGES = 3


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(doctags.write_checkpoint(tmp_path_factory.mktemp("doctags")))


@pytest.fixture(scope="module")
def vlm(checkpoint):
    return idefics.load(checkpoint)


@pytest.fixture
def documents(tmp_path, monkeypatch):
    """The working folder: scan.pdf with three pages, page.png, and a folder of two pictures."""
    monkeypatch.chdir(tmp_path)
    pages = [PIL.Image.new("RGB", (100, 140), (255, 255, shade)) for shade in (255, 250, 245)]
    pages[0].save("scan.pdf", save_all=True, append_images=pages[1:])
    pages[0].save("page.png")
    (tmp_path / "pages").mkdir()
    for name, page in zip(("b.png", "a.png"), pages[1:], strict=True):
        page.save(f"pages/{name}")
    return tmp_path


@pytest.fixture
def read(documents, checkpoint, vlm, capsys, monkeypatch):
    """Runs `idefics read`: the exit code, standard output and the lines of standard error."""

    def call(*words, model=checkpoint, loader=lambda flags, writer: vlm):
        argv = ["read", *words, "--model", model]
        monkeypatch.setattr(sys, "argv", ["idefics", *argv])
        code = run(argv, loader)
        out = capsys.readouterr()
        return code, out.out, out.err.splitlines()

    return call


def refuse_to_load(flags, writer):
    pytest.fail("the model was loaded")


def test_a_pdf_becomes_one_markdown_file(read, documents):
    assert read("scan.pdf", "--out", "book.md") == (0, "", ["3 pages written to book.md"])
    assert (documents / "book.md").read_text() == "\n\n".join([PAGE_MARKDOWN] * NUM_PAGES) + "\n"


def test_the_suffix_says_the_format(read, documents):
    for name in ("book.html", "book.json", "book.dt", "book.doctags"):
        assert read("scan.pdf", "--out", name) == (0, "", [f"3 pages written to {name}"])
    html = (documents / "book.html").read_text()
    assert html.count("<p>hi</p>") == html.count("<td>b</td>") + html.count("<th>b</th>") == NUM_PAGES
    assert "<title>scan</title>" in html
    document = DoclingDocument.model_validate(json.loads((documents / "book.json").read_text()))
    assert [text.text for text in document.texts] == ["hi"] * NUM_PAGES and len(document.pages) == NUM_PAGES
    inner = PAGE_TEXT.removeprefix("<doctag>").removesuffix("</doctag>")
    expected = f"<doctag>{'<page_break>'.join([inner] * NUM_PAGES)}</doctag>\n"
    assert (documents / "book.dt").read_text() == (documents / "book.doctags").read_text() == expected


def test_to_says_the_format_of_any_file_and_of_standard_output(read, documents):
    assert read("page.png") == (0, f"{PAGE_MARKDOWN}\n", [])
    assert read("page.png", "--to", "doctags") == (0, f"{PAGE_TEXT}\n", [])
    assert read("page.png", "--to", "doctags", "--out", "page.md")[0] == 0
    assert (documents / "page.md").read_text() == f"{PAGE_TEXT}\n"
    code, out, lines = read("page.png", "--out", "page.txt")
    assert (code, out) == (2, "")
    (line,) = lines
    assert line == (
        "idefics read: --out page.txt has no suffix of a format: give .md, .html, .json or .doctags, "
        "or add --to markdown"
    )
    assert not (documents / "page.txt").exists()


@pytest.mark.parametrize(
    ("words", "pages"),
    [
        (["scan.pdf", "--pages", "2-"], ["scan.pdf#page=2", "scan.pdf#page=3"]),
        (["scan.pdf", "--pages", "1,3"], ["scan.pdf#page=1", "scan.pdf#page=3"]),
        (["pages"], ["pages/a.png", "pages/b.png"]),
        (["pages/*.png", "scan.pdf", "--pages", "2"], ["pages/a.png", "pages/b.png", "scan.pdf#page=2"]),
        (["page.png", "scan.pdf"], ["page.png", *(f"scan.pdf#page={page}" for page in (1, 2, 3))]),
    ],
)
def test_pages_follow_the_order_of_the_inputs(read, words, pages):
    """The notes on pages that are cut off tell which pages there are."""
    code, out, lines = read(*words, "--to", "doctags", "--max-new-tokens", "5")
    assert code == 0
    assert out == f"<doctag>{'<page_break>'.join(['<text><loc_1><loc_2>h'] * len(pages))}</doctag>\n"
    assert lines == [
        f"idefics read: {name} is cut off in a text after 5 tokens: the end of the page is missing"
        for name in pages
    ]


def test_pages_that_there_are_not(read):
    code, out, lines = read("scan.pdf", "--pages", "7")
    assert (code, out, lines) == (2, "", ["idefics read: --pages 7: there are no such pages"])
    _, _, lines = read("scan.pdf", "--pages", "3-1")
    assert lines[0].startswith("idefics read: --pages is '3-1'; give numbers from 1")


def test_the_same_command_computes_no_page_again(read, documents):
    read("scan.pdf", "--pages", "1-2", "--out", "book.md")
    loads = []
    first = (documents / "book.md").read_text()
    assert first.count("hi") == 2
    ledger = ["--ledger", "book.md.ledger"]
    assert read("scan.pdf", "--pages", "1-2", "--out", "book.md", loader=refuse_to_load)[0] == 0
    assert (documents / "book.md").read_text() == first
    assert read("scan.pdf", "--pages", "2", "--out", "b.json", *ledger, loader=refuse_to_load)[0] == 0
    assert (
        read("scan.pdf", "--out", "book.md", loader=lambda *_: loads.append(1) or idefics.load("demo"))[0]
        == 2
    )
    assert loads == [1], "the third page has to be computed"


def test_an_instruction_is_given_as_words(read, vlm, monkeypatch):
    asked = []
    task_prompt = type(vlm).task_prompt
    monkeypatch.setattr(
        type(vlm), "task_prompt", lambda vlm, task, picture, words, detail: (
            asked.append(words), task_prompt(vlm, task, picture, words, detail)
        )[1]
    )  # fmt: skip
    assert read("page.png")[0] == 0
    assert read("page.png", "Convert formula to LaTeX.")[0] == 0
    assert read("page.png", "--prompt", "{x} <loc_1>")[0] == 0
    assert asked == ["Convert this page to docling.", "Convert formula to LaTeX.", "{x} <loc_1>"]


def test_a_page_that_fails_is_reported_and_the_others_are_written(read, documents):
    (documents / "broken.pdf").write_bytes(b"%PDF-1.4 broken")
    (documents / "pages" / "c.png").write_bytes((documents / "page.png").read_bytes()[:100])
    code, out, lines = read("broken.pdf", "page.png", "pages", "--out", "book.md")
    assert (code, out) == (2, "")
    assert len(lines) == 3
    assert lines[0].startswith("idefics read: broken.pdf cannot be read as PDF")
    assert lines[1].startswith("idefics read: pages/c.png")
    assert lines[2] == "3 pages written to book.md"
    assert (documents / "book.md").read_text().count("hi") == 3
    code, _, lines = read("broken.pdf", "--out", "none.md")
    assert code == 2 and len(lines) == 1
    assert not (documents / "none.md").exists()


def test_a_file_of_other_origin_is_not_replaced(read, documents):
    (documents / "book.md").write_text("mine")
    code, _, lines = read("page.png", "--out", "book.md")
    assert code == 2
    (line,) = lines
    assert line == (
        "idefics read: book.md exists and was not written from the ledger book.md.ledger: name another file, or "
        "replace it with --overwrite"
    )
    assert (documents / "book.md").read_text() == "mine"
    assert read("page.png", "--out", "book.md", "--overwrite")[0] == 0
    assert (documents / "book.md").read_text() == f"{PAGE_MARKDOWN}\n"


def test_ctrl_c_writes_the_pages_in_hand_and_says_how_to_go_on(read, documents, vlm, checkpoint):
    def interrupt(flags, writer):
        os.kill(os.getpid(), signal.SIGINT)
        return vlm

    code, out, lines = read("scan.pdf", "--out", "book.md", loader=interrupt)
    assert (code, out) == (130, "")
    assert lines[1:] == [
        "1 page written to book.md",
        f"stopped before the end; to go on: idefics read scan.pdf --out book.md --model {checkpoint}",
    ]
    assert (documents / "book.md").read_text() == f"{PAGE_MARKDOWN}\n"
    assert read("scan.pdf", "--out", "book.md") == (0, "", ["3 pages written to book.md"])


def test_other_checkpoints_are_refused_in_one_line(read, documents):
    code, out, lines = read("scan.pdf", model="demo", loader=lambda *_: idefics.load("demo"))
    assert (code, out) == (2, "")
    (line,) = lines
    assert line == (
        "idefics read: read needs a checkpoint that writes DocTags, and this one does not: "
        "load granite-docling-258m or smoldocling-256m (--model)"
    )


@pytest.mark.parametrize("flag", [["--logprobs"], ["--top-logprobs", "2"]])
def test_log_probabilities_have_no_place(read, flag):
    code, _, lines = read("page.png", *flag, loader=refuse_to_load)
    assert code == 2
    assert lines == [
        "idefics read: --logprobs is for `idefics run`: a document has no place for log-probabilities"
    ]


def test_the_default_model_is_a_docling_checkpoint(documents, capsys, monkeypatch):
    monkeypatch.delenv("IDEFICS_MODEL", raising=False)
    assert run(["read", "page.png", "--offline"], refuse_to_load) == 2
    assert "ibm-granite/granite-docling-258M is not in the cache" in capsys.readouterr().err
    monkeypatch.setenv("IDEFICS_MODEL", "nowhere/at-all")
    assert run(["read", "page.png", "--offline"], refuse_to_load) == 2
    assert "nowhere/at-all" in capsys.readouterr().err


@pytest.mark.parametrize("example", TASK.examples)
def test_examples_of_the_help_run(read, documents, example):
    (documents / "formula.png").write_bytes((documents / "page.png").read_bytes())
    words = shlex.split(example.partition(" > ")[0])
    assert words[:2] == ["idefics", "read"]
    code, out, lines = read(*words[2:])
    assert code == 0 and (out or lines)


def test_nothing_to_read(read):
    code, _, lines = read()
    assert (code, lines) == (2, ["idefics read: no document given: name a PDF, pictures or a folder of them"])


def test_what_is_not_installed_is_said_first(read, monkeypatch):
    monkeypatch.setattr("idefics.batch.documents.find_spec", lambda name: None)
    code, _, lines = read("scan.pdf", "--out", "book.html", loader=refuse_to_load)
    assert code == 2
    assert lines == [
        "idefics read: converting DocTags to html needs an optional dependency: pip install 'idefics[docs]'"
    ]
    assert read("page.png", "--to", "doctags") == (0, f"{PAGE_TEXT}\n", [])
