"""The README is true: its blocks run against the demo checkpoints and print what it says they print.

`python` blocks run one after the other in one namespace, as a reader types them; a comment behind a
statement that shows something is what it must show. In `console` blocks a line that begins with `$ ` is a
command, and the lines up to the next command are all that it writes; `sh` blocks are commands alone.
`…` in what is expected stands for any text, and numbers of seconds are not compared.
"""

import ast
import io
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tokenize
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"

# Commands that set a machine up. The test does not run them; CI does, with the same words.
NOT_RUN = (
    r"git clone \S+.*",
    r"cd \S+",
    r"make (demo|test|test-all|check|bench)",
    r"(python3? -m )?pip install .*",
)
SECONDS = re.compile(r"\d+(\.\d+)? ?(s|ms|seconds?)\b")


@dataclass
class Command:
    line: str
    number: int
    expected: str | None  # None: the README does not say

    def __str__(self):
        return f"README.md:{self.number}: {self.line}"


def blocks(*languages):
    """(language, number of the first line, text) of each fenced block in one of the languages."""
    text = README.read_text(encoding="utf-8") if README.exists() else ""
    for match in re.finditer(r"^```(\w+)[^\n]*\n(.*?)^```$", text, re.M | re.S):
        if match[1] in languages:
            yield match[1], text[: match.start(2)].count("\n") + 1, match[2]


def commands():
    for language, first, text in blocks("console", "sh"):
        console = language == "console"
        start = r"^\$ " if console else r"^(?=[^#\s])"
        pieces = list(re.finditer(start + r"((?:[^\n]*\\\n)*[^\n]*)\n", text, re.M))
        assert pieces, f"README.md:{first}: no command in the block"
        assert not console or text.startswith("$ "), f"README.md:{first}: output before any command"
        for piece, following in zip(pieces, [*pieces[1:], None], strict=True):
            said = text[piece.end() : following.start() if following else None].strip()
            line = re.sub(r"\s*\\\n\s*", " ", piece[1]).strip()
            number = first + text[: piece.start()].count("\n")
            yield Command(line, number, said if console else None)


COMMANDS = list(commands())


def same(shown, expected):
    """Whether what was shown is what is expected: `…` is any text, seconds are any number."""
    shown, expected = (SECONDS.sub("SECONDS", text.strip()) for text in (shown, expected))
    return re.fullmatch(".*?".join(map(re.escape, expected.split("…"))), shown, re.S) is not None


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder that looks like the clone; what the README's commands write stays in it."""
    folder = tmp_path_factory.mktemp("clone")
    for path in ROOT.iterdir():
        (folder / path.name).symlink_to(path)
    return folder


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """A folder for PATH with `idefics` and `python` as they are after an installation."""
    folder = tmp_path_factory.mktemp("bin")
    python = shlex.quote(sys.executable)
    for name, words in {"idefics": f"{python} -m idefics", "python": python}.items():
        (folder / name).write_text(
            f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(ROOT / "src"))} exec {words} "$@"\n'
        )
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture(autouse=True)
def at_home(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("IDEFICS_MODEL", "demo")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "stdin", io.StringIO())


def run_command(words):
    """Runs `idefics` in this process, which has torch loaded already: (exit code, all that it wrote)."""
    from idefics.cli.main import main

    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(out):
        patch.setattr(sys, "argv", words)
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
    return code, out.buffer.getvalue().decode()


def run_shell(line, programs):
    """Runs a line that uses the shell's own means: (exit code, all that it wrote)."""
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        env={**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def plain_words(line):
    """The words of a command that needs nothing of the shell but quotes and globs; None for any other."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words = list(lexer)
    if (
        words[0] != "idefics"
        or any(set(word) <= set("|<>;&()") for word in words)
        or re.search(r"[$`]", line)
    ):
        return None
    return [found for word in words for found in (sorted(glob(word)) or [word])]


def cases():
    for command in COMMANDS:
        sets_up = any(re.fullmatch(pattern, command.line) for pattern in NOT_RUN)
        marks = pytest.mark.skip(reason="sets a machine up") if sets_up else ()
        yield pytest.param(command, id=str(command), marks=marks)


@pytest.fixture(scope="module")
def servers(programs, workplace):
    """Starts what the README serves, on a free port in place of 8000, and ends it as Ctrl-C does."""
    with ExitStack() as running, socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = str(reserved.getsockname()[1])
        reserved.close()

        def start(line):
            process = subprocess.Popen(
                [*shlex.split(line), "--port", port],
                executable=programs / "idefics",
                cwd=workplace,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            running.enter_context(process.stdout)
            running.callback(process.wait, 60)
            running.callback(process.send_signal, signal.SIGINT)
            assert port in process.stdout.readline(), f"{line} did not say where it listens"

        yield SimpleNamespace(start=start, port=port)


@pytest.mark.parametrize("command", list(cases()))
def test_commands(command, programs, servers):
    if command.line.startswith("idefics serve"):
        servers.start(command.line)
        return
    if command.line.startswith("curl"):
        if not shutil.which("curl"):
            pytest.skip("no curl here")
        code, shown = run_shell(command.line.replace("8000", servers.port), programs)
        assert code == 0, shown
        assert "error" not in json.loads(shown[shown.index("{") :])
        return
    words = plain_words(command.line)
    code, shown = run_command(words) if words else run_shell(command.line, programs)
    refusal = code == 2 and command.expected  # the README may show what a refusal looks like
    assert code == 0 or refusal, f"{command} ended with {code}:\n{shown}"
    assert command.expected is None or same(shown, command.expected), f"{command} wrote:\n{shown}"


def comments_behind(source):
    """Number of a line -> the comment behind its code."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = [token for token in tokens if token.type == tokenize.COMMENT]
    return {c.start[0]: c.string[1:].strip() for c in comments if c.line[: c.start[1]].strip()}


def show(statement, namespace):
    """Runs one statement and returns what a reader sees: what it printed, else the expression's value."""
    out = io.StringIO()
    with redirect_stdout(out):
        if isinstance(statement, ast.Expr):
            value = eval(compile(ast.Expression(statement.value), "README.md", "eval"), namespace)
        else:
            value = exec(compile(ast.Module([statement], []), "README.md", "exec"), namespace)
    return out.getvalue() or ("" if value is None else str(value))


def test_python_blocks():
    namespace = {"__name__": "__main__"}
    for _, first, text in blocks("python"):
        source = "\n" * (first - 1) + text  # so that line numbers are the README's
        expected = comments_behind(source)
        for statement in ast.parse(source).body:
            shown = show(statement, namespace)
            said = expected.get(statement.end_lineno)
            if shown and said is not None:
                assert same(shown, said), f"README.md:{statement.end_lineno} shows:\n{shown}"


def test_the_readme_is_short_and_has_examples_of_both_kinds():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150
    assert list(blocks("python"))
    assert any(command.expected and command.line.startswith("idefics ") for command in COMMANDS)


def test_links_lead_somewhere():
    """Within the repository; addresses of the web are not asked."""
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        text = document.read_text(encoding="utf-8")
        targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)|(?:src|href)=\"([^\"#]+)\"", text)
        broken = [
            a or b for a, b in targets if "://" not in (a or b) and not (document.parent / (a or b)).exists()
        ]
        assert not broken, f"{document.name}: {broken}"
