"""How a benchmark measures and what it prints: rounds in alternating order, medians, ratios, the machine beside them.

A script makes a `BenchmarkReport`, gives it figures and the targets they stand for, and closes it: a table for people, then
one line of JSON. Only ratios within one run are to be trusted.
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

T = TypeVar("T")
ROOT = Path(__file__).parent.parent
PACKAGES = ("torch", "transformers", "llama-cpp-python", "numpy", "pillow")


@dataclass(frozen=True)
class RunTiming:
    """One answer, or several side by side.

    Attributes:
        first_token_seconds: seconds to the first token.
        decode_seconds: seconds from there to the last one.
        num_decode_tokens: how many came after the first, in all rows together.
    """

    first_token_seconds: float
    decode_seconds: float
    num_decode_tokens: int

    @property
    def tokens_per_second(self) -> float:
        """Tokens a second after the first; 0 where there was none."""
        return self.num_decode_tokens / self.decode_seconds if self.num_decode_tokens else 0.0


def run_rounds(
    runs: Mapping[str, Callable[[int], T]], num_rounds: int, before_round: Callable[[], object] = lambda: None
) -> dict[str, list[T]]:
    """Calls each of `runs` once to warm up, then `num_rounds` times; each round turns the order of the last one around.

    A call gets the number of its round, 0 to warm up: what must not be known from an earlier round depends on it.
    `before_round` is called before each round.
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
    """How long a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def median_tokens_per_second(runs: list[RunTiming]) -> float:
    """The median of tokens a second."""
    return statistics.median(run.tokens_per_second for run in runs)


def median_first_token_seconds(runs: list[RunTiming]) -> float:
    """The median of seconds to the first token."""
    return statistics.median(run.first_token_seconds for run in runs)


def measure_memory_bandwidth() -> float:
    """Bytes a second that all threads together read from memory: the best of a few ways to read 1 GiB.

    Each thread has a part of its own and one instruction for many bytes, so that memory is the limit.
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
    """Where, with what and on which commit a figure was measured."""
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
    """What one script measured.

    Attributes:
        title: of the script.
        is_quick: whether it was only to see that the script works: no target is then kept or missed.
        figures: one row each: what was measured, who did it, how much of what.
        targets: what was to be reached, and what was.
        bandwidth_share_by_system: of the last race, how much of the machine's bandwidth each used.
    """

    title: str
    is_quick: bool = False
    figures: list[dict[str, Any]] = field(default_factory=list)
    targets: list[dict[str, Any]] = field(default_factory=list)
    bandwidth_share_by_system: dict[str, float] = field(default_factory=dict)

    def add_figure(self, case: str, system: str, value: float, unit: str, note: str = "") -> None:
        """A median."""
        self.figures.append({"case": case, "who": system, "value": value, "unit": unit, "note": note})

    def add_target(
        self, name: str, value: float, *, min_value: float | None = None, max_value: float | None = None
    ) -> None:
        """A ratio and the bound it was to keep; one of the two bounds is given."""
        if self.is_quick:
            return
        is_reached = value >= min_value if min_value is not None else value <= (max_value or 0.0)
        self.targets.append(
            {"what": name, "value": value, "at_least": min_value, "at_most": max_value, "reached": is_reached}
        )

    def print_report(self) -> None:
        """Prints all of it."""
        machine_info = describe_machine()
        print(
            f"{self.title}: {machine_info['processor']}, {machine_info['threads']} threads, {machine_info['gpu'] or 'no GPU'}"
        )
        print(", ".join(f"{name} {found}" for name, found in machine_info["versions"].items()), end=" ")
        print(f"on commit {machine_info['commit']}")
        if self.is_quick:
            print("A quick look: these figures mean nothing.")
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
