"""Free memory by the machine, control groups of both versions and `ulimit`; and memory sizes as text."""

import subprocess
import sys

import pytest

from idefics.errors import BadSetting
from idefics.host_memory import free_host_memory, parse_bytes_or_share, read_memory_limits

GB = 10**9
CGROUP_V2_MOUNT = "30 23 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw"
CGROUP_V1_MOUNT = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory"


@pytest.fixture
def write_machine_files(tmp_path):
    """Writes the `proc` files of a machine with 16 GB, 8 GB of them free."""

    def write(cgroup="0::/\n", mounts=CGROUP_V2_MOUNT, **files):
        files = {
            "proc/meminfo": f"MemTotal: {16 * GB // 1024} kB\nMemAvailable: {8 * GB // 1024} kB\n",
            **files,
        }
        files |= {"proc/self/cgroup": cgroup, "proc/self/mountinfo": mounts + "\n", "proc/self/status": ""}
        for name, content in files.items():
            (path := tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            path.write_text(str(content))
        return tmp_path

    return write


def cgroup_files(path, limit, used, stat="", *, high="max"):
    """Writes the files of a control group of version 2."""
    return {
        f"{path}/memory.max": limit,
        f"{path}/memory.high": high,
        f"{path}/memory.current": used,
        f"{path}/memory.stat": stat,
    }


def test_without_limits_it_is_the_machine(write_machine_files):
    assert free_host_memory(write_machine_files()) == 8 * GB
    assert [bound.source for bound in read_memory_limits(write_machine_files())] == ["machine"]


def test_a_group_of_version_2(write_machine_files):
    files = cgroup_files("sys/fs/cgroup/user/app", 3 * GB, GB, f"anon {GB}\ninactive_file {GB // 4}\n")
    root = write_machine_files("0::/user/app\n", **files)
    tightest = read_memory_limits(root)[0]
    assert tightest.source == "/sys/fs/cgroup/user/app/memory.max"
    assert tightest.total == 3 * GB
    assert tightest.free == 2 * GB + GB // 4  # files that were read once are dropped first


def test_a_soft_limit_counts_too(write_machine_files):
    files = cgroup_files("sys/fs/cgroup/app", 4 * GB, GB, high=2 * GB)
    assert free_host_memory(write_machine_files("0::/app\n", **files)) == GB


def test_the_groups_around_it_count(write_machine_files):
    files = cgroup_files("sys/fs/cgroup/a/b", "max", GB // 2) | cgroup_files("sys/fs/cgroup/a", 2 * GB, GB)
    assert free_host_memory(write_machine_files("0::/a/b\n", **files)) == GB


def test_a_container_sees_its_group_as_the_root(write_machine_files):
    """With a cgroup namespace the path is /; without one it is the host's, below the mounted group."""
    files = cgroup_files("sys/fs/cgroup", 2 * GB, GB)
    assert free_host_memory(write_machine_files("0::/\n", **files)) == GB
    assert free_host_memory(write_machine_files("0::/docker/123\n", **files)) == GB
    mounted = CGROUP_V2_MOUNT.replace("0:28 / ", "0:28 /docker/123 ")
    assert free_host_memory(write_machine_files("0::/docker/123\n", mounted, **files)) == GB
    assert free_host_memory(write_machine_files("0::/../outside\n", **files)) == GB


@pytest.mark.parametrize("limit", [2 * GB, 9223372036854771712])
def test_a_group_of_version_1(write_machine_files, limit):
    place = "sys/fs/cgroup/memory/job"
    files = {
        f"{place}/memory.limit_in_bytes": limit,
        f"{place}/memory.usage_in_bytes": GB,
        f"{place}/memory.stat": f"inactive_file 5\ntotal_inactive_file {GB // 2}\n",
    }
    root = write_machine_files("9:name=systemd:/\n4:cpu,memory:/job\n0::/\n", CGROUP_V1_MOUNT, **files)
    assert free_host_memory(root) == (GB + GB // 2 if limit == 2 * GB else 8 * GB)


def test_free_memory_is_never_negative(write_machine_files):
    assert (
        free_host_memory(write_machine_files("0::/app\n", **cgroup_files("sys/fs/cgroup/app", GB, 2 * GB)))
        == 0
    )


def test_odd_files_are_no_error(write_machine_files):
    files = cgroup_files("sys/fs/cgroup/app", "much", "some", "odd")
    assert free_host_memory(write_machine_files("0::/app\n", **files)) == 8 * GB
    assert free_host_memory(write_machine_files("", "")) == 8 * GB


@pytest.mark.skipif(sys.platform == "win32", reason="this system has no such limits")
@pytest.mark.parametrize(("name", "source"), [("RLIMIT_AS", "ulimit -v"), ("RLIMIT_DATA", "ulimit -d")])
def test_the_limits_of_the_process(name, source):
    code = f"""
import resource
resource.setrlimit(resource.{name}, (900_000_000, 900_000_000))
from idefics.host_memory import read_memory_limits
first = read_memory_limits()[0]
assert (first.source, first.total) == ({source!r}, 900_000_000), first
assert 0 < first.free < 900_000_000
held = bytes(100_000_000)
assert 90_000_000 < first.free - read_memory_limits()[0].free < 110_000_000
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (5, 5),
        (10**9, GB),
        (1e9, GB),
        (0.3, 0.3),
        ("1GB", GB),
        ("1gb", GB),
        (" 1.5 GB ", 1_500_000_000),
        ("512MiB", 512 << 20),
        ("2TiB", 2 << 40),
        ("3kb", 3000),
        ("800000000", 800_000_000),
        ("0.25", 0.25),
    ],
)
def test_memory_sizes(value, expected):
    found = parse_bytes_or_share("kv_cache", value)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    "value", [0, -1, True, 0.0, 1.5, "", "GB", "1XB", "-1GB", "0", "1e9", "30%", float("nan"), 1 << 60]
)
def test_invalid_memory_sizes_are_refused(value):
    with pytest.raises(BadSetting, match=r"kv_cache is .*; give bytes"):
        parse_bytes_or_share("kv_cache", value)
