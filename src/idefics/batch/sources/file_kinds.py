"""Which kind of input a file is, by its suffix; by its content if the suffix is unknown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from idefics.batch.records import escape_surrogates
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

MakeInput = Callable[[str, Path, SourceSettings], SingleInput]

INPUT_BY_SUFFIX: dict[str, MakeInput] = {
    ".zip": ZipArchive,
    ".pdf": PdfDocument,
    **dict.fromkeys((".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz"), TarArchive),
    **dict.fromkeys((".jsonl", ".ndjson"), lambda name, path, s: TableInput(name, JsonLinesReader(path), s)),
    **dict.fromkeys((".csv", ".tsv"), lambda name, path, s: TableInput(name, CsvReader(path), s)),
    ".parquet": lambda name, path, s: TableInput(name, ParquetReader(path), s),
}


def input_of_file(text: str, settings: SourceSettings) -> SingleInput:
    """The input that a file is: an archive, a table, a document, a picture or a video.

    Args:
        text: the path of an existing file, as given.

    Raises:
        BadPicture: its suffix is unknown, and its content is neither a picture nor a video.
    """
    from idefics.processing.picture_files import read_file_head

    name, path = escape_surrogates(text), Path(text)
    lower = path.name.lower()
    for suffix, make_input in INPUT_BY_SUFFIX.items():
        if lower.endswith(suffix):
            return make_input(name, path, settings)
    if image_format_by_suffix(lower) is not None or lower.endswith(VIDEO_SUFFIXES):
        return MediaFile(name, path)
    try:
        head = read_file_head(path) if path.is_file() else b""
    except OSError as error:
        raise BadPicture(f"{name} cannot be read: {error.strerror}") from None
    if detect_image_format(head) is not None or detect_video_format(head) is not None:
        return MediaFile(name, path)
    kinds = ", ".join(INPUT_BY_SUFFIX)
    hint = f"; is it a list of paths? then --from {name}" if lower.endswith(".txt") else ""
    raise BadPicture(f"{name} is no input that is read: give pictures, videos, folders or {kinds}{hint}")
