"""Eight clients send texts of a megabyte: latency of other requests, and memory that the server keeps.

Run by `bench/serve.py --case long-prompts`. Two servers get the same texts: the demo checkpoint, which refuses them by
their length in characters, and the same checkpoint with 131,072 positions, which has to tokenize them.
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
from harness import BenchmarkReport
from server_clients import CHAT_COMPLETIONS_PATH, RequestFailed, open_client, start_server

NUM_CLIENTS, TEXT_BYTES = 8, 1_000_000  # bytes of a text
NUM_TEXTS_BY_CASE = {
    "refused": 60,
    "tokenized": 3,
}  # per client, one after another: some seconds of load
MAX_POSITIONS = 131_072  # as many as Llama 3.1 reads
IDLE_SECONDS = 5.0
HEALTH_CHECK_INTERVAL = 0.01  # seconds between two requests to /health
LOAD_TIMEOUT = 120.0  # seconds for all texts
DEMO_FOLDER = Path(idefics.__file__).parent / "demo" / "idefics3"
WORDS = (Path(__file__).parent.parent / "docs" / "design.md").read_text(encoding="utf-8").split()


def measure(report: BenchmarkReport, *, num_rounds: int) -> None:
    """Measures both servers in `num_rounds` rounds each; a quick report sends one text per client."""
    with TemporaryDirectory() as scratch:
        for name, folder in {
            "refused": DEMO_FOLDER,
            "tokenized": _link_demo_with_max_positions(Path(scratch)),
        }.items():
            _measure_server(report, name, folder, num_rounds)


def _link_demo_with_max_positions(folder: Path) -> Path:
    """Links the demo checkpoint into `folder`, with `MAX_POSITIONS` positions."""
    for path in DEMO_FOLDER.iterdir():
        (folder / path.name).symlink_to(path)
    config = json.loads((DEMO_FOLDER / "config.json").read_text(encoding="utf-8"))
    config["text_config"]["max_position_embeddings"] = MAX_POSITIONS
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def _measure_server(report: BenchmarkReport, name: str, folder: Path, num_rounds: int) -> None:
    num_texts = 1 if report.is_quick else NUM_TEXTS_BY_CASE[name]
    case = f"{NUM_CLIENTS} clients, {num_texts} texts of {TEXT_BYTES // 1_000_000} MB each, {name}"
    with start_server("-m", "idefics", "serve", "--model", str(folder), "--name", "demo") as server:
        with open_client(server.url) as client:
            for _ in range(3):
                client.post(CHAT_COMPLETIONS_PATH, json=_chat_request("What is a cat?")).raise_for_status()
            _time_health_checks(client, seconds=1.0)
            bytes_before = server.resident_bytes()
            ratios = []
            for _ in range(num_rounds):
                idle_p99 = _p99(_time_health_checks(client, seconds=IDLE_SECONDS))
                with _counting() as counters:
                    counted = _p99(_time_health_checks(client, seconds=IDLE_SECONDS))
                    report.add_figure(
                        case,
                        "idle, others count",
                        counted * 1000,
                        "ms",
                        f"/health, p99, {counters} processes",
                    )
                load_process = subprocess.Popen(
                    [sys.executable, __file__, server.url, str(num_texts)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
                with load_process:
                    assert load_process.stdin is not None
                    assert load_process.stdout is not None
                    load_process.stdout.readline()  # its texts are ready
                    started = time.perf_counter()
                    load_process.stdin.close()
                    times = _time_health_checks(client, while_running=load_process)
                if load_process.returncode:
                    raise RequestFailed(f"the load ended with {load_process.returncode}")
                loaded_p99 = _p99(times)
                ratios.append(loaded_p99 / idle_p99)
                report.add_figure(case, "idle", idle_p99 * 1000, "ms", "/health, p99")
                report.add_figure(
                    case, "under load", loaded_p99 * 1000, "ms", f"/health, p99 of {len(times)}"
                )
                report.add_figure(case, "load", time.perf_counter() - started, "s", "until all were answered")
            time.sleep(1.0)
            bytes_after = server.resident_bytes()
        report.add_figure(case, "memory before", bytes_before / 2**20, "MiB", "resident")
        report.add_figure(case, "memory after", bytes_after / 2**20, "MiB", "resident")
        report.add_target(f"/health under load / idle, p99, {name}", float(np.median(ratios)), max_value=3)
        report.add_target(f"memory after / before, {name}", bytes_after / bytes_before, max_value=1.1)


def _chat_request(text: str) -> dict[str, object]:
    return {"model": "demo", "max_tokens": 4, "messages": [{"role": "user", "content": text}]}


def _time_health_checks(
    client: httpx.Client,
    *,
    seconds: float = LOAD_TIMEOUT,
    while_running: subprocess.Popen[bytes] | None = None,
) -> list[float]:
    """The seconds of each of a series of requests to /health."""
    times: list[float] = []
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline and (while_running is None or while_running.poll() is None):
        started = time.perf_counter()
        client.get("/health").raise_for_status()
        times.append(time.perf_counter() - started)
        time.sleep(HEALTH_CHECK_INTERVAL)
    return times


@contextmanager
def _counting() -> Iterator[int]:
    """Runs a busy loop on every core, as a comparison: what sharing the cores costs by itself."""
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


def _send_texts(url: str, num_texts: int) -> None:
    """The load process: sends all texts, each of which has to be refused with the same error."""
    os.nice(19)  # senders represent other machines: they must not compete with the server
    text = " ".join(WORDS * (1 + TEXT_BYTES // len(WORDS)))
    bodies = [
        json.dumps(_chat_request(text[97 * n : 97 * n + TEXT_BYTES])).encode() for n in range(NUM_CLIENTS)
    ]
    print("ready", flush=True)
    sys.stdin.read()

    def run_client(number: int) -> None:
        with open_client(url) as client:
            for _ in range(num_texts):
                answer = client.post(
                    CHAT_COMPLETIONS_PATH,
                    content=bodies[number],
                    headers={"Content-Type": "application/json"},
                )
                assert answer.json()["error"]["code"] == "context_length_exceeded", answer.text[:300]

    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        list(pool.map(run_client, range(NUM_CLIENTS)))


if __name__ == "__main__":
    _send_texts(sys.argv[1], int(sys.argv[2]))
