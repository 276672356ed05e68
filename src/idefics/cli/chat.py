"""`idefics chat`: a conversation about pictures, with a person or line by line down a pipe."""

from __future__ import annotations

import importlib
import io
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from idefics.cli import help_format
from idefics.cli.flags import ModelFlags, OutputFlags, PositionalArguments, PromptFlag, RecursiveFlag
from idefics.cli.output import OutputWriter
from idefics.cli.pictures import STDIN, find_pictures, open_named_picture, split_words
from idefics.cli.sampling import SamplingFlags
from idefics.cli.text_files import escaped_bytes, is_valid_utf8
from idefics.errors import BadPicture, BadRequest, BadSetting, PromptTooLong
from idefics.messages import LiteralText, Message, PictureOrVideo, assistant, user

if TYPE_CHECKING:
    from idefics import Idefics
    from idefics.generation import Options, Stream
    from idefics.processing.fetch import Fetcher

HELP = """
Talk about pictures, over many turns.

Pictures are given at the start or, at any turn, with /image; the words that come next are about them.
The first question may be given last, in quotes, or by --prompt. Ctrl-C stops an answer, Ctrl-D leaves.
Where standard input is no terminal, each of its lines is a turn, and answers are printed plainly.
"""
EXAMPLES = (
    "idefics chat photo.jpg",
    'idefics chat photo.jpg "What is on the table?"',
    "idefics chat photo.jpg --json < questions.txt",
)
CHAT_HELP = """\
/image PATH   show a picture; the next words are about it. A folder, pattern or address will do
/new          forget everything that was said and shown
/help         this
/quit         leave; so does Ctrl-D"""
INPUT_PROMPT = "> "


def register(app: typer.Typer) -> None:
    """Adds the command."""
    help_format.add_command(app, "chat", _chat, help=HELP, usage="[PICTURE...] [QUESTION]", examples=EXAMPLES)


def _chat(
    context: typer.Context,
    arguments: PositionalArguments,
    prompt: PromptFlag = None,
    recursive: RecursiveFlag = False,
    *,
    model: ModelFlags,
    sampling: SamplingFlags,
    output: OutputFlags,
) -> int:
    from idefics.processing.fetch import Fetcher

    if str(sampling.schema) == STDIN:
        raise BadSetting("--schema - cannot be used here: the lines of standard input are the turns")
    options = sampling.options(as_json=output.json)
    names, words = split_words(arguments, prompt, "question")
    with OutputWriter(context.command_path, as_json=output.json) as writer:
        pending_pictures = PendingPictures(writer, Fetcher(policy=model.remote_images), recursive=recursive)
        pending_pictures.add(names)
        if writer.exit_code:  # the pictures that are there may not be those that it is about
            return writer.exit_code
        is_interactive = writer.is_interactive and sys.stdin.isatty()
        session = ChatSession(
            context.obj(model, writer), writer, pending_pictures, options, is_interactive=is_interactive
        )
        if is_interactive:
            print("Ask away. /help says what else you can do here, Ctrl-D leaves.")
        for line in _read_turns(words, is_interactive=is_interactive):
            if not session.handle_line(line.strip()):
                break
        return 0 if is_interactive else writer.exit_code


class PendingPictures:
    """Pictures that have been shown and not yet talked about."""

    def __init__(self, writer: OutputWriter, fetcher: Fetcher, *, recursive: bool) -> None:
        self.writer, self.fetcher, self.recursive = writer, fetcher, recursive
        self.pictures: list[PictureOrVideo] = []

    def add(self, names: Sequence[str]) -> None:
        """Opens pictures; what is none is refused."""
        if STDIN in names:
            raise BadPicture("- cannot be a picture here: the lines of standard input are the turns")
        for named in find_pictures(
            names, self.writer.report_error, self.writer.print_note, recursive=self.recursive
        ):
            try:
                self.pictures.append(open_named_picture(named, self.fetcher).picture)
            except BadPicture as error:
                self.writer.report_error(str(error))


class ChatSession:
    """One conversation, turn by turn."""

    def __init__(
        self,
        vlm: Idefics,
        writer: OutputWriter,
        pending_pictures: PendingPictures,
        options: Options,
        *,
        is_interactive: bool,
    ) -> None:
        self.vlm, self.writer, self.pending_pictures, self.options = vlm, writer, pending_pictures, options
        self.is_interactive = is_interactive
        self.messages: list[Message] = []

    def handle_line(self, line: str) -> bool:
        """Does what one line asks for; False where it asks to leave."""
        if not is_valid_utf8(line):
            self.writer.report_error(f"{escaped_bytes(line)} is not text in UTF-8: write it again")
            return True
        command, _, rest = line.partition(" ")
        match command:
            case "":
                pass
            case "/quit":
                return False
            case "/help":
                print(CHAT_HELP, file=sys.stdout if self.is_interactive else sys.stderr)
            case "/new":
                self.messages, self.pending_pictures.pictures = [], []
            case "/image" if rest:
                self._add_pictures(rest)
            case "/image":
                self.writer.report_error("/image needs the name of a picture, as in /image photo.jpg")
            case _ if command.startswith("/"):
                self.writer.report_error(
                    f"no such command {command}: there are /image, /new, /help and /quit"
                )
            case _:
                self._send_turn(line)
        return True

    def _add_pictures(self, argument: str) -> None:
        num_before = len(self.pending_pictures.pictures)
        try:
            self.pending_pictures.add(_split_picture_names(argument))
        except BadRequest as error:
            self.writer.report_error(str(error))
        if self.is_interactive and (num_added := len(self.pending_pictures.pictures) - num_before):
            print(f"{num_added} picture{'' if num_added == 1 else 's'}. Your next words are about that.")

    def _send_turn(self, words: str) -> None:
        """A turn and its answer. One that cannot be answered leaves the conversation as it was."""
        messages = [*self.messages, user(*self.pending_pictures.pictures, LiteralText(words))]
        try:
            answer_text = (
                self._stream_answer(messages) if self.is_interactive else self._print_answer(messages)
            )
        except PromptTooLong as error:
            self.writer.report_error(f"{error}; /new begins again")
        except BadRequest as error:
            self.writer.report_error(str(error))
        else:
            if answer_text:
                self.messages, self.pending_pictures.pictures = [*messages, assistant(answer_text)], []

    def _print_answer(self, messages: list[Message]) -> str:
        answer = self.vlm.chat(messages, **self.options)
        self.writer.write_answer(answer, model=self.vlm)
        return answer.text

    def _stream_answer(self, messages: list[Message]) -> str:
        """What was said until it ended, or until Ctrl-C ended it."""
        stream: Stream | None = None
        try:
            self.writer.progress.start_spinner("Thinking")
            stream = self.vlm.chat(messages, stream=True, **self.options)
            self.writer.write_stream(stream)
        except KeyboardInterrupt:
            self.writer.progress.stop()
            if stream is None:
                return ""
            stream.close()
        return stream.answer.text


def _split_picture_names(argument: str) -> list[str]:
    """What follows /image: one name, spaces and all, or several as a shell would take them."""
    if Path(argument).exists():
        return [argument]
    try:
        return shlex.split(argument)
    except ValueError:  # a lone apostrophe
        return [argument]


def _read_turns(first: str | None, *, is_interactive: bool) -> Iterator[str]:
    """The turns: the first words, if any, then what is typed or comes down the pipe."""
    if first is not None:
        if is_interactive:
            print(f"{INPUT_PROMPT}{first}")
        yield first
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # a line that is not UTF-8 must not end the chat
    if not is_interactive:
        yield from sys.stdin
        return
    with suppress(ImportError):
        importlib.import_module("readline")  # arrows and history for `input`; not on every system
    while True:
        try:
            yield input(INPUT_PROMPT)
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n(Ctrl-D or /quit leaves)")
