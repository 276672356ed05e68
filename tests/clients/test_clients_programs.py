"""Programs that use other people's clients as those document it, each in an environment of its own, against a server.

`make test-all` makes the environments (`.venv/clients`) of the requirements in `tests/clients/environments`.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest

from clients.conftest import serving
from clients.recording import ENVIRONMENTS, PICTURE, PROGRAMS, RECORDED, Recorder, kept
from idefics.messages import Message, Picture
from server.asking import data_uri

pytestmark = pytest.mark.clients
FOLDER = Path(__file__).parents[2] / ".venv" / "clients"
SECONDS = 180  # imports of some take twenty


@pytest.fixture(scope="module")
def posted():
    return []


@pytest.fixture(scope="module")
def served(vlm, posted):
    with serving(vlm, middleware=(Recorder, posted)) as found:
        yield found


def run(name, url, folder):
    """What a program tells of its answers."""
    python = FOLDER / ENVIRONMENTS[name] / "bin" / "python"
    if not python.exists():
        pytest.skip(f"no environment {python.parents[1].name} of clients: `make test-all` makes it")
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    environment |= {
        "OPENAI_API_KEY": "none",
        "DO_NOT_TRACK": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        [python, PROGRAMS / f"{name}.py", url, PICTURE],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def expected(vlm):
    """What each question of the programs is to be answered."""
    asked = Message("user", (Picture(data_uri("shapes")), "What is shown?"))
    first = vlm.chat([asked]).text
    turns = [asked, Message("assistant", (first,)), Message("user", ("What colour?",))]
    story = vlm.generate(["Once upon a time,"], max_new_tokens=6).text
    return {"first": first, "next": vlm.chat(turns).text, "story": story}


@pytest.mark.timeout(SECONDS + 20)
@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_client_gets_the_models_answers(name, url, posted, expected, tmp_path):
    posted.clear()
    told = run(name, url, tmp_path)
    for kind, answers in told.items():
        assert answers
        if kind == "seen":
            shapes = [json.loads(answer)["shape"] if "{" in answer else answer for answer in answers]
            assert set(shapes) <= {"circle", "square"}
        else:
            assert {answer.strip() for answer in answers} == {expected[kind].strip()}
    kept_now = json.loads((RECORDED / f"{name}.json").read_text())
    assert kept(posted) == kept_now, "python scripts/record_clients.py writes what it sends now"
