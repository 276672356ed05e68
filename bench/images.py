"""Preprocessing of a picture on one core and the vision tower, compared with transformers.

`python bench/images.py [--rounds 5] [--kinds fp32 int8] [--quick]`. Photos are JPEG files in memory; towers have the
released shapes and random weights. transformers' image processors are those without torchvision.
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
from baselines import TransformersBaseline
from checkpoints import RELEASED_BY_NAME, get_checkpoint
from harness import BenchmarkReport, run_rounds, time_call
from idefics import Picture
from idefics.messages import ImageDetail
from idefics.models import family_for
from idefics.processing.fetch import Fetcher
from idefics.processing.image_processor import open_and_preprocess

# Title, checkpoint, tile size if it differs from the checkpoint's, size of the photo.
PREPROCESSING_CASES: tuple[tuple[str, str, int | None, tuple[int, int]], ...] = (
    ("512-pixel tiles", "smolvlm-256m", None, (640, 600)),
    ("512-pixel tiles", "smolvlm-256m", None, (1600, 1500)),
    ("512-pixel tiles", "smolvlm-256m", None, (4000, 3600)),
    ("384-pixel tiles", "smolvlm-256m", 384, (1600, 1500)),
    ("Idefics2, split", "idefics2-8b", None, (1600, 1500)),
    ("Idefics, one frame", "9b", None, (1600, 1500)),
)
TARGET_SIZE = (1600, 1500)
LOAD_ARGUMENTS_BY_FORMAT: dict[str, dict[str, Any]] = {
    "fp32": {"dtype": "float32"},
    "bf16": {},
    "int8": {"quantize": "int8"},
}


def photo_jpeg(size: tuple[int, int]) -> bytes:
    """The bytes of a JPEG that compresses like a photo: smooth, with a little noise."""
    rng = np.random.default_rng(0)
    noise = PIL.Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
    smooth = np.asarray(noise.resize(size, PIL.Image.Resampling.BICUBIC)).astype(np.int16)
    pixels = np.clip(smooth + rng.integers(-6, 7, (size[1], size[0], 1)), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()


def make_transformers_timer(settings: dict[str, Any], data: bytes) -> Callable[[int], float]:
    """A call that times transformers' image processor with a checkpoint's settings, from bytes to a tensor."""
    import transformers

    class_name = settings.get("image_processor_type", "IdeficsImageProcessor")
    processor_arguments = {
        name: value for name, value in settings.items() if not name.endswith(("_type", "_class"))
    }
    image_processor = getattr(transformers, class_name)(**processor_arguments)
    return lambda _: time_call(lambda: image_processor(PIL.Image.open(io.BytesIO(data)), return_tensors="pt"))


def measure_preprocessing(report: BenchmarkReport, num_rounds: int) -> None:
    """Times one photo from the bytes of its file to normalised frames, on one core."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for title, name, tile_size, size in PREPROCESSING_CASES:
        released, data = RELEASED_BY_NAME[name], photo_jpeg(size)
        settings = dict(released.preprocessor)
        if tile_size:
            settings |= {
                "max_image_size": {"longest_edge": tile_size},
                "size": {"longest_edge": 4 * tile_size},
            }
        family = family_for(released.config["model_type"])
        image_plan = family.read_image_config(family.read_config(released.config, {}), settings)
        prepare = partial(
            open_and_preprocess, Picture(data), image_plan, Fetcher(policy="off"), ImageDetail()
        )
        runs = {
            "ours": lambda _, call=prepare: time_call(call),
            "transformers": make_transformers_timer(settings, data),
        }
        seconds_by_system = run_rounds(runs, num_rounds)
        idefics_seconds, transformers_seconds = (
            statistics.median(seconds_by_system[who]) for who in ("ours", "transformers")
        )
        case = f"preprocessing, {title}, {size[0]} x {size[1]}: {len(prepare().frames)} frames"
        report.add_figure(case, "ours", 1e3 * idefics_seconds, "ms")
        report.add_figure(
            case,
            "transformers",
            1e3 * transformers_seconds,
            "ms",
            f"ours takes {idefics_seconds / transformers_seconds:.2f} of it",
        )
        if name == "smolvlm-256m" and size == TARGET_SIZE:
            report.add_target(
                f"preprocessing, {title}, of transformers' time",
                idefics_seconds / transformers_seconds,
                max_value=0.2,
            )
    torch.set_num_threads(num_threads)


@torch.inference_mode()
def measure_vision(
    report: BenchmarkReport, weight_formats: list[str], num_frames: int, num_rounds: int
) -> None:
    """Times vision tower and connector of SmolVLM-256M for one picture."""
    folder = get_checkpoint("smolvlm-256m")
    model = TransformersBaseline(folder, torch.float32).model.model
    pixels = torch.randn(num_frames, 3, 512, 512, generator=torch.Generator().manual_seed(0))
    runs: dict[str, Callable[[int], float]] = {
        "transformers fp32": lambda _: time_call(
            lambda: model.connector(model.vision_model(pixel_values=pixels).last_hidden_state)
        )
    }
    for kind in weight_formats:
        vision_model = idefics.load(folder, device="cpu", **LOAD_ARGUMENTS_BY_FORMAT[kind]).engine.model
        runs[f"ours {kind}"] = lambda _, tower=vision_model: time_call(lambda: tower.encode(pixels))
    seconds_by_system = {who: statistics.median(times) for who, times in run_rounds(runs, num_rounds).items()}
    transformers_seconds = seconds_by_system["transformers fp32"]
    for who, time in seconds_by_system.items():
        note = (
            ""
            if who.startswith("transformers")
            else f"{time / transformers_seconds:.2f} of transformers' time"
        )
        report.add_figure(
            f"vision, SmolVLM-256M, {num_frames} frames", who, 1e3 * time / num_frames, "ms a frame", note
        )
    # The targets are those of the first token, of which vision is nine tenths.
    for kind, max_ratio in (("fp32", 0.75), ("int8", 0.4)):
        if (idefics_seconds := seconds_by_system.get(f"ours {kind}")) is not None:
            report.add_target(
                f"vision, {kind}, of transformers' time in fp32",
                idefics_seconds / transformers_seconds,
                max_value=max_ratio,
            )


def main() -> None:
    """Reads the command line, measures and prints the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--kinds", nargs="*", default=["fp32", "int8"])
    parser.add_argument("--quick", action="store_true", help="one round of two frames, to test the script")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    num_rounds, num_frames = (1, 2) if arguments.quick else (arguments.rounds, arguments.frames)
    report = BenchmarkReport("Pictures", is_quick=arguments.quick)
    measure_preprocessing(report, num_rounds)
    measure_vision(report, arguments.kinds, num_frames, num_rounds)
    report.print_report()


if __name__ == "__main__":
    main()
