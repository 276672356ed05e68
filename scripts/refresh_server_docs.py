"""Writes the list of settings in docs/server.md from `Settings`: `python scripts/refresh_server_docs.py`."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from idefics.server.settings import ENVIRONMENT_PREFIX, Settings

SERVER_DOC = Path(__file__).parent.parent / "docs" / "server.md"
BEGIN_COMMENT, END_COMMENT = "<!-- begin settings -->\n", "\n<!-- end settings -->"
TEXT_BY_DEFAULT = {True: "yes", False: "no", None: ""}


def format_settings_tables() -> str:
    """A table per section: flag, environment variable, default and help of each setting."""
    sections: dict[str, list[str]] = {}
    for setting in fields(Settings):
        flag, name = f"--{setting.name.replace('_', '-')}", f"{ENVIRONMENT_PREFIX}{setting.name.upper()}"
        default = (
            TEXT_BY_DEFAULT[setting.default]
            if isinstance(setting.default, bool | None)
            else f"`{setting.default}`"
        )
        low, high = setting.metadata["range"]
        range_text = f" {low:,} to {high:,}." if high else ""
        row = f"| `{flag}` | `{name}` | {default} | {setting.metadata['help']}{range_text} |"
        sections.setdefault(setting.metadata["section"], []).append(row)
    head = "| flag | environment | default | |\n|-|-|-|-|\n"
    return "\n\n".join(f"### {name}\n\n{head}" + "\n".join(rows) for name, rows in sections.items())


def refresh_settings(text: str) -> str:
    """The text of docs/server.md with its tables replaced."""
    before, rest = text.split(BEGIN_COMMENT)
    return before + BEGIN_COMMENT + format_settings_tables() + END_COMMENT + rest.split(END_COMMENT, 1)[1]


if __name__ == "__main__":
    SERVER_DOC.write_text(refresh_settings(SERVER_DOC.read_text(encoding="utf-8")), encoding="utf-8")
