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

from idefics.cli import look
from idefics.cli.flags import Arguments, ModelFlags, OutputFlags, Prompt, Recursive
from idefics.cli.output import Screen
from idefics.cli.pictures import STDIN, find, opened, split_words
from idefics.cli.sampling import SamplingFlags
from idefics.cli.text_files import as_bytes, is_whole
from idefics.errors import BadPicture, BadRequest, BadSetting, PromptTooLong
from idefics.messages import Message, Text, Visual, assistant, user

if TYPE_CHECKING:
    from idefics import Idefics
    from idefics.pipeline import Options, Stream
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
IN_CHAT = """\
/image PATH   show a picture; the next words are about it. A folder, pattern or address will do
/new          forget everything that was said and shown
/help         this
/quit         leave; so does Ctrl-D"""
INVITATION = "> "


def register(app: typer.Typer) -> None:
    """Adds the command."""
    look.add(app, "chat", _chat, help=HELP, usage="[PICTURE...] [QUESTION]", examples=EXAMPLES)


def _chat(
    context: typer.Context,
    arguments: Arguments,
    prompt: Prompt = None,
    recursive: Recursive = False,
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
    with Screen(context.command_path, as_json=output.json) as screen:
        shown = Shown(screen, Fetcher(policy=model.remote_images), recursive=recursive)
        shown.add(names)
        if screen.code:  # the pictures that are there may not be those that it is about
            return screen.code
        is_typed = screen.person and sys.stdin.isatty()
        talk = Talk(context.obj(model, screen), screen, shown, options, is_typed=is_typed)
        if is_typed:
            print("Ask away. /help says what else you can do here, Ctrl-D leaves.")
        for line in _lines(words, is_typed=is_typed):
            if not talk.take(line.strip()):
                break
        return 0 if is_typed else screen.code


class Shown:
    """Pictures that have been shown and not yet talked about."""

    def __init__(self, screen: Screen, fetcher: Fetcher, *, recursive: bool) -> None:
        self.screen, self.fetcher, self.recursive = screen, fetcher, recursive
        self.pictures: list[Visual] = []

    def add(self, names: Sequence[str]) -> None:
        """Opens pictures; what is none is refused."""
        if STDIN in names:
            raise BadPicture("- cannot be a picture here: the lines of standard input are the turns")
        for named in find(names, self.screen.refuse, self.screen.note, recursive=self.recursive):
            try:
                self.pictures.append(opened(named, self.fetcher).picture)
            except BadPicture as error:
                self.screen.refuse(str(error))


class Talk:
    """One conversation, turn by turn."""

    def __init__(
        self, vlm: Idefics, screen: Screen, shown: Shown, options: Options, *, is_typed: bool
    ) -> None:
        self.vlm, self.screen, self.shown, self.options = vlm, screen, shown, options
        self.is_typed = is_typed
        self.messages: list[Message] = []

    def take(self, line: str) -> bool:
        """Does what one line asks for; False where it asks to leave."""
        if not is_whole(line):
            self.screen.refuse(f"{as_bytes(line)} is not text in UTF-8: write it again")
            return True
        command, _, rest = line.partition(" ")
        match command:
            case "":
                pass
            case "/quit":
                return False
            case "/help":
                print(IN_CHAT, file=sys.stdout if self.is_typed else sys.stderr)
            case "/new":
                self.messages, self.shown.pictures = [], []
            case "/image" if rest:
                self._show(rest)
            case "/image":
                self.screen.refuse("/image needs the name of a picture, as in /image photo.jpg")
            case _ if command.startswith("/"):
                self.screen.refuse(f"no such command {command}: there are /image, /new, /help and /quit")
            case _:
                self._say(line)
        return True

    def _show(self, typed: str) -> None:
        before = len(self.shown.pictures)
        try:
            self.shown.add(_names(typed))
        except BadRequest as error:
            self.screen.refuse(str(error))
        if self.is_typed and (number := len(self.shown.pictures) - before):
            print(f"{number} picture{'' if number == 1 else 's'}. Your next words are about that.")

    def _say(self, words: str) -> None:
        """A turn and its answer. One that cannot be answered leaves the conversation as it was."""
        messages = [*self.messages, user(*self.shown.pictures, Text(words))]
        try:
            said = self._stream(messages) if self.is_typed else self._whole(messages)
        except PromptTooLong as error:
            self.screen.refuse(f"{error}; /new begins again")
        except BadRequest as error:
            self.screen.refuse(str(error))
        else:
            if said:
                self.messages, self.shown.pictures = [*messages, assistant(said)], []

    def _whole(self, messages: list[Message]) -> str:
        answer = self.vlm.chat(messages, **self.options)
        self.screen.answer(answer, model=self.vlm)
        return answer.text

    def _stream(self, messages: list[Message]) -> str:
        """What was said until it ended, or until Ctrl-C ended it."""
        stream: Stream | None = None
        try:
            self.screen.waiting.spin("Thinking")
            stream = self.vlm.chat(messages, stream=True, **self.options)
            self.screen.stream(stream)
        except KeyboardInterrupt:
            self.screen.waiting.end()
            if stream is None:
                return ""
            stream.close()
        return stream.answer.text


def _names(typed: str) -> list[str]:
    """What follows /image: one name, spaces and all, or several as a shell would take them."""
    if Path(typed).exists():
        return [typed]
    try:
        return shlex.split(typed)
    except ValueError:  # a lone apostrophe
        return [typed]


def _lines(first: str | None, *, is_typed: bool) -> Iterator[str]:
    """The turns: the first words, if any, then what is typed or comes down the pipe."""
    if first is not None:
        if is_typed:
            print(f"{INVITATION}{first}")
        yield first
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # a line that is not UTF-8 must not end the chat
    if not is_typed:
        yield from sys.stdin
        return
    with suppress(ImportError):
        importlib.import_module("readline")  # arrows and history for `input`; not on every system
    while True:
        try:
            yield input(INVITATION)
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n(Ctrl-D or /quit leaves)")
