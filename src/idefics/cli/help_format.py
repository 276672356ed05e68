"""How commands are declared and how their help looks: plain, short, aligned, with examples first.

Knows typer; does not know what any command does.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

OUTPUT_SECTION = "Output"  # the last section of flags
MAX_FLAG_WIDTH = 30  # characters, beside which its help stands

CommandFunction = Callable[..., int]  # a command: its arguments in, its exit code out


class _PlainHelpMixin:
    """Usage, what it does, examples (the lines of the epilog), then what else there is to choose.

    `self` and formatters are `Any`: this is mixed into typer's classes, which do not publish the formatter's.
    """

    def format_help(self: Any, ctx: Any, formatter: Any) -> None:
        self.format_usage(ctx, formatter)
        self.format_help_text(ctx, formatter)
        self.format_epilog(ctx, formatter)
        self.format_options(ctx, formatter)

    def format_epilog(self: Any, ctx: Any, formatter: Any) -> None:
        with formatter.section("Examples"):
            for line in self.epilog.splitlines():
                formatter.write(f"  {line}\n")

    def collect_usage_pieces(self: Any, ctx: Any) -> list[str]:
        return [self.options_metavar]


class Command(_PlainHelpMixin, TyperCommand):
    """One command. Its flags stand under the headings that they name as their panel."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Writes the flags, section by section."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and param.param_type_name == "option":
                panel: str = param.rich_help_panel or OUTPUT_SECTION  # type: ignore[attr-defined]  # typer's own --help
                flag = re.sub(r"--(\S+) / --no-\1", r"--[no-]\1", record[0])  # a pair of flags as one
                sections.setdefault(panel, []).append((flag, record[1]))
        # A longer flag has its line to itself.
        width = max(min(len(flag), MAX_FLAG_WIDTH) for records in sections.values() for flag, _ in records)
        for name, records in sections.items():
            with formatter.section(name):
                formatter.write_dl([(flag.ljust(width), help) for flag, help in records], col_max=width)


class CommandGroup(_PlainHelpMixin, TyperGroup):
    """All commands."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Writes the commands and what they do, then the two flags."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.commands[name].short_help) for name in self.list_commands(ctx)])
        with formatter.section("Flags"):
            formatter.write_dl([param.get_help_record(ctx) for param in self.get_params(ctx)])


def add_command(
    app: typer.Typer,
    name: str,
    run: CommandFunction,
    *,
    help: str,
    usage: str = "",
    examples: tuple[str, ...],
) -> None:
    """Adds a command. A parameter of `run` whose type is a dataclass stands for all fields of it as flags."""
    app.command(
        name,
        cls=Command,
        help=help,
        short_help=help.strip().partition("\n\n")[0],
        epilog="\n".join(examples),
        options_metavar=f"{usage} [FLAGS]".strip(),
    )(_expand_flag_groups(run))


def _expand_flag_groups(run: CommandFunction) -> CommandFunction:
    """`run` with each dataclass among its parameters replaced by the dataclass's fields."""
    group_class_by_name: dict[str, type] = {}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(run, eval_str=True).parameters.items():
        if not is_dataclass(parameter.annotation):
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        group_class_by_name[name] = parameter.annotation  # type: ignore[assignment]  # the class, not an instance
        hints = get_type_hints(parameter.annotation, include_extras=True)
        parameters += [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=hints[field.name],
            )
            for field in fields(parameter.annotation)
        ]

    def command(**values: Any) -> int:
        built = {
            name: group(**{field.name: values.pop(field.name) for field in fields(group)})
            for name, group in group_class_by_name.items()
        }
        return run(**values, **built)

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command
