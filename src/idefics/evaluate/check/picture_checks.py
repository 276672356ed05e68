"""Checks of preprocessing: the frames of a drawn picture are those that were computed before."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image

from idefics.evaluate.check.checks import CheckOutcome, CheckSubject, ModelCheck, judge, skipped
from idefics.evaluate.check.drawn_pictures import draw_landscape
from idefics.processing.image_processor import preprocess_image

if TYPE_CHECKING:
    from idefics.config import ImageProcessorConfig

HASHES_FILE = Path(__file__).parent / "picture_hashes.json"
PICTURE_SIZE = (301, 207)
STEPS_PER_UNIT = (
    1024  # frames are rounded to this before they are hashed; one step of a pixel is at least 0.0078
)


def settings_key(config: ImageProcessorConfig) -> str:
    """Identifies the settings that frames depend on: the beginning of a SHA-256 (hex)."""
    settings = {name: value for name, value in asdict(config).items() if name != "video"}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def frames_hash(config: ImageProcessorConfig) -> tuple[int, str]:
    """The number of frames of the drawn picture, and the beginning of their SHA-256 (hex)."""
    picture = preprocess_image(PIL.Image.fromarray(draw_landscape(*PICTURE_SIZE)), config)
    digest = hashlib.sha256()
    for frame in picture.frames:
        digest.update(repr(frame.shape).encode())
        digest.update(np.rint(frame * STEPS_PER_UNIT).astype("<i4").tobytes())
    return len(picture.frames), digest.hexdigest()[:32]


def check_frames(subject: CheckSubject) -> CheckOutcome:
    """Preprocesses a drawn picture, and compares the hash of its frames with the known one for these settings."""
    key = settings_key(subject.processor.image_config)
    known = json.loads(HASHES_FILE.read_text(encoding="utf-8")).get(key)
    num_frames, found = frames_hash(subject.processor.image_config)
    if known is None:
        measured = f"no hash is known for these picture settings: {num_frames} frames, {found}"
        if subject.entry is None:
            return skipped(measured)
        return judge(measured, "the released settings", ["preprocessor_config.json is not the released one"])
    wrong = [] if found == known else [f"the frames have the hash {found}, known is {known}"]
    return judge(f"{num_frames} frames, {found[:8]}", known[:8], wrong)


PICTURE_CHECKS = (
    ModelCheck(
        name="preprocessing",
        shows="pictures are resized, cut and normalised as when the hashes were computed",
        tolerance="none: resizing is in whole numbers; normalised values are rounded to 1/1024 before they are hashed",
        run=check_frames,
    ),
)
