"""Requests of client programs as they go over the wire, and the files that keep them.

`tests/clients/recorded` holds one file for each program of `tests/clients/programs`: what it sends, in order. Its tests
send them to the server in process, with no client installed. `python scripts/record_clients.py` writes them again.
"""

import base64
import json
import re
from pathlib import Path

from server.request_bodies import PICTURES_FOLDER

CLIENTS_FOLDER = Path(__file__).parent
PROGRAMS_FOLDER = CLIENTS_FOLDER / "programs"
RECORDED_FOLDER = CLIENTS_FOLDER / "recorded"
PICTURE_PATH = PICTURES_FOLDER / "shapes.png"
ENVIRONMENT_BY_PROGRAM = {  # the folder of `.venv/clients` in which each program runs
    "docling_api": "openai3",
    "hub_inference": "openai3",
    "instructor_forms": "openai2",
    "langchain_models": "openai3",
    "litellm_library": "openai3",
    "litellm_proxy": "litellm_proxy",
    "llama_index_llms": "openai2",
    "llm_command": "openai3",
    "openai_agents": "openai3",
    "openai_package": "openai3",
    "pydantic_ai_agents": "openai3",
    "strands_agents": "openai2",
}
PLACEHOLDER = "data:image/png;base64,{shapes}"  # stands for any picture
ID_PATTERN = re.compile(r"\b(msg|resp|chatcmpl|cmpl)[_-][0-9a-f]{32}\b")


class RecordingMiddleware:
    """Middleware that records the path and body of each POST."""

    def __init__(self, app, posted):
        self.app, self.requests = app, posted

    async def __call__(self, scope, receive, send):
        body = b""

        async def watched():
            nonlocal body
            message = await receive()
            if message["type"] == "http.request":
                body += message.get("body", b"")
                if not message.get("more_body") and scope["method"] == "POST":
                    self.requests.append({"path": scope["path"], "body": json.loads(body)})
            return message

        await self.app(scope, watched if scope["type"] == "http" else receive, send)


def normalize_requests(requests):
    """Recorded requests without pictures, and with constant ids."""
    text = json.dumps(requests, ensure_ascii=False, indent=1)
    text = re.sub(r"data:image/\w+;base64,[A-Za-z0-9+/=]+", PLACEHOLDER, text)
    return json.loads(ID_PATTERN.sub(lambda found: f"{found[1]}_{'0' * 32}", text))


def read_recorded_requests(name):
    """The recorded requests of a program, with the picture put back."""
    uri = PLACEHOLDER.replace("{shapes}", base64.b64encode(PICTURE_PATH.read_bytes()).decode())
    return json.loads((RECORDED_FOLDER / f"{name}.json").read_text().replace(PLACEHOLDER, uri))


def write_recorded_requests(name, requests):
    """Writes the recorded requests of a program to a file."""
    RECORDED_FOLDER.mkdir(exist_ok=True)
    (RECORDED_FOLDER / f"{name}.json").write_text(
        json.dumps(normalize_requests(requests), ensure_ascii=False, indent=1) + "\n"
    )
