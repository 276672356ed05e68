"""How benchmarks measure and report: rounds in alternating order, medians, ratios, and the machine.

A script adds figures and targets to a `BenchmarkReport` and prints it: a table, then one line of JSON. Trust ratios
within one run only.
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

T = TypeVar("T")
ROOT = Path(__file__).parent.parent
MAX_BUSY_RATIO = (
    1.3  # of a ratio to a rival while another process takes a core, as a multiple of the calm one
)
PACKAGES = ("torch", "transformers", "llama-cpp-python", "numpy", "pillow")


@dataclass(frozen=True)
class RunTiming:
    """The times of one answer, or of several generated together.

    Attributes:
        first_token_seconds: seconds to the first token.
        decode_seconds: seconds from there to the last one.
        num_decode_tokens: tokens after the first one, of all rows together.
    """

    first_token_seconds: float
    decode_seconds: float
    num_decode_tokens: int

    @property
    def tokens_per_second(self) -> float:
        """Tokens a second after the first token; 0 if there is only one."""
        return self.num_decode_tokens / self.decode_seconds if self.num_decode_tokens else 0.0


def run_rounds(
    runs: Mapping[str, Callable[[int], T]], num_rounds: int, before_round: Callable[[], object] = lambda: None
) -> dict[str, list[T]]:
    """Calls each of `runs` once to warm up, then `num_rounds` times; the order alternates from round to round.

    A call gets the number of its round (0: warm-up), to make inputs that no earlier round has cached. `before_round` is
    called before each round.
    """
    results: dict[str, list[T]] = {name: [] for name in runs}
    for call in runs.values():
        call(0)
    for round_index in range(1, num_rounds + 1):
        before_round()
        for name in list(runs)[:: 1 if round_index % 2 else -1]:
            results[name].append(runs[name](round_index))
    return results


def time_call(call: Callable[[], Any]) -> float:
    """The seconds that a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


@contextmanager
def busy_core() -> Iterator[None]:
    """Another process computes meanwhile, on one core."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()


def median_tokens_per_second(runs: list[RunTiming]) -> float:
    """The median of tokens a second."""
    return statistics.median(run.tokens_per_second for run in runs)


def median_first_token_seconds(runs: list[RunTiming]) -> float:
    """The median of seconds to the first token."""
    return statistics.median(run.first_token_seconds for run in runs)


def measure_memory_bandwidth() -> float:
    """Memory bandwidth of all threads in bytes a second: the best of several ways to read 1 GiB.

    Each thread reads its own part with vector instructions, so that memory is the limit.
    """
    threads = torch.get_num_threads()
    block = np.ones(2**28, dtype=np.float32)
    tensor, parts = torch.from_numpy(block), np.array_split(block, threads)
    with ThreadPoolExecutor(threads) as pool:
        readers: list[Callable[[], Any]] = [
            lambda: list(pool.map(lambda part: np.dot(part, part), parts)),
            lambda: list(pool.map(lambda part: part.max(), parts)),
            lambda: torch.dot(tensor, tensor),
            tensor.sum,
        ]
        return block.nbytes / min(time_call(way) for way in readers for _ in range(6))


def describe_machine() -> dict[str, Any]:
    """Processor, threads, GPU, system, package versions and commit."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "processor": _processor_name(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "versions": {name: found for name in PACKAGES if (found := _package_version(name))},
        "commit": commit.stdout.strip() or None,
    }


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _package_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@dataclass
class BenchmarkReport:
    """The results of one script.

    Attributes:
        title: name of the script.
        is_quick: whether the run only tests the script; targets are then left out.
        figures: one row each: case, system, value, unit, note.
        targets: name, value, bound, and whether it was reached.
        bandwidth_share_by_system: share of the memory bandwidth of each system in the last comparison.
    """

    title: str
    is_quick: bool = False
    figures: list[dict[str, Any]] = field(default_factory=list)
    targets: list[dict[str, Any]] = field(default_factory=list)
    bandwidth_share_by_system: dict[str, float] = field(default_factory=dict)

    def add_figure(self, case: str, system: str, value: float, unit: str, note: str = "") -> None:
        """Adds a row: the median `value` of a system in a case."""
        self.figures.append({"case": case, "who": system, "value": value, "unit": unit, "note": note})

    def add_target(
        self, name: str, value: float, *, min_value: float | None = None, max_value: float | None = None
    ) -> None:
        """Adds a ratio with the bound that it should keep; one of the two bounds is given."""
        if self.is_quick:
            return
        is_reached = value >= min_value if min_value is not None else value <= (max_value or 0.0)
        self.targets.append(
            {"what": name, "value": value, "at_least": min_value, "at_most": max_value, "reached": is_reached}
        )

    def print_report(self) -> None:
        """Prints machine, figures and targets, then everything as one line of JSON."""
        machine_info = describe_machine()
        print(
            f"{self.title}: {machine_info['processor']}, {machine_info['threads']} threads, "
            f"{machine_info['gpu'] or 'no GPU'}"
        )
        print(", ".join(f"{name} {found}" for name, found in machine_info["versions"].items()), end=" ")
        print(f"on commit {machine_info['commit']}")
        if self.is_quick:
            print("A test of the script: these figures mean nothing.")
        case = ""
        for row in self.figures:
            if row["case"] != case:
                case = row["case"]
                print(f"\n{case}")
            print(f"  {row['who']:<34} {row['value']:>10.4g} {row['unit']:<10} {row['note']}".rstrip())
        if self.targets:
            print("\nTargets")
        for row in self.targets:
            sign, bound = ("<=", row["at_most"]) if row["at_least"] is None else (">=", row["at_least"])
            verdict_text = "reached" if row["reached"] else "NOT reached"
            print(f"  {row['what']:<66} {row['value']:>7.3g}  {sign} {bound:<5g} {verdict_text}")
        print(
            json.dumps(
                {"title": self.title, **machine_info, "figures": self.figures, "targets": self.targets}
            )
        )
