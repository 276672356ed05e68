"""Each process of the page has its own folder for pictures, which no other process deletes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("gradio")

PAGE = """
import sys
from fastapi.testclient import TestClient
import idefics
from idefics.page.app import create_page_app
from idefics.page.backend import PageSettings
from idefics.page.files import save_file
from idefics.processing.fetch import Fetcher

app = create_page_app(idefics.load("demo"), PageSettings("demo", Fetcher(policy="off", untrusted=True)))
with TestClient(app, base_url="http://127.0.0.1"):
    print(save_file(b"picture", "a.png").path, flush=True)
    sys.stdin.readline()
"""


def plain(tmp_path):
    """An environment in which temporary files are created in a folder of the test."""
    there = {name: value for name, value in os.environ.items() if not name.startswith("GRADIO_")}
    return there | {"TMPDIR": str(tmp_path)}


def page(tmp_path, **environment):
    """Starts a process with the page; returns it and the file that it has written."""
    process = subprocess.Popen(
        [sys.executable, "-c", PAGE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=plain(tmp_path) | environment,
    )
    return process, Path(process.stdout.readline().strip())


def end(process):
    process.communicate("\n", timeout=60)
    assert process.returncode == 0


def test_the_end_of_one_process_leaves_the_files_of_another(tmp_path):
    one, first = page(tmp_path)
    other, second = page(tmp_path)
    assert first.read_bytes() == second.read_bytes() == b"picture"
    assert first != second
    end(one)
    assert not first.exists()
    assert second.read_bytes() == b"picture"
    end(other)
    assert not list(tmp_path.glob("idefics-page-*"))
    assert not (tmp_path / "gradio").exists()


def test_a_process_that_is_started_by_another_has_its_own_folder(tmp_path):
    one, first = page(tmp_path)
    other, second = page(tmp_path, GRADIO_TEMP_DIR=str(first.parents[1]))
    end(one)
    assert second.read_bytes() == b"picture"
    end(other)
    assert not list(tmp_path.glob("idefics-page-*"))


def test_a_folder_that_the_user_names_keeps_what_it_holds(tmp_path):
    given = tmp_path / "given"
    given.mkdir()
    (given / "mine.txt").write_text("mine")
    examples = tmp_path / ".gradio" / "cached_examples"
    examples.mkdir(parents=True)
    process, path = page(tmp_path, GRADIO_TEMP_DIR=str(given))
    assert path.is_relative_to(given)
    end(process)
    assert [one.name for one in given.iterdir()] == ["mine.txt"]
    assert examples.is_dir()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_removes_its_folder_when_it_is_told_to_end(tmp_path, number):
    process = subprocess.Popen(
        [sys.executable, "-m", "idefics", "ui", "--model", "demo", "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
        env=plain(tmp_path),
    )
    while "the page is at" not in (line := process.stderr.readline()):
        assert line, "it ended before it said its address"
    assert len(list(tmp_path.glob("idefics-page-*"))) == 1
    process.send_signal(number)
    _, rest = process.communicate(timeout=60)
    assert "Traceback" not in rest
    assert process.returncode == (0 if number is signal.SIGTERM else 130)
    assert not list(tmp_path.glob("idefics-page-*"))
