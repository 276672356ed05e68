"""lmms-eval takes a model of this package by its entry point, in an environment of its own (`make test-all`)."""

import subprocess
from pathlib import Path

import pytest

from clients.recording import PROGRAMS_FOLDER
from idefics.demo import pictures

pytestmark = pytest.mark.clients
PYTHON = Path(__file__).parents[2] / ".venv" / "clients" / "lmms_eval" / "bin" / "python"


@pytest.mark.skipif(not PYTHON.exists(), reason="no environment: make test-all makes it")
def test_lmms_eval_generates_in_one_round_and_in_two():
    shapes = next(path for path in pictures() if path.name == "shapes.png")
    questions = ["What color is the circle?", "What color is the star?"]
    done = subprocess.run(
        [PYTHON, PROGRAMS_FOLDER / "lmms_eval_model.py", shapes, *questions],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    one_round, two_rounds, refused = done.stdout.splitlines()[-3:]
    assert one_round == "['Red.', 'Green.']"
    assert two_rounds.count("Red.") == two_rounds.count("Green.") == 1
    assert len(eval(two_rounds)[0]) == 2
    assert refused == "NotImplementedError"
