"""The code in the documents runs with the demo checkpoints and prints what the documents say.

The `python` blocks of a document run one after the other in one namespace; a comment after a statement is its
expected output. In `console` blocks a line that begins with `$ ` is a command, and the lines up to the next command are
its whole output; `sh` blocks have commands only. `…` in an expected output matches any text; numbers of seconds are not
compared.

Commands that no test runs are listed in `REASON_BY_SKIPPED_COMMAND`. `test_guides.py` runs the Python of the guides.
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
import textwrap
import tokenize
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from glob import glob
from pathlib import Path
from typing import NamedTuple

import PIL.Image
import pytest

from models.tiny_adapters import write_demo_adapter
from test_architecture import LEVELS

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "examples" / "README.md"])
GUIDES = ROOT / "docs" / "guides"

# Pattern of commands that no test runs -> the reason.
REASON_BY_SKIPPED_COMMAND = {
    r"(python3? -m )?pip install .*": "installs packages",
    r"make (demo|docs|wheel|test|test-all|test-ray|check)": "installs packages; CI runs it",
    r"make bench": "takes hours",
    r"idefics ui .*": "runs until it is ended; tests/page opens the same page",
    r"idefics read .*": "needs a checkpoint of the hub; tests/cli/test_cli_read.py reads with a tiny one",
    r"python bench/\w+\.py .*": "takes minutes; tests/bench runs the tools",
    r"python -m http\.server .*": "runs until it is ended; tests/test_guides.py serves the same pictures",
}
OUTPUT = "text"  # the language of blocks that show the output of a program
LOG_TIMESTAMP = re.compile(
    r"\d{4}-\d\d-\d\d "
)  # begins the lines of the server's log, which documents leave out
SECONDS_PATTERN = re.compile(r"\d+(\.\d+)? ?(s|ms|seconds?)\b")


class CodeBlock(NamedTuple):
    document: Path
    language: str
    line: int  # of its first line of code
    text: str

    def __str__(self):
        return f"{self.document.relative_to(ROOT)}:{self.line}"


class ConsoleCommand(NamedTuple):
    document: Path
    line: str
    number: int
    expected: str | None  # its output; None where the document shows none

    def __str__(self):
        return f"{self.document.relative_to(ROOT)}:{self.number}: {self.line}"


def code_blocks(document):
    """The fenced blocks of a document."""
    text = document.read_text(encoding="utf-8")
    for match in re.finditer(r"^( *)```(\w*)[^\n]*\n(.*?)^ *```$", text, re.M | re.S):
        line = text[: match.start(3)].count("\n") + 1
        yield CodeBlock(document, match[2], line, textwrap.dedent(match[3]))


def console_commands(block):
    console = block.language == "console"
    start = r"^\$ " if console else r"^(?=[^#\s])"
    pieces = list(re.finditer(start + r"((?:[^\n]*\\\n)*[^\n]*)\n", block.text, re.M))
    assert pieces, f"{block}: no command in the block"
    assert not console or block.text.startswith("$ "), f"{block}: output before any command"
    for piece, following in zip(pieces, [*pieces[1:], None], strict=True):
        said = block.text[piece.end() : following.start() if following else None].strip()
        line = re.sub(r"\s*\\\n\s*", " ", piece[1]).split("  #")[0].strip()
        number = block.line + block.text[: piece.start()].count("\n")
        yield ConsoleCommand(block.document, line, number, said if console else None)


def make_cases():
    for block in (block for document in DOCUMENTS for block in code_blocks(document)):
        for command in console_commands(block) if block.language in ("console", "sh") else ():
            reasons = [
                why
                for pattern, why in REASON_BY_SKIPPED_COMMAND.items()
                if re.fullmatch(pattern, command.line)
            ]
            marks = pytest.mark.skip(reason=reasons[0]) if reasons else ()
            yield pytest.param(command, id=str(command), marks=marks)


CASES = list(make_cases())
COMMANDS = [case.values[0] for case in CASES]
DOCUMENTS_WITH_PYTHON = [
    path
    for path in DOCUMENTS
    if path.parent != GUIDES and any(block.language == "python" for block in code_blocks(path))
]


def matches_expected(actual, expected):
    """Whether an output is the expected one, where `…` matches any text and seconds match any number."""
    actual, expected = (SECONDS_PATTERN.sub("SECONDS", text.strip()) for text in (actual, expected))
    return re.fullmatch(".*?".join(map(re.escape, expected.split("…"))), actual, re.S) is not None


@pytest.fixture(scope="module")
def reader_folder(tmp_path_factory):
    """A folder with links to the files of the clone, and with pictures of a reader; commands write into it."""
    folder = tmp_path_factory.mktemp("clone")
    for path in ROOT.iterdir():
        (folder / path.name).symlink_to(path)
    for name in ("photo.jpg", "scan.png"):
        PIL.Image.open(ROOT / "src/idefics/demo/pictures/door.png").convert("RGB").save(folder / name)
    write_demo_adapter(folder / "my-adapter")
    return folder


@pytest.fixture(scope="module")
def path_folder(tmp_path_factory):
    """A folder for PATH with the commands `idefics` and `python`."""
    folder = tmp_path_factory.mktemp("bin")
    python = shlex.quote(sys.executable)
    for name, words in {"idefics": f"{python} -m idefics", "python": python}.items():
        (folder / name).write_text(
            f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(ROOT / "src"))} exec {words} "$@"\n'
        )
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture(autouse=True)
def in_reader_folder(reader_folder, monkeypatch):
    monkeypatch.chdir(reader_folder)
    monkeypatch.setenv("IDEFICS_MODEL", "demo")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "stdin", io.StringIO())


def run_command(words):
    """Runs `idefics` in this process, which has imported torch already: (exit code, output)."""
    from idefics.cli.main import run

    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    with redirect_stdout(out), redirect_stderr(out):
        code = run(words[1:])
    return code, out.buffer.getvalue().decode()


def run_shell(line, programs):
    """Runs a command line in a shell: (exit code, output)."""
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


def split_without_shell(line):
    """The arguments of a command that uses only quotes and patterns of the shell; None for any other command."""
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


class DocumentServers:
    """The servers that documents start, on a free port in place of 8000; they are ended by SIGINT."""

    def __init__(self, programs, workplace, running):
        self.programs, self.workplace, self.running = programs, workplace, running
        self.ports = {}

    def start(self, command):
        with socket.socket() as reserved:
            reserved.bind(("127.0.0.1", 0))
            port = self.ports[command.document] = str(reserved.getsockname()[1])
        process = subprocess.Popen(
            [*shlex.split(command.line), "--port", port],
            executable=self.programs / "idefics",
            cwd=self.workplace,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.running.enter_context(process.stdout)
        self.running.callback(process.wait, 60)
        self.running.callback(process.send_signal, signal.SIGINT)
        said = next((line for line in process.stdout if not LOG_TIMESTAMP.match(line)), "")
        said = said.replace(port, "8000").strip()
        assert "8000" in said, f"{command} did not say where it listens"
        assert not command.expected or matches_expected(said, command.expected), f"{command} wrote:\n{said}"

    def replace_port(self, document, text):
        """Code of a document with the port of its server in place of 8000."""
        if "8000" not in text:
            return text
        if document not in self.ports:  # the test of the command that starts the server was not selected
            commands = [command for command in COMMANDS if command.document == document]
            self.start([command for command in commands if command.line.startswith("idefics serve")][-1])
        return text.replace("8000", self.ports[document])


@pytest.fixture(scope="module")
def servers(path_folder, reader_folder):
    with ExitStack() as running:
        yield DocumentServers(path_folder, reader_folder, running)


@pytest.mark.parametrize("command", CASES)
def test_commands(command, path_folder, servers):
    if command.line.startswith("idefics serve"):
        servers.start(command)
    elif command.line.startswith("curl"):
        if not shutil.which("curl"):
            pytest.skip("no curl here")
        code, shown = run_shell(servers.replace_port(command.document, command.line), path_folder)
        assert code == 0, shown
        assert "error" not in json.loads(shown[shown.index("{") :])
    else:
        words = split_without_shell(command.line)
        code, shown = run_command(words) if words else run_shell(command.line, path_folder)
        refusal = code == 2 and command.expected  # a document may show an error
        assert code == 0 or refusal, f"{command} ended with {code}:\n{shown}"
        assert command.expected is None or matches_expected(shown, command.expected), (
            f"{command} wrote:\n{shown}"
        )


def comment_by_line(source):
    """Number of a line -> the comment at its end."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = [token for token in tokens if token.type == tokenize.COMMENT]
    return {c.start[0]: c.string[1:].strip() for c in comments if c.line[: c.start[1]].strip()}


def run_statement(statement, namespace, name):
    """Runs one statement and returns what it printed, else the value of an expression."""
    out = io.StringIO()
    with redirect_stdout(out):
        if isinstance(statement, ast.Expr):
            value = eval(compile(ast.Expression(statement.value), name, "eval"), namespace)
        else:
            value = exec(compile(ast.Module([statement], []), name, "exec"), namespace)
    return out.getvalue() or ("" if value is None else str(value))


@pytest.mark.parametrize("document", DOCUMENTS_WITH_PYTHON, ids=lambda path: path.name)
def test_python_blocks(document, servers):
    namespace = {"__name__": "__main__"}
    for block in (block for block in code_blocks(document) if block.language == "python"):
        # Line numbers are the document's.
        source = "\n" * (block.line - 1) + servers.replace_port(document, block.text)
        expected = comment_by_line(source)
        for statement in ast.parse(source).body:
            shown = run_statement(statement, namespace, document.name)
            said = expected.get(statement.end_lineno)
            if shown and said is not None:
                assert matches_expected(shown, said), (
                    f"{document.name}:{statement.end_lineno} shows:\n{shown}"
                )


def test_the_readme_is_short_and_has_examples_of_both_kinds():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150
    assert any(block.language == "python" for block in code_blocks(README))
    shown = [command for command in COMMANDS if command.document == README and command.expected]
    assert any(command.line.startswith("idefics ") for command in shown)


def test_every_block_is_run_or_is_output():
    """A block without a language or of another language would not be tested."""
    known = {"python", "console", "sh", OUTPUT}
    other = [
        f"{block} is {block.language}"
        for path in DOCUMENTS
        for block in code_blocks(path)
        if block.language not in known
    ]
    assert not other
    indented = re.compile(r"\n\n(?: {4,}|\t)(\$ |(idefics|make|python|pip|curl|git|import|from|vlm)\b)")
    assert not [path.name for path in DOCUMENTS if indented.search(path.read_text(encoding="utf-8"))]


def test_every_skipped_command_occurs_in_a_document():
    lines = [command.line for command in COMMANDS]
    assert not [p for p in REASON_BY_SKIPPED_COMMAND if not any(re.fullmatch(p, line) for line in lines)], (
        "strike these"
    )


def test_links_lead_somewhere():
    """Links within the repository; URLs are not fetched."""
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)|(?:src|href)=\"([^\"#]+)\"", text)
        broken = [
            a or b for a, b in targets if "://" not in (a or b) and not (document.parent / (a or b)).exists()
        ]
        assert not broken, f"{document.name}: {broken}"


def test_the_options_are_todays():
    import refresh_readme

    text = refresh_readme.PYTHON_DOC.read_text(encoding="utf-8")
    assert refresh_readme.refresh_options(text) == text, "run scripts/refresh_readme.py"


def test_the_architecture_names_what_exists():
    """Its files and modules, relative to the package, and the levels of imports."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    package = ROOT / "src" / "idefics"
    files = re.findall(r"`((?:\w+/)+(?:\w+\.py)?|\w+\.py)`", text)
    missing = [name for name in files if not any((root / name).exists() for root in (package, ROOT))]
    parts = [part for level in LEVELS for part in level if list(package.glob(f"{part}*"))]
    folders = [part for part in parts if (package / part).is_dir()]
    for name in re.findall(rf"`((?:{'|'.join(folders)})(?:\.[a-z_]+)+)`", text):
        folder, last = package.joinpath(*name.split(".")[:-1]), name.split(".")[-1]
        exports = folder / "__init__.py"
        if not list(folder.glob(f"{last}*")) and last not in exports.read_text(encoding="utf-8"):
            missing.append(name)
    assert not missing
    level_text = text.split("## Who may import whom")[1].split("```")[1]
    assert set(parts) - {"__init__", "__main__"} <= set(re.findall(r"\w+", level_text))
