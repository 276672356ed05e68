"""Rewrites the generated parts of README.md and docs/python.md: `python scripts/refresh_readme.py`.

Runs every command of the README's `console` blocks with the demo model and puts the output under it. Fills the tables
between `<!-- begin NAME -->` and `<!-- end NAME -->`: the models from the catalog, the options of calls from
`idefics.Options`, and the evaluation from `demo-model/evaluate_demo.py` if `--evaluate` is given (a few minutes).
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from inspect import formatannotation
from pathlib import Path
from typing import get_args, get_type_hints

from idefics.catalog import CATALOG, checkpoint_peak_bytes, checkpoint_weight_bytes
from idefics.errors import format_bytes
from idefics.options import DEFAULT_OPTIONS, Options

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PYTHON_DOC = ROOT / "docs" / "python.md"
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
    head = ["| `--model` | parameters | weights | peak | peak with int8 | licence |", "|-|-:|-:|-:|-:|-|"]
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


def format_options_table() -> str:
    """Every keyword option of calls that generate: type, default, one line."""
    rows = ["| option | type | default | |", "|-|-|-|-|"]
    for name, hint in get_type_hints(Options, include_extras=True).items():
        option_type, line = get_args(hint)
        type_text = formatannotation(option_type).replace("collections.abc.", "").replace("typing.", "")
        type_text = type_text.replace("|", "\\|")
        default = "64 to 256" if name == "max_new_tokens" else f"`{DEFAULT_OPTIONS[name]!r}`"
        rows.append(f"| `{name}` | {type_text} | {default} | {line} |")
    return "\n".join(rows)


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


def refresh_options(text: str) -> str:
    """docs/python.md with today's options."""
    return fill_section(text, "options", format_options_table())


def main() -> None:
    """Reads the command line and rewrites both documents."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--evaluate", action="store_true", help="measure the demo checkpoints too")
    arguments = parser.parse_args()
    text = README.read_text(encoding="utf-8")
    text = re.sub(r"```console\n(.*?)```", refresh_console_block, text, flags=re.S)
    text = fill_section(text, "models", format_models_table())
    if arguments.evaluate:
        text = fill_section(text, "evaluation", run_evaluation())
    README.write_text(text, encoding="utf-8")
    PYTHON_DOC.write_text(refresh_options(PYTHON_DOC.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
