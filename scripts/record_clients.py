"""Writes tests/clients/recorded: the HTTP requests that the programs of tests/clients/programs send.

Needs the environments that `make test-all` makes. Run it when a client's version has changed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("src", "tests")]

import idefics
from clients.conftest import run_server
from clients.recording import ENVIRONMENT_BY_PROGRAM, RecordingMiddleware, write_recorded_requests
from clients.test_clients_programs import run_program


def main() -> None:
    """Runs the programs named as arguments, or all, against a server that records their requests."""
    recorded_requests: list[dict[str, object]] = []
    vlm = idefics.load("demo", remote_images="off")
    with (
        run_server(vlm, middleware=(RecordingMiddleware, recorded_requests)) as (url, _),
        TemporaryDirectory() as folder,
    ):
        for name in sys.argv[1:] or ENVIRONMENT_BY_PROGRAM:
            recorded_requests.clear()
            print(name, run_program(name, url, folder))
            write_recorded_requests(name, recorded_requests)


if __name__ == "__main__":
    main()
