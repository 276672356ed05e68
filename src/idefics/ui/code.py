"""What was clicked, as Python, as a command line and as a request to the server. Plain text; knows no browser."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from idefics.config import Sampling
from idefics.messages import Message, Picture

DEFAULT = Sampling()
AS_FLAG = re.compile(
    r"-|\S*\.\w{2,5}$|https?://\S+$|data:"
)  # words that a command could take for something else


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of a task.

    Attributes:
        task: its name in `TASKS`.
        picture: as the person knows it: a file's name or an address.
        words: the question, text or instruction; "" where there is none.
        labels: of `classify`.
        shots: picture, question and answer of each worked example.
        options: keywords that are not left at their defaults.
        model, server, has_key: as in `Settings`.
    """

    task: str
    picture: str
    words: str = ""
    labels: Sequence[str] = ()
    shots: Sequence[tuple[str, str, str]] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    model: str
    server: str
    has_key: bool = False

    @property
    def python(self) -> str:
        """A script."""
        given = [repr(self.picture)]
        if self.task == "classify":
            given.append(repr(list(self.labels)))
        elif self.words:
            given.append(repr(self.words))
        given += [f"{name}={value!r}" for name, value in self.options.items()]
        call = f"vlm.{self.task}({', '.join(given)})"
        lines = ["import idefics"]
        if self.shots:
            lines.append("from idefics import Picture, Shot")
        lines += ["", f"vlm = idefics.load({self.model!r})"]
        if self.shots:
            lines += ["vlm = vlm.with_shots(", "    [", *map(_shot, self.shots), "    ]", ")"]
        if self.task == "classify":
            lines += [f"for label, probability, _ in {call}:", '    print(f"{probability:6.1%} {label}")']
        else:
            lines.append(f"print({call})")
        return "\n".join(lines) + "\n"

    @property
    def shell(self) -> str:
        """A command line."""
        words = ["idefics", self.task, _file(self.picture)]
        if self.task == "classify":
            words += _labels(self.labels)
        elif self.words:
            words += [f"--prompt={self.words}"] if AS_FLAG.match(self.words) else [self.words]
        if self.shots:
            words += ["--shots", "shots.jsonl"]
        return shlex.join([*words, *_flags(self.options), "--model", self.model]) + "\n"

    @property
    def curl(self) -> str:
        """A request to `idefics serve`: a form, or JSON where there are shots."""
        url = f"{self.server}/v1/images/tasks/{self.task}"
        if self.shots:
            files: list[str] = []
            words = {"words": self.words} if self.words else {}
            shots = [
                {"image_url": _address(picture, files), "question": question, "answer": answer}
                for picture, question, answer in self.shots
            ]
            body = {"image_url": _address(self.picture, files), **words, **self.options, "shots": shots}
            return _posted(url, body, files, has_key=self.has_key)
        fields = [("words", self.words)] if self.words else []
        fields += [("labels", label) for label in self.labels]
        fields += [(name, _plain(value)) for name, value in self.options.items()]
        image = f"image_url={self.picture}" if _is_address(self.picture) else f"image=@{self.picture}"
        lines = [f"curl {url}", *_key(self.has_key), f"-F {shlex.quote(image)}"]
        lines += [f"--form-string {shlex.quote(f'{name}={value}')}" for name, value in fields]
        return " \\\n  ".join(lines) + "\n"


@dataclass(frozen=True, kw_only=True)
class Talk:
    """One turn of a conversation: all messages up to the last question.

    Attributes:
        messages: the sources of their pictures are names, as the person knows them.
    """

    messages: Sequence[Message]
    options: Mapping[str, Any]
    model: str
    server: str
    has_key: bool = False

    @property
    def python(self) -> str:
        """A script."""
        names = (
            ["Picture"] if any(isinstance(part, Picture) for m in self.messages for part in m.parts) else []
        )
        names += ["assistant"] if any(m.role == "assistant" for m in self.messages) else []
        given = "".join(f", {name}={value!r}" for name, value in self.options.items())
        turns = [f"    {m.role}({', '.join(map(_part, m.parts))})," for m in self.messages]
        return "\n".join(
            [
                "import idefics",
                f"from idefics import {', '.join([*names, 'user'])}",
                "",
                f"vlm = idefics.load({self.model!r})",
                "messages = [",
                *turns,
                "]",
                f"print(vlm.chat(messages{given}))",
                "",
            ]
        )

    @property
    def shell(self) -> str:
        """The same turns down a pipe; each is answered anew."""
        lines: list[str] = []
        for message in self.messages:
            if message.role == "user":
                names = [shlex.quote(str(p.source)) for p in message.parts if isinstance(p, Picture)]
                lines += [f"/image {name}" for name in names]
                lines += [
                    " ".join(part for part in message.parts if isinstance(part, str)).replace("\n", " ")
                ]
        said = " ".join(["printf '%s\\n'", *(f"\\\n  {shlex.quote(line)}" for line in lines)])
        return (
            f"{said} |\n  {shlex.join(['idefics', 'chat', *_flags(self.options), '--model', self.model])}\n"
        )

    @property
    def curl(self) -> str:
        """A request to `idefics serve`; files are put into it as data URIs."""
        files: list[str] = []
        options = {"max_completion_tokens": DEFAULT.max_new_tokens, **self.options}
        options["max_completion_tokens"] = options.pop("max_new_tokens", options["max_completion_tokens"])
        detail = options.pop("detail", None)
        messages = [{"role": m.role, "content": _content(m, files, detail)} for m in self.messages]
        url = f"{self.server}/v1/chat/completions"
        return _posted(
            url, {"model": self.model, "messages": messages, **options}, files, has_key=self.has_key
        )


@dataclass(frozen=True, kw_only=True)
class Many:
    """The same done to each picture of a folder; the rest as in `Call`."""

    task: str
    folder: str = "photos"
    words: str = ""
    labels: Sequence[str] = ()
    model: str
    server: str
    has_key: bool = False

    @property
    def python(self) -> str:
        """A script. One bad picture spoils no other."""
        words = list(self.labels) if self.task == "classify" else self.words
        given = ", ".join(["path", repr(words)] if words else ["path"])
        return f"""from pathlib import Path

import idefics

vlm = idefics.load({self.model!r})
for path in sorted(Path({self.folder!r}).iterdir()):
    try:
        print(f"{{path}}: {{vlm.{self.task}({given})}}")
    except idefics.IdeficsError as error:
        print(f"{{path}}: {{error}}")
"""

    @property
    def shell(self) -> str:
        """A command line, which reads any number."""
        return self._call(self.folder).shell.removesuffix("\n") + " > answers.txt\n"

    @property
    def curl(self) -> str:
        """A request for each picture; a line for each, which begins with its name."""
        one = self._call("FILE").curl.replace("-F image=@FILE", '-F "image=@$file"').replace("\n", "\n  ")
        said = f"  printf '%s: ' \"$file\"\n  {one.rstrip()}\n  echo\n"
        return f"for file in {shlex.quote(self.folder)}/*; do\n{said}done\n"

    def _call(self, picture: str) -> Call:
        return Call(
            task=self.task,
            picture=picture,
            words=self.words,
            labels=self.labels,
            model=self.model,
            server=self.server,
            has_key=self.has_key,
        )


def _shot(shot: tuple[str, str, str]) -> str:
    picture, question, answer = shot
    said = f", question={question!r}" if question else ""
    return f"        Shot(Picture({picture!r}), {answer!r}{said}),"


def _part(part: Any) -> str:
    return f"Picture({part.source!r})" if isinstance(part, Picture) else repr(part)


def _file(name: str) -> str:
    return f"./{name}" if name.startswith("-") else name


def _labels(labels: Sequence[str]) -> list[str]:
    if any("," in label for label in labels):
        return [f"--label={label}" for label in labels]
    return [f"--labels={','.join(labels)}"]


def _flags(options: Mapping[str, Any]) -> list[str]:
    flags: list[str] = []
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        flags += [flag] if value is True else [flag, str(value)]
    return flags


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _key(has_key: bool) -> list[str]:
    return ['-H "Authorization: Bearer $IDEFICS_API_KEY"'] if has_key else []


def _is_address(name: str) -> bool:
    return name.startswith(("http://", "https://"))


def _address(name: str, files: list[str]) -> str:
    """An address as it is; a file as a data URI whose bytes the shell is to put in."""
    if _is_address(name):
        return name
    files.append(name)
    return f"data:;base64,{_mark(len(files) - 1)}"


def _mark(number: int) -> str:
    return f"\ue000{number}\ue000"  # of the private use area: no one writes it


def _posted(url: str, body: Mapping[str, Any], files: Sequence[str], *, has_key: bool) -> str:
    """JSON through a pipe: a file's bytes would be too long for an argument, but not for what shells do themselves."""
    text = json.dumps(body, indent=2, ensure_ascii=False).replace("'", r"\u0027")
    for number, name in enumerate(files):
        text = text.replace(_mark(number), f"'\"$(base64 < {shlex.quote(name)} | tr -d '\\n')\"'")
    parts = [f"curl {url}", *_key(has_key), "-H 'Content-Type: application/json'", "--data-binary @-"]
    return f"printf '%s' '{text}' |\n  " + " \\\n    ".join(parts) + "\n"


def _content(message: Message, files: list[str], detail: str | None) -> str | list[dict[str, Any]]:
    if message.role == "assistant":
        return " ".join(part for part in message.parts if isinstance(part, str))
    look = {} if detail is None else {"detail": detail}
    return [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image_url", "image_url": {"url": _address(str(part.source), files), **look}}
        for part in message.parts
    ]
