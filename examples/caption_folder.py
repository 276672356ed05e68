"""Writes a caption for every picture of a folder, as JSON lines.

    python examples/caption_folder.py
    python examples/caption_folder.py ~/Pictures --model smolvlm-500m > captions.jsonl

A file that cannot be read gets an error in place of a caption; the others are captioned.
"""

import argparse
import json
from pathlib import Path

import idefics

BUNDLED = Path(idefics.__file__).parent / "demo" / "pictures"

parser = argparse.ArgumentParser()
parser.add_argument("folder", nargs="?", type=Path, default=BUNDLED)
parser.add_argument("--model", default="demo")
args = parser.parse_args()

suffixes = {".jpg", ".jpeg", ".png", ".webp"}
paths = sorted(path for path in args.folder.iterdir() if path.suffix.lower() in suffixes)
with idefics.load(args.model) as vlm:
    for path, result in zip(paths, vlm.caption(paths, on_error="return"), strict=True):
        if isinstance(result, idefics.IdeficsError):
            print(json.dumps({"image": path.name, "error": str(result)}))
        else:
            print(json.dumps({"image": path.name, "caption": result.text}))
