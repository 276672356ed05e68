"""Commands: a function whose flags are the fields of dataclasses becomes a command of typer, and loads its model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import Field, asdict, dataclass, fields, is_dataclass
from inspect import Signature, cleandoc, signature
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from idefics.cli.flags import DebugFlags, JSONFlags, ModelFlags, value_parser
from idefics.cli.help_format import HelpCommand
from idefics.cli.output import OutputWriter
from idefics.cli.process import paused_garbage_collection

if TYPE_CHECKING:
    from idefics import Idefics
    from idefics.weights import ProgressCallback

ModelLoader = Callable[[ModelFlags, OutputWriter], "Idefics"]
LoadModel = Callable[[ModelFlags], "Idefics"]  # a `ModelLoader` that has its writer

# The placeholder for a flag's value in the help, where the flag names none.
METAVAR_BY_TYPE: dict[Any, str] = {
    int: "N",
    float: "SECONDS",
    str: "TEXT",
    list[str]: "TEXT",
    Path: "FILE",
}


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command of `idefics`.

    Attributes:
        name: as it is typed.
        run: called with an `OutputWriter`. Each further parameter without a default whose type is a dataclass is given
            one of these, made of the flags that are its fields. A parameter `load_model` is given a function that
            loads the model of some `ModelFlags`.
        help: its first paragraph is the summary in the list of commands.
        usage: the positional arguments, as the usage line shows them.
        examples: command lines.
        has_json: whether the command has the flag `--json`.
    """

    name: str
    run: Callable[..., None]
    help: str
    usage: str = ""
    examples: tuple[str, ...]
    has_json: bool = True


def command(*examples: str, **options: Any) -> Callable[[Callable[..., None]], Command]:
    """Decorator: makes a command of a function. Its name is the function's, its help is the docstring.

    Args:
        *examples, **options: the other attributes of `Command`.
    """
    return lambda run: Command(
        name=run.__name__, run=run, help=cleandoc(run.__doc__ or ""), examples=examples, **options
    )


def add_command(app: typer.Typer, command: Command) -> None:
    """Adds a command, with the flags of its flag groups, to the application; the command returns its exit code."""
    parameters = signature(command.run, eval_str=True).parameters
    groups: dict[str, Any] = {
        name: one.annotation
        for name, one in parameters.items()
        if one.default is one.empty and is_dataclass(one.annotation)
    }

    def run(context: typer.Context, **values: Any) -> int:
        arguments: dict[str, Any] = {
            name: group(**{one.name: values[one.name] for one in fields(group)})
            for name, group in groups.items()
        }
        with OutputWriter(context.command_path, as_json=values.get("json", False)) as writer:
            if "load_model" in parameters:
                arguments["load_model"] = lambda model_flags: context.obj(model_flags, writer)
            command.run(writer, **arguments)
            return writer.exit_code

    flags = [signature(run, eval_str=True).parameters["context"]]
    for group in (*groups.values(), *((JSONFlags, DebugFlags) if command.has_json else (DebugFlags,))):
        hints, parameter_by_name = get_type_hints(group, include_extras=True), signature(group).parameters
        flags += [
            parameter_by_name[one.name].replace(annotation=_typer_annotation(one, hints[one.name]))
            for one in fields(group)
        ]
    run.__signature__ = Signature(flags)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in flags}
    app.command(
        command.name,
        cls=HelpCommand,
        help=command.help,
        short_help=command.help.partition("\n\n")[0],
        epilog="\n".join(command.examples),
        options_metavar=f"{command.usage} [FLAGS]".strip(),
    )(run)


def _typer_annotation(field: Field[Any], hint: Any) -> Any:
    """The annotation that typer reads for a field: a `typer.Option` if `flags.flag` made it, else its own type."""
    if not field.metadata:
        return hint
    (value_type,) = {*(get_args(hint) if NoneType in get_args(hint) else (hint,))} - {NoneType}
    name = "--" + field.name.replace("_", "-")
    option = {
        "names": name,
        "parser": _default_parser(name, value_type),
        "metavar": METAVAR_BY_TYPE.get(value_type),
        **field.metadata,
    }
    return Annotated[hint, typer.Option(option.pop("names"), show_default=False, show_envvar=False, **option)]


def _default_parser(flag: str, value_type: Any) -> Callable[[str], Any] | None:
    """The parser for a flag that has none of its own, by the type of its values; None: typer's own."""
    if value_type in (int, float):
        return value_parser(flag, value_type, "a whole number" if value_type is int else "a number")
    if get_origin(value_type) is not Literal:
        return None
    *first, last = words = get_args(value_type)
    expected = f"{', '.join(first)} or {last}" if first else last
    return value_parser(flag, lambda text: words[words.index(text)], expected)


def load(flags: ModelFlags, writer: OutputWriter) -> Idefics:
    """Loads the model that the flags name. If it is not on this machine, announces the download and shows progress."""
    import idefics

    writer.progress.start(f"Loading {flags.model}")
    with paused_garbage_collection():  # most of the time is the import of torch
        vlm = idefics.load(**asdict(flags), progress=download_progress_callback(flags.model, writer))
    writer.progress.stop()
    return vlm


def download_progress_callback(model: str, writer: OutputWriter) -> ProgressCallback:
    """A callback `(bytes done, bytes total)` that announces a download and shows its progress."""

    def report(done: int, total: int) -> None:
        if done:
            writer.progress.set_completed(done)
            return
        writer.progress.stop()
        writer.print_status(f"{model} is not on this machine yet: downloading {total / 1e9:.1f} GB, once")
        writer.progress.start(model, total, in_bytes=True)

    return report
