"""Preprocessing of one picture at a time and the vision tower, compared with transformers.

`python bench/images.py [--rounds 5] [--kinds fp32 bf16 int8] [--busy] [--quick]`. Photos are JPEG files in memory;
towers have the released shapes and random weights. transformers' image processors are those without torchvision.
"""

from __future__ import annotations

import argparse
import io
import math
import statistics
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch

import idefics
from baselines import TransformersBaseline
from checkpoints import RELEASED_BY_NAME, get_checkpoint
from harness import MAX_BUSY_RATIO, BenchmarkReport, busy_core, run_rounds, time_call
from idefics import Picture
from idefics.config import VisionConfig
from idefics.messages import ImageDetail
from idefics.models import family_for, read_checkpoint
from idefics.processing.fetch import Fetcher
from idefics.processing.image_processor import open_and_preprocess
from idefics.quant.matmul import w8a8_matmul

# Title, checkpoint, tile size if it differs from the checkpoint's, size of the photo.
PREPROCESSING_CASES: tuple[tuple[str, str, int | None, tuple[int, int]], ...] = (
    ("512-pixel tiles", "smolvlm-256m", None, (640, 600)),
    ("512-pixel tiles", "smolvlm-256m", None, (1600, 1500)),
    ("512-pixel tiles", "smolvlm-256m", None, (4000, 3600)),
    ("384-pixel tiles", "smolvlm-256m", 384, (1600, 1500)),
    ("Idefics2, split", "idefics2-8b", None, (1600, 1500)),
    ("Idefics, one frame", "9b", None, (1600, 1500)),
)
MAX_RATIO = 0.15  # of transformers' time; for Idefics, which only resizes, below
MAX_RATIO_ONE_FRAME = 0.4
MLP_SHAPE = (1024, 768, 3072)  # rows, inputs, outputs: one frame in the tower of SmolVLM-256M
TRANSFORMERS_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
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
    """Times one photo from the bytes of its file to normalised frames.

    torch has one thread. Ours hashes the pixels, and copies those of a large photo, in a second one.
    """
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
        report.add_target(
            f"preprocessing, {title}, {size[0]} x {size[1]}, of transformers' time",
            idefics_seconds / transformers_seconds,
            max_value=MAX_RATIO_ONE_FRAME if name == "9b" else MAX_RATIO,
        )
    torch.set_num_threads(num_threads)


class VisionShares(NamedTuple):
    """What `measure_vision` found, by weight format.

    Attributes:
        time: as a multiple of transformers' best time.
        int8_limit: multiply-adds a second, as a share of what this machine computes in int8.
    """

    time: dict[str, float]
    int8_limit: dict[str, float]


@torch.inference_mode()
def measure_vision(
    report: BenchmarkReport, title: str, weight_formats: list[str], num_frames: int, num_rounds: int
) -> VisionShares:
    """Times vision tower and connector of SmolVLM-256M for one picture, and this machine's limit for int8."""
    folder = get_checkpoint("smolvlm-256m")
    pixels = torch.randn(num_frames, 3, 512, 512, generator=torch.Generator().manual_seed(0))
    runs: dict[str, Callable[[int], float]] = {"int8 limit": make_int8_limit_timer()}
    for kind, dtype in TRANSFORMERS_DTYPES.items():
        runs[f"transformers {kind}"] = make_transformers_vision_timer(folder, pixels.to(dtype))
    for kind in weight_formats:
        vision_model = idefics.load(folder, device="cpu", **LOAD_ARGUMENTS_BY_FORMAT[kind]).engine.model
        runs[f"ours {kind}"] = lambda _, tower=vision_model: time_call(lambda: tower.encode(pixels))
    seconds_by_system = {who: statistics.median(times) for who, times in run_rounds(runs, num_rounds).items()}
    multiply_adds = num_frames * vision_multiply_adds(read_checkpoint(folder).config.vision)
    limit = math.prod(MLP_SHAPE) / seconds_by_system.pop("int8 limit")
    case = f"{title}, SmolVLM-256M, {num_frames} frames"
    report.add_figure(case, "int8 limit of this machine", limit / 1e9, "G multiply-adds/s", f"{MLP_SHAPE}")
    best_transformers = min(seconds_by_system[f"transformers {kind}"] for kind in TRANSFORMERS_DTYPES)
    for who, time in seconds_by_system.items():
        rate = multiply_adds / time
        note = (
            f"{time / best_transformers:.2f} of transformers' best time, {rate / 1e9:.0f} G multiply-adds/s"
        )
        report.add_figure(case, who, 1e3 * time / num_frames, "ms a frame", note)
    seconds_by_format = {kind: seconds_by_system[f"ours {kind}"] for kind in weight_formats}
    return VisionShares(
        {kind: time / best_transformers for kind, time in seconds_by_format.items()},
        {kind: multiply_adds / time / limit for kind, time in seconds_by_format.items()},
    )


def measure_calm_vision(
    report: BenchmarkReport, weight_formats: list[str], num_frames: int, num_rounds: int
) -> None:
    """Vision on a calm machine, with its targets."""
    shares = measure_vision(report, "vision", weight_formats, num_frames, num_rounds)
    if "int8" in weight_formats:
        report.add_target("vision, int8, share of the int8 limit", shares.int8_limit["int8"], min_value=0.65)
    # Those of the first token, of which vision is nine tenths.
    for kind, max_ratio in (("bf16", 0.7), ("int8", 0.3)):
        if kind in weight_formats:
            report.add_target(
                f"vision, {kind}, of transformers' time at its best", shares.time[kind], max_value=max_ratio
            )


def measure_busy_vision(
    report: BenchmarkReport, weight_formats: list[str], num_frames: int, num_rounds: int
) -> None:
    """Vision on a calm machine, and while another process takes one core."""
    calm = measure_vision(report, "vision, calm", weight_formats, num_frames, num_rounds)
    with busy_core():
        busy = measure_vision(report, "vision, one core taken", weight_formats, num_frames, num_rounds)
    for kind in weight_formats:
        report.add_target(
            f"vision, {kind}, of transformers' time: one core taken / calm",
            busy.time[kind] / calm.time[kind],
            max_value=MAX_BUSY_RATIO,
        )


def make_transformers_vision_timer(folder: Path, pixels: torch.Tensor) -> Callable[[int], float]:
    """A call that times transformers' tower and connector in the dtype of these frames."""
    model = TransformersBaseline(folder, pixels.dtype).model.model
    return lambda _: time_call(
        lambda: model.connector(model.vision_model(pixel_values=pixels).last_hidden_state)
    )


def make_int8_limit_timer() -> Callable[[int], float]:
    """A call that times the fastest int8 product known here at the size of the tower's MLP, rounding included."""
    rows, inputs, outputs = MLP_SHAPE
    x, levels = torch.randn(rows, inputs), torch.ones(outputs, inputs, dtype=torch.int8)
    scale = torch.ones(outputs)
    return lambda _: min(time_call(lambda: w8a8_matmul(x, levels, scale, None)) for _ in range(10))


def vision_multiply_adds(config: VisionConfig) -> int:
    """Multiply-adds of a tower's layers for one frame of the trained size, attention included."""
    width, patches = config.hidden_size, config.patches_per_side**2
    linears = patches * width * (4 * width + 2 * config.intermediate_size)
    return config.num_layers * (linears + 2 * patches * patches * width)


def main() -> None:
    """Reads the command line, measures and prints the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--kinds", nargs="*", default=["fp32", "bf16", "int8"])
    parser.add_argument(
        "--busy", action="store_true", help="vision only, also while another process takes one core"
    )
    parser.add_argument("--quick", action="store_true", help="one round of two frames, to test the script")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    num_rounds, num_frames = (1, 2) if arguments.quick else (arguments.rounds, arguments.frames)
    report = BenchmarkReport("Pictures", is_quick=arguments.quick)
    if arguments.busy:
        measure_busy_vision(report, arguments.kinds, num_frames, num_rounds)
    else:
        measure_preprocessing(report, num_rounds)
        measure_calm_vision(report, arguments.kinds, num_frames, num_rounds)
    report.print_report()


if __name__ == "__main__":
    main()
