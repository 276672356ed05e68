"""Pictures on disk, a fake model, and the demo model loaded once."""

import io
import sys

import PIL.Image
import pytest
from cli_fakes import TOO_LARGE_MARKER, run_command

COLOR_BY_NAME = {"a": "red", "b": "green", "c": "blue"}


@pytest.fixture
def run_idefics(capsys):
    """Runs `idefics ARGV` with a fake model."""
    return lambda *argv, vlm=None: run_command(capsys, argv, vlm)


@pytest.fixture
def photo_folder(tmp_path, monkeypatch):
    """The working folder: a.png, b.png, c.png and files that are not pictures."""
    monkeypatch.chdir(tmp_path)
    for name, color in COLOR_BY_NAME.items():
        PIL.Image.new("RGB", (8, 8), color).save(tmp_path / f"{name}.png")
    (tmp_path / "notes.txt").write_text("hello")
    PIL.Image.linear_gradient("L").save(tmp_path / "broken.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "broken.png").read_bytes()[:200])
    (tmp_path / "large.png").write_bytes((tmp_path / "a.png").read_bytes() + TOO_LARGE_MARKER)
    (tmp_path / "empty").mkdir()
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("y.png", "x.png", ".hidden.png"):
        PIL.Image.new("RGB", (8, 8), "gray").save(folder / name)
    (folder / "notes.txt").write_text("hello")
    return tmp_path


@pytest.fixture
def send_stdin(monkeypatch):
    """Sets the bytes of standard input."""

    def send(data):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))

    return send


@pytest.fixture(scope="session")
def demo_model():
    """The demo model."""
    import idefics

    return idefics.load("demo")
