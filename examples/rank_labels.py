"""Classifies a picture without training: ranks labels by how likely each is as the model's answer.

    python examples/rank_labels.py
    python examples/rank_labels.py photo.jpg cat dog bird --model smolvlm-500m

A label's probability is relative to the other labels; its log-probability is that of its tokens.
"""

import argparse
from pathlib import Path

import idefics

BUNDLED = Path(idefics.__file__).parent / "demo" / "pictures"
LABELS = ["animals", "vegetables", "city landscape", "cars", "office"]

parser = argparse.ArgumentParser()
parser.add_argument("picture", nargs="?", type=Path, default=BUNDLED / "vegetables.png")
parser.add_argument("labels", nargs="*", default=LABELS)
parser.add_argument("--model", default="demo")
args = parser.parse_args()

with idefics.load(args.model) as vlm:
    ranking = vlm.classify(args.picture, args.labels)
for label, probability, logprob in ranking:
    print(f"{probability:7.2%}  {label}  (log-probability {logprob:.2f})")
print("best:", ranking.best)
