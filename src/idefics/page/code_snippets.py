"""The code behind "Show code": a call as a Python script, a command line and a curl command. Plain text, no Gradio."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from idefics.config import Sampling
from idefics.messages import Message, Picture
from idefics.page.curl_format import (
    authorization_arguments,
    format_form_value,
    format_json_post,
    image_url_or_data,
    is_url,
)
from idefics.page.load_code import format_load, model_flags

DEFAULT_SAMPLING = Sampling()
# A prompt that the command line would take for a flag or a picture.
FLAG_LIKE_PATTERN = re.compile(r"-|\S*\.\w{2,5}$|https?://\S+$|data:")


@dataclass(frozen=True, kw_only=True)
class TaskSnippets:
    """The code of one call of a task.

    Attributes:
        task: the task's name in `TASKS`.
        picture: the name of the picture's file on the person's machine, or its address.
        words: the question, text or instruction; "" where there is none.
        labels: the labels of `classify`.
        shots: (picture, question, answer) of each few-shot example.
        options: keywords whose values differ from the defaults.
        model: the name, folder or hub id of the model.
        adapter: the folder or hub id of its adapter.
        server: the base URL of `idefics serve`.
        has_key: whether the server requires a key.
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
    adapter: str | None = None

    @property
    def python(self) -> str:
        """A Python script that makes the call and prints the answer."""
        arguments = [repr(self.picture)]
        if self.task == "classify":
            arguments.append(repr(list(self.labels)))
        elif self.words:
            arguments.append(repr(self.words))
        arguments += [f"{name}={value!r}" for name, value in self.options.items()]
        call = f"vlm.{self.task}({', '.join(arguments)})"
        lines = ["import idefics"]
        if self.shots:
            lines.append("from idefics import Picture, Shot")
        lines += ["", format_load(self.model, self.adapter)]
        if self.shots:
            lines += ["vlm = vlm.with_shots(", "    [", *map(_format_shot, self.shots), "    ]", ")"]
        if self.task == "classify":
            lines += [f"for label, probability, _ in {call}:", '    print(f"{probability:6.1%} {label}")']
        else:
            lines.append(f"print({call})")
        return "\n".join(lines) + "\n"

    @property
    def shell(self) -> str:
        """A command line that makes the same call."""
        arguments = ["idefics", self.task, _shell_path(self.picture)]
        if self.task == "classify":
            arguments += _label_flags(self.labels)
        elif self.words:
            arguments += [f"--prompt={self.words}"] if FLAG_LIKE_PATTERN.match(self.words) else [self.words]
        if self.shots:
            arguments += ["--shots", "shots.jsonl"]
        return (
            shlex.join([*arguments, *_option_flags(self.options), *model_flags(self.model, self.adapter)])
            + "\n"
        )

    @property
    def curl(self) -> str:
        """A request to `idefics serve`: a form, or JSON where there are few-shot examples."""
        url = f"{self.server}/v1/images/tasks/{self.task}"
        if self.shots:
            files: list[str] = []
            text_field = {"words": self.words} if self.words else {}
            shots = [
                {"image_url": image_url_or_data(picture, files), "question": question, "answer": answer}
                for picture, question, answer in self.shots
            ]
            body = {
                "image_url": image_url_or_data(self.picture, files),
                **text_field,
                **self.options,
                "shots": shots,
            }
            return format_json_post(url, body, files, has_key=self.has_key)
        fields = [("words", self.words)] if self.words else []
        fields += [("labels", label) for label in self.labels]
        fields += [(name, format_form_value(value)) for name, value in self.options.items()]
        image = f"image_url={self.picture}" if is_url(self.picture) else f"image=@{self.picture}"
        lines = [f"curl {url}", *authorization_arguments(self.has_key), f"-F {shlex.quote(image)}"]
        lines += [f"--form-string {shlex.quote(f'{name}={value}')}" for name, value in fields]
        return " \\\n  ".join(lines) + "\n"


@dataclass(frozen=True, kw_only=True)
class ChatSnippets:
    """The code of one turn of a conversation.

    Attributes:
        messages: all messages up to the last question; the sources of pictures are names of files or addresses.
        options, model, server, has_key: as in `TaskSnippets`.
    """

    messages: Sequence[Message]
    options: Mapping[str, Any]
    model: str
    server: str
    has_key: bool = False
    adapter: str | None = None

    @property
    def python(self) -> str:
        """A Python script that makes the call and prints the answer."""
        imported_names = (
            ["Picture"] if any(isinstance(part, Picture) for m in self.messages for part in m.parts) else []
        )
        imported_names += ["assistant"] if any(m.role == "assistant" for m in self.messages) else []
        option_text = "".join(f", {name}={value!r}" for name, value in self.options.items())
        turns = [f"    {m.role}({', '.join(map(_format_part, m.parts))})," for m in self.messages]
        return "\n".join(
            [
                "import idefics",
                f"from idefics import {', '.join([*imported_names, 'user'])}",
                "",
                format_load(self.model, self.adapter),
                "messages = [",
                *turns,
                "]",
                f"print(vlm.chat(messages{option_text}))",
                "",
            ]
        )

    @property
    def shell(self) -> str:
        """A command line that pipes the questions into `idefics chat`, which answers them one by one."""
        lines: list[str] = []
        for message in self.messages:
            if message.role == "user":
                names = [shlex.quote(str(p.source)) for p in message.parts if isinstance(p, Picture)]
                lines += [f"/image {name}" for name in names]
                lines += [
                    " ".join(part for part in message.parts if isinstance(part, str)).replace("\n", " ")
                ]
        printf_command = " ".join(["printf '%s\\n'", *(f"\\\n  {shlex.quote(line)}" for line in lines)])
        chat_command = [
            "idefics",
            "chat",
            *_option_flags(self.options),
            *model_flags(self.model, self.adapter),
        ]
        return f"{printf_command} |\n  {shlex.join(chat_command)}\n"

    @property
    def curl(self) -> str:
        """A request to `idefics serve`, with the files as data URIs."""
        files: list[str] = []
        options = {"max_completion_tokens": DEFAULT_SAMPLING.max_new_tokens, **self.options}
        options["max_completion_tokens"] = options.pop("max_new_tokens", options["max_completion_tokens"])
        detail = options.pop("detail", None)
        messages = [
            {"role": m.role, "content": _format_message_content(m, files, detail)} for m in self.messages
        ]
        url = f"{self.server}/v1/chat/completions"
        return format_json_post(
            url, {"model": self.model, "messages": messages, **options}, files, has_key=self.has_key
        )


@dataclass(frozen=True, kw_only=True)
class BatchSnippets:
    """The code that runs a task on each picture of a folder; the attributes are those of `TaskSnippets`."""

    task: str
    folder: str = "photos"
    words: str = ""
    labels: Sequence[str] = ()
    model: str
    server: str
    has_key: bool = False
    adapter: str | None = None

    @property
    def python(self) -> str:
        """A Python script, which prints an error for a picture that cannot be read and goes on."""
        task_input = list(self.labels) if self.task == "classify" else self.words
        arguments = ", ".join(["path", repr(task_input)] if task_input else ["path"])
        return f"""from pathlib import Path

import idefics

{format_load(self.model, self.adapter)}
for path in sorted(Path({self.folder!r}).iterdir()):
    try:
        print(f"{{path}}: {{vlm.{self.task}({arguments})}}")
    except idefics.IdeficsError as error:
        print(f"{{path}}: {{error}}")
"""

    @property
    def shell(self) -> str:
        """A command line that takes the whole folder."""
        return self._task_snippets(self.folder).shell.removesuffix("\n") + " > answers.txt\n"

    @property
    def curl(self) -> str:
        """A shell loop that sends a request for each picture and prints its name before the answer."""
        command = (
            self._task_snippets("FILE")
            .curl.replace("-F image=@FILE", '-F "image=@$file"')
            .replace("\n", "\n  ")
        )
        loop_body = f"  printf '%s: ' \"$file\"\n  {command.rstrip()}\n  echo\n"
        return f"for file in {shlex.quote(self.folder)}/*; do\n{loop_body}done\n"

    def _task_snippets(self, picture: str) -> TaskSnippets:
        """The code of the task for one path; the command line also takes the path of a folder."""
        shared = {name: value for name, value in vars(self).items() if name != "folder"}
        return TaskSnippets(picture=picture, **shared)


def _format_shot(shot: tuple[str, str, str]) -> str:
    """The line of a Python script that makes a `Shot` of (picture, question, answer)."""
    picture, question, answer = shot
    question_argument = f", question={question!r}" if question else ""
    return f"        Shot(Picture({picture!r}), {answer!r}{question_argument}),"


def _format_part(part: Any) -> str:
    """A part of a message as a Python expression."""
    return f"Picture({part.source!r})" if isinstance(part, Picture) else repr(part)


def _shell_path(name: str) -> str:
    """A file name that the command line does not take for a flag."""
    return f"./{name}" if name.startswith("-") else name


def _label_flags(labels: Sequence[str]) -> list[str]:
    """One flag `--labels`, or a `--label` for each label if one contains a comma."""
    if any("," in label for label in labels):
        return [f"--label={label}" for label in labels]
    return [f"--labels={','.join(labels)}"]


def _option_flags(options: Mapping[str, Any]) -> list[str]:
    """Python keywords as flags of the command line."""
    flags: list[str] = []
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        flags += [flag] if value is True else [flag, str(value)]
    return flags


def _format_message_content(
    message: Message, files: list[str], detail: str | None
) -> str | list[dict[str, Any]]:
    """The content of a message for chat completions; names of its pictures are appended to `files`."""
    if message.role == "assistant":
        return " ".join(part for part in message.parts if isinstance(part, str))
    detail_field = {} if detail is None else {"detail": detail}
    return [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {
            "type": "image_url",
            "image_url": {"url": image_url_or_data(str(part.source), files), **detail_field},
        }
        for part in message.parts
    ]
