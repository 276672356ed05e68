"""Writes a model with int8 weights into a folder, loads it from there and compares it with the original.

    python examples/quantize_and_save.py demo-int8
    python examples/quantize_and_save.py smolvlm-int8 --model smolvlm-500m

`idefics.load(MODEL, quantize="int8")` quantizes at each load; a saved model takes less space and loads faster.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import idefics

PICTURE = Path(idefics.__file__).parent / "demo" / "pictures" / "puppy.png"

parser = argparse.ArgumentParser()
parser.add_argument("folder", help="a new folder")
parser.add_argument("--model", default="demo")
args = parser.parse_args()

command = ["quantize", args.model, "--to", "int8", "--out", args.folder]
subprocess.run([sys.executable, "-m", "idefics", *command], check=True)

for model in (args.model, Path(args.folder)):
    with idefics.load(model) as vlm:
        print(f"{model}: {vlm.memory:,} bytes of weights. {vlm.ask(PICTURE, 'What can you see?')}")
