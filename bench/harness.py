"""How a benchmark measures and what it prints: rounds in alternating order, medians, ratios, the machine beside them.

A script makes a `Report`, gives it figures and the targets they stand for, and closes it: a table for people, then
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
class Run:
    """One answer, or several side by side.

    Attributes:
        first: seconds to the first token.
        rest: seconds from there to the last one.
        tokens: how many came after the first, in all rows together.
    """

    first: float
    rest: float
    tokens: int

    @property
    def speed(self) -> float:
        """Tokens a second after the first; 0 where there was none."""
        return self.tokens / self.rest if self.tokens else 0.0


def rounds(
    runs: Mapping[str, Callable[[int], T]], count: int, before: Callable[[], object] = lambda: None
) -> dict[str, list[T]]:
    """Calls each of `runs` once to warm up, then `count` times; each round turns the order of the last one around.

    A call gets the number of its round, 0 to warm up: what must not be known from an earlier round depends on it.
    `before` is called before each round.
    """
    results: dict[str, list[T]] = {name: [] for name in runs}
    for call in runs.values():
        call(0)
    for number in range(1, count + 1):
        before()
        for name in list(runs)[:: 1 if number % 2 else -1]:
            results[name].append(runs[name](number))
    return results


def seconds(call: Callable[[], Any]) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def speed(runs: list[Run]) -> float:
    """The median of tokens a second."""
    return statistics.median(run.speed for run in runs)


def first(runs: list[Run]) -> float:
    """The median of seconds to the first token."""
    return statistics.median(run.first for run in runs)


def bandwidth() -> float:
    """Bytes a second that all threads together read from memory: the best of a few ways to read 1 GiB.

    Each thread has a part of its own and one instruction for many bytes, so that memory is the limit.
    """
    threads = torch.get_num_threads()
    block = np.ones(2**28, dtype=np.float32)
    whole, parts = torch.from_numpy(block), np.array_split(block, threads)
    with ThreadPoolExecutor(threads) as pool:
        ways: list[Callable[[], Any]] = [
            lambda: list(pool.map(lambda part: np.dot(part, part), parts)),
            lambda: list(pool.map(lambda part: part.max(), parts)),
            lambda: torch.dot(whole, whole),
            whole.sum,
        ]
        return block.nbytes / min(seconds(way) for way in ways for _ in range(6))


def machine() -> dict[str, Any]:
    """Where, with what and on which commit a figure was measured."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
        "commit": commit.stdout.strip() or None,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@dataclass
class Report:
    """What one script measured.

    Attributes:
        title: of the script.
        quick: whether it was only to see that the script works: no target is then kept or missed.
        figures: one row each: what was measured, who did it, how much of what.
        targets: what was to be reached, and what was.
        shares: of the last race, how much of the machine's bandwidth each used.
    """

    title: str
    quick: bool = False
    figures: list[dict[str, Any]] = field(default_factory=list)
    targets: list[dict[str, Any]] = field(default_factory=list)
    shares: dict[str, float] = field(default_factory=dict)

    def figure(self, case: str, who: str, value: float, unit: str, note: str = "") -> None:
        """A median."""
        self.figures.append({"case": case, "who": who, "value": value, "unit": unit, "note": note})

    def target(
        self, what: str, value: float, *, at_least: float | None = None, at_most: float | None = None
    ) -> None:
        """A ratio and the bound it was to keep; one of the two bounds is given."""
        if self.quick:
            return
        reached = value >= at_least if at_least is not None else value <= (at_most or 0.0)
        self.targets.append(
            {"what": what, "value": value, "at_least": at_least, "at_most": at_most, "reached": reached}
        )

    def close(self) -> None:
        """Prints all of it."""
        here = machine()
        print(f"{self.title}: {here['processor']}, {here['threads']} threads, {here['gpu'] or 'no GPU'}")
        print(", ".join(f"{name} {found}" for name, found in here["versions"].items()), end=" ")
        print(f"on commit {here['commit']}")
        if self.quick:
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
            word = "reached" if row["reached"] else "NOT reached"
            print(f"  {row['what']:<66} {row['value']:>7.3g}  {sign} {bound:<5g} {word}")
        print(json.dumps({"title": self.title, **here, "figures": self.figures, "targets": self.targets}))
