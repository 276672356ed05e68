"""The program `idefics`: parses the command line, runs the command and turns every error into one line.

Exit codes: 0, success; 1, the answers could not be written, or `idefics check` found something off; 2, something was
refused, such as a picture or a flag; 130, interrupted.
"""

from __future__ import annotations

import io
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Annotated

import typer

from idefics import __version__
from idefics.cli.chat import chat
from idefics.cli.check import check
from idefics.cli.checkpoints import merge, quantize
from idefics.cli.command import ModelLoader, add_command, load
from idefics.cli.demo import demo
from idefics.cli.eval import eval as eval_command
from idefics.cli.generate import generate
from idefics.cli.help_format import CommandGroup
from idefics.cli.info import info, models
from idefics.cli.output import (
    ClosedOutput,
    EscapingStdout,
    OutputWriteError,
    keywords_as_flags,
    one_line,
    print_to_stderr,
    redirect_to_devnull,
)
from idefics.cli.pictures import is_picture_argument
from idefics.cli.read import read
from idefics.cli.run import ledger
from idefics.cli.run import run as run_command
from idefics.cli.serve import serve, ui
from idefics.cli.tasks import make_task_command
from idefics.cli.train import train
from idefics.errors import IdeficsError
from idefics.tasks import TASKS
from idefics.tasks.read import TASK as READ

COMMANDS = (
    *(read if task is READ else make_task_command(task) for task in TASKS.values()),
    chat,
    generate,
    run_command,
    ledger,
    eval_command,
    train,
    serve,
    ui,
    models,
    info,
    quantize,
    merge,
    check,
    demo,
)

OUTPUT_ERROR = 1
INTERRUPTED = 130  # 128 and the number of SIGINT, as shells count

EXAMPLES = (
    "idefics demo                                          every task; no download",
    "idefics caption photo.jpg",
    'idefics ask photo.jpg "What is on the table?"',
    'idefics classify *.jpg --labels "cat,dog,bird"',
    "idefics chat photo.jpg",
    "idefics run photos/ --out captions.csv                 any number of pictures",
    "idefics models                                        names for --model",
    "idefics ask --help                                    every flag of a command",
)

# Flags by which other programs name a file for their output.
OUTPUT_FLAGS_OF_OTHER_TOOLS = ("--out", "-o", "--output", "--out-file", "--output-file")
NO_SUCH_OPTION = re.compile(r"No such option: (\S+)")
NO_SUCH_COMMAND = re.compile(r"No such command '(.+?)'")
# The class of all errors about arguments, which typer exports under no name of its own before 0.28.
USAGE_ERROR: type[typer.BadParameter] = typer.BadParameter.__mro__[1]
EXTRA_ARGUMENTS = re.compile(r"Got unexpected extra arguments?(?:\(s\))? \((.+)\)")
FILE_WITH_DASH = re.compile(r"-[^-=][^=]*\.[A-Za-z0-9]{1,5}")


def run(argv: Sequence[str], loader: ModelLoader = load) -> int:
    """Runs a command line and returns its exit code; never raises for what a person has typed.

    Args:
        argv: the arguments after `idefics`.
        loader: loads the model that the flags name; tests and `idefics demo` pass their own.
    """
    with ExitStack() as stack:
        if sys.stdin is None:  # closed by the shell, as in `idefics ... <&-`; the same for the other two
            sys.stdin = stack.enter_context(Path(os.devnull).open())
        if sys.stderr is None:
            stack.enter_context(redirect_stderr(stack.enter_context(Path(os.devnull).open("w"))))
        if sys.stdout is None:
            stack.enter_context(redirect_stdout(ClosedOutput()))
        elif isinstance(sys.stdout, io.TextIOWrapper):
            stack.enter_context(_escaping_stdout(sys.stdout))
        debug = "--debug" in argv
        stack.enter_context(warnings.catch_warnings())
        if not debug:
            warnings.simplefilter("ignore")  # standard error is for error lines and notes
        else:
            stack.enter_context(_log_to_stderr())
        return _run_to_exit_code(argv, loader, debug=debug)


@contextmanager
def _log_to_stderr() -> Iterator[None]:
    """Writes the package's log to standard error while a command runs."""
    logger, handler = logging.getLogger("idefics"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(relativeCreated)7.0f ms %(name)s: %(message)s"))
    previous_level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(previous_level)


@contextmanager
def _escaping_stdout(stdout: io.TextIOWrapper) -> Iterator[None]:
    """Replaces standard output by an `EscapingStdout` while a command runs."""
    stdout.flush()
    # An unbuffered stream (PYTHONUNBUFFERED) silently drops the rest of a write that a full disk cut short.
    underlying = stdout.buffer
    buffered = io.BufferedWriter(underlying) if isinstance(underlying, io.RawIOBase) else None
    stream = EscapingStdout(
        buffered or underlying, stdout.encoding, "backslashreplace", line_buffering=stdout.line_buffering
    )
    with redirect_stdout(stream):
        yield
    stream.detach()  # closing the wrapper must not close the standard output of the process
    if buffered is not None:
        buffered.detach()


def _run_to_exit_code(argv: Sequence[str], loader: ModelLoader, *, debug: bool) -> int:
    """Runs the command and turns every exception into an exit code and one line on standard error."""
    try:
        exit_code = _invoke_command(argv, loader)
        sys.stdout.flush()
        return exit_code
    except KeyboardInterrupt:
        if sys.stderr.isatty():
            print(file=sys.stderr)  # the shell's prompt begins a line of its own after the ^C
        return INTERRUPTED
    except BrokenPipeError:  # the reader has exited, as `head` does
        _discard_stdout()
        return 0
    except Exception as error:
        if debug:
            traceback.print_exc()
        print_to_stderr(_error_line(error, argv))
        if not isinstance(error, OutputWriteError):
            return 2
        _discard_stdout()
        return OUTPUT_ERROR


def _discard_stdout() -> None:
    """Discards buffered output that could not be written, so that Python does not try again at exit."""
    if isinstance(sys.stdout, EscapingStdout):
        redirect_to_devnull(sys.stdout)


def _invoke_command(argv: Sequence[str], loader: ModelLoader) -> int:
    """Parses the arguments and runs the command; returns its exit code. Errors are raised."""
    if list(argv[:1]) == ["help"]:
        argv = [*argv[1:], "--help"]
    group = _root_command("".join(argv[:1]))
    try:
        with group.make_context("idefics", list(argv), obj=loader) as context:
            exit_code: int = group.invoke(context)
            return exit_code
    except typer.Exit as done:  # --help, --version
        return done.exit_code


@cache
def _root_command(name: str = "") -> CommandGroup:
    """The command-line parser, built once: with the command of this name alone, with all if no command has it."""
    app = typer.Typer(
        cls=CommandGroup,
        add_completion=False,
        add_help_option=False,  # typer's own makes every run a tenth of a second slower
        invoke_without_command=True,
        rich_markup_mode=None,
        help="Questions about pictures, answered on your own machine by open vision-language models.",
        options_metavar="COMMAND ...",
        epilog="\n".join(EXAMPLES),
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def root(
        context: typer.Context,
        version: Annotated[bool, typer.Option("--version", "-V", help="Show the version.")] = False,
        help: Annotated[bool, typer.Option("--help", "-h", help="Show this help.")] = False,
    ) -> int:
        if version:
            print(f"idefics {__version__}")
            raise typer.Exit
        if help or context.invoked_subcommand is None:
            print(context.get_help())
            raise typer.Exit
        return 0

    for command in [one for one in COMMANDS if one.name == name] or COMMANDS:
        add_command(app, command)
    group = typer.main.get_command(app)
    assert isinstance(group, CommandGroup)
    return group


def _error_line(error: Exception, argv: Sequence[str]) -> str:
    """The line that is printed for an exception: the command, what is wrong and what to do."""
    group = _root_command()
    command = f"idefics {argv[0]}" if argv and argv[0] in group.commands else "idefics"
    if isinstance(error, IdeficsError):
        text = keywords_as_flags(str(error))
    elif isinstance(error, USAGE_ERROR):
        text = f"{_usage_error_text(error, argv, group)} (see {command} --help)"
    elif isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's
        text = "not enough memory on this machine: `idefics models` lists what each model needs"
    else:
        text = f"{type(error).__name__}: {error} (unexpected error; run again with --debug for details)"
    return one_line(f"{command}: {text}")


def _usage_error_text(error: typer.BadParameter, argv: Sequence[str], group: CommandGroup) -> str:
    """What is wrong with the arguments of a command line, and what was probably meant."""
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
