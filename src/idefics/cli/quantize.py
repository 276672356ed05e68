"""`idefics quantize`: writes a checkpoint in eight or four bits into a folder, which loads like any other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from idefics.catalog import DEFAULT
from idefics.cli import look
from idefics.cli.flags import OutputFlags, one_of
from idefics.cli.loading import download
from idefics.cli.output import Screen

if TYPE_CHECKING:
    from idefics.pipeline.quantising import LayerError, Written

HELP = """
Write a model in fewer bits into a folder, which --model then takes.

int8 keeps a scale for each output of a layer; int4 one for each 32 weights of the decoder, and eight bits for vision
tower and head. Tables of tokens and the bridge between vision and text stay as they are.
"""
EXAMPLES = (
    f"idefics quantize {DEFAULT} --to int8 --out small",
    'idefics ask photo.jpg --model ./small "What is on the table?"',
    f"idefics quantize {DEFAULT} --to int4 --out smaller --check",
)
MOST_LAYERS = 20  # errors that a person is shown; --json has all

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Short name, folder or hub id.")]
To = Annotated[
    str, typer.Option("--to", metavar="BITS", parser=one_of("--to", ("int8", "int4")), help="int8 or int4.")
]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="A new folder, or an empty one.")]
Check = Annotated[bool, typer.Option("--check", help="Show how far each layer is off, the worst first.")]
Revision = Annotated[
    str | None, typer.Option("--revision", metavar="NAME", help="Branch, tag or commit on the hub.")
]
Offline = Annotated[bool, typer.Option("--offline", help="Never download a model.")]


def register(app: typer.Typer) -> None:
    """Adds the command."""
    look.add(app, "quantize", _quantize, help=HELP, usage="MODEL", examples=EXAMPLES)


def _quantize(
    context: typer.Context,
    *,
    model: Model,
    to: To,
    out: Out,
    check: Check = False,
    revision: Revision = None,
    offline: Offline = False,
    output: OutputFlags,
) -> int:
    from idefics.config import QuantizationConfig
    from idefics.pipeline.quantising import errors, quantise

    with Screen(context.command_path, as_json=output.json) as screen:
        screen.waiting.spin(f"Quantising {model}")
        written = quantise(
            model,
            QuantizationConfig(kind=to),  # type: ignore[arg-type]  # one of the words
            out,
            revision=revision,
            offline=offline or None,  # None leaves it to the environment
            progress=download(model, screen),
        )
        found = errors(model, out, revision=revision, offline=offline or None) if check else []
        screen.waiting.end()
        if screen.as_json:
            screen.row(_object(written, found))
        else:
            _show(written, found)
        return screen.code


def _show(written: Written, found: list[LayerError]) -> None:
    layers = " and ".join(f"{count} in {bits} bits" for bits, count in sorted(written.layers.items()))
    group = f"a scale for {written.group} weights" if written.group else "a scale for each output"
    print(f"{written.folder} {'is written' if written.new else 'is there already'}")
    print(f"layers   {layers}, {group}")
    print(f"skipped  {', '.join(written.skipped) or 'none'}; tables of tokens, norms")
    share = written.after / written.before
    print(f"bytes    {written.before:,} before, {written.after:,} after ({share:.0%})")
    if found:
        print("\nerror of weights, of outputs (root mean square, relative), the worst first")
    for row in found[:MOST_LAYERS]:
        outputs = "   –   " if row.outputs is None else f"{row.outputs:7.2%}"
        print(f"{row.weights:7.2%}  {outputs}  {row.name}")
    if len(found) > MOST_LAYERS:
        print(f"and {len(found) - MOST_LAYERS} more, which are nearer")


def _object(written: Written, found: list[LayerError]) -> dict[str, Any]:
    return {
        "folder": str(written.folder),
        "new": written.new,
        "group": written.group,
        "layers": dict(written.layers),
        "skipped": list(written.skipped),
        "bytes": {"before": written.before, "after": written.after},
        "errors": [{"layer": row.name, "weights": row.weights, "outputs": row.outputs} for row in found],
    }
