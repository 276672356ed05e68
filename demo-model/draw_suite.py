"""Draws the pictures of the evaluation suite `demo`: `python demo-model/draw_suite.py src/idefics/evaluate/scenes`.

60 scenes for the evaluation, each with two questions, and 20 for few-shot examples, each with one. All show
combinations that are not in the training data, with a seed that training never uses. Needs Debian's
fonts-noto-color-emoji.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from PIL import Image

from picturebook import draw_scene, sample_scene
from picturebook.questions import choose_question

SEED = 20262  # training's are 0 and 1, that of evaluate_demo.py is 20261
SCENES_AND_QUESTIONS_BY_SPLIT = {"test": (60, 2), "train": (20, 1)}


def draw_suite(folder: Path) -> None:
    """Writes `SPLIT/NN.webp` and `SPLIT/questions.jsonl` for both splits."""
    rng = random.Random(SEED)
    for split, (num_scenes, num_questions) in SCENES_AND_QUESTIONS_BY_SPLIT.items():
        place = folder / split
        place.mkdir(parents=True, exist_ok=True)
        lines = []
        for number in range(num_scenes):
            scene = sample_scene(rng, "held-out")
            name = f"{number:02}.webp"
            Image.fromarray(draw_scene(scene)).save(place / name, lossless=True, quality=100, method=6)
            answer_by_question: dict[str, str] = {}
            while len(answer_by_question) < num_questions:
                question, answer = choose_question(rng, scene)
                answer_by_question.setdefault(question, answer)
            lines += [
                json.dumps({"image": name, "question": question, "answer": answer})
                for question, answer in answer_by_question.items()
            ]
        (place / "questions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    draw_suite(Path(sys.argv[1]))
