"""`idefics run --ray`: the driver keeps the ledger, and may be killed."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from idefics.batch.ledger_file import MAX_UNCOMMITTED_WRITES

NUM_ROWS, NUM_ENGINES, BATCH_ROWS = 150, 3, 2
PROGRAM = Path(__file__).with_name("counted_run.py")


@pytest.fixture
def photos(tmp_path):
    """Different pictures."""
    folder = tmp_path / "photos"
    folder.mkdir()
    make_photos(folder, range(NUM_ROWS))
    return folder


def make_photos(folder, numbers):
    for number in numbers:
        pixels = np.random.default_rng(number).integers(0, 256, (24, 24, 3), np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"{number}.png")


@pytest.fixture
def start_run(three_nodes, photos, tmp_path):
    """Starts a run over the pictures on the cluster, as a process of its own."""
    processes = []

    def start(*flags):
        command = [sys.executable, PROGRAM, tmp_path / "log", "run", photos, "--model", "demo"]
        command += [
            "--out",
            tmp_path / "out.jsonl",
            "--ray",
            three_nodes.address,
            "--batch-rows",
            str(BATCH_ROWS),
        ]
        command += ["--no-feature-cache", *flags]
        processes.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path))
        return processes[-1]

    yield start
    for one in processes:
        one.kill()
        one.wait()
        one.stderr.close()


def wait_for_rows(log, number):
    """Waits until engines have begun so many rows."""
    deadline = time.monotonic() + 60
    while not log.exists() or len(log.read_text().split()) < number:
        assert time.monotonic() < deadline, "the run does not begin"
        time.sleep(0.02)


def test_a_killed_driver_goes_on_and_repeats_only_the_rows_in_hand(start_run, photos, tmp_path):
    log = tmp_path / "log"
    first = start_run()
    wait_for_rows(log, NUM_ROWS // 2)
    first.send_signal(signal.SIGKILL)
    second = start_run()
    _, printed = second.communicate(timeout=120)
    assert second.returncode == 0
    assert re.search(r"\d+ written, \d+ done before", printed)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert sorted(Path(row["path"]).name for row in rows) == sorted(path.name for path in photos.iterdir())
    assert all(row["text"] for row in rows)
    begun = log.read_text().split()
    assert len(set(begun)) == NUM_ROWS
    num_in_hand = NUM_ENGINES * 2 * BATCH_ROWS
    assert 0 < len(begun) - NUM_ROWS <= num_in_hand + MAX_UNCOMMITTED_WRITES


@pytest.mark.slow
def test_the_union_is_exact_after_30_kills_of_the_driver(start_run, photos, tmp_path):
    make_photos(photos, range(NUM_ROWS, 600))
    log, random = tmp_path / "log", np.random.default_rng(1)
    for _ in range(30):
        num_begun = len(log.read_text().split()) if log.exists() else 0
        run = start_run()
        wait_for_rows(log, num_begun + 1)
        time.sleep(random.uniform(0, 0.5))
        run.send_signal(signal.SIGKILL)
        run.wait()
    assert start_run().wait(120) == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert sorted(Path(row["path"]).name for row in rows) == sorted(path.name for path in photos.iterdir())
    assert all(row["text"] for row in rows)


def test_ctrl_c_finishes_the_rows_in_hand(start_run, tmp_path):
    run = start_run()
    wait_for_rows(tmp_path / "log", 20)
    run.send_signal(signal.SIGINT)
    _, printed = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "finishing the rows in hand" in printed
    rows = (tmp_path / "out.jsonl").read_text().splitlines()
    assert len(rows) == len((tmp_path / "log").read_text().split()) < NUM_ROWS


def test_a_cluster_that_is_not_there_is_one_line(start_run):
    run = start_run("--ray", "127.0.0.1:9")
    _, printed = run.communicate(timeout=60)
    assert run.returncode == 2
    assert "no Ray cluster at 127.0.0.1:9" in printed
    assert len(printed.splitlines()) == 1
