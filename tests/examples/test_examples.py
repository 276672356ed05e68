"""The programs in `examples/` run as a person runs them, offline with the demo model, and print what they promise."""

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

import idefics
from compat.guide_scripts import serve_pictures

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PICTURES = ROOT / "src/idefics/demo/pictures"
PROGRAMS = sorted(EXAMPLES.glob("*.py"))
MAX_LINES = 40
SERVER_ADDRESS = re.compile(r"demo is served at (http://\S+);")


@pytest.fixture(autouse=True)
def package_on_path(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))


def run_python(*arguments):
    """What Python prints with these arguments."""
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def run_example(name, *arguments):
    """What a program prints."""
    return run_python(EXAMPLES / f"{name}.py", *arguments)


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_programs_are_short_and_say_how_to_run_them(path):
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) < MAX_LINES
    assert f"\n    python examples/{path.name}" in ast.get_docstring(ast.parse(source))


def test_every_program_is_listed_and_tested():
    listed = re.findall(r"\]\((\w+\.py)\)", (EXAMPLES / "README.md").read_text(encoding="utf-8"))
    names = [path.stem for path in PROGRAMS]
    assert sorted(listed) == [f"{name}.py" for name in names]
    tests = [name.removeprefix("test_") for name in globals() if name.startswith("test_")]
    assert set(names) <= set(tests)


def test_programs_use_public_names_only():
    for path in PROGRAMS:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "idefics":
                assert node.attr in {*idefics.__all__, "__file__"}, f"{path.name}: idefics.{node.attr}"
            if isinstance(node, ast.ImportFrom):
                assert not (node.module or "").startswith("idefics."), f"{path.name}: {node.module}"


def test_caption_folder(tmp_path):
    shutil.copy(PICTURES / "tower.png", tmp_path)
    (tmp_path / "broken.jpg").write_bytes(b"hello")
    (tmp_path / "notes.txt").write_bytes(b"hello")
    rows = [json.loads(line) for line in run_example("caption_folder", tmp_path).splitlines()]
    assert [row["image"] for row in rows] == ["broken.jpg", "tower.png"]
    assert "broken.jpg" in rows[0]["error"]
    assert rows[1]["caption"] == "A large tower in the middle, on blue ground at night."


def test_few_shot():
    plain, shaped = run_example("few_shot").splitlines()
    assert plain == "without examples: A large statue in the middle, on blue ground."
    assert shaped == "with examples:    An image of a statue. Fun fact: statues can turn green in the rain."


def test_rank_labels():
    lines = run_example("rank_labels").splitlines()
    assert lines[-1] == "best: vegetables"
    probabilities = [float(line.split("%")[0]) for line in lines[:-1]]
    assert len(probabilities) == 5
    assert probabilities == sorted(probabilities, reverse=True)


def test_structured_output():
    pytest.importorskip("llguidance")
    assert re.fullmatch(
        r"time: (day|night), ground: (green|gray|blue|white|brown), things: \d\n",
        run_example("structured_output"),
    )


def test_stream_asyncio():
    lines = run_example("stream_asyncio").splitlines()
    for name in ("tower.png", "puppy.png"):
        pieces = [line.removeprefix(f"{name}: ") for line in lines if line.startswith(f"{name}: ")]
        text = "".join(ast.literal_eval(piece) for piece in pieces[:-1])
        assert text.startswith("Once upon a time, there w")
        assert re.fullmatch(r"\d+ tokens, finish reason: stop", pieces[-1])


def test_thread_pool():
    lines = run_example("thread_pool").splitlines()
    assert len(lines) == 6
    assert "tower.png: Is it day or night? Night." in lines
    assert "puppy.png: What can you see? Two tulips, a puppy and a rose." in lines


def test_video():
    lines = run_example("video").splitlines()
    assert len(lines) == 7
    assert lines[5] == "second 5: A tower."


def test_quantize_and_save(tmp_path):
    lines = run_example("quantize_and_save", tmp_path / "small").splitlines()
    original, small = (re.search(r": ([\d,]+) bytes of weights\. (.*)", line) for line in lines[-2:])
    assert int(small[1].replace(",", "")) < 0.7 * int(original[1].replace(",", ""))
    assert small[2] == original[2] == "Two tulips, a puppy and a rose."


def test_openai_client():
    pytest.importorskip("openai")
    with demo_server() as address:
        assert run_example("openai_client", "--base-url", f"{address}/v1") == "Green.\n"


@contextmanager
def demo_server():
    """The address of `idefics serve --model demo`, in a process of its own."""
    pytest.importorskip("uvicorn")
    command = [sys.executable, "-m", "idefics", "serve", "--model", "demo", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            lines = map(SERVER_ADDRESS.search, process.stderr)
            yield next(found[1] for found in lines if found)
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)


USE_BOT = """
import sys, gradio, gradio_bot, idefics
with idefics.load("demo") as vlm:
    page = gradio_bot.build_page(vlm)
    print(*page.fn(f"{sys.argv[1]}/tower.png", "This is an image of"), sep="\\n")
    for wrong in ("/etc/passwd", f"{sys.argv[1]}/missing.png"):
        try:
            page.fn(wrong, "This is")
        except gradio.Error as error:
            print(error.message)
"""


def test_gradio_bot(monkeypatch):
    pytest.importorskip("gradio")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), str(EXAMPLES)]))
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    with serve_pictures() as address:
        text, picture, *refused = run_python("-c", USE_BOT, address).splitlines()
    assert text == "This is an image of a large tower in the middle, on blue ground at night."
    assert picture == f"{address}/tower.png"
    assert refused[0].startswith("give the address of a picture")
    assert "missing.png" in refused[1]


def test_draw_traffic_lights(tmp_path):
    folder = tmp_path / "lights"
    assert run_example("draw_traffic_lights", folder, "--count", "6") == f"{folder} has 6 pictures\n"
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert sorted(path.name for path in folder.glob("*.png")) == sorted(row["file_name"] for row in rows)
    assert {row["answer"] for row in rows} == {"Yes.", "No."} and len(rows) == 6
