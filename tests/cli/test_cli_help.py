"""The help is quick and aligned, and its examples run."""

import json
import re
import shlex
import subprocess
import sys
from itertools import pairwise
from shutil import copyfile

import pytest
from PIL import Image

import idefics as package
from idefics.cli import main as cli
from idefics.evaluate.check.logits_record import RECORDS_FOLDER
from idefics.tasks import TASKS
from models.tiny_adapters import write_demo_adapter

COMMANDS = [
    *TASKS,
    "chat",
    "generate",
    "run",
    "ledger",
    "eval",
    "train",
    "serve",
    "ui",
    "models",
    "info",
    "quantize",
    "merge",
    "check",
    "demo",
]
EXAMPLES = [
    *(
        example
        for command in cli.COMMANDS
        if command.name not in ("serve", "ui", "read")
        for example in command.examples
    ),
    *(example.partition("   ")[0] for example in cli.EXAMPLES),
]


def help_text(capsys, *argv):
    assert cli.run(argv) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


@pytest.mark.parametrize("argv", [["--help"], ["ask", "--help"], ["--version"], []], ids=" ".join)
def test_help_imports_nothing_heavy(argv):
    heavy = ["torch", "numpy", "PIL", "tokenizers", "huggingface_hub", "httpx", "jinja2", "rich", "pydantic"]
    code = (
        "import sys; from idefics.cli.main import run; code = run(sys.argv[1:]); "
        f"print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
    assert done.stdout


def test_the_module_runs_as_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "idefics", "capton"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("idefics: no such command 'capton'")


def test_help_lists_the_commands_in_order(capsys):
    out = help_text(capsys, "--help")
    assert re.findall(r"^  (\w+)  ", out.partition("Commands:")[2], re.M) == COMMANDS
    assert help_text(capsys) == help_text(capsys, "-h") == out
    assert help_text(capsys, "help") == out
    assert help_text(capsys, "help", "ask") == help_text(capsys, "ask", "--help")
    assert help_text(capsys, "-V") == help_text(capsys, "--version") == f"idefics {package.__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_fits_and_is_aligned(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "100")
    out = help_text(capsys, command, "--help")
    assert out == help_text(capsys, command, "-h")
    assert out.startswith(f"Usage: idefics {command}")
    assert all(len(line) <= 100 for line in out.splitlines())
    head, _, flags = out.partition("Examples:")
    assert f"idefics {command}" in flags
    assert "--" not in head.partition("\n")[0].replace("--labels", "")
    explained = re.findall(r"^  (-.*?)  +\S", flags, re.M)
    assert explained[-1] == "-h, --help"
    starts = {match.end() - 1 for match in re.finditer(r"^  -.*?  +\S", flags, re.M)}
    assert len({start - flags.rfind("\n", 0, start) for start in starts}) == 1, "one column for all sections"


def prepare_evaluation(folder):
    """Five pictures with right answers in `answers.csv`, and two reports about them."""
    lines = ["image,question,answer"]
    for number in range(5):
        Image.new("RGB", (32, 32), (40 * number, 90, 10)).save(folder / f"{number}.png")
        lines.append(f"{number}.png,What is it?,a thing")
    (folder / "answers.csv").write_text("\n".join(lines))
    for name in ("before.json", "after.json"):
        assert (
            cli.run(["eval", "folder", "--data", str(folder / "answers.csv"), "--out", str(folder / name)])
            == 0
        )


def run_in_earnest(words, folder, capsys, monkeypatch):
    """Runs a command with the demo model; `ledger` after the run that makes one."""
    monkeypatch.setenv("IDEFICS_MODEL", "demo")
    (folder / "goods.csv").write_text("image,item,sku\na.png,hat,s1\n")
    if words[0] == "eval":
        prepare_evaluation(folder)
    if words[0] == "ledger":
        assert cli.run(["run", "photos/", "--out", "captions.jsonl"]) == 0
    capsys.readouterr()
    assert cli.run(words) == 0
    printed = capsys.readouterr()
    if words[0] == "eval":
        assert "95 % interval" in printed.out or "easy-vqa" in printed.out
        return
    assert "1 answered" in printed.out or "1 written" in printed.err or "is written" in printed.err


def train_in_earnest(words, folder, capsys):
    """Trains the demo model, whatever model the example names."""
    for name, column in (
        ("photos/metadata.jsonl", "file_name"),
        ("train.jsonl", "image"),
        ("val.jsonl", "image"),
    ):
        row = {
            column: "one.jpg" if column == "file_name" else "a.png",
            "question": "What is it?",
            "answer": "Red.",
        }
        (folder / name).write_text(json.dumps(row) + "\n")
    if "--model" in words:
        words = [word if before != "--model" else "demo" for before, word in pairwise(["", *words])]
    else:
        words = [*words, "--model", "demo"]
    assert cli.run(words) == 0
    printed = capsys.readouterr()
    assert "was written" in printed.out or "What is it?" in printed.out or "one batch of" in printed.err


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_in_help_run(run_idefics, photo_folder, monkeypatch, send_stdin, capsys, example):
    """Each example runs in a folder with the files that it names."""
    data = (photo_folder / "a.png").read_bytes()
    for name in ("photo.jpg", "cat.jpg", "dog.jpg", "photos/one.jpg"):
        (photo_folder / name).parent.mkdir(exist_ok=True)
        (photo_folder / name).write_bytes(data)
    (photo_folder / "labels.txt").write_text("puppy\n\nkitten\n")
    (photo_folder / "shots.jsonl").write_text('{"image": "a.png", "answer": "A puppy."}\n')
    piped = example.startswith("cat ")
    send_stdin(data if piped else b"What is it?\n")
    words = shlex.split(re.split(r" [<>] \S+", example)[0].removeprefix("cat photo.jpg | "))
    assert words[0] == "idefics"
    if words[1:] == ["demo"]:
        return
    if words[1] == "train":
        train_in_earnest(words[1:], photo_folder, capsys)
        return
    if words[1] in ("run", "ledger", "eval"):
        run_in_earnest(words[1:], photo_folder, capsys, monkeypatch)
        return
    if words[1] == "merge":
        write_demo_adapter(photo_folder / "my-adapter")
    if words[1] in ("quantize", "merge", "check"):  # in earnest: with the model that is here
        words[2] = "demo"
        copyfile(RECORDS_FOLDER / "demo.json", "right.json")
    done = run_idefics(*words[1:])
    notes = [line for line in done.stderr.splitlines() if not line.endswith(" is written")]
    assert (done.exit_code, notes) == (0, [])
    assert done.stdout
