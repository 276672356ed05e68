"""Duration of a process: help, imports, and an answer of one token; compared with `import torch` and transformers.

`python bench/start.py [--rounds 7]`. The answers are about one bundled picture, as one frame. Ratios to `import torch`
are medians of the ratios of processes that ran next to each other.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import idefics
from checkpoints import copy_without_image_splitting, get_checkpoint
from harness import ROOT, BenchmarkReport, run_rounds


@dataclass(frozen=True)
class ProcessTiming:
    """The times of one process.

    Attributes:
        first_output_seconds: seconds from its start to its first byte of standard output, or to its end without one.
        total_seconds: seconds from its start to its end.
    """

    first_output_seconds: float
    total_seconds: float


PICTURE_PATH = Path(idefics.__file__).parent / "demo" / "pictures" / "puppy.png"
TORCH_SCRIPT = "import torch; print('imported', flush=True)"
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


def run_python(arguments: list[str], **variables: str) -> ProcessTiming:
    """Runs a Python process with these arguments until its end, without files of encoded pictures.

    Args:
        variables: environment variables, which take precedence.
    """
    pythonpath = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    defaults = {"PYTHONPATH": pythonpath, "HF_HUB_OFFLINE": "1", "IDEFICS_FEATURE_CACHE": "0"}
    started = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, *arguments],
        env=os.environ | defaults | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        first_output = time.perf_counter() - started
        _, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"python {' '.join(arguments)} failed: {errors.decode()}")
    return ProcessTiming(first_output, time.perf_counter() - started)


def make_process_timer(*python_arguments: str) -> Callable[[int], ProcessTiming]:
    """A call that times a Python process with these arguments."""
    return lambda _: run_python([*python_arguments])


def make_ask_timer(folder: Path) -> Callable[[int], ProcessTiming]:
    """A call that times `idefics ask` for one token."""
    cli_arguments = ["ask", str(PICTURE_PATH), "What is it?", "--model", str(folder), "--max-new-tokens", "1"]
    return make_process_timer("-m", "idefics", *cli_arguments)


def median_seconds(timings: list[ProcessTiming]) -> float:
    """The median of the seconds from start to end."""
    return statistics.median(timing.total_seconds for timing in timings)


def add_ratios_to_torch(
    report: BenchmarkReport, ask: list[ProcessTiming], torch: list[ProcessTiming]
) -> None:
    """Adds the ratios of `idefics ask` (demo) to `import torch`, pair by pair; that of the processes has a target.

    `import torch` alone spends a third of its process on its end, which comes after the first token of an answer.
    """
    pairs = list(zip(ask, torch, strict=True))
    first_token = statistics.median(
        one.first_output_seconds / other.first_output_seconds for one, other in pairs
    )
    total = statistics.median(one.total_seconds / other.total_seconds for one, other in pairs)
    report.add_figure(
        "idefics ask, demo / import torch", "to the first token / once imported", first_token, ""
    )
    report.add_figure("idefics ask, demo / import torch", "whole process", total, "")
    report.add_target("idefics ask, demo, one token / `import torch` alone", total, max_value=1.1)


def main() -> None:
    """Reads the command line, measures and prints the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
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
        "import torch": make_process_timer("-c", TORCH_SCRIPT),
        "idefics ask, demo": make_ask_timer(demo_folder),
    }
    timings = run_rounds(runs, num_rounds)
    medians = {who: median_seconds(times) for who, times in timings.items()}
    for who, median in medians.items():
        report.add_figure("process from start to end", who, median, "s")
    for who in ("import torch", "idefics ask, demo"):
        first_output = statistics.median(timing.first_output_seconds for timing in timings[who])
        report.add_figure("process from start to its first output", who, first_output, "s")
    report.add_target("idefics --help, seconds", medians["idefics --help"], max_value=0.3)
    add_ratios_to_torch(report, timings["idefics ask, demo"], timings["import torch"])
    for folder in folders:
        times_by_system = run_rounds(
            {
                "ours": make_ask_timer(folder),
                "transformers": make_process_timer("-c", TRANSFORMERS_SCRIPT, str(folder), str(PICTURE_PATH)),
            },
            num_rounds,
        )
        for who, times in times_by_system.items():
            report.add_figure(f"{folder.name}: an answer of one token", who, median_seconds(times), "s")
    report.print_report()


if __name__ == "__main__":
    main()
