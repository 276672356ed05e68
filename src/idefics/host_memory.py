"""How much host memory this process can still allocate, how much a model needs, and settings such as "1GB".

Limits are the machine's memory, those of control groups version 1 and 2 (containers, systemd) with all groups around
them, and the process's own (`ulimit -v`, `ulimit -d`). Imports no torch.

Sources: proc(5), cgroups(7), the kernel's cgroup-v1/memory and cgroup-v2 documents, getrlimit(2).
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from idefics.errors import BadSetting

UNLIMITED = 1 << 60  # bytes; version 1 writes "no limit" as the largest number of whole pages

# What a model needs in addition to its weights, on a CPU and by default.
DEFAULT_KV_CACHE_TOKENS = 16_384  # or the longest prompt, where that is shorter
MIN_KV_CACHE_BYTES = 512 << 20
DEFAULT_BATCH_ROWS = 8  # sequences that are decoded in one step
DEFAULT_ENCODER_CACHE_BYTES = 256 << 20  # features of encoded pictures
PROCESS_OVERHEAD_BYTES = 900_000_000  # Python, torch and activations; measured with SmolVLM-256M

BYTES_BY_UNIT = {"": 1, "b": 1} | {
    letter + end: base**power
    for power, letter in enumerate("kmgt", 1)
    for end, base in (("b", 1000), ("ib", 1024))
}
_SIZE_PATTERN = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")


class MemoryLimit(NamedTuple):
    """Something that bounds this process's memory.

    Attributes:
        source: "machine", a file of a control group, or the limit's name in `ulimit`.
        total: bytes that exist or are allowed.
        free: bytes that can still be allocated.
    """

    source: str
    total: int
    free: int


def read_memory_limits(root: Path = Path("/")) -> list[MemoryLimit]:
    """Reads everything that bounds this process's memory, the tightest first; at least the machine itself.

    Args:
        root: the folder that has `proc` and `sys`.
    """
    limits = [_read_machine_memory(root), *_read_cgroup_limits(root), *_read_ulimits(root)]
    return sorted(limits, key=lambda bound: bound.free)


def free_host_memory(root: Path = Path("/")) -> int:
    """Bytes that this process can still allocate: the smallest `free` of `read_memory_limits`."""
    return read_memory_limits(root)[0].free


def default_kv_cache_bytes(kv_bytes_per_token: int, max_positions: int) -> int:
    """The default size of the KV cache in bytes.

    Args:
        kv_bytes_per_token: bytes of one token's keys and values in all layers.
        max_positions: tokens of the longest prompt that the model reads.
    """
    return max(kv_bytes_per_token * min(max_positions, DEFAULT_KV_CACHE_TOKENS), MIN_KV_CACHE_BYTES)


def estimate_peak_bytes(weight_bytes: int, kv_bytes_per_token: int, max_positions: int) -> int:
    """About how many bytes a process with a model on a CPU takes at its peak, with one request at a time.

    The KV cache counts with at most twice the bytes of `DEFAULT_BATCH_ROWS` sequences of `max_positions` tokens.

    Args:
        weight_bytes: bytes of the weights.
        kv_bytes_per_token, max_positions: as in `default_kv_cache_bytes`.
    """
    kv_cache_bytes = min(
        default_kv_cache_bytes(kv_bytes_per_token, max_positions),
        2 * DEFAULT_BATCH_ROWS * max_positions * kv_bytes_per_token,
    )
    return weight_bytes + kv_cache_bytes + DEFAULT_ENCODER_CACHE_BYTES + PROCESS_OVERHEAD_BYTES


def parse_bytes_or_share(name: str, value: float | str | None) -> int | float | None:
    """A memory setting as bytes (int), as a share of the free memory (float below 1), or None.

    Args:
        name: of the setting, for messages.
        value: bytes, a share such as 0.3, or either as text: "1GB", "512 MiB", "800000000", "0.3"; or None.

    Raises:
        BadSetting: it is none of these.
    """
    size: int | float | None = None if isinstance(value, str) else value
    if isinstance(value, str) and (match := _SIZE_PATTERN.fullmatch(value.strip())):
        size = float(match[1]) * BYTES_BY_UNIT.get(match[2].lower(), 0)
        if match[2] or size >= 1:
            size = round(size)
    if isinstance(size, float) and size >= 1 and size.is_integer():
        size = int(size)
    is_share = isinstance(size, float) and 0 < size < 1
    is_bytes = isinstance(size, int) and not isinstance(size, bool) and 1 <= size < 1 << 50
    if value is not None and not is_share and not is_bytes:
        raise BadSetting(
            f'{name} is {value!r}; give bytes ("1GB", "512MiB", 1000000000) or a share of the free memory, such as 0.3'
        )
    return size


def _read_machine_memory(root: Path) -> MemoryLimit:
    """The machine's memory; where the system does not report the free part, all of it counts as free."""
    meminfo = root / "proc" / "meminfo"
    if meminfo.exists():  # Linux: MemAvailable is what programs can have without swapping
        kibibytes = _read_numbers(meminfo)
        return MemoryLimit("machine", kibibytes["MemTotal"] * 1024, kibibytes["MemAvailable"] * 1024)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return MemoryLimit("machine", total, total)  # other systems have no common way to read the free part


def _read_cgroup_limits(root: Path) -> Iterator[MemoryLimit]:
    """The limits of the control groups that this process is in, from its own to the outermost visible one."""
    with suppress(OSError, ValueError):
        mounts = [line.split() for line in _read_text(root / "proc/self/mountinfo").splitlines()]
        paths: dict[str, str] = {}  # by controller, as in version 1; version 2's path under ""
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
    """The limits of the group `path` and of the groups around it, below one mount.

    Args:
        mount: the fields of the mount's line in /proc/self/mountinfo.
        limits, usage: names of the files with the limits and the used bytes.
    """
    mount_root, mount_point = PurePosixPath(mount[3]), root / mount[4].lstrip("/")
    group = mount_point
    # In a container the group itself may be mounted, while the path is that of the host.
    if PurePosixPath(path).is_relative_to(mount_root):
        path_below_root = PurePosixPath(path).relative_to(mount_root)
        if ".." not in path_below_root.parts and (mount_point / path_below_root).is_dir():
            group = mount_point / path_below_root
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
    """Bytes of cached files that were read only once, which the kernel drops before it refuses memory."""
    counts = _read_numbers(group / "memory.stat")
    return counts.get("total_inactive_file", counts.get("inactive_file", 0))


def _read_ulimits(root: Path) -> Iterator[MemoryLimit]:
    """Yields the limits that are set of `ulimit -v` and `ulimit -d`.

    The first is of the address space, mapped files included; the second of private memory without mapped files.
    """
    if sys.platform == "win32":
        return
    import resource

    for name, limit, used in (
        ("ulimit -v", resource.RLIMIT_AS, "VmSize"),
        ("ulimit -d", resource.RLIMIT_DATA, "VmData"),
    ):
        total = resource.getrlimit(limit)[0]
        if total == resource.RLIM_INFINITY or total >= UNLIMITED:
            continue
        with suppress(OSError, KeyError):
            used_bytes = _read_numbers(root / "proc/self/status")[used] * 1024
            yield MemoryLimit(name, total, max(0, total - used_bytes))


def _read_numbers(path: Path) -> dict[str, int]:
    """Reads lines of a name and a number, with or without a colon between them: name -> number."""
    lines = (line.split() for line in _read_text(path).splitlines())
    return {line[0].rstrip(":"): int(line[1]) for line in lines if len(line) > 1 and line[1].isdecimal()}


def _read_text(path: Path) -> str:
    """The text of a file; bytes that are not UTF-8 are replaced."""
    return path.read_text(encoding="utf-8", errors="replace")


def release_free_heap() -> None:
    """Returns freed memory between live allocations to the operating system; does nothing without glibc.

    glibc would keep the gaps, which are too small for the next large tensor: quantising 16 matrices of 8 MiB to a
    quarter of that peaked at 155 MiB without this call and at 55 MiB with it.
    """
    if sys.platform == "linux":
        with suppress(AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)
