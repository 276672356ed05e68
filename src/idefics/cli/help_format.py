"""Formats the help: usage, description, examples, then the flags by section, or the commands."""

from __future__ import annotations

import re
from typing import Any

from typer.core import TyperCommand, TyperGroup

from idefics.cli.flags import OUTPUT_SECTION

MAX_FLAG_WIDTH = 30  # characters of the column of flags; a longer flag has a line of its own


class _PlainHelpMixin:
    """Prints help in this order: usage, description, examples (the epilog's lines), flags or commands.

    `self` and formatters are `Any`: typer's classes, into which this is mixed, do not export the formatter's type.
    """

    def format_help(self: Any, ctx: Any, formatter: Any) -> None:
        """Writes usage, description, examples and flags, in this order."""
        self.format_usage(ctx, formatter)
        self.format_help_text(ctx, formatter)
        self.format_epilog(ctx, formatter)
        self.format_options(ctx, formatter)

    def format_epilog(self: Any, ctx: Any, formatter: Any) -> None:
        """Writes the section of examples."""
        with formatter.section("Examples"):
            for line in self.epilog.splitlines():
                formatter.write(f"  {line}\n")

    def collect_usage_pieces(self: Any, ctx: Any) -> list[str]:
        """The arguments in the usage line, after the command's name."""
        return [self.options_metavar]


class HelpCommand(_PlainHelpMixin, TyperCommand):
    """One command, whose help lists its flags by section (typer's `rich_help_panel`)."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Writes each section: a heading and its flags in two aligned columns."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and param.param_type_name == "option":
                panel: str = param.rich_help_panel or OUTPUT_SECTION  # type: ignore[attr-defined]  # typer's own --help
                flag = re.sub(r"--(\S+) / --no-\1", r"--[no-]\1", record[0])  # "--x / --no-x" -> "--[no-]x"
                sections.setdefault(panel, []).append((flag, record[1]))
        width = max(min(len(flag), MAX_FLAG_WIDTH) for records in sections.values() for flag, _ in records)
        for name, records in sections.items():
            with formatter.section(name):
                formatter.write_dl([(flag.ljust(width), help) for flag, help in records], col_max=width)


class CommandGroup(_PlainHelpMixin, TyperGroup):
    """The program itself: its help lists the commands."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Writes the commands with their summaries, then the flags of the program itself."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.commands[name].short_help) for name in self.list_commands(ctx)])
        with formatter.section("Flags"):
            formatter.write_dl([param.get_help_record(ctx) for param in self.get_params(ctx)])
