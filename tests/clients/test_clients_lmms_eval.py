"""lmms-eval takes a model of this package by its entry point, in an environment of its own (`make test-all`)."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from clients.recording import PROGRAMS_FOLDER
from idefics.demo import pictures

PYTHON = Path(__file__).parents[2] / ".venv" / "clients" / "lmms_eval" / "bin" / "python"
pytestmark = [
    pytest.mark.clients,
    pytest.mark.skipif(not PYTHON.exists(), reason="no environment: make test-all makes it"),
]
SHAPES = next(path for path in pictures() if path.name == "shapes.png")
TASK = """
task: shapes
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
output_type: generate_until
doc_to_visual: !function shapes.doc_to_visual
doc_to_text: "{{question}}"
doc_to_target: answer
generation_kwargs: {max_new_tokens: 8, until: ["\\n\\n"]}
process_results: !function shapes.process_results
metric_list: [{metric: right, aggregation: mean, higher_is_better: true}]
"""
FUNCTIONS = """
from PIL import Image

def doc_to_visual(doc):
    return [Image.open(doc["image"]).convert("RGB")]

def process_results(doc, results):
    return {"right": float(results[0].strip() == doc["answer"])}
"""


def run(*arguments, **options):
    done = subprocess.run(
        [PYTHON, *arguments], capture_output=True, text=True, timeout=180, check=False, **options
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_lmms_eval_generates_in_one_round_and_in_two():
    questions = ["What color is the circle?", "What color is the star?"]
    lines = run(PROGRAMS_FOLDER / "lmms_eval_model.py", SHAPES, *questions)
    one_round, two_rounds, refused = lines[-3:]
    assert one_round == "['Red.', 'Green.']"
    assert two_rounds.count("Red.") == two_rounds.count("Green.") == 1
    assert len(eval(two_rounds)[0]) == 2
    assert refused == "NotImplementedError"


def test_lmms_eval_evaluates_a_task(tmp_path):
    """One of two answers is expected to be another one, so half are right."""
    rows = [("What color is the circle?", "Red."), ("What color is the star?", "Blue.")]
    (tmp_path / "rows.jsonl").write_text(
        "".join(
            json.dumps({"image": str(SHAPES), "question": question, "answer": answer}) + "\n"
            for question, answer in rows
        )
    )
    (tmp_path / "shapes.yaml").write_text(TASK)
    (tmp_path / "shapes.py").write_text(FUNCTIONS)
    offline = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    flags = ["--model", "idefics", "--model_args", "model=demo", "--tasks", "shapes", "--include_path", "."]
    lines = run("-m", "lmms_eval", *flags, cwd=tmp_path, env=os.environ | offline)
    [row] = [line for line in lines if line.startswith("|shapes|")]
    assert [cell.strip() for cell in row.split("|")][4:7] == ["right", "↑", "0.5"]
