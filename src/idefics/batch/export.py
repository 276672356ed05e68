"""The forms in which results are written: JSON lines, CSV and Parquet, chosen by the suffix of the file."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from idefics.batch.records import COLUMNS, OutputRecord, compact_json, escape_surrogates
from idefics.errors import BadSetting, MissingExtra

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS_OF_EVERY_LINE = ("text", "finish", "error_type", "error")
CSV_COLUMNS = tuple(name for name in COLUMNS if name not in ("notes", "logprobs"))
# Beginnings that spreadsheets take for a formula (OWASP, "CSV Injection"): the full-width forms too, in some languages.
FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
MAX_GROUP_ROWS, MAX_GROUP_BYTES, BATCH_ROWS = 10_000, 64 * 2**20, 100


class Exporter:
    """Writes records in one form: by default a line for each.

    Attributes:
        appendable: whether records may be added to a file that is written: then `write` may be called many times, and
            any division of the records among the calls gives the same bytes. Otherwise one call writes a whole file.
        header: the bytes with which a file begins, before the first `write`.
    """

    appendable = True
    header = b""

    def write(self, file: BinaryIO, records: Iterable[OutputRecord]) -> None:
        """Writes the records to the file, which is open for writing at its end."""
        for record in records:
            file.write(self.line(record).encode())

    def line(self, record: OutputRecord) -> str:
        """The line of a record, with its line break."""
        raise NotImplementedError


class JsonLinesExporter(Exporter):
    r"""JSON lines: an object a row, in UTF-8, with "\n" at the end of each.

    A row has the fields that are not empty, as `OutputRecord.to_json` has them; and always `text`, `finish`,
    `error_type` and `error`, as "" where there is none. polars, DuckDB and datasets infer columns and types from the
    first rows: they drop or refuse an error that has a new column, or a text where there was null before. Lone
    surrogates are written as `compact_json` says.
    """

    def line(self, record: OutputRecord) -> str:
        """The object of a record."""
        row = dict.fromkeys(COLUMNS_OF_EVERY_LINE, "") | record.to_json()
        return compact_json({name: row[name] for name in COLUMNS if name in row}) + "\n"


class CsvExporter(Exporter):
    r"""CSV as RFC 4180 defines it: a line of column names, commas, double quotes where needed, "\r\n"; in UTF-8.

    Columns are those of `OutputRecord` without `notes` and `logprobs`, which other forms have. None is an empty cell;
    an error row is one whose `error_type` is not empty. `settings` and `probabilities` are compact JSON. Lone
    surrogates are written as `escape_surrogates` says.

    Text that a model reads in a picture must not run as a formula in a spreadsheet. So a text that begins with
    = + - @, a tab or a line break, and is no number, has an apostrophe in front. So has a text that begins with
    apostrophes and such a character, so that nothing is lost: a reader removes one apostrophe where
    `'+[=+\-@\t\r\n＝＋－＠]` matches the beginning of a cell. Every other text is unchanged.
    """

    header = ",".join(CSV_COLUMNS).encode() + b"\r\n"

    def line(self, record: OutputRecord) -> str:
        """The row of a record."""
        line = io.StringIO(newline="")
        csv.writer(line, lineterminator="\r\n").writerow(_csv_cells(record))
        return line.getvalue()


def _csv_cells(record: OutputRecord) -> Iterator[str]:
    row = record.to_json()
    for name in CSV_COLUMNS:
        value = row.get(name, "")
        cell = escape_surrogates(value) if isinstance(value, str) else compact_json(value)
        yield f"'{cell}" if FORMULA.match(cell) and not NUMBER.fullmatch(cell) else cell


class ParquetExporter(Exporter):
    """Parquet, in row groups of at most 10,000 rows and about 64 MB; needs pyarrow.

    The types do not depend on the values. `probabilities` is a list of {label, probability}, the most likely first,
    as `datasets` does not read maps; `settings` is compact JSON. Lone surrogates are written as `escape_surrogates`
    says.

    Raises:
        MissingExtra: pyarrow is not installed.
    """

    appendable = False

    def __init__(self) -> None:
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise MissingExtra("writing Parquet", "batch") from None

    def write(self, file: BinaryIO, records: Iterable[OutputRecord]) -> None:
        """Writes a whole file; holds one row group in memory."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema, remaining = _parquet_schema(), iter(records)
        with pq.ParquetWriter(file, schema) as writer:
            group: list[pa.RecordBatch] = []
            while rows := [_parquet_row(record) for record in islice(remaining, BATCH_ROWS)]:
                group.append(pa.RecordBatch.from_pylist(rows, schema))
                if (
                    len(group) * BATCH_ROWS == MAX_GROUP_ROWS
                    or sum(one.nbytes for one in group) > MAX_GROUP_BYTES
                ):
                    writer.write_table(pa.Table.from_batches(group), MAX_GROUP_ROWS)
                    group = []
            if group:
                writer.write_table(pa.Table.from_batches(group), MAX_GROUP_ROWS)


def _parquet_schema() -> pa.Schema:
    """The types of the columns, in the order of `COLUMNS`."""
    import pyarrow as pa

    token = [("id", pa.int64()), ("text", pa.string()), ("logprob", pa.float64())]
    type_by_column = {
        "tokens": pa.int64(),
        "seconds": pa.float64(),
        "probabilities": pa.list_(pa.struct([("label", pa.string()), ("probability", pa.float64())])),
        "notes": pa.list_(pa.string()),
        "logprobs": pa.list_(pa.struct([*token, ("top", pa.list_(pa.struct(token)))])),
    }
    return pa.schema([(name, type_by_column.get(name, pa.string())) for name in COLUMNS])


def _parquet_row(record: OutputRecord) -> dict[str, Any]:
    """The values of a row, as `_parquet_schema` types them: texts are never null where the record has one."""
    texts = {"id": "", "path": "", "task": "", "prompt": "", "model": "", "revision": "", "notes": []}
    row: dict[str, Any] = texts | json.loads(
        compact_json(record.to_json())
    )  # without lone surrogates at any depth
    row["settings"] = compact_json(record.settings)
    if record.probabilities is not None:
        row["probabilities"] = [
            {"label": label, "probability": value} for label, value in row.get("probabilities", {}).items()
        ]
    return row


EXPORTERS: dict[str, Callable[[], Exporter]] = {
    ".jsonl": JsonLinesExporter,
    ".csv": CsvExporter,
    ".parquet": ParquetExporter,
}


def exporter_for(path: Path) -> Exporter:
    """The exporter for an output file, by the suffix of its name.

    Raises:
        BadSetting: the suffix is none of .jsonl, .csv and .parquet.
        MissingExtra: the form needs a package that is not installed.
    """
    exporter = EXPORTERS.get(path.suffix.lower())
    if exporter is None:
        hint = (
            " (.json is one document, to which no row can be added)" if path.suffix.lower() == ".json" else ""
        )
        raise BadSetting(
            f"{path} does not end in .jsonl, .csv or .parquet, the forms of output{hint}: rename it"
        )
    return exporter()
