"""The flags that several commands share, grouped in dataclasses, and the parsers of their values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import typer

from idefics.catalog import DEFAULT_MODEL
from idefics.cli.help_format import OUTPUT_SECTION
from idefics.config import KernelMode, QuantKind
from idefics.errors import BadSetting, IdeficsError
from idefics.host_memory import parse_bytes_or_share
from idefics.messages import Detail, ImageDetail

T = TypeVar("T")

DTYPES = ("auto", "float32", "bfloat16", "float16")
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


def flag_value_parser(parse_value: Callable[[str], T]) -> Callable[[str], T]:
    """Decorates the parser of a flag's value: BadSetting becomes a plain IdeficsError.

    BadSetting is a ValueError, and typer would put a text of its own before the message of a ValueError.
    """

    @wraps(parse_value)
    def parse(text: str) -> T:
        try:
            return parse_value(text)
        except BadSetting as error:
            raise IdeficsError(str(error)) from None

    return parse


def number_parser(flag: str, number_type: type[int] | type[float]) -> Callable[[str], float]:
    """Makes a parser for an int or a float; its error names the flag and the value."""

    @flag_value_parser
    def read(text: str) -> float:
        try:
            return number_type(text)
        except ValueError:
            raise BadSetting(
                f"{flag} is {text!r}: give a {'whole ' if number_type is int else ''}number"
            ) from None

    return read


def choice_parser(flag: str, words: tuple[str, ...]) -> Callable[[str], str]:
    """Makes a parser for a flag that takes one of `words`; it returns the word."""

    @flag_value_parser
    def read(text: str) -> str:
        if text not in words:
            raise BadSetting(f"{flag} is {text!r}: give {', '.join(words[:-1])} or {words[-1]}")
        return text

    return read


@flag_value_parser
def check_memory_size_flag(text: str) -> str:
    """Checks the value of `--kv-cache`, such as "1GB" or "0.3", and returns it."""
    parse_bytes_or_share("--kv-cache", text)
    return text


@flag_value_parser
def check_remote_images_flag(text: str) -> str:
    """Checks the value of `--remote-images`, such as "public", and returns it."""
    from idefics.processing.url_policy import parse_allowed_hosts

    parse_allowed_hosts(text, "--remote-images")
    return text


_input_option = partial(typer.Option, rich_help_panel="Input")
_model_option = partial(typer.Option, rich_help_panel="Model", show_default=False)
_output_option = partial(typer.Option, rich_help_panel=OUTPUT_SECTION)

PositionalArguments = Annotated[list[str], typer.Argument(default_factory=list)]
PromptFlag = Annotated[
    str | None,
    _input_option("--prompt", metavar="TEXT", help="The question or text, instead of the last argument."),
]
RecursiveFlag = Annotated[
    bool,
    _input_option(
        "--recursive/--no-recursive", help="Search the subfolders of folders too.", show_default=False
    ),
]
ShotsFlag = Annotated[
    Path | None,
    _input_option(
        "--shots",
        metavar="FILE",
        help='Examples to follow, one JSON object per line: {"image": "a.jpg", "answer": "A puppy."}',
    ),
]
DebugFlag = Annotated[bool, _output_option("--debug", help="Show what is done, and the traceback of errors.")]


@dataclass(frozen=True, kw_only=True)
class ModelFlags:
    """Which model is loaded, where and how: the keywords of `idefics.load`, under the same names."""

    model: Annotated[
        str,
        _model_option(
            "--model",
            metavar="MODEL",
            envvar="IDEFICS_MODEL",
            show_envvar=False,
            help="Short name (`idefics models` lists them), folder or hub id; "
            f"else $IDEFICS_MODEL, else {DEFAULT_MODEL}.",
        ),
    ] = DEFAULT_MODEL
    revision: Annotated[
        str | None, _model_option("--revision", metavar="NAME", help="Branch, tag or commit on the hub.")
    ] = None
    device: Annotated[
        str, _model_option("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:1 or mps.")
    ] = "auto"
    dtype: Annotated[
        str,
        _model_option(
            "--dtype",
            metavar="DTYPE",
            parser=choice_parser("--dtype", DTYPES),
            help="auto, float32, bfloat16 or float16.",
        ),
    ] = "auto"
    threads: Annotated[
        int | None,
        _model_option(
            "--threads",
            metavar="N",
            parser=number_parser("--threads", int),
            help="Number of CPU threads.",
        ),
    ] = None
    device_map: Annotated[
        str | None,
        _model_option(
            "--device-map",
            metavar="HOW",
            parser=choice_parser("--device-map", DEVICE_MAPS),
            help="auto spreads the model evenly over all GPUs and CPU memory; sequential fills them in turn.",
        ),
    ] = None
    quantize: Annotated[
        QuantKind | None,
        _model_option(
            "--quantize",
            metavar="BITS",
            parser=choice_parser("--quantize", get_args(QuantKind)),
            help="Quantize the weights: int8, int4, fp8, nf4 or fp4.",
        ),
    ] = None
    kv_cache: Annotated[
        str | None,
        _model_option(
            "--kv-cache",
            metavar="SIZE",
            parser=check_memory_size_flag,
            help="Memory for keys and values, such as 1GB, or a share of what is free, such as 0.3.",
        ),
    ] = None
    batch_rows: Annotated[
        int | None,
        _model_option(
            "--batch-rows",
            metavar="N",
            parser=number_parser("--batch-rows", int),
            help="Largest number of prompts in a batch.",
        ),
    ] = None
    kernels: Annotated[
        KernelMode,
        _model_option(
            "--kernels",
            metavar="HOW",
            parser=choice_parser("--kernels", get_args(KernelMode)),
            help="Which code computes: auto chooses by the kind of processor, autotune by measuring here, "
            "reference is torch's plain operations (slow).",
        ),
    ] = "auto"
    offline: Annotated[bool, _model_option("--offline", help="Never use the network for models.")] = False
    remote_images: Annotated[
        str,
        _model_option(
            "--remote-images",
            metavar="WHICH",
            envvar="IDEFICS_REMOTE_IMAGES",
            show_envvar=False,
            parser=check_remote_images_flag,
            help="Which picture addresses may be fetched: any, public, off, or hosts separated by commas; else "
            "$IDEFICS_REMOTE_IMAGES, else any.",
        ),
    ] = "any"


@dataclass(frozen=True, kw_only=True)
class ImageDetailFlags:
    """How finely pictures are processed: the fields of `ImageDetail`."""

    detail: Annotated[
        Detail | None,
        _input_option(
            "--detail",
            metavar="HOW",
            parser=choice_parser("--detail", get_args(Detail)),
            help="high, the default: as the model was released; low: the whole picture in one tile; "
            "auto: small pictures are not enlarged into many tiles.",
        ),
    ] = None
    max_tiles: Annotated[
        int | None,
        _input_option(
            "--max-tiles",
            metavar="N",
            parser=number_parser("--max-tiles", int),
            help="At most N tiles per picture, the downscaled whole included; fewer are faster.",
        ),
    ] = None

    def image_detail_options(self) -> dict[str, Any]:
        """The keywords of a call. Raises BadSetting for invalid values, before any model is loaded."""
        options = {"detail": self.detail, "max_tiles": self.max_tiles}
        options = {name: value for name, value in options.items() if value is not None}
        ImageDetail(**options)  # type: ignore[arg-type]
        return options


@dataclass(frozen=True, kw_only=True)
class OutputFlags:
    """The format of standard output, and whether errors are shown with their traceback."""

    json: Annotated[bool, _output_option("--json", help="Print one JSON object per line.")] = False
    debug: DebugFlag = False
