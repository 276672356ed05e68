"""Asks for an answer that follows a JSON schema, and reads it as a Python object.

    pip install 'idefics[form]'
    python examples/structured_output.py
    python examples/structured_output.py photo.jpg --model smolvlm-500m

Any model keeps to the schema; how right the values are depends on the model. The demo model has never seen JSON.
"""

import argparse
import json
from pathlib import Path

import idefics

BUNDLED = Path(idefics.__file__).parent / "demo" / "pictures"
SCHEMA = {
    "type": "object",
    "properties": {
        "time": {"enum": ["day", "night"]},
        "ground": {"enum": ["green", "gray", "blue", "white", "brown"]},
        "num_things": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["time", "ground", "num_things"],
    "additionalProperties": False,
}

parser = argparse.ArgumentParser()
parser.add_argument("picture", nargs="?", type=Path, default=BUNDLED / "door.png")
parser.add_argument("--model", default="demo")
args = parser.parse_args()

with idefics.load(args.model) as vlm:
    scene = json.loads(vlm.ask(args.picture, "Describe the scene as JSON.", schema=SCHEMA).text)
print(f"time: {scene['time']}, ground: {scene['ground']}, things: {scene['num_things']}")
