"""Writes the list of settings in docs/server.md from `Settings`: `python scripts/refresh_server_docs.py`."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from idefics.server.settings import PREFIX, Settings

PAGE = Path(__file__).parent.parent / "docs" / "server.md"
BEGIN, END = "<!-- begin settings -->\n", "\n<!-- end settings -->"
SHOWN = {True: "yes", False: "no", None: ""}


def settings_table() -> str:
    """Every setting: its flag, its names elsewhere, its default, what it means."""
    sections: dict[str, list[str]] = {}
    for one in fields(Settings):
        flag, name = f"--{one.name.replace('_', '-')}", f"{PREFIX}{one.name.upper()}"
        default = SHOWN[one.default] if isinstance(one.default, bool | None) else f"`{one.default}`"
        low, high = one.metadata["range"]
        span = f" {low:,} to {high:,}." if high else ""
        row = f"| `{flag}` | `{name}` | {default} | {one.metadata['help']}{span} |"
        sections.setdefault(one.metadata["section"], []).append(row)
    head = "| flag | environment | default | |\n|-|-|-|-|\n"
    return "\n\n".join(f"### {name}\n\n{head}" + "\n".join(rows) for name, rows in sections.items())


def refreshed(text: str) -> str:
    """The page with today's settings."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + settings_table() + END + rest.split(END, 1)[1]


if __name__ == "__main__":
    PAGE.write_text(refreshed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
