"""What was clicked, as Python, as a command line and as a request to the server. Plain text; knows no browser."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from idefics.messages import Message, Picture

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
        """A request to `idefics serve`."""
        fields: list[tuple[str, str]] = []
        if self.words:
            fields.append(("words", self.words))
        fields += [("labels", label) for label in self.labels]
        fields += [(name, _plain(value)) for name, value in self.options.items()]
        is_address = self.picture.startswith(("http://", "https://"))
        image = f"image_url={self.picture}" if is_address else f"image=@{self.picture}"
        lines = [
            f"curl {self.server}/v1/images/tasks/{self.task}",
            *_key(self.has_key),
            f"-F {_quoted(image)}",
        ]
        lines += [f"--form-string {_quoted(f'{name}={value}')}" for name, value in fields]
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
        messages = [{"role": m.role, "content": _content(m, files)} for m in self.messages]
        body = {"model": self.model, "messages": messages, **self.options}
        text = json.dumps(body, indent=2, ensure_ascii=False)
        key = "".join(f" {part} \\\n " for part in _key(self.has_key))
        head = f"curl {self.server}/v1/chat/completions \\\n {key} -H 'Content-Type: application/json'"
        text = text.replace("'", r"\u0027")
        for number, name in enumerate(files):
            text = text.replace(_mark(number), f"'$(base64 < {shlex.quote(name)} | tr -d '\\n')'")
        return f"printf '%s' '{text}' |\n  {head} --data-binary @-\n"


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


def _quoted(text: str) -> str:
    return shlex.quote(text)


def _mark(number: int) -> str:
    return f"\ue000{number}\ue000"  # of the private use area: no one writes it


def _content(message: Message, files: list[str]) -> str | list[dict[str, Any]]:
    if message.role == "assistant":
        return " ".join(part for part in message.parts if isinstance(part, str))
    content: list[dict[str, Any]] = []
    for part in message.parts:
        if isinstance(part, str):
            content.append({"type": "text", "text": part})
            continue
        url = str(part.source)
        if not url.startswith(("http://", "https://")):
            files.append(url)
            url = f"data:;base64,{_mark(len(files) - 1)}"
        content.append({"type": "image_url", "image_url": {"url": url}})
    return content
