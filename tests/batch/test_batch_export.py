"""Output files: what each form holds, files that are cut back and gone on with, disks that are full."""

import csv
import errno
import io
import json
import os
import re
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from idefics.batch import export, output_file
from idefics.batch.export import CSV_COLUMNS, exporter_for
from idefics.batch.output_file import OutputFile, check_writable, replace_file
from idefics.batch.records import COLUMNS, OutputRecord, RunSummary
from idefics.errors import BadPicture, BadSetting, MissingExtra, OutputError

ANSWER = OutputRecord(
    id="cat.jpg",
    path="photos/cat.jpg",
    task="ask",
    prompt="What is it?",
    text='A "cat",\nasleep.',
    finish="stop",
    tokens=7,
    model="demo",
    revision="",
    settings={"max_new_tokens": 20, "stop": ["ä"]},
    seconds=0.25,
)
RANKING = replace(
    ANSWER,
    id="2",
    path="photos/猫.jpg",
    text="tree",
    probabilities={"tree": 0.75, "café": 0.25},
    settings={},
    notes=["1 of 3 frames was read"],
    logprobs=[{"id": 5, "text": "tr", "logprob": -0.5, "top": [{"id": 5, "text": "tr", "logprob": -0.5}]}],
)
FAILURE = replace(
    ANSWER,
    id="",
    text=None,
    finish=None,
    tokens=None,
    seconds=None,
    error_type="BadPicture",
    error="x.jpg is empty (0 bytes)",
)
RECORDS = [ANSWER, RANKING, FAILURE]


def write_bytes(suffix, records):
    file = io.BytesIO()
    exporter = exporter_for(Path(f"out{suffix}"))
    file.write(exporter.header)
    exporter.write(file, records)
    return file.getvalue()


def read_parquet(records):
    return pq.read_table(pa.BufferReader(write_bytes(".parquet", records))).to_pylist()


def read_csv(records):
    return list(csv.DictReader(io.StringIO(write_bytes(".csv", records).decode(), newline=""), strict=True))


def test_columns_have_a_fixed_order():
    assert (
        *("id", "path", "task", "prompt", "text", "finish", "tokens", "probabilities", "model", "revision"),
        *("settings", "seconds", "error_type", "error", "notes", "logprobs"),
    ) == COLUMNS


def test_json_leaves_out_what_is_empty_but_not_an_empty_answer():
    assert ANSWER.to_json() == {
        "id": "cat.jpg",
        "path": "photos/cat.jpg",
        "task": "ask",
        "prompt": "What is it?",
        "text": 'A "cat",\nasleep.',
        "finish": "stop",
        "tokens": 7,
        "model": "demo",
        "settings": {"max_new_tokens": 20, "stop": ["ä"]},
        "seconds": 0.25,
    }
    assert list(FAILURE.to_json()) == ["path", "task", "prompt", "model", "settings", "error_type", "error"]
    assert replace(ANSWER, text="", tokens=0).to_json().items() >= {"text": "", "tokens": 0}.items()


def test_rates_of_a_run():
    summary = RunSummary(
        task="ask",
        model="demo",
        revision="",
        settings={},
        command="",
        started=None,
        seconds=4.0,
        num_written=6,
        num_failed=2,
        num_skipped=100,
        num_tokens=50,
    )
    assert (summary.rows_per_second, summary.tokens_per_second) == (2.0, 12.5)
    idle = replace(summary, seconds=0.0)
    assert (idle.rows_per_second, idle.tokens_per_second) == (0.0, 0.0)


def test_json_lines():
    data = write_bytes(".jsonl", RECORDS)
    assert data.endswith(b"\n") and b"\r" not in data and "猫".encode() in data
    answer, ranking, failure = map(json.loads, data.decode().splitlines())
    assert list(answer) == [name for name in COLUMNS[:14] if name not in ("probabilities", "revision")]
    assert answer == ANSWER.to_json() | {"error_type": "", "error": ""}
    assert ranking == RANKING.to_json() | {"error_type": "", "error": ""}
    assert failure == FAILURE.to_json() | {"text": "", "finish": ""}


def test_json_lines_whose_first_error_is_late_are_read_by_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    path = tmp_path / "out.jsonl"
    OutputFile(path, exporter_for(path)).rewrite([ANSWER] * 600 + [FAILURE] * 600)
    # The types are those of the first chunk, which is small here.
    rows = datasets.Dataset.from_json(str(path), cache_dir=str(tmp_path / "cache"), chunksize=20_000)
    assert (len(rows), rows[0]["error"], rows[600]["error"]) == (1200, "", FAILURE.error)
    assert (rows[599]["text"], rows[1199]["text"]) == (ANSWER.text, "")


def test_numbers_that_json_lacks_are_refused():
    with pytest.raises(ValueError, match="JSON compliant"):
        write_bytes(".jsonl", [replace(ANSWER, seconds=float("inf"))])


def test_csv():
    data = write_bytes(".csv", RECORDS)
    assert data.startswith(b"id,path,task,prompt,text,finish,tokens,probabilities,model,revision,")
    assert data.splitlines(keepends=True)[1] == b'cat.jpg,photos/cat.jpg,ask,What is it?,"A ""cat"",\n'
    assert data.endswith(b"BadPicture,x.jpg is empty (0 bytes)\r\n")
    answer, ranking, failure = read_csv(RECORDS)
    assert tuple(answer) == CSV_COLUMNS == COLUMNS[:-2]
    assert (answer["text"], answer["tokens"], answer["seconds"]) == ('A "cat",\nasleep.', "7", "0.25")
    assert answer["settings"] == '{"max_new_tokens":20,"stop":["ä"]}'
    assert ranking["probabilities"] == '{"tree":0.75,"café":0.25}'
    assert (ranking["settings"], answer["error"]) == ("", "")
    assert (failure["text"], failure["seconds"], failure["error_type"]) == ("", "", "BadPicture")


FORMULAS = ["=1+1", "+cmd", "-a list", "@SUM(1)", "\tx", "\rx", "\nx", "＝1", "'=1", "''@x", "-", "-1+1"]
PLAIN_TEXTS = ["-1", "+1.5", "-.5e-3", "'Tis", "a=b", "1-2", "", " =1"]


def test_a_spreadsheet_runs_no_cell_of_a_csv_and_every_text_can_be_read_back():
    rows = read_csv([replace(ANSWER, text=text, path=text) for text in FORMULAS + PLAIN_TEXTS])
    assert [row["text"] for row in rows] == [f"'{text}" for text in FORMULAS] + PLAIN_TEXTS
    documented = re.search(r"`('.*)`", export.CsvExporter.__doc__)[1]
    for column in ("text", "path"):
        texts = [row[column][bool(re.match(documented, row[column])) :] for row in rows]
        assert texts == FORMULAS + PLAIN_TEXTS


def test_parquet():
    answer, ranking, failure = read_parquet(RECORDS)
    assert tuple(answer) == COLUMNS
    assert answer == {name: getattr(ANSWER, name) for name in COLUMNS} | {
        "settings": '{"max_new_tokens":20,"stop":["ä"]}'
    }
    assert ranking["probabilities"] == [
        {"label": "tree", "probability": 0.75},
        {"label": "café", "probability": 0.25},
    ]
    assert (ranking["notes"], ranking["logprobs"]) == (RANKING.notes, RANKING.logprobs)
    assert (failure["id"], failure["text"], failure["error"]) == ("", None, "x.jpg is empty (0 bytes)")


@pytest.mark.parametrize("records", [[], [ANSWER], [FAILURE], RECORDS], ids=len)
def test_types_of_parquet_do_not_depend_on_the_values(records):
    schema = pq.read_schema(pa.BufferReader(write_bytes(".parquet", records)))
    type_by_name = {field.name: str(field.type) for field in schema}
    assert {type_by_name[name] for name in ("text", "finish", "error_type", "error", "settings")} == {
        "string"
    }
    assert type_by_name["probabilities"] == "list<element: struct<label: string, probability: double>>"
    assert type_by_name["tokens"] == "int64" and type_by_name["seconds"] == "double"


def test_parquet_is_written_in_groups_of_bounded_size(monkeypatch):
    taken, most_ahead, written = 0, 0, 0
    write_table = pq.ParquetWriter.write_table

    def count_written(self, table, *arguments):
        nonlocal written
        written += table.num_rows
        return write_table(self, table, *arguments)

    def records():
        nonlocal taken, most_ahead
        for number in range(20_150):
            taken, most_ahead = taken + 1, max(most_ahead, taken - written)
            yield replace(ANSWER, id=str(number))

    monkeypatch.setattr(pq.ParquetWriter, "write_table", count_written)
    file = pq.ParquetFile(pa.BufferReader(write_bytes(".parquet", records())))
    sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    assert sizes == [10_000, 10_000, 150] and most_ahead <= 10_000
    assert file.read(["id"]).column("id").to_pylist() == [str(number) for number in range(20_150)]
    monkeypatch.setattr(export, "MAX_GROUP_BYTES", 1)
    assert pq.ParquetFile(pa.BufferReader(write_bytes(".parquet", [ANSWER] * 250))).num_row_groups == 3


def test_parquet_is_read_by_pandas_and_datasets(tmp_path):
    datasets, pandas = pytest.importorskip("datasets"), pytest.importorskip("pandas")
    path = tmp_path / "out.parquet"
    OutputFile(path, exporter_for(path)).rewrite(RECORDS)
    frame = pandas.read_parquet(path)
    assert list(frame["text"][:2]) == [ANSWER.text, RANKING.text] and frame["text"].isna()[2]
    assert frame["probabilities"][1][0] == {"label": "tree", "probability": 0.75}
    rows = datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache"))
    assert rows[1]["probabilities"][1] == {"label": "café", "probability": 0.25}
    assert rows[2]["error_type"] == "BadPicture"


def read_json_lines(records):
    return [json.loads(line) for line in write_bytes(".jsonl", records).decode("utf-8").splitlines()]


@pytest.mark.parametrize("read", [read_json_lines, read_csv, read_parquet])
def test_a_file_name_that_is_not_utf_8_can_be_written_and_read(read):
    name = os.fsdecode(b"caf\xe9 \xff.jpg")
    record = replace(RANKING, path=name, settings={"question": name}, probabilities={name: 1.0})
    (row,) = read([record])
    assert row["path"] == r"caf\udce9 \udcff.jpg"
    restored = re.sub(r"\\u(d[89a-f]..)", lambda match: chr(int(match[1], 16)), row["path"])
    assert os.fsencode(restored) == b"caf\xe9 \xff.jpg"
    settings, labels = row["settings"], row["probabilities"]
    settings = settings if isinstance(settings, dict) else json.loads(settings)
    labels = json.loads(labels) if isinstance(labels, str) else labels
    assert settings == {"question": row["path"]}
    assert labels in ({row["path"]: 1.0}, [{"label": row["path"], "probability": 1.0}])


def test_the_suffix_chooses_the_form():
    for name, kind in {
        "a.JSONL": export.JsonLinesExporter,
        "a.b.csv": export.CsvExporter,
        "a.parquet": export.ParquetExporter,
    }.items():
        assert type(exporter_for(Path(name))) is kind
    for name in ("a", "a.txt", "csv"):
        with pytest.raises(
            BadSetting, match=rf"^{name} does not end in .jsonl, .csv or .parquet, .* output: rename"
        ):
            exporter_for(Path(name))
    with pytest.raises(BadSetting, match=r"a.json does not end in .*\(.json is one document"):
        exporter_for(Path("a.json"))


def test_without_pyarrow_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtra, match=re.escape("pip install 'idefics[batch]'")):
        exporter_for(Path("a.parquet"))


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_file_that_is_cut_back_and_gone_on_with_equals_one_written_at_once(tmp_path, suffix):
    records = [
        replace(one, id=str(number), path=os.fsdecode(b"\xff" * number))
        for number, one in enumerate(RECORDS * 3)
    ]
    at_once, path = tmp_path / f"whole{suffix}", tmp_path / f"out{suffix}"
    OutputFile(at_once, exporter_for(at_once)).rewrite(records)
    whole = at_once.read_bytes()
    size_by_rows = [0]
    for record in records:
        size_by_rows.append(OutputFile(path, exporter_for(path)).append([record]))
    assert path.read_bytes() == whole and size_by_rows[-1] == len(whole)
    for cut in range(0, len(whole) + 1, 7):  # where a process may have been killed
        num_rows = max(number for number, size in enumerate(size_by_rows) if size <= cut)
        path.write_bytes(whole[:cut])
        output = OutputFile(path, exporter_for(path))
        output.truncate_to(size_by_rows[num_rows])
        assert path.stat().st_size == size_by_rows[num_rows]
        assert output.append(records[num_rows:]) == len(whole)
        assert path.read_bytes() == whole


def test_a_file_without_rows_has_its_header(tmp_path):
    path = tmp_path / "out.csv"
    output = OutputFile(path, exporter_for(path))
    output.truncate_to(0)
    assert path.read_bytes() == b""
    assert output.append([]) == len(output.exporter.header) == path.stat().st_size
    output.append([])
    assert path.read_bytes() == output.exporter.header
    assert output.rewrite([]) == len(output.exporter.header)


def test_a_file_that_lost_rows_is_refused(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_bytes(b"{}\n")
    with pytest.raises(OutputError, match=r"out.jsonl has 3 bytes, and 4 were written: it was changed since"):
        OutputFile(path, exporter_for(path)).truncate_to(4)
    assert path.read_bytes() == b"{}\n"


def test_rows_are_on_the_disk_before_append_returns(tmp_path, monkeypatch):
    sizes, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (fsync(file), sizes.append(os.fstat(file).st_size))[0])
    path = tmp_path / "out.jsonl"
    output = OutputFile(path, exporter_for(path))
    assert [output.append([ANSWER]), output.append([ANSWER])] == sizes
    del sizes[:]
    size = output.rewrite([ANSWER])
    assert sizes[0] == size and len(sizes) == 2  # the file, and then the folder


def records_until(error):
    yield ANSWER
    raise error


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
def test_a_rewrite_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"old")
    output = OutputFile(path, exporter_for(path))
    with pytest.raises(BadPicture, match="not one of the disk"):  # an OSError too
        output.rewrite(records_until(BadPicture("not one of the disk")))
    with pytest.raises(KeyboardInterrupt):
        output.rewrite(records_until(KeyboardInterrupt()))
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    output.rewrite([ANSWER])
    assert path.read_bytes() != b"old" and list(tmp_path.iterdir()) == [path]


def test_an_append_that_fails_leaves_whole_lines(tmp_path):
    path = tmp_path / "out.jsonl"
    output = OutputFile(path, exporter_for(path))
    output.append([ANSWER])
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        output.append(records_until(KeyboardInterrupt()))
    assert path.read_bytes() == before


def test_a_written_file_has_the_usual_rights_and_a_link_stays(tmp_path):
    target, link = tmp_path / "target.bin", tmp_path / "link.bin"
    link.symlink_to(target)
    usual = tmp_path / "usual"
    usual.touch()
    assert replace_file(link, lambda file: file.write(b"abc")) == 3
    assert link.is_symlink() and target.read_bytes() == b"abc"
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE(usual.stat().st_mode)


@pytest.mark.parametrize("work", ["append", "rewrite"])
def test_a_full_disk_is_said_in_one_line_and_nothing_is_lost(tmp_path, monkeypatch, work):
    """RLIMIT_FSIZE makes real writes fail in their middle; its error number stands for that of a full disk."""
    code = f"""
import resource, signal, sys
from pathlib import Path
sys.path[:0] = {[str(Path(export.__file__).parents[2]), str(Path(__file__).parent)]!r}
from test_batch_export import ANSWER, OutputError, OutputFile, exporter_for
from idefics.batch import file_replacement
import errno
file_replacement.FULL_DISK_ERRORS = (errno.EFBIG,)
path = Path(sys.argv[1])
output = OutputFile(path, exporter_for(path))
size = output.append([ANSWER] * 10)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    output.{work}([ANSWER] * 5_000)
except OutputError as error:
    print(error)
"""
    path = tmp_path / "captions.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True, timeout=120
    )
    assert re.fullmatch(
        rf"cannot write {path}: file too large \([\d,]+ bytes free\): make room and run the same command "
        r"again; nothing is lost\n",
        done.stdout,
    )
    assert path.read_bytes() == write_bytes(".jsonl", [ANSWER] * 10) and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, "disk full (5 bytes free): make room"),
        (errno.EDQUOT, "disk quota exceeded (5 bytes free): make room"),
        (errno.EIO, "input/output error"),
    ],
)
def test_errors_of_the_disk(tmp_path, monkeypatch, number, reason):
    def fail(file):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    monkeypatch.setattr(
        output_file.shutil, "disk_usage", lambda folder: output_file.shutil._ntuple_diskusage(9, 4, 5)
    )
    path = tmp_path / "captions.jsonl"
    with pytest.raises(OutputError, match=re.escape(f"cannot write {path}: {reason}")):
        OutputFile(path, exporter_for(path)).append([ANSWER])
    assert path.read_bytes() == b""


@pytest.mark.parametrize("work", ["append", "rewrite"])
def test_free_bytes_are_those_before_the_unfinished_rows_are_removed(tmp_path, monkeypatch, work):
    sizes = []

    def measure(folder):
        sizes.append([one.stat().st_size for one in folder.iterdir()])
        return output_file.shutil._ntuple_diskusage(9, 9, 0)

    monkeypatch.setattr(output_file.shutil, "disk_usage", measure)
    path = tmp_path / "captions.jsonl"
    output = OutputFile(path, exporter_for(path))
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(OutputError, match=r"disk full \(0 bytes free\)"):
        getattr(output, work)(records_until(full))
    assert sizes == [[len(write_bytes(".jsonl", [ANSWER]))]]


def test_a_path_is_checked_before_the_work(tmp_path, monkeypatch):
    path = tmp_path / "out.csv"
    assert check_writable(path) == "" and list(tmp_path.iterdir()) == []
    path.write_bytes(b"old")
    assert check_writable(path) == "" and path.read_bytes() == b"old"
    with pytest.raises(OutputError, match="it is a folder: give the name of a file in it"):
        check_writable(tmp_path)
    with pytest.raises(OutputError, match=f"there is no folder {tmp_path / 'no'}: create it first"):
        check_writable(tmp_path / "no" / "out.csv")
    with pytest.raises(OutputError, match="there is no folder"):
        check_writable(path / "out.csv")
    with pytest.raises(OutputError, match="file name too long"):
        check_writable(tmp_path / f"{'x' * 300}.csv")

    def free_bytes(free):
        monkeypatch.setattr(
            output_file.shutil, "disk_usage", lambda _: output_file.shutil._ntuple_diskusage(0, 0, free)
        )

    free_bytes(999_999)
    with pytest.raises(OutputError, match="only 999,999 bytes are free: free at least 100 MB"):
        check_writable(path)
    free_bytes(10**6)
    assert check_writable(path).startswith(f"only 1 MB are free for {path}: ")
    free_bytes(10**8)
    assert check_writable(path) == ""


def test_a_folder_that_may_not_be_written_is_found_before_the_work(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(output_file.tempfile, "TemporaryFile", refuse)
    with pytest.raises(OutputError, match=f"^cannot write {tmp_path / 'out.csv'}: permission denied$"):
        check_writable(tmp_path / "out.csv")
