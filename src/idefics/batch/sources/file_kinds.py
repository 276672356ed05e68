"""Which kind of input a file is, by its suffix; by its content if the suffix is unknown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from idefics.batch.sources.csv_table import CsvReader
from idefics.batch.sources.files import MediaFile
from idefics.batch.sources.jsonl_table import JsonLinesReader
from idefics.batch.sources.parquet_table import ParquetReader
from idefics.batch.sources.pdf import PdfDocument
from idefics.batch.sources.settings import SingleInput, SourceSettings
from idefics.batch.sources.tables import TableInput
from idefics.batch.sources.tar import TarArchive
from idefics.batch.sources.zip import ZipArchive
from idefics.errors import BadPicture
from idefics.formats import VIDEO_SUFFIXES, detect_image_format, detect_video_format, image_format_by_suffix

MakeInput = Callable[[str, SourceSettings], SingleInput]

INPUT_BY_SUFFIX: dict[str, MakeInput] = {
    ".zip": ZipArchive,
    ".pdf": PdfDocument,
    **dict.fromkeys((".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz"), TarArchive),
    **dict.fromkeys(
        (".jsonl", ".ndjson"), lambda name, settings: TableInput(name, JsonLinesReader(Path(name)), settings)
    ),
    **dict.fromkeys(
        (".csv", ".tsv"), lambda name, settings: TableInput(name, CsvReader(Path(name)), settings)
    ),
    ".parquet": lambda name, settings: TableInput(name, ParquetReader(Path(name)), settings),
}


def input_of_file(name: str, settings: SourceSettings) -> SingleInput:
    """The input that a file is: an archive, a table, a document, a picture or a video.

    Args:
        name: the path of an existing file.

    Raises:
        BadPicture: its suffix is unknown, and its content is neither a picture nor a video.
    """
    from idefics.processing.picture_files import read_file_head

    lower = Path(name).name.lower()
    for suffix, make_input in INPUT_BY_SUFFIX.items():
        if lower.endswith(suffix):
            return make_input(name, settings)
    if image_format_by_suffix(lower) is not None or lower.endswith(VIDEO_SUFFIXES):
        return MediaFile(name)
    try:
        head = read_file_head(name) if Path(name).is_file() else b""
    except OSError as error:
        raise BadPicture(f"{name} cannot be read: {error.strerror}") from None
    if detect_image_format(head) is not None or detect_video_format(head) is not None:
        return MediaFile(name)
    kinds = ", ".join(INPUT_BY_SUFFIX)
    hint = f"; is it a list of paths? then --from {name}" if lower.endswith(".txt") else ""
    raise BadPicture(f"{name} is no input that is read: give pictures, videos, folders or {kinds}{hint}")
