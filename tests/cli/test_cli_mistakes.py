"""Errors: one line on standard error that names the value and what to do, exit code 2, no model loaded."""

import pytest

import idefics
from idefics.cli.main import run
from idefics.cli.output import OutputWriter

pytestmark = pytest.mark.usefixtures("photo_folder")

LONG_TEXT = "word " * 3000

MISTAKES = [
    (["capton"], ["idefics: no such command 'capton'", "caption", "idefics --help"]),
    (["What is it?", "a.png"], ["idefics: 'What is it?' is not a command: name one first"]),
    (["a.png"], ["idefics: 'a.png' is not a command: name one first, such as caption or ask"]),
    (["--foo"], ["idefics: no such option: --foo", "idefics --help"]),
    (["ask", "a.png", "What?", "--foo"], ["idefics ask: no such option: --foo", "idefics ask --help"]),
    (["ask", "a.png", "What?", "--top-q", "1"], ["--top-q", "--top-p"]),
    (["ask", "a.png", "What?", "--model"], ["'--model' requires an argument"]),
    (["models", "a.png"], ["unexpected argument: a.png", "idefics models --help"]),
    (["serve", "--port", "70000"], ["idefics serve: --port is 70000; give a number from 0 to 65535"]),
    (["caption"], ["no picture given"]),
    (["ask"], ["no question given: put it last, in quotes, or use --prompt"]),
    (["ask", "a.png"], ["no question given: put it last, in quotes, or use --prompt"]),
    (["ask", "a.png", "b.jpg"], ["no question given"]),
    (["ask", "What?"], ["no picture given"]),
    (["ask", "a.png", " "], ["the question is empty"]),
    (["ask", "a.png", "What", "is", "it?"], ["'What' is not a picture: put the whole question in quotes"]),
    (
        ["ask", "--prompt", "What", "is", "it?", "a.png"],
        ["'is' is not a picture: put the whole question in quotes"],
    ),
    (["ask", "What is it?", "a.png"], ["'What is it?' is not a picture: put the question last, after the"]),
    (["ask", "What?", "a.png", "b.jpg"], ["'What?' is not a picture: put the question last, after the"]),
    (["ask", "What", "is", "a.png"], ["'What' is not a picture: put the whole question in quotes"]),
    (["write", "a.png", "A", "poem"], ["'A' is not a picture: put the whole instruction in quotes"]),
    (["complete", "a.png"], ["no text given: put it last"]),
    (["caption", "a.png", "What is it?"], ["'What is it?' is not a picture", "idefics ask"]),
    (["classify", "a.png"], ["no labels given", "--labels"]),
    (["classify", "a.png", "cats and dogs"], ["'cats and dogs' is not a picture", "--labels"]),
    (["classify", "a.png", "--labels", "cat"], ["1 label given", "2 to 1000"]),
    (["classify", "a.png", "--labels", "cat,"], ["blank"]),
    (["classify", "a.png", "--labels", "cat,cat"], ["given twice: cat"]),
    (["caption", "no.png"], ["no.png: no such file"]),
    (["caption", "notes.txt"], ["notes.txt is not a picture", "JPEG"]),
    (["caption", "broken.png"], ["broken.png is broken"]),
    (["caption", "*.jpg"], ["*.jpg: no file matches this pattern"]),
    (["caption", "empty"], ["empty: no picture in this folder"]),
    (["caption", ""], ["an empty name"]),
    (["caption", "a.png", "--temperature", "9"], ["--temperature is 9.0", "0.0 to 5.0"]),
    (["caption", "a.png", "--temperature", "hot"], ["idefics caption: --temperature is 'hot'", "number"]),
    (["caption", "a.png", "--seed", "1.5"], ["--seed is '1.5'", "whole number"]),
    (
        ["caption", "a.png", "--num-beams", "4", "--temperature", "1"],
        ["beam search cannot sample", "use --temperature 0 or --num-beams 1"],
    ),
    (["caption", "a.png", "--dtype", "float8"], ["idefics caption: --dtype is 'float8'", "bfloat16"]),
    (
        ["caption", "a.png", "--remote-images", "all"],
        ["idefics caption: --remote-images is 'all'", "any, public or off"],
    ),
    (["caption", "a.png", "--shots", "no.jsonl"], ["--shots no.jsonl: no such file"]),
    (["caption", "a.png", "--shots", "notes.txt"], ["notes.txt, line 1 is not JSON", '"image"']),
    (["caption", "a.png", "--shots", "folder"], ["--shots folder cannot be read: Is a directory"]),
    (["caption", "a.png", "--shots", "a.png"], ["--shots a.png is not text in UTF-8"]),
    (["ask", "a.png", "What?", "--schema", "no.json"], ["--schema no.json: no such file"]),
    (["classify", "a.png", "--labels-file", "no.txt"], ["--labels-file no.txt: no such file"]),
    (["classify", "a.png", "--labels-file", "folder"], ["--labels-file folder cannot be read"]),
    (["classify", "a.png", "--labels-file", "."], ["--labels-file . cannot be read"]),
    (["classify", "a.png", "--labels-file", ".no"], ["--labels-file .no: no such file"]),
    (["caption", "a.png", "--detail", "all"], ["idefics caption: --detail is 'all': give low, high or auto"]),
    (["caption", "a.png", "--kv-cache", "1XB"], ["idefics caption: --kv-cache is '1XB'; give bytes"]),
    (
        ["caption", "a.png", "--max-tiles", "0"],
        ["--max-tiles is 0; give a whole number from 1", "leave it out"],
    ),
    (["ui", "--port", "http"], ["idefics ui: --port is 'http': give a whole number"]),
    (["classify", "a.png", "--labels-file", "a.png"], ["--labels-file a.png is not text in UTF-8"]),
    (["classify", "a.png", "--labels-file", "notes.txt"], ["1 label given", "2 to 1000"]),
    (["caption", "a.png", "--logprobs"], ["--logprobs needs --json"]),
    (["caption", "a.png", "--top-logprobs", "2"], ["--logprobs needs --json"]),
    (["caption", "a.png", "--json", "--top-logprobs", "99"], ["--top-logprobs is 99", "0 to 20"]),
    (["caption", "a.png", "--max-new-tokens", "0"], ["--max-new-tokens is 0", "1 to 1000000"]),
    (
        ["caption", "a.png", "--num-beams", "2", "--presence-penalty", "1"],
        ["beam search has no", "--num-beams 1"],
    ),
    (["caption", "a.png", "--out", "x.csv"], ["no such option: --out; to save answers, write > answers.txt"]),
    (
        ["caption", "a.png", "--max-tokens", "3"],
        ["no such option: --max-tokens; did you mean --max-new-tokens?"],
    ),
    (["caption", "-dash.jpg"], ["no such option: -d; for a file, write ./-dash.jpg"]),
    (["help", "capton"], ["no such command 'capton'; did you mean caption?"]),
    (["titel"], ["idefics: no such command 'titel' (see idefics --help)"]),
    (
        ["ask", "a.png", "Caf\udce9?"],
        ["idefics ask: the question 'Caf\\xe9?' is not text in UTF-8: write it again"],
    ),
    (["generate"], ["no prompt given"]),
    (["generate", "no.png", "A"], ["no.png: no such file"]),
    (["generate", "broken.png", "A"], ["broken.png is broken"]),
    (["chat", "no.png"], ["no.png: no such file"]),
    (["chat", "-"], ["- cannot be a picture here"]),
]


def run_refused_command(capsys, argv, loader):
    code = run(argv, loader)
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    [line] = err.splitlines()
    return line


@pytest.mark.parametrize(("argv", "parts"), MISTAKES, ids=lambda value: " ".join(value)[:40])
def test_an_error_is_one_line_and_loads_no_model(capsys, argv, parts):
    line = run_refused_command(capsys, argv, lambda flags, screen: pytest.fail("a model was loaded"))
    is_command = argv[0] not in ("capton", "titel", "help", "--foo", "a.png", "What is it?")
    assert line.startswith(f"idefics {argv[0]}: " if is_command else "idefics: ")
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
def test_the_error_for_a_missing_model_is_one_line(capsys, argv, parts):
    from idefics.cli.command import load

    line = run_refused_command(capsys, argv, load)
    assert all(part in line for part in parts), line


@pytest.mark.parametrize(
    ("argv", "begins"),
    [
        (["ask", "a.png", LONG_TEXT], "idefics ask: a.png: the prompt has "),
        (["generate", "a.png", LONG_TEXT], "idefics generate: the prompt has "),
        (["write", "a.png", LONG_TEXT, "--json"], "idefics write: a.png: the prompt has "),
    ],
    ids=lambda value: " ".join(value)[:20],
)
def test_a_prompt_that_is_too_long_is_one_line(capsys, demo_model, argv, begins):
    line = run_refused_command(capsys, argv, lambda flags, screen: demo_model)
    assert line.startswith(begins)
    assert "this model reads" in line


def test_debug_shows_the_traceback(capsys):
    assert run(["caption", "a.png", "--debug", "--model", "dem"]) == 2
    err = capsys.readouterr().err.splitlines()
    assert any(line.startswith("Traceback") for line in err)
    assert err[-1].startswith("idefics caption: 'dem'")


def test_an_unexpected_error_is_one_line_too(capsys):
    def loader(flags, screen):
        raise ZeroDivisionError("two\nlines")

    line = run_refused_command(capsys, ["caption", "a.png"], loader)
    assert (
        line
        == "idefics caption: ZeroDivisionError: two lines (unexpected error; run again with --debug for details)"
    )


def test_the_error_for_too_little_memory_names_idefics_models(capsys):
    class OutOfMemoryError(RuntimeError):
        """The name of torch's class."""

    for error in (MemoryError(), OutOfMemoryError("tried to allocate")):

        def loader(flags, screen, error=error):
            raise error

        assert "idefics models" in run_refused_command(capsys, ["caption", "a.png"], loader)


def test_the_public_functions_raise_the_same(capsys):
    run(["caption", "a.png", "--model", "dem"])
    with pytest.raises(idefics.IdeficsError) as error:
        idefics.load("dem")
    assert capsys.readouterr().err == f"idefics caption: {error.value}\n"


def test_errors_about_single_pictures_name_flags_too(capsys):
    OutputWriter("idefics ask").report_error(
        "a.png: too long: give a larger max_new_tokens or use num_beams=1"
    )
    assert capsys.readouterr().err == (
        "idefics ask: a.png: too long: give a larger --max-new-tokens or use --num-beams 1\n"
    )
