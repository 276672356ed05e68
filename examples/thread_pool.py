"""Asks several questions about several pictures from a pool of threads; the engine answers them in batches.

    python examples/thread_pool.py
    python examples/thread_pool.py a.jpg b.jpg --model smolvlm-500m

A picture is encoded once: further questions about it find it in the prefix cache.
"""

import argparse
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import idefics

BUNDLED = Path(idefics.__file__).parent / "demo" / "pictures"
QUESTIONS = ["What can you see?", "Is it day or night?", "What color is the ground?"]

parser = argparse.ArgumentParser()
parser.add_argument("pictures", nargs="*", type=Path, default=[BUNDLED / "tower.png", BUNDLED / "puppy.png"])
parser.add_argument("--model", default="demo")
args = parser.parse_args()

with idefics.load(args.model) as vlm, ThreadPoolExecutor(max_workers=8) as pool:
    pairs = list(product(args.pictures, QUESTIONS))
    answers = pool.map(lambda pair: vlm.ask(*pair), pairs)
    for (picture, question), answer in zip(pairs, answers, strict=True):
        print(f"{picture.name}: {question} {answer}")
