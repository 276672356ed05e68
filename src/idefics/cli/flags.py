"""The flags that several commands share, as fields of dataclasses, the parsers of their values, and files they name."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform

import typer

from idefics.catalog import DEFAULT_MODEL
from idefics.config import KernelMode, QuantKind
from idefics.errors import BadSetting, IdeficsError
from idefics.host_memory import parse_bytes_or_share
from idefics.messages import Detail, ImageDetail
from idefics.processing.url_policy import parse_allowed_hosts

OUTPUT_SECTION = "Output"  # the last section of flags

T = TypeVar("T")

PositionalArguments = Annotated[list[str], typer.Argument(default_factory=list)]


def flag(section: str, help: str, *, default: Any = None, **option: Any) -> Any:
    """A field of a dataclass that is a flag: `max_tiles` is `--max-tiles`, parsed by the field's type.

    Args:
        section: the section of the help that lists it.
        help: one or two sentences.
        default: where the flag is not given; `MISSING`: it must be given.
        **option: "names", where they are not the field's; "metavar", "parser" or "envvar" of `typer.Option`.
    """
    return field(default=default, metadata={"rich_help_panel": section, "help": help, **option})


@dataclass_transform(frozen_default=True, kw_only_default=True)
def flag_group(cls: type[T]) -> type[T]:
    """Decorator: makes a class with flags as fields a dataclass, which a command takes as a parameter."""
    return dataclass(frozen=True, kw_only=True)(cls)


def values_for(record_type: Any, *groups: Any) -> dict[str, Any]:
    """The values of flags, or of other records, that are fields of `record_type` too, as keywords for it."""
    names = {one.name for one in fields(record_type)}
    return {
        one.name: getattr(group, one.name) for group in groups for one in fields(group) if one.name in names
    }


input_flag = partial(flag, "Input")
model_flag = partial(flag, "Model")
output_flag = partial(flag, OUTPUT_SECTION)


def value_parser(flag: str, convert: Callable[[str], Any], expected: str) -> Callable[[str], Any]:
    """Makes a parser for the values that `convert` converts; its error names the flag, the value and what to give."""

    def read(text: str) -> Any:
        try:
            return convert(text)
        except ValueError:
            raise IdeficsError(f"{flag} is {text!r}: give {expected}") from None

    return read


def checked_text_parser(flag: str, check: Callable[[str, str], object]) -> Callable[[str], str]:
    """Makes a parser that returns the text once `check(text, flag)` raises no BadSetting.

    BadSetting is a ValueError, and typer would put a text of its own before the message of a ValueError.
    """

    def read(text: str) -> str:
        try:
            check(text, flag)
        except BadSetting as error:
            raise IdeficsError(str(error)) from None
        return text

    return read


def remote_images_flag(default: str, help: str) -> Any:
    """The flag `--remote-images`: which addresses of pictures may be fetched."""
    return model_flag(
        help,
        default=default,
        metavar="WHICH",
        envvar="IDEFICS_REMOTE_IMAGES",
        parser=checked_text_parser("--remote-images", parse_allowed_hosts),
    )


def model_name_flag(help: str, default: str) -> Any:
    """The flag `--model`; its help names where the model is taken from without it."""
    return model_flag(
        f"{help}; else $IDEFICS_MODEL, else {default}.",
        default=default,
        metavar="MODEL",
        envvar="IDEFICS_MODEL",
    )


@flag_group
class PromptFlags:
    """The flag for the text about the pictures, instead of the last argument."""

    prompt: str | None = input_flag("The question or text, instead of the last argument.")


@flag_group
class ShotsFlags:
    """The flag that names the file of few-shot examples."""

    shots: Path | None = input_flag(
        'Examples to follow, one JSON object per line: {"image": "a.jpg", "answer": "A puppy."}',
    )


@flag_group
class PictureFlags:
    """The positional arguments, which name pictures, and how folders are searched."""

    arguments: PositionalArguments
    recursive: bool = input_flag(
        "Search the subfolders of folders too.",
        default=False,
        names="--recursive/--no-recursive",
    )


@flag_group
class ModelFlags:
    """Which model is loaded, where and how: the keywords of `idefics.load`, under the same names."""

    model: str = model_name_flag("Short name (`idefics models` lists them), folder or hub id", DEFAULT_MODEL)
    revision: str | None = model_flag("Branch, tag or commit on the hub.", metavar="NAME")
    adapter: str | None = model_flag(
        "Folder or hub id of an adapter (LoRA) for the model: a fine-tuned change, merged while it is loaded.",
        metavar="PATH",
    )
    device: str = model_flag("auto, cpu, cuda, cuda:1 or mps.", default="auto", metavar="DEVICE")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = model_flag(
        "auto, float32, bfloat16 or float16.", default="auto", metavar="DTYPE"
    )
    threads: int | None = model_flag("Number of CPU threads.")
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | None = model_flag(
        "auto spreads the model evenly over all GPUs and CPU memory; sequential fills them in turn.",
        metavar="HOW",
    )
    quantize: QuantKind | None = model_flag(
        "Quantize the weights: int8, int4, fp8, nf4 or fp4.", metavar="BITS"
    )
    kv_cache: str | None = model_flag(
        "Memory for keys and values, such as 1GB, or a share of what is free, such as 0.3.",
        metavar="SIZE",
        parser=checked_text_parser("--kv-cache", lambda text, flag: parse_bytes_or_share(flag, text)),
    )
    batch_rows: int | None = model_flag("Largest number of prompts in a batch.")
    kernels: KernelMode = model_flag(
        "Which code computes: auto chooses by the kind of processor, autotune by measuring here, "
        "reference is torch's plain operations (slow).",
        default="auto",
        metavar="HOW",
    )
    offline: bool | None = model_flag("Never use the network for models.", names="--offline")
    feature_cache: bool | None = model_flag(
        "Keep encoded pictures in files, so that a later command need not encode them again; else "
        "$IDEFICS_FEATURE_CACHE (1 or 0), else on.",
        names="--feature-cache/--no-feature-cache",
    )
    remote_images: str = remote_images_flag(
        "any",
        "Which picture addresses may be fetched: any, public, off, or hosts separated by commas; else "
        "$IDEFICS_REMOTE_IMAGES, else any.",
    )


@flag_group
class ImageDetailFlags:
    """The flags for how finely pictures are processed: the fields of `ImageDetail`."""

    detail: Detail | None = input_flag(
        "high, the default: as the model was released; low: the whole picture in one tile; "
        "auto: small pictures are not enlarged into many tiles.",
        metavar="HOW",
    )
    max_tiles: int | None = input_flag(
        "At most N tiles per picture, the downscaled whole included; fewer are faster."
    )

    def image_detail_options(self) -> dict[str, Any]:
        """The flags as keywords of a call. Raises BadSetting for invalid values, before any model is loaded."""
        options = {"detail": self.detail, "max_tiles": self.max_tiles}
        options = {name: value for name, value in options.items() if value is not None}
        ImageDetail(**options)  # type: ignore[arg-type]
        return options


@flag_group
class JSONFlags:
    """The flag for the format of standard output: text, or JSON lines."""

    json: bool = output_flag("Print one JSON object per line.", default=False)


@flag_group
class DebugFlags:
    """The flag that shows errors with their traceback; `main` looks for it itself."""

    debug: bool = output_flag("Show what is done, and the traceback of errors.", default=False)


STDIN = "-"


def read_text_file(flag: str, path: Path, expected: str) -> str:
    """Reads a file, or standard input where `path` is "-". A byte order mark is left out.

    Args:
        flag: the flag that names the file; messages begin with it.
        path: the file.
        expected: what it should hold, such as "one label per line".

    Raises:
        BadSetting: it cannot be read or is not UTF-8.
    """
    name = f"{flag} {path}"
    try:
        if str(path) != STDIN:
            data = path.read_bytes()
        elif sys.stdin.isatty():
            raise BadSetting(f"{name}: standard input is a terminal: send the text into it, as in ... < file")
        else:
            data = sys.stdin.buffer.read()
            if not data.strip():
                raise BadSetting(f"{name}: standard input is empty: send {expected} into it")
    except FileNotFoundError:
        raise BadSetting(f"{name}: no such file") from None
    except OSError as error:
        raise BadSetting(f"{name} cannot be read: {error.strerror or error}") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadSetting(f"{name} is not text in UTF-8: give {expected}") from None


def is_valid_utf8(text: str) -> bool:
    """Whether an argument was valid UTF-8: Python stores other bytes as lone surrogates (PEP 383)."""
    return not any("\udc80" <= character <= "\udcff" for character in text)


def escaped_bytes(text: str) -> str:
    """The text with each byte that was not UTF-8 written as an escape, such as `'Caf\\xe9'`."""
    return repr(text.encode(errors="surrogateescape"))[1:]
