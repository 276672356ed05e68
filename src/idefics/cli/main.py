"""The command `idefics`: finds the command that was typed, runs it, and turns every mistake into one line.

Exit codes: 0, everything asked was answered; 2, something was refused; 130, interrupted.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from idefics import __version__
from idefics.cli import chat, demo, generate, look, models, quantize, serve, tasks, ui
from idefics.cli.loading import Loader, load
from idefics.cli.output import one_line
from idefics.errors import IdeficsError

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
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # no name and no answer is unprintable
    debug = "--debug" in argv
    with warnings.catch_warnings():
        if not debug:
            warnings.simplefilter("ignore")  # standard error is for lines to the caller
        try:
            return _run(argv, loader)
        except KeyboardInterrupt:
            if sys.stderr.isatty():
                print(file=sys.stderr)  # the shell's prompt does not stand behind the ^C
            return INTERRUPTED
        except BrokenPipeError:
            # The reader has enough. Python would complain once more, when it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except Exception as error:
            if debug:
                traceback.print_exc()
            print(_line(error, argv), file=sys.stderr)
            return 2


def _run(argv: Sequence[str], loader: Loader) -> int:
    command = typer.main.get_command(_app())
    try:
        with command.make_context("idefics", list(argv), obj=loader) as context:
            code: int = command.invoke(context)
            return code
    except typer.Exit as done:  # --help, --version
        return done.exit_code


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
        version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
        help: Annotated[bool, typer.Option("--help", "-h", help="Show this.")] = False,
    ) -> int:
        if version:
            print(f"idefics {__version__}")
            raise typer.Exit
        if help or context.invoked_subcommand is None:
            print(context.get_help())
            raise typer.Exit
        return 0

    for part in (tasks, chat, generate, serve, ui, models, quantize, demo):
        part.register(app)
    return app


def _line(error: Exception, argv: Sequence[str]) -> str:
    """An error as one line that begins with the command and names the way out."""
    names = [command.name for command in _app().registered_commands]
    called = f"idefics {argv[0]}" if argv and argv[0] in names else "idefics"
    if isinstance(error, IdeficsError):
        text = str(error)
    elif isinstance(error, typer.TyperException):
        usage = one_line(error.format_message()).rstrip(".")
        text = f"{usage[:1].lower()}{usage[1:]} (see {called} --help)"
    elif isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's
        text = "the memory of this machine is too small for that: `idefics models` says what each model needs"
    else:
        text = f"{type(error).__name__}: {error} (not foreseen: --debug shows where)"
    return one_line(f"{called}: {text}")
