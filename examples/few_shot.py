"""Captions a picture in the style of few-shot examples, which are read from a file.

    python examples/few_shot.py
    python examples/few_shot.py photo.jpg --shots shots.jsonl --model smolvlm-500m

Each line of the file is one example; paths of pictures are relative to the file:

    {"image": "tower.png", "answer": "An image of a tower. Fun fact: towers sway a little in the wind."}
"""

import argparse
from pathlib import Path

import idefics

BUNDLED = Path(idefics.__file__).parent / "demo" / "pictures"

parser = argparse.ArgumentParser()
parser.add_argument("picture", nargs="?", type=Path, default=BUNDLED / "statue.png")
parser.add_argument("--shots", type=Path, default=BUNDLED / "shots.jsonl")
parser.add_argument("--model", default="demo")
args = parser.parse_args()

with idefics.load(args.model) as vlm:
    print("without examples:", vlm.caption(args.picture))
    few_shot = vlm.with_shots(idefics.read_shots(args.shots))  # the same weights, nothing is copied
    print("with examples:   ", few_shot.caption(args.picture))
