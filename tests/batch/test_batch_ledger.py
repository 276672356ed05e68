"""The ledger's file: its lock, its commits, and what cannot be one."""

import os
import resource
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from idefics.batch import file_systems
from idefics.batch.ledger import Ledger, LedgerRow
from idefics.batch.ledger_file import COMMIT_SECONDS, MAX_UNCOMMITTED_WRITES
from idefics.errors import OutputError

SOURCE = Path(__file__).parents[2] / "src"


def make_row(number, run=1):
    return LedgerRow(
        run=run, name=f"{number}.png", key=b"%016d" % number, id="", path=f"{number}.png", prompt=""
    )


def count_committed(path):
    """The rows that another process would find after a crash."""
    with sqlite3.connect(path) as connection:
        return connection.execute("SELECT count(*) FROM rows").fetchone()[0]


def test_rows_are_committed_by_number_and_by_time(tmp_path):
    path = tmp_path / "ledger"
    with Ledger(path) as ledger:
        ledger.run_number({})
        ledger.commit()
        for number in range(MAX_UNCOMMITTED_WRITES):
            ledger.add_row(make_row(number), {"text": "a"})
        assert count_committed(path) == MAX_UNCOMMITTED_WRITES
        ledger.add_row(make_row(99), {"text": "a"})
        deadline = time.monotonic() + 50 * COMMIT_SECONDS
        while count_committed(path) == MAX_UNCOMMITTED_WRITES and time.monotonic() < deadline:
            time.sleep(COMMIT_SECONDS / 4)
        assert count_committed(path) == MAX_UNCOMMITTED_WRITES + 1


def test_commits_reach_the_disk(tmp_path):
    with Ledger(tmp_path / "ledger") as ledger:
        assert ledger.read_one("PRAGMA synchronous")[0] == 2  # FULL
        assert ledger.read_one("PRAGMA journal_mode")[0] == "wal"


def test_one_run_at_a_time(tmp_path):
    path = tmp_path / "ledger"
    with Ledger(path):
        program = (
            f"import sys; sys.path.insert(0, {str(SOURCE)!r})\n"
            "from pathlib import Path; from idefics.batch.ledger import Ledger\n"
            "try: Ledger(Path(sys.argv[1]))\n"
            "except Exception as error: print(type(error).__name__, error)\n"
            "with Ledger(Path(sys.argv[1]), read_only=True) as ledger: print(ledger.runs())"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
        )
        assert done.stdout.startswith(f"OutputError {path} is in use by another run: wait for it")
        assert done.stdout.endswith("{}\n")
        with pytest.raises(OutputError, match="in use by another run"):
            Ledger(path)
    with Ledger(path) as again:  # the failed attempts have left its locks alone
        again.run_number({})


def test_another_database_is_refused(tmp_path):
    (tmp_path / "text").write_text("hello " * 1000)
    with pytest.raises(OutputError, match="file is not a database"):
        Ledger(tmp_path / "text")
    with sqlite3.connect(tmp_path / "db") as connection:
        connection.execute("CREATE TABLE a (b)")
    with pytest.raises(OutputError, match="database of another kind or version"):
        Ledger(tmp_path / "db")
    with pytest.raises(OutputError, match="no such ledger"):
        Ledger(tmp_path / "missing", read_only=True)
    with pytest.raises(OutputError, match="unable to open"):
        Ledger(tmp_path / "no folder" / "ledger")


def test_network_file_systems_are_refused(tmp_path, monkeypatch):
    mounts = tmp_path / "mounts"
    shared = tmp_path / "my share"
    shared.mkdir()
    name = str(shared).replace(" ", "\\040")
    mounts.write_text(f"/dev/a / ext4 rw 0 0\nserver:/x {name} nfs4 rw 0 0\ntmpfs {name}/tmp tmpfs rw 0 0\n")
    (shared / "tmp").mkdir()
    monkeypatch.setattr(file_systems, "MOUNTS_FILE", mounts)
    with pytest.raises(OutputError, match=r"network file system \(nfs4\).*--ledger"):
        Ledger(shared / "ledger")
    Ledger(shared / "tmp" / "ledger").close()
    Ledger(tmp_path / "ledger").close()


def test_a_full_disk_is_one_error_and_keeps_what_is_committed(tmp_path):
    """A limit on the size of files stands in for a full disk."""
    path = tmp_path / "ledger"
    program = (
        f"import sys; sys.path[:0] = [{str(SOURCE)!r}, {str(Path(__file__).parent)!r}]\n"
        "import resource, signal\n"
        "from pathlib import Path; from idefics.batch.ledger import Ledger; from test_batch_ledger import make_row\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))\n"
        "ledger = Ledger(Path(sys.argv[1])); ledger.run_number({})\n"
        "try:\n"
        "    for number in range(10**6): ledger.add_row(make_row(number), {'text': 'a' * 1000})\n"
        "except Exception as error: print(number, type(error).__name__, error)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    number, error, message = done.stdout.split(" ", 2)
    assert error == "OutputError"
    assert "the disk is full or fails" in message
    with Ledger(path) as ledger:
        ((_, answered, _),) = ledger.count_rows()
        assert int(number) - 2 * MAX_UNCOMMITTED_WRITES <= answered <= int(number)
        ledger.add_row(make_row(10**7), {"text": "a"})
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_names_that_are_not_utf8_are_kept(tmp_path):
    with Ledger(tmp_path / "ledger") as ledger:
        run = ledger.run_number({"prefix": "\udcff"})
        row = LedgerRow(
            run=run, name="a\udcff.png", key=b"k" * 16, id="", path="a\udcff.png", prompt="\udcfe"
        )
        ledger.add_row(row, {"text": "a", "error": "\udcff"})
        found = ledger.find_row(run, "a\udcff.png")
        assert found is not None
        assert found.path == "a\\udcff.png"
        assert ledger.find_answer(row.key) == {"text": "a", "error": "\udcff"}
        assert ledger.find_row(run, "b\udcff.png") is None


def test_rows_are_read_in_pieces_and_in_order(tmp_path):
    with Ledger(tmp_path / "ledger") as ledger:
        ledger.run_number({})
        for number in range(1234):
            ledger.add_row(make_row(number), {"text": str(number)})
        assert [answer["text"] for _, answer in ledger.rows_after(0)] == list(map(str, range(1234)))
        assert len(list(ledger.rows_after(1000))) == 234
        ledger.add_row(make_row(5))  # replaced: it is last now
        assert [row.name for row, _ in ledger.rows_after(1233)] == ["1233.png", "5.png"]
