"""The sample program of the public API: it uses every name, and runs. `make check` has two type checkers read it."""

import ast
import json
from pathlib import Path

import idefics
from idefics import train
from idefics.demo import pictures
from typed import program


def test_it_uses_every_public_name():
    names = {
        node.id
        for node in ast.walk(ast.parse(Path(program.__file__).read_text()))
        if isinstance(node, ast.Name)
    }
    used = names | {"__version__"}
    public = {*idefics.__all__, *train.__all__}
    assert public <= used, public - used


def test_it_runs(tmp_path):
    picture = pictures()[0]
    shots = tmp_path / "shots.jsonl"
    shots.write_text(json.dumps({"image": str(picture), "answer": "A red square."}))
    program.main(picture, shots)
