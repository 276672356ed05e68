"""The flags that commands share, in groups, and what each group means to the package."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args

import typer

from idefics.catalog import DEFAULT
from idefics.cli.look import OUTPUT
from idefics.config import Kernels, QuantKind
from idefics.errors import BadSetting, IdeficsError
from idefics.host_memory import memory_amount
from idefics.messages import Detail, ImageDetail

if TYPE_CHECKING:
    pass

T = TypeVar("T")

DTYPES = ("auto", "float32", "bfloat16", "float16")
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


def flag_parser(read: Callable[[str], T]) -> Callable[[str], T]:
    """A parser of a flag's value, whose errors are no `ValueError`: typer would put words of its own before these."""

    @wraps(read)
    def parse(text: str) -> T:
        try:
            return read(text)
        except BadSetting as error:
            raise IdeficsError(str(error)) from None

    return parse


def number(flag: str, kind: type[int] | type[float]) -> Callable[[str], float]:
    """What reads a flag's value; typer's own message would not name the value."""

    @flag_parser
    def read(text: str) -> float:
        try:
            return kind(text)
        except ValueError:
            raise BadSetting(f"{flag} is {text!r}: give a {'whole ' if kind is int else ''}number") from None

    return read


def one_of(flag: str, words: tuple[str, ...]) -> Callable[[str], str]:
    """What reads a flag that takes one of some words."""

    @flag_parser
    def read(text: str) -> str:
        if text not in words:
            raise BadSetting(f"{flag} is {text!r}: give {', '.join(words[:-1])} or {words[-1]}")
        return text

    return read


@flag_parser
def memory_size(text: str) -> str:
    """What reads `--kv-cache`."""
    memory_amount("--kv-cache", text)
    return text


@flag_parser
def policy(text: str) -> str:
    """What reads `--remote-images`."""
    from idefics.processing.addresses import allowed_hosts

    allowed_hosts(text, "--remote-images")
    return text


_input = partial(typer.Option, rich_help_panel="Pictures and words")
_model = partial(typer.Option, rich_help_panel="Model", show_default=False)
_output = partial(typer.Option, rich_help_panel=OUTPUT)

Arguments = Annotated[list[str], typer.Argument(default_factory=list)]
Prompt = Annotated[
    str | None, _input("--prompt", metavar="TEXT", help="The question or text, instead of the last argument.")
]
Recursive = Annotated[
    bool,
    _input("--recursive/--no-recursive", help="Search the subfolders of folders too.", show_default=False),
]
Shots = Annotated[
    Path | None,
    _input(
        "--shots",
        metavar="FILE",
        help='Examples to follow, one JSON object per line: {"image": "a.jpg", "answer": "A puppy."}',
    ),
]
Debug = Annotated[bool, _output("--debug", help="Show what is done, and the traceback of errors.")]


@dataclass(frozen=True, kw_only=True)
class ModelFlags:
    """Which model, where, and what it may fetch: the keywords of `idefics.load`."""

    model: Annotated[
        str,
        _model(
            "--model",
            metavar="MODEL",
            envvar="IDEFICS_MODEL",
            show_envvar=False,
            help="Short name (`idefics models` lists them), folder or hub id; "
            f"else $IDEFICS_MODEL, else {DEFAULT}.",
        ),
    ] = DEFAULT
    revision: Annotated[
        str | None, _model("--revision", metavar="NAME", help="Branch, tag or commit on the hub.")
    ] = None
    device: Annotated[str, _model("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:1 or mps.")] = (
        "auto"
    )
    dtype: Annotated[
        str,
        _model(
            "--dtype",
            metavar="DTYPE",
            parser=one_of("--dtype", DTYPES),
            help="auto, float32, bfloat16 or float16.",
        ),
    ] = "auto"
    threads: Annotated[
        int | None,
        _model(
            "--threads",
            metavar="N",
            parser=number("--threads", int),
            help="Number of CPU threads.",
        ),
    ] = None
    device_map: Annotated[
        str | None,
        _model(
            "--device-map",
            metavar="HOW",
            parser=one_of("--device-map", DEVICE_MAPS),
            help="auto spreads the model evenly over all GPUs and CPU memory; sequential fills them in turn.",
        ),
    ] = None
    quantize: Annotated[
        QuantKind | None,
        _model(
            "--quantize",
            metavar="BITS",
            parser=one_of("--quantize", get_args(QuantKind)),
            help="Quantize the weights: int8, int4, fp8, nf4 or fp4.",
        ),
    ] = None
    kv_cache: Annotated[
        str | None,
        _model(
            "--kv-cache",
            metavar="SIZE",
            parser=memory_size,
            help="Memory for keys and values, such as 1GB, or a share of what is free, such as 0.3.",
        ),
    ] = None
    batch_rows: Annotated[
        int | None,
        _model(
            "--batch-rows",
            metavar="N",
            parser=number("--batch-rows", int),
            help="Prompts that are answered side by side.",
        ),
    ] = None
    kernels: Annotated[
        Kernels,
        _model(
            "--kernels",
            metavar="HOW",
            parser=one_of("--kernels", get_args(Kernels)),
            help="What computes: auto goes by the kind of processor, autotune by what is quickest here, "
            "reference is torch's plain operations.",
        ),
    ] = "auto"
    offline: Annotated[bool, _model("--offline", help="Never use the network for models.")] = False
    remote_images: Annotated[
        str,
        _model(
            "--remote-images",
            metavar="WHICH",
            envvar="IDEFICS_REMOTE_IMAGES",
            show_envvar=False,
            parser=policy,
            help="Which picture addresses may be fetched: any, public, off, or hosts separated by commas; else "
            "$IDEFICS_REMOTE_IMAGES, else any.",
        ),
    ] = "any"


@dataclass(frozen=True, kw_only=True)
class LookFlags:
    """At which detail pictures are processed."""

    detail: Annotated[
        Detail | None,
        _input(
            "--detail",
            metavar="HOW",
            parser=one_of("--detail", get_args(Detail)),
            help="high: as the model was released, the default; low: the whole picture only; "
            "auto: small ones are not enlarged into many tiles.",
        ),
    ] = None
    max_tiles: Annotated[
        int | None,
        _input(
            "--max-tiles",
            metavar="N",
            parser=number("--max-tiles", int),
            help="At most N tiles per picture, the downscaled whole included; fewer are faster.",
        ),
    ] = None

    def looking(self) -> dict[str, Any]:
        """The keywords of a call. Raises BadSetting for what is no look, before any model is loaded."""
        given = {"detail": self.detail, "max_tiles": self.max_tiles}
        given = {name: value for name, value in given.items() if value is not None}
        ImageDetail(**given)  # type: ignore[arg-type]
        return given


@dataclass(frozen=True, kw_only=True)
class OutputFlags:
    """What standard output gets."""

    json: Annotated[bool, _output("--json", help="Print one JSON object per line.")] = False
    debug: Debug = False
