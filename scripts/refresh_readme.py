"""Writes what the README shows from what the package says: `python scripts/refresh_readme.py`.

Runs every command of its `console` blocks with the demo model and puts the output under it, and fills the tables
between `<!-- begin NAME -->` and `<!-- end NAME -->`: the models from the catalog, and the evaluation from
`scripts/evaluate_demo.py` if `--evaluate` is given (a few minutes).
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

from idefics.catalog import CATALOG, in_all, memory
from idefics.errors import size_text

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
SETUP = ("git ", "cd ", "make ", "pip ")


def run(line: str) -> str:
    """What a command of the README writes, on a screen of 80 columns that is no terminal."""
    line = re.sub(r"^idefics\b", f"{sys.executable} -m idefics", line)
    environment = {**os.environ, "IDEFICS_MODEL": "demo", "COLUMNS": "80", "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        line, shell=True, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


def answered(block: re.Match[str]) -> str:
    """A console block with today's output under each command."""
    commands = re.findall(r"^\$ (.*)$", block[1], re.M)
    shown = [f"$ {line}\n{'' if line.startswith(SETUP) else run(line)}" for line in commands]
    return f"```console\n{''.join(shown)}```"


def models_table() -> str:
    """Every row of the catalog; those that show the same figures are one."""
    head = ["| `--model` | parameters | weights | in all | int8 in all | licence |", "|-|-:|-:|-:|-:|-|"]
    names: dict[str, list[str]] = {}  # of models that show the same figures
    for row in CATALOG:
        count = f"{row.parameters / 1e9:.2f} B" if row.parameters >= 1e9 else f"{row.parameters / 1e6:.0f} M"
        sizes = (memory(row, "bfloat16"), in_all(row, "bfloat16"), in_all(row, "int8"))
        needs = " | ".join(map(size_text, sizes))
        names.setdefault(f"{count} | {needs} | {row.licence}", []).append(f"`{row.name}`")
    return "\n".join([*head, *(f"| {', '.join(some)} | {figures} |" for figures, some in names.items())])


def evaluation_table() -> str:
    """What `scripts/evaluate_demo.py` prints for both demo checkpoints."""
    command = [sys.executable, "scripts/evaluate_demo.py", "demo", "demo-idefics1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def fill(text: str, name: str, content: str) -> str:
    """`text` with `content` between the marks of `name`."""
    begin, end = f"<!-- begin {name} -->\n", f"\n<!-- end {name} -->"
    before, rest = text.split(begin)
    return before + begin + content + end + rest.split(end, 1)[1]


def main() -> None:
    """Reads the command line and rewrites README.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--evaluate", action="store_true", help="measure the demo checkpoints too")
    arguments = parser.parse_args()
    text = README.read_text(encoding="utf-8")
    text = re.sub(r"```console\n(.*?)```", answered, text, flags=re.S)
    text = fill(text, "models", models_table())
    if arguments.evaluate:
        text = fill(text, "evaluation", evaluation_table())
    README.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
