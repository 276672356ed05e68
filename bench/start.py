"""Duration of a process: help, imports, and an answer of one token; compared with transformers.

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
from checkpoints import copy_without_image_splitting, get_checkpoint
from harness import ROOT, BenchmarkReport, run_rounds, time_call

PICTURE_PATH = Path(idefics.__file__).parent / "demo" / "pictures" / "puppy.png"
TRANSFORMERS_SCRIPT = """
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


def make_process_timer(*python_arguments: str) -> Callable[[int], float]:
    """A call that runs a Python process with these arguments and returns its seconds."""
    pythonpath = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    call = partial(
        subprocess.run,
        [sys.executable, *python_arguments],
        check=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": pythonpath, "HF_HUB_OFFLINE": "1", "IDEFICS_FEATURE_CACHE": "0"},
    )
    return lambda _: time_call(call)


def make_ask_timer(folder: Path) -> Callable[[int], float]:
    """A call that times `idefics ask` for one token."""
    cli_arguments = ["ask", str(PICTURE_PATH), "What is it?", "--model", str(folder), "--max-new-tokens", "1"]
    return make_process_timer("-m", "idefics", *cli_arguments)


def main() -> None:
    """Reads the command line, measures and prints the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="the demo checkpoint only, one round")
    arguments = parser.parse_args()
    num_rounds = 1 if arguments.quick else arguments.rounds
    report = BenchmarkReport("start", is_quick=arguments.quick)
    demo_folder = PICTURE_PATH.parent.parent / "idefics3"
    folders = (
        [demo_folder]
        if arguments.quick
        else [demo_folder, copy_without_image_splitting(get_checkpoint("smolvlm-256m"))]
    )
    runs = {
        "python alone": make_process_timer("-c", "pass"),
        "import idefics": make_process_timer("-c", "import idefics"),
        "idefics --help": make_process_timer("-m", "idefics", "--help"),
        "import torch": make_process_timer("-c", "import torch"),
    }
    medians = {who: statistics.median(times) for who, times in run_rounds(runs, num_rounds).items()}
    for who, median in medians.items():
        report.add_figure("process from start to end", who, median, "s")
    report.add_target("idefics --help, seconds", medians["idefics --help"], max_value=0.3)
    for folder in folders:
        times_by_system = run_rounds(
            {
                "ours": make_ask_timer(folder),
                "transformers": make_process_timer("-c", TRANSFORMERS_SCRIPT, str(folder), str(PICTURE_PATH)),
            },
            num_rounds,
        )
        for who, times in times_by_system.items():
            report.add_figure(f"{folder.name}: an answer of one token", who, statistics.median(times), "s")
    report.print_report()


if __name__ == "__main__":
    main()
