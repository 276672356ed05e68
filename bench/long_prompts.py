"""Eight clients that send texts of a megabyte: what others notice of it, and what memory the server keeps.

Run by `bench/serve.py --case long-prompts`. Two servers get the same texts: the demo checkpoint, which refuses them by
their characters; and the same checkpoint with 131,072 positions, which must tokenize them to know that they do not fit.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import numpy as np

import idefics
from callers import PATH, Failed, opened_alone, process
from harness import Report

CLIENTS, SIZE = 8, 1_000_000  # bytes of a text
TEXTS = {"refused": 60, "tokenized": 3}  # that each client sends, one after another: some seconds of load
POSITIONS = 131_072  # as many as Llama 3.1 reads
IDLE_SECONDS = 5.0
PAUSE = 0.01  # seconds between two questions after the server's health
LOAD_SECONDS = 120.0  # that all texts may take
DEMO = Path(idefics.__file__).parent / "demo" / "idefics3"
WORDS = (Path(__file__).parent.parent / "docs" / "design.md").read_text(encoding="utf-8").split()


def measure(report: Report, *, rounds: int) -> None:
    """Both servers, so many rounds each; a quick report gets one text of each client."""
    with TemporaryDirectory() as scratch:
        for name, folder in {"refused": DEMO, "tokenized": _wide(Path(scratch))}.items():
            _measure(report, name, folder, rounds)


def _wide(folder: Path) -> Path:
    """The demo checkpoint with many positions."""
    for path in DEMO.iterdir():
        (folder / path.name).symlink_to(path)
    config = json.loads((DEMO / "config.json").read_text(encoding="utf-8"))
    config["text_config"]["max_position_embeddings"] = POSITIONS
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def _measure(report: Report, name: str, folder: Path, rounds: int) -> None:
    texts = 1 if report.quick else TEXTS[name]
    case = f"{CLIENTS} clients, {texts} texts of {SIZE // 1_000_000} MB each, {name}"
    with process("-m", "idefics", "serve", "--model", str(folder), "--name", "demo") as server:
        with opened_alone(server.url) as client:
            for _ in range(3):
                client.post(PATH, json=_body("What is a cat?")).raise_for_status()
            _health(client, seconds=1.0)
            before = server.memory()
            ratios = []
            for _ in range(rounds):
                idle = _p99(_health(client, seconds=IDLE_SECONDS))
                with _counting() as counters:
                    counted = _p99(_health(client, seconds=IDLE_SECONDS))
                    report.figure(
                        case,
                        "idle, others count",
                        counted * 1000,
                        "ms",
                        f"/health, p99, {counters} processes",
                    )
                load = subprocess.Popen(
                    [sys.executable, __file__, server.url, str(texts)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
                with load:
                    assert load.stdin is not None
                    assert load.stdout is not None
                    load.stdout.readline()  # its texts are made
                    began = time.perf_counter()
                    load.stdin.close()
                    times = _health(client, while_running=load)
                if load.returncode:
                    raise Failed(f"the load ended with {load.returncode}")
                busy = _p99(times)
                ratios.append(busy / idle)
                report.figure(case, "idle", idle * 1000, "ms", "/health, p99")
                report.figure(case, "under load", busy * 1000, "ms", f"/health, p99 of {len(times)}")
                report.figure(case, "load", time.perf_counter() - began, "s", "until all were answered")
            time.sleep(1.0)
            after = server.memory()
        report.figure(case, "memory before", before / 2**20, "MiB", "resident")
        report.figure(case, "memory after", after / 2**20, "MiB", "resident")
        report.target(f"/health under load / idle, p99, {name}", float(np.median(ratios)), at_most=3)
        report.target(f"memory after / before, {name}", after / before, at_most=1.1)


def _body(text: str) -> dict[str, object]:
    return {"model": "demo", "max_tokens": 4, "messages": [{"role": "user", "content": text}]}


def _health(
    client: httpx.Client,
    *,
    seconds: float = LOAD_SECONDS,
    while_running: subprocess.Popen[bytes] | None = None,
) -> list[float]:
    """Seconds of each question after the server's health, one after another."""
    times: list[float] = []
    ends = time.perf_counter() + seconds
    while time.perf_counter() < ends and (while_running is None or while_running.poll() is None):
        began = time.perf_counter()
        client.get("/health").raise_for_status()
        times.append(time.perf_counter() - began)
        time.sleep(PAUSE)
    return times


@contextmanager
def _counting() -> Iterator[int]:
    """As many processes that only count as there are cores: what the system's sharing of the cores costs by itself."""
    counter = [sys.executable, "-c", "while True: pass"]
    counters = [subprocess.Popen(counter) for _ in range(os.cpu_count() or 1)]
    try:
        yield len(counters)
    finally:
        for started in counters:
            started.kill()
            started.wait()


def _p99(times: list[float]) -> float:
    return float(np.percentile(times, 99))


def _send(url: str, texts: int) -> None:
    """The load: all texts, each refused with the same error. A process of its own, so as not to disturb the clock."""
    os.nice(19)  # senders stand for other machines: they must not take processor time from the server
    text = " ".join(WORDS * (1 + SIZE // len(WORDS)))
    bodies = [json.dumps(_body(text[97 * n : 97 * n + SIZE])).encode() for n in range(CLIENTS)]
    print("ready", flush=True)
    sys.stdin.read()

    def send(number: int) -> None:
        with opened_alone(url) as client:
            for _ in range(texts):
                answer = client.post(
                    PATH, content=bodies[number], headers={"Content-Type": "application/json"}
                )
                assert answer.json()["error"]["code"] == "context_length_exceeded", answer.text[:300]

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(send, range(CLIENTS)))


if __name__ == "__main__":
    _send(sys.argv[1], int(sys.argv[2]))
