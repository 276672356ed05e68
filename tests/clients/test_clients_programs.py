"""Programs that use other clients as their documentation shows, each in its own environment, against a server.

`make test-all` makes the environments (`.venv/clients`) of the requirements in `tests/clients/environments`.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest

from clients.conftest import run_server
from clients.recording import (
    ENVIRONMENT_BY_PROGRAM,
    PICTURE_PATH,
    PROGRAMS_FOLDER,
    RECORDED_FOLDER,
    RecordingMiddleware,
    normalize_requests,
)
from idefics.messages import Message, Picture
from server.request_bodies import picture_data_uri

pytestmark = pytest.mark.clients
ENVIRONMENTS_FOLDER = Path(__file__).parents[2] / ".venv" / "clients"
TIMEOUT = 180  # imports of some take twenty


@pytest.fixture(scope="module")
def recorded_requests():
    return []


@pytest.fixture(scope="module")
def running_server(vlm, recorded_requests):
    with run_server(vlm, middleware=(RecordingMiddleware, recorded_requests)) as found:
        yield found


def run_program(name, url, folder):
    """The answers that a program prints."""
    python = ENVIRONMENTS_FOLDER / ENVIRONMENT_BY_PROGRAM[name] / "bin" / "python"
    if not python.exists():
        pytest.skip(f"no environment {python.parents[1].name} of clients: `make test-all` makes it")
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    environment |= {
        "OPENAI_API_KEY": "none",
        "DO_NOT_TRACK": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        [python, PROGRAMS_FOLDER / f"{name}.py", url, PICTURE_PATH],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def expected(vlm):
    """The expected answer to each question of the programs."""
    asked = Message("user", (Picture(picture_data_uri("shapes")), "What is shown?"))
    first = vlm.chat([asked]).text
    turns = [asked, Message("assistant", (first,)), Message("user", ("What colour?",))]
    story = vlm.generate(["Once upon a time,"], max_new_tokens=6).text
    return {"first": first, "next": vlm.chat(turns).text, "story": story}


@pytest.mark.timeout(TIMEOUT + 20)
@pytest.mark.parametrize("name", ENVIRONMENT_BY_PROGRAM)
def test_a_client_gets_the_models_answers(name, url, recorded_requests, expected, tmp_path):
    recorded_requests.clear()
    told = run_program(name, url, tmp_path)
    for kind, answers in told.items():
        assert answers
        if kind == "seen":
            shapes = [json.loads(answer)["shape"] if "{" in answer else answer for answer in answers]
            assert set(shapes) <= {"circle", "square"}
        else:
            assert {answer.strip() for answer in answers} == {expected[kind].strip()}
    kept_now = json.loads((RECORDED_FOLDER / f"{name}.json").read_text())
    assert normalize_requests(recorded_requests) == kept_now, (
        "python scripts/record_clients.py writes what it sends now"
    )
