"""Draws traffic lights, with a question and an answer for each: a small data set to train on.

    python examples/draw_traffic_lights.py lights
    idefics train --data lights --model demo --out my-adapter

The folder gets one picture a row, and metadata.jsonl with the rows.
"""

import argparse
import json
import random
from pathlib import Path

from PIL import Image, ImageDraw

COLORS = ("red", "gold", "lime")  # from the top; lime is the one to go at

parser = argparse.ArgumentParser()
parser.add_argument("folder", type=Path)
parser.add_argument("--count", type=int, default=20)
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()

rng, rows = random.Random(args.seed), []
args.folder.mkdir(parents=True, exist_ok=True)
for number in range(args.count):
    image = Image.new("RGB", (240, 240), rng.choice(["skyblue", "lightgray", "midnightblue", "pink"]))
    draw, lit = ImageDraw.Draw(image), rng.randrange(3)
    left, top = rng.randrange(40, 120), rng.randrange(10, 50)
    draw.rectangle((left, top, left + 70, top + 180), fill="black")
    for place, color in enumerate(COLORS):
        y = top + 10 + 57 * place
        draw.ellipse((left + 10, y, left + 60, y + 50), fill=color if place == lit else "dimgray")
    name, answer = f"light{number + 1}.png", "Yes." if COLORS[lit] == "lime" else "No."
    image.save(args.folder / name)
    rows.append(json.dumps({"file_name": name, "question": "May I go?", "answer": answer}) + "\n")
(args.folder / "metadata.jsonl").write_text("".join(rows))
print(f"{args.folder} has {args.count} pictures")
