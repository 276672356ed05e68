"""Sidecars: files next to a picture that hold its text, as programs that train or that manage photographs read them.

`photo.txt` and `photo.json` share the name of `photo.jpg` without its suffix; `photo.jpg.xmp` has the whole name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from idefics.batch.file_replacement import find_target, prepare_file
from idefics.batch.records import compact_json, escape_surrogates
from idefics.batch.text_settings import ExistingText, SidecarKind
from idefics.batch.xmp_packet import read_packet_description, set_packet_description
from idefics.errors import BadPicture, OutputError

MAX_SIDECAR_BYTES = 1_000_000
SEPARATOR = ", "  # between a text that is there and one that is added to it


def sidecar_path(picture: Path, kind: SidecarKind) -> Path:
    """Where the sidecar of a picture is: photo.txt, photo.json or photo.jpg.xmp."""
    return picture.with_name(f"{picture.name}.xmp") if kind == "xmp" else picture.with_suffix(f".{kind}")


def read_sidecar(path: Path, kind: SidecarKind) -> str | None:
    """The text in a sidecar.

    Args:
        path: the sidecar.
        kind: "txt": all of it but the last line break; "json": the value of "text"; "xmp": its `dc:description`.

    Returns:
        None if there is no such file, or its text is empty or white space.

    Raises:
        OutputError: it cannot be read or written, has more than a million bytes, or is not of that kind.
    """
    content = _read_file(path)
    if content is None:
        return None
    text: str | None
    match kind:
        case "txt":
            text = _decode(path, content).removesuffix("\n").removesuffix("\r")
        case "json":
            text = _read_json_text(path, _decode(path, content))
        case "xmp":
            with _xmp_errors(path):
                text = read_packet_description(content)
    return text if text and text.strip() else None


def write_sidecar(path: Path, kind: SidecarKind, text: str, fields: Mapping[str, Any]) -> None:
    """Writes a sidecar as a whole, and returns once it is on the disk; if that fails, it is as it was before.

    Args:
        path: the sidecar. Where it is a symbolic link, the file that it leads to is written.
        kind: as in `read_sidecar`; of an existing XMP file, all other properties stay.
        text: the text.
        fields: what a JSON file holds after "text"; unused for the other kinds.

    Raises:
        OutputError: it cannot be written; an existing XMP file cannot be read; a field cannot be expressed in JSON.
    """
    match kind:
        case "txt":
            content = f"{escape_surrogates(text)}\n".encode()
        case "json":
            content = _encode_json(
                path, {"text": text, **fields} | {"text": text}
            )  # first, whatever the fields say
        case "xmp":
            with _xmp_errors(path):
                content = set_packet_description(_read_file(path), text)
    prepare_file(path, content).commit()


def join_texts(existing: str | None, text: str, how: ExistingText) -> str | None:
    """The text to write where there may be one already.

    Args:
        existing: the text that is there; None and white space count as none.
        text: the new text.
        how: "skip": leave it; "overwrite": write the new text; "append", "prepend": add the new text after or before
            it, with a comma between.

    Returns:
        None if what is there is to be left.
    """
    there, new = (existing or "").strip(), text.strip()
    if not there or how == "overwrite":
        return text
    if how == "skip" or not new:
        return None
    return SEPARATOR.join([there, new] if how == "append" else [new, there])


def _read_file(path: Path) -> bytes | None:
    """The content of a sidecar, or None if there is no such file."""
    try:
        target = find_target(path)
        if not target.exists():
            return None
        with target.open("rb") as file:
            content = file.read(MAX_SIDECAR_BYTES + 1)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error
    if len(content) > MAX_SIDECAR_BYTES:
        size = target.stat().st_size
        raise OutputError(
            f"cannot use {path}: it has {size:,} bytes, and a text {MAX_SIDECAR_BYTES:,} at most: move it away"
        )
    return content


def _decode(path: Path, content: bytes) -> str:
    """The content of a sidecar as text."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise OutputError(
            f"cannot use {path}: it is not text in UTF-8 (byte {error.start:,}): convert it"
        ) from None


@contextmanager
def _xmp_errors(path: Path) -> Iterator[None]:
    """Raises OutputError for an XMP sidecar that cannot be read."""
    try:
        yield
    except BadPicture as error:
        raise OutputError(f"cannot use {path}: {error}") from None


def _read_json_text(path: Path, content: str) -> str | None:
    """The value of "text" in a JSON sidecar, or None if it has none."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise OutputError(f"cannot use {path}: it is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise OutputError(f"cannot use {path}: it holds no JSON object with a field 'text'")
    text = value.get("text")
    if text is not None and not isinstance(text, str):
        raise OutputError(f"cannot use {path}: its field 'text' is {json.dumps(text)[:40]}, not a string")
    return text


def _encode_json(path: Path, fields: Mapping[str, Any]) -> bytes:
    """The fields as the content of a JSON file."""
    try:
        return f"{compact_json(fields)}\n".encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise OutputError(f"cannot write {path}: {error}") from None
