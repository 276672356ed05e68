"""Formats an exception as one line: the command, what is wrong and what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import typer

from idefics.cli.help_format import CommandGroup
from idefics.cli.keyword_flags import keywords_as_flags
from idefics.cli.output import one_line
from idefics.cli.pictures import is_picture_argument
from idefics.errors import IdeficsError

# Flags by which other programs name a file for their output.
OUTPUT_FLAGS_OF_OTHER_TOOLS = ("--out", "-o", "--output", "--out-file", "--output-file")
NO_SUCH_OPTION = re.compile(r"No such option: (\S+)")
NO_SUCH_COMMAND = re.compile(r"No such command '(.+?)'")
EXTRA_ARGUMENTS = re.compile(r"Got unexpected extra arguments?(?:\(s\))? \((.+)\)")
FILE_WITH_DASH = re.compile(r"-[^-=][^=]*\.[A-Za-z0-9]{1,5}")


def error_line(error: Exception, argv: Sequence[str], group: CommandGroup) -> str:
    """The line that is printed for an exception.

    Args:
        error: the exception.
        argv: the arguments after `idefics`.
        group: all commands.
    """
    command = f"idefics {argv[0]}" if argv and argv[0] in group.commands else "idefics"
    if isinstance(error, IdeficsError):
        text = keywords_as_flags(str(error))
    elif isinstance(error, typer.TyperException):
        text = f"{_usage_error_text(error, argv, group)} (see {command} --help)"
    elif isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's
        text = "not enough memory on this machine: `idefics models` lists what each model needs"
    else:
        text = f"{type(error).__name__}: {error} (unexpected error; run again with --debug for details)"
    return one_line(f"{command}: {text}")


def _usage_error_text(error: typer.TyperException, argv: Sequence[str], group: CommandGroup) -> str:
    """What is wrong with the arguments, and what was probably meant."""
    text = one_line(error.format_message()).rstrip(".")
    if unknown_command := NO_SUCH_COMMAND.match(text):
        name = unknown_command[1]
        if " " in name or is_picture_argument(name):
            return f"{name!r} is not a command: name one first, such as caption or ask"
        return f"no such command {name!r}{_did_you_mean(name, group.commands)}"
    if extra_arguments := EXTRA_ARGUMENTS.match(text):
        return f"unexpected argument: {extra_arguments[1]}"
    unknown_option = NO_SUCH_OPTION.match(text)
    if unknown_option is None:
        return f"{text[:1].lower()}{text[1:]}"
    command = group.commands.get(argv[0], group)
    flags = [flag for param in command.params for flag in param.opts if flag.startswith("--")]
    return f"no such option: {unknown_option[1]}{_suggest_option(unknown_option[1], argv, flags)}"


def _suggest_option(option: str, argv: Sequence[str], flags: Sequence[str]) -> str:
    """What was probably meant by an unknown option, as the end of a sentence; "" where nothing comes close."""
    for argument in argv:
        if FILE_WITH_DASH.fullmatch(argument) or (
            len(argument) > 1 and argument[0] == "-" and Path(argument).exists()
        ):
            return f"; for a file, write ./{argument}"
    if option in OUTPUT_FLAGS_OF_OTHER_TOOLS:
        return "; to save answers, write > answers.txt after the command"
    return _did_you_mean(option, flags)


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    """The known name that is nearest to an unknown one, as the end of a sentence; "" where none comes close."""
    from difflib import get_close_matches

    close_names = get_close_matches(name, known, n=1, cutoff=0.7)
    return f"; did you mean {close_names[0]}?" if close_names else ""
