"""How much memory this process may still take: what the machine has, and what its limits leave of it; sizes in words.

Limits are those of control groups (containers, systemd), of version 1 and 2, each group's and those of the groups
around it, and the process's own (`ulimit -v`, `ulimit -d`). Knows no torch.

Sources: proc(5), cgroups(7), the kernel's cgroup-v1/memory and cgroup-v2 documents, getrlimit(2).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from idefics.errors import BadSetting

UNLIMITED = 1 << 60  # bytes; version 1 writes "no limit" as the largest number of whole pages

# What a model needs beside its weights, on a CPU and unless told otherwise.
DEFAULT_KV_CACHE_TOKENS = (
    16_384  # whose keys and values are kept, or the longest prompt's where that is shorter,
)
MIN_KV_CACHE_BYTES = 512 << 20  # and so many bytes of them in any case
DEFAULT_BATCH_ROWS = (
    8  # prompts that are answered side by side; twice what they can fill is enough for any cache
)
DEFAULT_ENCODER_CACHE_BYTES = 256 << 20  # of pictures that have been encoded
PROCESS_OVERHEAD_BYTES = (
    900_000_000  # Python, torch, and what a step computes with; measured with SmolVLM-256M
)

BYTES_BY_UNIT = {"": 1, "B": 1} | {
    letter + end: base**power
    for power, letter in enumerate("KMGT", 1)
    for end, base in (("B", 1000), ("iB", 1024))
}
_SIZE_PATTERN = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")


class MemoryLimit(NamedTuple):
    """Something that bounds this process's memory.

    Attributes:
        source: "machine", a file of a control group, or the limit's name in `ulimit`.
        total: bytes that there are, or that are allowed.
        free: bytes that can still be taken.
    """

    source: str
    total: int
    free: int


def memory_limits(root: Path = Path("/")) -> list[MemoryLimit]:
    """Everything that bounds this process's memory, the tightest first; at least the machine itself.

    Args:
        root: where `proc` and `sys` lie.
    """
    limits = [_read_machine_memory(root), *_read_cgroup_limits(root), *_read_ulimits(root)]
    return sorted(limits, key=lambda bound: bound.free)


def free_host_memory(root: Path = Path("/")) -> int:
    """Bytes that this process can still take, 0 at least: the least that `memory_limits` leave."""
    return memory_limits(root)[0].free


def default_kv_cache_bytes(token_bytes: int, max_positions: int) -> int:
    """Bytes that keys and values take at most, unless told otherwise.

    Args:
        token_bytes: of one token's keys and values, in all layers.
        max_positions: tokens of the longest prompt that the model reads.
    """
    return max(token_bytes * min(max_positions, DEFAULT_KV_CACHE_TOKENS), MIN_KV_CACHE_BYTES)


def estimate_peak_bytes(weight_bytes: int, token_bytes: int, max_positions: int) -> int:
    """Bytes that a process with a model on a CPU takes at its peak, prompts being asked one after another; about."""
    kv_cache_bytes = min(
        default_kv_cache_bytes(token_bytes, max_positions),
        2 * DEFAULT_BATCH_ROWS * max_positions * token_bytes,
    )
    return weight_bytes + kv_cache_bytes + DEFAULT_ENCODER_CACHE_BYTES + PROCESS_OVERHEAD_BYTES


def parse_memory_size(name: str, value: float | str | None) -> int | float | None:
    """What a caller says of memory: bytes as a whole number, or a share below 1 of what is free.

    Args:
        name: of the setting, for errors.
        value: bytes, a share such as 0.3, or either as text: "1GB", "512 MiB", "800000000", "0.3". None is none.

    Raises:
        BadSetting: it is neither.
    """
    size: int | float | None = value if not isinstance(value, str) else None
    if isinstance(size, float) and size >= 1 and size.is_integer():
        size = int(size)
    if isinstance(value, str) and (match := _SIZE_PATTERN.fullmatch(value.strip())):
        number = float(match[1])
        unit = next(
            (unit_bytes for unit, unit_bytes in BYTES_BY_UNIT.items() if unit.lower() == match[2].lower()), 0
        )
        size = round(number * unit) if number * unit >= 1 else number if not match[2] else None
    is_share = isinstance(size, float) and 0 < size < 1
    is_bytes = isinstance(size, int) and not isinstance(size, bool) and 1 <= size < 1 << 50
    if value is not None and not is_share and not is_bytes:
        raise BadSetting(
            f'{name} is {value!r}; give bytes ("1GB", "512MiB", 1000000000) or a share of the free memory, such as 0.3'
        )
    return size


def _read_machine_memory(root: Path) -> MemoryLimit:
    meminfo = root / "proc" / "meminfo"
    if meminfo.exists():  # Linux says what programs can have without others being swapped out
        lines = (line.split() for line in meminfo.read_text().splitlines())
        kibibytes = {line[0].rstrip(":"): int(line[1]) for line in lines if len(line) > 1}
        return MemoryLimit("machine", kibibytes["MemTotal"] * 1024, kibibytes["MemAvailable"] * 1024)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return MemoryLimit("machine", total, total)  # how much of it is free is not said in one way


def _read_cgroup_limits(root: Path) -> Iterator[MemoryLimit]:
    """The limits of the control groups that this process is in, from its own to the outermost that is seen."""
    with suppress(OSError, ValueError):
        mounts = [line.split() for line in _read_text(root / "proc/self/mountinfo").splitlines()]
        paths: dict[str, str] = {}  # version 2's under "", version 1's by its controllers
        for line in _read_text(root / "proc/self/cgroup").splitlines():
            _, controllers, path = line.split(":", 2)
            paths |= dict.fromkeys(controllers.split(","), path)
        for mount in mounts:
            kind, options = mount[mount.index("-") + 1], mount[-1].split(",")
            if kind == "cgroup2" and "" in paths:
                yield from _cgroup_limits(
                    root, mount, paths[""], ("memory.max", "memory.high"), "memory.current"
                )
            elif kind == "cgroup" and "memory" in options and "memory" in paths:
                limits = ("memory.limit_in_bytes",)
                yield from _cgroup_limits(root, mount, paths["memory"], limits, "memory.usage_in_bytes")


def _cgroup_limits(
    root: Path, mount: list[str], path: str, limits: tuple[str, ...], usage: str
) -> Iterator[MemoryLimit]:
    mount_root, mount_point = PurePosixPath(mount[3]), root / mount[4].lstrip("/")
    # In a container what is mounted may be the group itself, and the path that of the host.
    path_below_root = (
        PurePosixPath(path).relative_to(mount_root)
        if PurePosixPath(path).is_relative_to(mount_root)
        else None
    )
    group = (
        mount_point / path_below_root
        if path_below_root is not None and ".." not in path_below_root.parts
        else mount_point
    )
    if not group.is_dir():
        group = mount_point
    while True:
        for name in limits:
            with suppress(OSError, ValueError):  # "max", or the outermost group, which has no such file
                total = int(_read_text(group / name))
                if total < UNLIMITED:
                    free = total - int(_read_text(group / usage)) + _reclaimable_bytes(group)
                    yield MemoryLimit(f"/{(group / name).relative_to(root)}", total, max(0, free))
        if group == mount_point:
            return
        group = group.parent


def _reclaimable_bytes(group: Path) -> int:
    """Bytes of files that the kernel drops before it refuses memory: what was read once."""
    counts = dict(line.split() for line in _read_text(group / "memory.stat").splitlines())
    return int(counts.get("total_inactive_file", counts.get("inactive_file", 0)))


def _read_ulimits(root: Path) -> Iterator[MemoryLimit]:
    """Of `ulimit -v` (addresses, mapped files included) and `ulimit -d` (what is not mapped from a file)."""
    if sys.platform == "win32":
        return
    import resource

    for name, limit, used in (
        ("ulimit -v", resource.RLIMIT_AS, "VmSize:"),
        ("ulimit -d", resource.RLIMIT_DATA, "VmData:"),
    ):
        total = resource.getrlimit(limit)[0]
        if total == resource.RLIM_INFINITY or total >= UNLIMITED:
            continue
        with suppress(OSError, StopIteration):
            lines = (line.split() for line in _read_text(root / "proc/self/status").splitlines())
            used_bytes = next(int(line[1]) * 1024 for line in lines if line[0] == used)
            yield MemoryLimit(name, total, max(0, total - used_bytes))


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")
