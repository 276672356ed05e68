"""`idefics info`: what is installed, what computes here, how much memory there is, and what a model would take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from idefics import __version__
from idefics.catalog import DEFAULT, in_all, memory, resolve
from idefics.cli import look
from idefics.cli.flags import OutputFlags
from idefics.cli.output import Screen
from idefics.errors import ModelNotFound, size_text

HELP = """
Show what computes on this machine and with what: kernels, devices, memory and its limits, caches, versions, extras.

With MODEL also what that model would take, without loading it.
"""
EXAMPLES = ("idefics info", f"idefics info {DEFAULT}", "idefics info --json")
WIDTH = 12  # of the words at the beginning of a line

Model = Annotated[str | None, typer.Argument(metavar="MODEL", help="Short name, folder or hub id.")]


def register(app: typer.Typer) -> None:
    """Adds the command."""
    look.add(app, "info", _info, help=HELP, usage="[MODEL]", examples=EXAMPLES)


def _info(context: typer.Context, *, model: Model = None, output: OutputFlags) -> int:
    with Screen(context.command_path, as_json=output.json) as screen:
        from idefics.pipeline.environment import environment, model_needs

        screen.waiting.spin("Looking")
        found: dict[str, Any] = {"idefics": __version__, **environment()}
        if model is not None:
            try:
                found["model"] = model_needs(model)
            except ModelNotFound:
                if (row := resolve(model)) is None:
                    raise
                found["model"] = {"model": model, "folder": None}
                found["model"] |= {"weights": memory(row, "bfloat16"), "in_all": in_all(row, "bfloat16")}
        screen.waiting.end()
        if screen.as_json:
            screen.row(found)
        else:
            for name, text in _lines(found):
                print(f"{name:<{WIDTH}} {text}")
        return screen.code


def _lines(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What a person is shown: a word and what is said of it, line by line."""
    yield "idefics", f"{found['idefics']}, Python {found['python']}"
    yield (
        "processor",
        f"{found['processor']}, {_counted(found['cores'], 'core')}, {_counted(found['threads'], 'thread')}",
    )
    yield "device", f"{found['device']} (of {', '.join(found['devices'])})"
    for name, instructions in found["kernels"].items():
        missing = "missing: install a C compiler and then idefics again"
        yield "kernel", f"{name}: {instructions or missing}"
    yield "products", _products(found["products"])
    for bound in found["memory"]:
        yield "memory", f"{size_text(bound['free'])} free of {size_text(bound['total'])}: {bound['source']}"
    for cache in found["caches"]:
        yield "cache", f"{cache['name']}: {size_text(cache['bytes'])} in {cache['path']}"
    yield "versions", ", ".join(f"{name} {version}" for name, version in found["versions"].items() if version)
    for extra, installed in found["extras"].items():
        missing = f"not installed (pip install 'idefics[{extra}]')"
        yield "extra", f"{extra}: {'installed' if installed else missing}"
    if "model" in found:
        yield from _model_lines(found["model"])


def _counted(number: int, thing: str) -> str:
    """ "1 core", "2 cores"."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _products(products: Mapping[str, Any]) -> str:
    """What kernels="auto" chooses for a model that is not small."""
    wide = "oneDNN" if products["onednn"] else "torch"
    halves = "".join(f", {name} as it is" for name in products["halves"])
    return f"float32 by {wide}, int8 {'in integers' if products['integers'] else 'in float32'}{halves}"


def _model_lines(model: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "model", f"{model['model']}: {model['folder'] or 'not on this machine'}"
    yield "weights", size_text(model["weights"])
    if model["folder"]:
        tokens = f"{model['cached_tokens']:,} tokens of {size_text(model['token_bytes'] * 1000)} a thousand"
        yield (
            "kv cache",
            f"{size_text(model['kv_cache'])} ({tokens}; prompts of {model['max_positions']:,} at most)",
        )
        yield (
            "pictures",
            f"{size_text(model['pictures'])} of encoded pictures, process {size_text(model['process'])}",
        )
    yield "in all", f"{size_text(model['in_all'])} on a CPU, about"
