"""Writes tests/clients/recorded: what the programs of tests/clients/programs send, as it goes over the wire.

Needs the environments that `make test-all` makes. Run it when a client's version has changed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("src", "tests")]

import idefics
from clients.conftest import serving
from clients.recording import ENVIRONMENTS, Recorder, write
from clients.test_clients_programs import run


def main() -> None:
    """Runs the programs that are named, or all."""
    posted: list[dict[str, object]] = []
    vlm = idefics.load("demo", remote_images="off")
    with serving(vlm, middleware=(Recorder, posted)) as (url, _), TemporaryDirectory() as folder:
        for name in sys.argv[1:] or ENVIRONMENTS:
            posted.clear()
            print(name, run(name, url, folder))
            write(name, posted)


if __name__ == "__main__":
    main()
