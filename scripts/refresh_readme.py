"""Writes what the README shows from what the package says: `python scripts/refresh_readme.py`.

Runs every command of its `console` blocks with the demo model and puts the output under it, and fills the tables
between `<!-- begin NAME -->` and `<!-- end NAME -->`: the models from the catalog, and the evaluation from
`demo-model/evaluate_demo.py` if `--evaluate` is given (a few minutes).
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

from idefics.catalog import CATALOG, checkpoint_peak_bytes, checkpoint_weight_bytes
from idefics.errors import format_bytes

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
SETUP_COMMANDS = ("git ", "cd ", "make ", "pip ")


def run_command(command: str) -> str:
    """What a command of the README writes, on a screen of 80 columns that is no terminal."""
    command = re.sub(r"^idefics\b", f"{sys.executable} -m idefics", command)
    environment = {**os.environ, "IDEFICS_MODEL": "demo", "COLUMNS": "80", "PYTHONPATH": str(ROOT / "src")}
    completed = subprocess.run(
        command, shell=True, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    return completed.stdout + completed.stderr


def refresh_console_block(block: re.Match[str]) -> str:
    """A console block with today's output under each command."""
    commands = re.findall(r"^\$ (.*)$", block[1], re.M)
    command_outputs = [
        f"$ {line}\n{'' if line.startswith(SETUP_COMMANDS) else run_command(line)}" for line in commands
    ]
    return f"```console\n{''.join(command_outputs)}```"


def format_models_table() -> str:
    """Every row of the catalog; those that show the same figures are one."""
    head = ["| `--model` | parameters | weights | in all | int8 in all | licence |", "|-|-:|-:|-:|-:|-|"]
    names_by_columns: dict[str, list[str]] = {}  # of models that show the same figures
    for row in CATALOG:
        count = (
            f"{row.num_parameters / 1e9:.2f} B"
            if row.num_parameters >= 1e9
            else f"{row.num_parameters / 1e6:.0f} M"
        )
        sizes = (
            checkpoint_weight_bytes(row, "bfloat16"),
            checkpoint_peak_bytes(row, "bfloat16"),
            checkpoint_peak_bytes(row, "int8"),
        )
        size_columns = " | ".join(map(format_bytes, sizes))
        names_by_columns.setdefault(f"{count} | {size_columns} | {row.licence}", []).append(f"`{row.name}`")
    return "\n".join(
        [*head, *(f"| {', '.join(some)} | {figures} |" for figures, some in names_by_columns.items())]
    )


def run_evaluation() -> str:
    """What `demo-model/evaluate_demo.py` prints for both demo checkpoints."""
    command = [sys.executable, "demo-model/evaluate_demo.py", "demo", "demo-idefics1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    completed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return completed.stdout.strip()


def fill_section(text: str, name: str, content: str) -> str:
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
    text = re.sub(r"```console\n(.*?)```", refresh_console_block, text, flags=re.S)
    text = fill_section(text, "models", format_models_table())
    if arguments.evaluate:
        text = fill_section(text, "evaluation", run_evaluation())
    README.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
