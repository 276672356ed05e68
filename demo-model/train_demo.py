"""Trains a demo checkpoint from nothing: `python demo-model/train_demo.py demo --out build/demo`.

To resume an interrupted training, run the same command again. Needs Debian's fonts-noto-color-emoji.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from recipe.checkpoints import RECIPE_BY_NAME
from recipe.training import DemoTrainer


def main() -> None:
    """Reads the command line and trains, reporting as it goes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=RECIPE_BY_NAME)
    parser.add_argument(
        "--out", type=Path, required=True, help="the folder of the checkpoint and of the state"
    )
    parser.add_argument("--steps", type=int, default=8000, help="of 16 samples each (%(default)s)")
    parser.add_argument("--start", type=Path, help="a checkpoint of the same shape to go on from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    started = time.monotonic()

    def print_progress(line: str) -> None:
        print(f"{(time.monotonic() - started) / 60:6.1f} min  {line}", flush=True)

    recipe, out, start = RECIPE_BY_NAME[arguments.name], arguments.out, arguments.start
    DemoTrainer(recipe, out, arguments.steps, arguments.seed, print_progress, start).run()


if __name__ == "__main__":
    main()
