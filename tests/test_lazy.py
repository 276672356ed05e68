"""`cached_property`: computed once, without a lock that a forked process would wait for."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import idefics
from idefics.lazy import LAZY_MODULES, cached_property

FORK_SCRIPT = """
import os, threading, time
from idefics.lazy import cached_property

entered, forked = threading.Event(), threading.Event()

class Slow:
    @cached_property
    def value(self):
        if threading.current_thread() is not threading.main_thread():
            entered.set()
            forked.wait()
        return 7

class Other(Slow):
    pass

thread = threading.Thread(target=lambda: Slow().value)
thread.start()
entered.wait()
pid = os.fork()
if pid == 0:
    os._exit(Slow().value + Other().value)
until = time.monotonic() + 20
done = 0
while not done and time.monotonic() < until:
    done, status = os.waitpid(pid, os.WNOHANG)
    time.sleep(0.01)
forked.set()
if not done:
    os.kill(pid, 9)
print("child", os.waitstatus_to_exitcode(status) if done else "waits for ever")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
def test_a_process_that_is_forked_while_a_thread_computes_does_not_wait():
    done = subprocess.run([sys.executable, "-c", FORK_SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout == "child 14\n"


IMPORT_SCRIPT = """
import os, sys, threading, time
import idefics.lazy

thread = threading.Thread(target=__import__, args=(sys.argv[1],))
thread.start()
while sys.argv[1] not in sys.modules:
    time.sleep(0.001)
pid = os.fork()
if pid == 0:
    os._exit(__import__(sys.argv[1]).VALUE)
until = time.monotonic() + 20
done = 0
while not done and time.monotonic() < until:
    done, status = os.waitpid(pid, os.WNOHANG)
    time.sleep(0.01)
if not done:
    os.kill(pid, 9)
print("child", os.waitstatus_to_exitcode(status) if done else "waits for ever")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
@pytest.mark.parametrize("name", LAZY_MODULES)
def test_a_process_that_is_forked_while_a_thread_imports_does_not_wait(name, tmp_path):
    (tmp_path / f"{name}.py").write_text("import time\ntime.sleep(0.5)\nVALUE = 7\n")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_SCRIPT, name],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.stdout == "child 7\n"


def test_the_package_has_no_other_cached_property():
    for file in Path(idefics.__file__).parent.rglob("*.py"):
        imports = [line for line in file.read_text().splitlines() if line.startswith("from functools")]
        assert not any("cached_property" in line for line in imports), file


def test_threads_that_compute_at_once_get_one_value():
    class Late:
        """A value that all threads start to compute before the first one finishes."""

        barrier = threading.Barrier(4)

        @cached_property
        def value(self):
            """What is read."""
            self.barrier.wait(10)
            return object()

    late, got = Late(), []
    threads = [threading.Thread(target=lambda: got.append(late.value)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(got) == 4
    assert len({id(value) for value in [*got, late.value]}) == 1
    assert Late.value.__doc__ == "What is read."
