"""Every mistake: one line on standard error that names the value and the way out, exit code 2, no model loaded."""

import pytest

import idefics
from idefics.cli.main import run

pytestmark = pytest.mark.usefixtures("photos")

LONG = "word " * 3000

MISTAKES = [
    (["capton"], ["idefics: no such command 'capton'", "caption", "idefics --help"]),
    (["--foo"], ["idefics: no such option: --foo", "idefics --help"]),
    (["ask", "a.png", "What?", "--foo"], ["idefics ask: no such option: --foo", "idefics ask --help"]),
    (["ask", "a.png", "What?", "--top-q", "1"], ["--top-q", "--top-p"]),
    (["ask", "a.png", "What?", "--model"], ["'--model' requires an argument"]),
    (["models", "a.png"], ["a.png", "idefics models --help"]),
    (["caption"], ["no picture given"]),
    (["ask"], ["the question is missing", "--prompt"]),
    (["ask", "a.png"], ["the question is missing", "'a.png' reads like a picture", "--prompt"]),
    (["ask", "a.png", "b.jpg"], ["the question is missing", "'b.jpg' reads like a picture"]),
    (["ask", "What?"], ["no picture given"]),
    (["ask", "a.png", " "], ["the question is empty"]),
    (["ask", "a.png", "What", "is", "it?"], ["'What' is no picture", "in quotes"]),
    (["ask", "--prompt", "What", "is", "it?", "a.png"], ["'is' is no picture", "in quotes"]),
    (["write", "a.png", "A", "poem"], ["'A' is no picture", "in quotes"]),
    (["complete", "a.png"], ["the text is missing"]),
    (["caption", "a.png", "What is it?"], ["'What is it?' is not a picture", "idefics ask"]),
    (["classify", "a.png"], ["no labels given", "--labels"]),
    (["classify", "a.png", "cats and dogs"], ["'cats and dogs' is not a picture", "--labels"]),
    (["classify", "a.png", "--labels", "cat"], ["1 label given", "2 to 1000"]),
    (["classify", "a.png", "--labels", "cat,"], ["blank"]),
    (["classify", "a.png", "--labels", "cat,cat"], ["given twice: cat"]),
    (["caption", "no.png"], ["no.png: no such file"]),
    (["caption", "notes.txt"], ["notes.txt is not a picture", "JPEG"]),
    (["caption", "broken.png"], ["broken.png is broken"]),
    (["caption", "*.jpg"], ["*.jpg: no file fits this pattern"]),
    (["caption", "empty"], ["empty: no picture in this folder", ".png"]),
    (["caption", ""], ["an empty name"]),
    (["caption", "a.png", "--temperature", "9"], ["temperature is 9.0", "0.0 to 5.0"]),
    (["caption", "a.png", "--temperature", "hot"], ["--temperature is 'hot'", "number"]),
    (["caption", "a.png", "--seed", "1.5"], ["--seed is '1.5'", "whole number"]),
    (["caption", "a.png", "--num-beams", "4", "--temperature", "1"], ["num_beams is 4", "temperature"]),
    (["caption", "a.png", "--dtype", "float8"], ["--dtype is 'float8'", "bfloat16"]),
    (["caption", "a.png", "--remote-images", "all"], ["--remote-images is 'all'", "any, public or off"]),
    (["caption", "a.png", "--shots", "no.jsonl"], ["no.jsonl", "cannot be read"]),
    (["caption", "a.png", "--shots", "notes.txt"], ["notes.txt, line 1 is not JSON", '"image"']),
    (["generate"], ["no prompt given"]),
    (["generate", "no.png", "A"], ["no.png: no such file"]),
    (["generate", "broken.png", "A"], ["broken.png is broken"]),
    (["chat", "no.png"], ["no.png: no such file"]),
    (["chat", "-"], ["- cannot be a picture here"]),
]


def refusal(capsys, argv, loader):
    code = run(argv, loader)
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    [line] = err.splitlines()
    return line


@pytest.mark.parametrize(("argv", "parts"), MISTAKES, ids=lambda value: " ".join(value)[:40])
def test_a_mistake_is_one_line_and_loads_no_model(capsys, argv, parts):
    line = refusal(capsys, argv, lambda flags, screen: pytest.fail("a model was loaded"))
    assert line.startswith(
        f"idefics {argv[0]}: " if argv[0].isalpha() and argv[0] != "capton" else "idefics: "
    )
    assert all(part in line for part in parts), line


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["caption", "a.png", "--model", "dem"], ["'dem'", "near: demo", "idefics models"]),
        (["caption", "a.png", "--model", "owner/name"], ["owner/name", "--model demo"]),
        (["caption", "a.png"], ["SmolVLM-500M-Instruct", "not in the cache", "--model demo"]),
        (["caption", "a.png", "--model", "folder"], ["folder", "config.json"]),
        (["caption", "a.png", "--model", "demo", "--revision", "x"], ["revision is 'x'", "demo is a folder"]),
        (["caption", "a.png", "--model", "demo", "--device", "tpu"], ["device is 'tpu'", "cpu"]),
        (["demo", "--model", "dem"], ["'dem'", "near: demo"]),
    ],
    ids=lambda value: " ".join(value)[-40:],
)
def test_a_model_that_cannot_be_had_is_one_line(capsys, argv, parts):
    from idefics.cli.loading import load

    line = refusal(capsys, argv, load)
    assert all(part in line for part in parts), line


@pytest.mark.parametrize(
    ("argv", "begins"),
    [
        (["ask", "a.png", LONG], "idefics ask: a.png: the prompt has "),
        (["generate", "a.png", LONG], "idefics generate: the prompt has "),
        (["write", "a.png", LONG, "--json"], "idefics write: a.png: the prompt has "),
    ],
    ids=lambda value: " ".join(value)[:20],
)
def test_a_prompt_that_is_too_long_is_one_line(capsys, demo, argv, begins):
    line = refusal(capsys, argv, lambda flags, screen: demo)
    assert line.startswith(begins)
    assert "this model reads" in line


def test_debug_shows_where(capsys):
    assert run(["caption", "a.png", "--debug", "--model", "dem"]) == 2
    err = capsys.readouterr().err.splitlines()
    assert err[0].startswith("Traceback")
    assert err[-1].startswith("idefics caption: 'dem'")


def test_what_nobody_foresaw_is_one_line_too(capsys):
    def loader(flags, screen):
        raise ZeroDivisionError("two\nlines")

    line = refusal(capsys, ["caption", "a.png"], loader)
    assert line == "idefics caption: ZeroDivisionError: two lines (not foreseen: --debug shows where)"


def test_too_little_memory_names_the_way_out(capsys):
    class OutOfMemoryError(RuntimeError):
        """As torch calls it."""

    for error in (MemoryError(), OutOfMemoryError("tried to allocate")):

        def loader(flags, screen, error=error):
            raise error

        assert "idefics models" in refusal(capsys, ["caption", "a.png"], loader)


def test_the_public_door_says_the_same(capsys):
    run(["caption", "a.png", "--model", "dem"])
    with pytest.raises(idefics.IdeficsError) as error:
        idefics.load("dem")
    assert capsys.readouterr().err == f"idefics caption: {error.value}\n"
