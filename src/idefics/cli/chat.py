"""`idefics chat`: a conversation about pictures, on a terminal or with the lines of standard input as turns."""

from __future__ import annotations

import importlib
import io
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from idefics.cli.command import LoadModel, command
from idefics.cli.flags import STDIN, ModelFlags, PictureFlags, PromptFlags, escaped_bytes, is_valid_utf8
from idefics.cli.output import OutputWriter
from idefics.cli.pictures import fetch_readable_pictures, find_pictures, split_prompt
from idefics.cli.sampling import SamplingFlags
from idefics.errors import BadPicture, BadRequest, BadSetting, PromptTooLong
from idefics.messages import LiteralText, Message, PictureOrVideo, assistant, user

if TYPE_CHECKING:
    from idefics import Idefics, Options, Stream
    from idefics.processing.fetch import Fetcher

CHAT_HELP = """\
/image PATH   add a picture, folder, pattern or address; the next question is about it
/new          begin a new conversation
/help         list these commands
/quit         end the chat, as Ctrl-D does"""
INPUT_PROMPT = "> "


@command(
    "idefics chat photo.jpg",
    'idefics chat photo.jpg "What is on the table?"',
    "idefics chat photo.jpg --json < questions.txt",
    usage="[PICTURE...] [QUESTION]",
)
def chat(
    writer: OutputWriter,
    load_model: LoadModel,
    prompt: PromptFlags,
    pictures: PictureFlags,
    model: ModelFlags,
    sampling: SamplingFlags,
) -> None:
    """Talk about pictures, over many turns.

    Pictures are given as arguments or, before any turn, with /image; the next question is about them.
    The first question may be given last, in quotes, or with --prompt. Ctrl-C stops an answer, Ctrl-D ends the chat.
    Where standard input is not a terminal, each of its lines is a turn, and answers are printed one per line.
    """
    from idefics.processing.fetch import Fetcher

    if str(sampling.schema) == STDIN:
        raise BadSetting("--schema - cannot be used here: the lines of standard input are the turns")
    options = sampling.options(as_json=writer.as_json)
    names, words = split_prompt(pictures.arguments, prompt.prompt, "question")
    open_pictures = partial(
        _open_pictures,
        writer=writer,
        fetcher=Fetcher(policy=model.remote_images),
        recursive=pictures.recursive,
    )
    first_pictures = open_pictures(names)
    if writer.exit_code:  # the question may be about the picture that could not be read
        return
    is_interactive = writer.is_interactive and sys.stdin.isatty()
    session = ChatSession(
        vlm=load_model(model),
        writer=writer,
        open_pictures=open_pictures,
        pending_pictures=first_pictures,
        options=options,
        is_interactive=is_interactive,
    )
    if is_interactive:
        print("Type a question. /help lists the commands, Ctrl-D ends the chat.")
    for line in _read_turns(words, is_interactive=is_interactive):
        if not session.handle_line(line.strip()):
            break
    if is_interactive:
        writer.exit_code = 0


def _open_pictures(
    names: Sequence[str], *, writer: OutputWriter, fetcher: Fetcher, recursive: bool
) -> list[PictureOrVideo]:
    """Opens pictures by name: returns those that can be read, and reports an error for each other one."""
    if STDIN in names:
        raise BadPicture("- cannot be a picture here: the lines of standard input are the turns")
    found = find_pictures(names, writer, recursive=recursive)
    return [named.picture for named in fetch_readable_pictures(found, fetcher, writer)]


@dataclass(kw_only=True)
class ChatSession:
    """A conversation: handles each line as a command or a turn, and keeps the messages.

    Attributes:
        vlm: the model.
        writer: writes answers and errors.
        open_pictures: opens pictures by name, for `/image`.
        pending_pictures: the pictures for the next turn: those that were added since the last one.
        options: the keywords of each call of `vlm.chat`.
        is_interactive: whether input and output are a terminal: answers are streamed, commands confirmed.
        messages: the turns so far.
    """

    vlm: Idefics
    writer: OutputWriter
    open_pictures: Callable[[Sequence[str]], list[PictureOrVideo]]
    pending_pictures: list[PictureOrVideo]
    options: Options
    is_interactive: bool
    messages: list[Message] = field(default_factory=list)

    def handle_line(self, line: str) -> bool:
        """Handles one line, a command or a turn. Returns False for `/quit`."""
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
                self.messages, self.pending_pictures = [], []
                if self.is_interactive:
                    print("A new conversation. /image adds a picture.")
            case "/image" if rest:
                self._add_pictures(rest)
            case "/image":
                self.writer.report_error("/image needs the name of a picture, as in /image photo.jpg")
            case _ if command.startswith("/"):
                self.writer.report_error(
                    f"no such command: {command}; the commands are /image, /new, /help and /quit"
                )
            case _:
                self._send_turn(line)
        return True

    def _add_pictures(self, argument: str) -> None:
        """Handles `/image`: adds the pictures that its argument names, and confirms it on a terminal."""
        try:
            added = self.open_pictures(_split_picture_names(argument))
        except BadRequest as error:
            self.writer.report_error(str(error))
            return
        self.pending_pictures += added
        if self.is_interactive and added:
            pictures, them = ("picture", "it") if len(added) == 1 else ("pictures", "them")
            print(f"{len(added)} {pictures} added. The next question is about {them}.")

    def _send_turn(self, words: str) -> None:
        """Sends a turn with `words` and the pending pictures, and writes the answer.

        After an error the conversation is unchanged.
        """
        messages = [*self.messages, user(*self.pending_pictures, LiteralText(words))]
        try:
            if self.is_interactive:
                answer_text = self._stream_answer(messages)
            else:
                answer = self.vlm.chat(messages, **self.options)
                self.writer.write_result(answer, model=self.vlm)
                answer_text = answer.text
        except BadRequest as error:
            hint = "; /new begins a new conversation" if isinstance(error, PromptTooLong) else ""
            self.writer.report_error(f"{error}{hint}")
        else:
            if answer_text:
                self.messages, self.pending_pictures = [*messages, assistant(answer_text)], []

    def _stream_answer(self, messages: list[Message]) -> str:
        """Streams the answer and returns its text; Ctrl-C ends it, and the text up to there counts as the answer."""
        stream: Stream | None = None
        try:
            self.writer.progress.start("Answering")
            stream = self.vlm.chat(messages, stream=True, **self.options)
            self.writer.write_stream(stream)
        except KeyboardInterrupt:
            self.writer.progress.stop()
            if stream is None:
                return ""
            stream.close()
        return stream.answer.text


def _split_picture_names(argument: str) -> list[str]:
    """The names after `/image`: an existing path with its spaces, or several names split as a shell does."""
    if Path(argument).exists():
        return [argument]
    try:
        return shlex.split(argument)
    except ValueError:  # an unmatched quote
        return [argument]


def _read_turns(first: str | None, *, is_interactive: bool) -> Iterator[str]:
    """Yields the turns: the first one, if given, then the lines of standard input."""
    if first is not None:
        if is_interactive:
            print(f"{INPUT_PROMPT}{first}")
        yield first
    if isinstance(sys.stdin, io.TextIOWrapper):
        # A line that is not UTF-8 must not end the chat; `handle_line` refuses it.
        sys.stdin.reconfigure(errors="surrogateescape")
    if not is_interactive:
        yield from sys.stdin
        return
    with suppress(ImportError):
        importlib.import_module("readline")  # gives `input` line editing and history; not on every system
    while True:
        try:
            yield input(INPUT_PROMPT)
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n(Ctrl-D or /quit ends the chat)")
