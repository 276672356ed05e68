"""`idefics info`: shows devices, kernels, memory, caches and versions, and the memory that a model needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from idefics import __version__
from idefics.catalog import DEFAULT_MODEL, checkpoint_peak_bytes, checkpoint_weight_bytes, find_entry
from idefics.cli.command import command
from idefics.cli.flags import flag_group
from idefics.cli.output import OutputWriter
from idefics.errors import ModelNotFound, format_bytes, format_count

LABEL_WIDTH = 12  # characters of the first column


@flag_group
class ModelArgument:
    """The positional argument: the model whose memory is estimated; None: only this machine is described."""

    model: Annotated[str | None, typer.Argument(metavar="MODEL")] = None


@command("idefics info", f"idefics info {DEFAULT_MODEL}", "idefics info --json", usage="[MODEL]")
def info(writer: OutputWriter, argument: ModelArgument) -> None:
    """Show devices, kernels, memory, caches and versions.

    With MODEL, show also how much memory that model needs; it is not loaded.
    """
    from idefics.generation.environment import describe_environment, estimate_model_memory

    writer.progress.start("Collecting information")
    report: dict[str, Any] = {"idefics": __version__, **describe_environment()}
    if (model := argument.model) is not None:
        try:
            report["model"] = estimate_model_memory(model)
        except ModelNotFound:
            if (row := find_entry(model)) is None:
                raise
            report["model"] = {
                "model": model,
                "folder": None,
                "weights": checkpoint_weight_bytes(row, "bfloat16"),
                "in_all": checkpoint_peak_bytes(row, "bfloat16"),
            }
    writer.progress.stop()
    if writer.as_json:
        writer.write_json_line(report)
    else:
        for name, text in _report_lines(report):
            print(f"{name:<{LABEL_WIDTH}} {text}")


def _report_lines(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields a label and a text for each line about this machine, then about the model if there is one."""
    yield "idefics", f"{report['idefics']}, Python {report['python']}"
    cores, threads = format_count(report["cores"], "core"), format_count(report["threads"], "thread")
    yield "processor", f"{report['processor']}, {cores}, {threads}"
    yield "device", f"{report['device']} (available: {', '.join(report['devices'])})"
    for name, instructions in report["kernels"].items():
        yield "kernel", f"{name}: {instructions or 'missing'}"
    if report["kernels_missing"]:
        yield "kernel", report["kernels_missing"]
    yield "matmul", _describe_matmuls(report["products"])
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


def _describe_matmuls(kernel_choice: Mapping[str, Any]) -> str:
    """The text on which kernels kernels="auto" chooses for the matrix products of a model that is not small."""
    float32_library = "oneDNN" if kernel_choice["onednn"] else "torch"
    int8_arithmetic = "integers" if kernel_choice["integers"] else "float32"
    bfloat16_arithmetic = "bfloat16" if kernel_choice["bfloat16"] else "float32"
    return f"float32 by {float32_library}, bfloat16 weights in {bfloat16_arithmetic}, int8 weights in {int8_arithmetic}"


def _model_lines(model_report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields a label and a text for each line about the model's memory."""
    yield "model", f"{model_report['model']}: {model_report['folder'] or 'not on this machine'}"
    yield "weights", format_bytes(model_report["weights"])
    if model_report["folder"]:
        per_thousand = format_bytes(model_report["token_bytes"] * 1000)
        tokens = f"{model_report['cached_tokens']:,} tokens, {per_thousand} per 1,000"
        yield "kv cache", f"{format_bytes(model_report['kv_cache'])} ({tokens})"
        yield "context", f"{model_report['max_positions']:,} tokens at most"
        yield "pictures", f"{format_bytes(model_report['pictures'])} for the cache of encoded pictures"
        yield "process", f"{format_bytes(model_report['process'])} for Python and torch"
    yield "total", f"about {format_bytes(model_report['in_all'])} on a CPU"
