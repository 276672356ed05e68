"""`idefics info`: what is installed, what computes here, how much memory there is, and what a model would take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from idefics import __version__
from idefics.catalog import DEFAULT_MODEL, checkpoint_peak_bytes, checkpoint_weight_bytes, find_entry
from idefics.cli import help_format
from idefics.cli.flags import OutputFlags
from idefics.cli.output import OutputWriter
from idefics.errors import ModelNotFound, format_bytes

HELP = """
Show what computes on this machine and with what: kernels, devices, memory and its limits, caches, versions, extras.

With MODEL also what that model would take, without loading it.
"""
EXAMPLES = ("idefics info", f"idefics info {DEFAULT_MODEL}", "idefics info --json")
LABEL_WIDTH = 12  # of the words at the beginning of a line

ModelArgument = Annotated[str | None, typer.Argument(metavar="MODEL", help="Short name, folder or hub id.")]


def register(app: typer.Typer) -> None:
    """Adds the command."""
    help_format.add_command(app, "info", _info, help=HELP, usage="[MODEL]", examples=EXAMPLES)


def _info(context: typer.Context, *, model: ModelArgument = None, output: OutputFlags) -> int:
    with OutputWriter(context.command_path, as_json=output.json) as writer:
        from idefics.generation.environment import describe_environment, estimate_model_memory

        writer.progress.start_spinner("Looking")
        report: dict[str, Any] = {"idefics": __version__, **describe_environment()}
        if model is not None:
            try:
                report["model"] = estimate_model_memory(model)
            except ModelNotFound:
                if (row := find_entry(model)) is None:
                    raise
                report["model"] = {"model": model, "folder": None}
                report["model"] |= {
                    "weights": checkpoint_weight_bytes(row, "bfloat16"),
                    "in_all": checkpoint_peak_bytes(row, "bfloat16"),
                }
        writer.progress.stop()
        if writer.as_json:
            writer.write_json_line(report)
        else:
            for name, text in _report_lines(report):
                print(f"{name:<{LABEL_WIDTH}} {text}")
        return writer.exit_code


def _report_lines(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What a person is shown: a word and what is said of it, line by line."""
    yield "idefics", f"{report['idefics']}, Python {report['python']}"
    yield (
        "processor",
        f"{report['processor']}, {_count_text(report['cores'], 'core')}, {_count_text(report['threads'], 'thread')}",
    )
    yield "device", f"{report['device']} (of {', '.join(report['devices'])})"
    for name, instructions in report["kernels"].items():
        missing = "missing: install a C compiler and then idefics again"
        yield "kernel", f"{name}: {instructions or missing}"
    yield "products", _describe_matmuls(report["products"])
    for bound in report["memory"]:
        yield (
            "memory",
            f"{format_bytes(bound['free'])} free of {format_bytes(bound['total'])}: {bound['source']}",
        )
    for cache in report["caches"]:
        yield "cache", f"{cache['name']}: {format_bytes(cache['bytes'])} in {cache['path']}"
    yield (
        "versions",
        ", ".join(f"{name} {version}" for name, version in report["versions"].items() if version),
    )
    for extra, installed in report["extras"].items():
        missing = f"not installed (pip install 'idefics[{extra}]')"
        yield "extra", f"{extra}: {'installed' if installed else missing}"
    if "model" in report:
        yield from _model_lines(report["model"])


def _count_text(count: int, noun: str) -> str:
    """ "1 core", "2 cores"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _describe_matmuls(kernel_choice: Mapping[str, Any]) -> str:
    """What kernels="auto" chooses for a model that is not small."""
    float32_library = "oneDNN" if kernel_choice["onednn"] else "torch"
    halves = "".join(f", {name} as it is" for name in kernel_choice["halves"])
    return f"float32 by {float32_library}, int8 {'in integers' if kernel_choice['integers'] else 'in float32'}{halves}"


def _model_lines(model_report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "model", f"{model_report['model']}: {model_report['folder'] or 'not on this machine'}"
    yield "weights", format_bytes(model_report["weights"])
    if model_report["folder"]:
        tokens = f"{model_report['cached_tokens']:,} tokens of {format_bytes(model_report['token_bytes'] * 1000)} a thousand"
        yield (
            "kv cache",
            f"{format_bytes(model_report['kv_cache'])} ({tokens}; prompts of {model_report['max_positions']:,} at most)",
        )
        yield (
            "pictures",
            f"{format_bytes(model_report['pictures'])} of encoded pictures, process {format_bytes(model_report['process'])}",
        )
    yield "in all", f"{format_bytes(model_report['in_all'])} on a CPU, about"
