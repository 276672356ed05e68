"""Parquet, plain or as Hugging Face's data sets store pictures: a struct of bytes and path. Needs the extra `batch`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from idefics.batch.sources.tables import FileTable
from idefics.errors import BadPicture, MissingExtra

ROWS_AT_A_TIME = 32  # decoded together, as they may hold pictures
HUGGING_FACE_KEY = b"huggingface"  # of the schema's metadata: JSON with info.features.COLUMN._type
MEDIA_FEATURES = ("Image", "Video")


class ParquetReader(FileTable):
    """Reads a Parquet file, a few rows at a time."""

    def read_columns(self) -> list[str]:
        """The names in the schema."""
        with self._open() as file:
            return [str(name) for name in file.schema_arrow.names]

    def declared_image_column(self) -> str | None:
        """The first picture or video among the features of a data set of Hugging Face."""
        with self._open() as file:
            metadata = file.schema_arrow.metadata or {}
        try:
            features = json.loads(metadata.get(HUGGING_FACE_KEY, b"{}"))["info"]["features"]
            return next((name for name, one in features.items() if one.get("_type") in MEDIA_FEATURES), None)
        except (ValueError, KeyError, TypeError, AttributeError):  # none, or of another program
            return None

    def records(self) -> Iterator[dict[str, Any] | str]:
        """Yields the rows by column; instead of one with a value that Python does not have, the reason."""
        with self._open() as file:
            names = [str(name) for name in file.schema_arrow.names]
            # Group by group, so that a broken one takes no rows of the group before it along.
            batches = (
                batch
                for group in range(file.num_row_groups)
                for batch in file.iter_batches(batch_size=ROWS_AT_A_TIME, row_groups=[group])
            )
            for batch in batches:
                for row in range(batch.num_rows):
                    try:
                        yield {
                            name: column[row].as_py()
                            for name, column in zip(names, batch.columns, strict=True)
                        }
                    except (ValueError, OverflowError) as error:
                        yield f"has a value that cannot be read: {error}"

    def count(self) -> int:
        """The number of rows, from the metadata."""
        with self._open() as file:
            return int(file.metadata.num_rows)

    @contextmanager
    def _open(self) -> Iterator[Any]:
        """Opens the file; what goes wrong until it is closed becomes BadPicture."""
        try:
            import pyarrow
            from pyarrow.parquet import ParquetFile
        except ImportError:
            raise MissingExtra("reading Parquet", "batch") from None
        try:
            with ParquetFile(self.path) as file:
                yield file
        except (pyarrow.ArrowException, OSError) as error:
            reason = str(error).partition("\n")[0]
            raise BadPicture(f"{self.path} cannot be read as Parquet: {reason}") from None
