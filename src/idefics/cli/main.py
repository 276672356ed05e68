"""The command `idefics`: finds the command that was typed, runs it, and turns every mistake into one line.

Exit codes: 0, everything asked was answered; 1, the answers could not be written; 2, something was refused; 130,
interrupted.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from idefics import __version__
from idefics.cli import chat, demo, generate, info, look, models, quantize, serve, tasks, ui
from idefics.cli.error_line import error_line
from idefics.cli.loading import Loader, load
from idefics.cli.look import Group
from idefics.cli.output import AnswerStream, ClosedOutput, OutputLost, discard, print_line

OUTPUT_LOST = 1
INTERRUPTED = 130  # 128 and the number of SIGINT, as shells count

EXAMPLES = (
    "idefics demo                                          every task, with no download",
    "idefics caption photo.jpg",
    'idefics ask photo.jpg "What is on the table?"',
    'idefics classify *.jpg --labels "cat,dog,bird"',
    "idefics chat photo.jpg",
    "idefics models                                        what to give as --model",
    "idefics ask --help                                    every flag of a command",
)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs the arguments given, or those of the process, and exits."""
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: Sequence[str], loader: Loader = load) -> int:
    """Runs a command line; its exit code. `loader` brings the model that it asks for."""
    with ExitStack() as stack:
        if sys.stdin is None:  # closed, as in `idefics ... <&-`; so are the others
            sys.stdin = stack.enter_context(Path(os.devnull).open())
        if sys.stderr is None:
            stack.enter_context(redirect_stderr(stack.enter_context(Path(os.devnull).open("w"))))
        if sys.stdout is None:
            stack.enter_context(redirect_stdout(ClosedOutput()))
        elif isinstance(sys.stdout, io.TextIOWrapper):
            stack.enter_context(_answer_stream(sys.stdout))
        debug = "--debug" in argv
        stack.enter_context(warnings.catch_warnings())
        if not debug:
            warnings.simplefilter("ignore")  # standard error is for lines to the caller
        else:
            stack.enter_context(_log_shown())
        return _guarded(argv, loader, debug=debug)


@contextmanager
def _log_shown() -> Iterator[None]:
    """What the package logs, on standard error, while a command runs."""
    logger, handler = logging.getLogger("idefics"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(relativeCreated)7.0f ms %(name)s: %(message)s"))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


@contextmanager
def _answer_stream(stdout: io.TextIOWrapper) -> Iterator[None]:
    """Standard output as an `AnswerStream`, while a command runs."""
    stdout.flush()
    # Of a write that a full disk cuts short, an unbuffered stream (PYTHONUNBUFFERED) loses the rest in silence.
    under = stdout.buffer
    added = io.BufferedWriter(under) if isinstance(under, io.RawIOBase) else None
    stream = AnswerStream(
        added or under, stdout.encoding, "backslashreplace", line_buffering=stdout.line_buffering
    )
    with redirect_stdout(stream):
        yield
    stream.detach()  # what the process owns must not be closed with what was put around it
    if added is not None:
        added.detach()


def _guarded(argv: Sequence[str], loader: Loader, *, debug: bool) -> int:
    """The exit code of a command line, whatever happens to it."""
    try:
        code = _run(argv, loader)
        sys.stdout.flush()
    except KeyboardInterrupt:
        if sys.stderr.isatty():
            print(file=sys.stderr)  # the shell's prompt does not stand behind the ^C
        code = INTERRUPTED
    except BrokenPipeError:  # the reader has enough
        _discard_output()
        code = 0
    except Exception as error:
        if debug:
            traceback.print_exc()
        print_line(error_line(error, argv, _group()))
        code = 2
        if isinstance(error, OutputLost):
            _discard_output()
            code = OUTPUT_LOST
    return code


def _discard_output() -> None:
    """What standard output could not write goes nowhere."""
    if isinstance(sys.stdout, AnswerStream):
        discard(sys.stdout)


def _run(argv: Sequence[str], loader: Loader) -> int:
    if list(argv[:1]) == ["help"]:
        argv = [*argv[1:], "--help"]
    try:
        with _group().make_context("idefics", list(argv), obj=loader) as context:
            code: int = _group().invoke(context)
            return code
    except typer.Exit as done:  # --help, --version
        return done.exit_code


@cache
def _group() -> Group:
    """All commands."""
    group = typer.main.get_command(_app())
    assert isinstance(group, Group)
    return group


def _app() -> typer.Typer:
    app = typer.Typer(
        cls=look.Group,
        add_completion=False,
        add_help_option=False,  # typer's own costs a tenth of a second wherever it is not given
        invoke_without_command=True,
        rich_markup_mode=None,
        help="Questions about pictures, answered on your own machine by open vision-language models.",
        options_metavar="COMMAND ...",
        epilog="\n".join(EXAMPLES),
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def start(
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

    for part in (tasks, chat, generate, serve, ui, models, info, quantize, demo):
        part.register(app)
    return app
