"""Rows of evaluations and small tables, for tests."""

import json
from pathlib import Path

from idefics.batch.rows import Media
from idefics.demo import pictures
from idefics.evaluate.suite import EvaluationRow

PICTURES = {Path(path).name: Path(path) for path in pictures()}


def evaluation_row(name, picture="tower.png", **changes):
    """A row about one of the demo's pictures."""
    path = PICTURES[picture]
    media = Media(path=str(path), read=path.read_bytes, file=path, container=path)
    return EvaluationRow(**{"name": name, "media": media, "references": ("x",), **changes})


def read_report(path):
    return json.loads(path.read_text(encoding="utf-8"))
