"""Batches of OpenAI's client, and a server with a folder for them."""

import json
import time
from contextlib import contextmanager

from clients.conftest import run_server, strict_client
from server.request_bodies import chat_request

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"


def batch_line(custom_id, body=None, url=CHAT, **more):
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": url,
        "body": body or chat_request(max_tokens=2),
    } | more


def to_jsonl(lines):
    return "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines).encode()


def begin(client, lines, endpoint=CHAT, **more):
    """Uploads lines, and makes a batch of them."""
    file = client.files.create(file=("lines.jsonl", to_jsonl(lines)), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h", **more)


def wait_for(client, batch, *statuses, seconds=60):
    """The batch, once it has one of the statuses; by default, once it has ended."""
    statuses = statuses or ("completed", "failed", "expired", "cancelled")
    deadline = time.monotonic() + seconds
    while batch.status not in statuses:
        assert time.monotonic() < deadline, batch
        time.sleep(0.02)
        batch = client.batches.retrieve(batch.id)
    return batch


def read_lines(client, file_id):
    """The lines of an output file by their custom_id; {} without a file."""
    lines = client.files.content(file_id).text.splitlines() if file_id else []
    by_id = {line["custom_id"]: line for line in map(json.loads, lines)}
    assert len(by_id) == len(lines)
    return by_id


@contextmanager
def run_client(vlm, folder, **settings):
    with run_server(vlm, batches=folder, **settings) as (url, service), strict_client(url) as client:
        yield client, service
