"""From the start of a process to its end: the help, imports, and an answer of one token; beside transformers.

`python bench/start.py [--rounds 5]`. The answers are about one bundled picture, as one frame.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import idefics
from checkpoints import checkpoint, unsplit
from harness import ROOT, Report, rounds, seconds

PICTURE = Path(idefics.__file__).parent / "demo" / "pictures" / "puppy.png"
RIVAL = """
import sys
import PIL.Image
from transformers import AutoModelForImageTextToText, AutoProcessor
folder, picture = sys.argv[1:]
processor = AutoProcessor.from_pretrained(folder)
model = AutoModelForImageTextToText.from_pretrained(folder)
content = [{"type": "image", "image": PIL.Image.open(picture).convert("RGB")}, {"type": "text", "text": "What is it?"}]
inputs = processor.apply_chat_template(
    [{"role": "user", "content": content}],
    add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
)
ids = model.generate(**inputs, max_new_tokens=1, do_sample=False)
print(processor.batch_decode(ids[:, inputs["input_ids"].shape[1]:]))
"""


def process(*arguments: str) -> Callable[[int], float]:
    """A Python process with these arguments: the seconds until it has ended."""
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    call = partial(
        subprocess.run,
        [sys.executable, *arguments],
        check=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
    )
    return lambda _: seconds(call)


def ask(folder: Path) -> Callable[[int], float]:
    """`idefics ask`, one token."""
    words = ["ask", str(PICTURE), "What is it?", "--model", str(folder), "--max-new-tokens", "1"]
    return process("-m", "idefics", *words)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="the demo checkpoint only, one round")
    given = parser.parse_args()
    count = 1 if given.quick else given.rounds
    report = Report("start", quick=given.quick)
    demo = PICTURE.parent.parent / "idefics3"
    folders = [demo] if given.quick else [demo, unsplit(checkpoint("smolvlm-256m"))]
    runs = {
        "python alone": process("-c", "pass"),
        "import idefics": process("-c", "import idefics"),
        "idefics --help": process("-m", "idefics", "--help"),
        "import torch": process("-c", "import torch"),
    }
    medians = {who: statistics.median(times) for who, times in rounds(runs, count).items()}
    for who, median in medians.items():
        report.figure("process from start to end", who, median, "s")
    report.target("idefics --help, seconds", medians["idefics --help"], at_most=0.3)
    for folder in folders:
        found = rounds(
            {"ours": ask(folder), "transformers": process("-c", RIVAL, str(folder), str(PICTURE))}, count
        )
        for who, times in found.items():
            report.figure(f"{folder.name}: an answer of one token", who, statistics.median(times), "s")
    report.close()


if __name__ == "__main__":
    main()
