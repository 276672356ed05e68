"""A picture's way into a model: preprocessing on one core and the vision tower, beside transformers.

`python bench/images.py [--rounds 5] [--kinds fp32 int8] [--quick]`. Photos are JPEG files in memory; towers have the
released shapes and random weights. transformers' image processors are those that it gives without torchvision.
"""

from __future__ import annotations

import argparse
import io
import statistics
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import PIL.Image
import torch

import idefics
from checkpoints import RELEASED, checkpoint
from harness import Report, rounds, seconds
from idefics import Picture
from idefics.messages import ImageDetail
from idefics.models import family_for
from idefics.processing.fetch import Fetcher
from idefics.processing.images import prepared
from rivals import Transformers

# Preprocessing: what is measured, whose plan, the side of tiles where another release has it smaller, the photo's size.
PLANS: tuple[tuple[str, str, int | None, tuple[int, int]], ...] = (
    ("512-pixel tiles", "smolvlm-256m", None, (640, 600)),
    ("512-pixel tiles", "smolvlm-256m", None, (1600, 1500)),
    ("512-pixel tiles", "smolvlm-256m", None, (4000, 3600)),
    ("384-pixel tiles", "smolvlm-256m", 384, (1600, 1500)),
    ("Idefics2, split", "idefics2-8b", None, (1600, 1500)),
    ("Idefics, one frame", "9b", None, (1600, 1500)),
)
TARGETED = (1600, 1500)
KINDS: dict[str, dict[str, Any]] = {"fp32": {"dtype": "float32"}, "bf16": {}, "int8": {"quantize": "int8"}}


def jpeg(size: tuple[int, int]) -> bytes:
    """A photo as a camera's file: smooth, with a little noise."""
    random = np.random.default_rng(0)
    coarse = PIL.Image.fromarray(random.integers(0, 256, (24, 24, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize(size, PIL.Image.Resampling.BICUBIC)).astype(np.int16)
    pixels = np.clip(smooth + random.integers(-6, 7, (size[1], size[0], 1)), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()


def rival(settings: dict[str, Any], data: bytes) -> Callable[[int], float]:
    """transformers' image processor with a checkpoint's settings: a file's bytes to a tensor."""
    import transformers

    kind = settings.get("image_processor_type", "IdeficsImageProcessor")
    own = {name: value for name, value in settings.items() if not name.endswith(("_type", "_class"))}
    made = getattr(transformers, kind)(**own)
    return lambda _: seconds(lambda: made(PIL.Image.open(io.BytesIO(data)), return_tensors="pt"))


def preprocessing(report: Report, count: int) -> None:
    """One photo from the bytes of its file to normalised frames, on one core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for title, name, side, size in PLANS:
        released, data = RELEASED[name], jpeg(size)
        settings = dict(released.preprocessor)
        if side:
            settings |= {"max_image_size": {"longest_edge": side}, "size": {"longest_edge": 4 * side}}
        family = family_for(released.config["model_type"])
        plan = family.images(family.config(released.config, {}), settings)
        ours = partial(prepared, Picture(data), plan, Fetcher(policy="off"), ImageDetail())
        runs = {"ours": lambda _, call=ours: seconds(call), "transformers": rival(settings, data)}
        spent = rounds(runs, count)
        mine, theirs = (statistics.median(spent[who]) for who in ("ours", "transformers"))
        case = f"preprocessing, {title}, {size[0]} x {size[1]}: {len(ours().frames)} frames"
        report.figure(case, "ours", 1e3 * mine, "ms")
        report.figure(case, "transformers", 1e3 * theirs, "ms", f"ours takes {mine / theirs:.2f} of it")
        if name == "smolvlm-256m" and size == TARGETED:
            report.target(f"preprocessing, {title}, of transformers' time", mine / theirs, at_most=0.2)
    torch.set_num_threads(threads)


@torch.inference_mode()
def vision(report: Report, kinds: list[str], frames: int, count: int) -> None:
    """The vision tower and what follows it up to the decoder, for one picture of SmolVLM-256M."""
    folder = checkpoint("smolvlm-256m")
    model = Transformers(folder, torch.float32).model.model
    pixels = torch.randn(frames, 3, 512, 512, generator=torch.Generator().manual_seed(0))
    runs: dict[str, Callable[[int], float]] = {
        "transformers fp32": lambda _: seconds(
            lambda: model.connector(model.vision_model(pixel_values=pixels).last_hidden_state)
        )
    }
    for kind in kinds:
        tower = idefics.load(folder, device="cpu", **KINDS[kind]).engine.model
        runs[f"ours {kind}"] = lambda _, tower=tower: seconds(lambda: tower.encode(pixels))
    spent = {who: statistics.median(times) for who, times in rounds(runs, count).items()}
    theirs = spent["transformers fp32"]
    for who, time in spent.items():
        note = "" if who.startswith("transformers") else f"{time / theirs:.2f} of transformers' time"
        report.figure(f"vision, SmolVLM-256M, {frames} frames", who, 1e3 * time / frames, "ms a frame", note)
    # The targets are those of the first token, of which vision is nine tenths.
    for kind, bound in (("fp32", 0.75), ("int8", 0.4)):
        if (mine := spent.get(f"ours {kind}")) is not None:
            report.target(f"vision, {kind}, of transformers' time in fp32", mine / theirs, at_most=bound)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--kinds", nargs="*", default=["fp32", "int8"])
    parser.add_argument("--quick", action="store_true", help="one round of two frames: does the script work?")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    count, frames = (1, 2) if arguments.quick else (arguments.rounds, arguments.frames)
    report = Report("Pictures", quick=arguments.quick)
    preprocessing(report, count)
    vision(report, arguments.kinds, frames, count)
    report.close()


if __name__ == "__main__":
    main()
