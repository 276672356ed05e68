"""Prompts for the tiny checkpoints and the golden vectors of each: ids, pixels, features, logits, answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

import idefics
from idefics import Idefics, Picture, Video, assistant, user
from idefics.config import ImageProcessorConfig
from idefics.engine.encoder_cache import encode_frames
from vectors.checkpoint import CHECKPOINT_BY_NAME

VECTORS_FOLDER = Path(__file__).parents[2] / "tests" / "golden" / "vectors"
NUM_ANSWER_TOKENS = 6

Array = NDArray[Any]


@dataclass(frozen=True)
class GoldenVectors:
    """All intermediate results of one checkpoint for one prompt. N tokens, F frames, A tokens of the answer.

    Attributes:
        facts: values that are compared exactly: "ids", "sees" (`image_index`), "places" (`image_token_positions`) and
            "grids" (rows and columns of each picture) of the prompt, the "answer" as ids and as "text".
        tensors: "pixels.0" to "pixels.F-1", the uint8 frames (h, w, 3) as they were before they were normalised;
            "frames.*" (3, h, w), normalised; "features.*" (M, D'), encoded; "logits" (N, V);
            "logprobs" (A,), of the tokens of the greedy answer.
    """

    facts: dict[str, Any]
    tensors: dict[str, Array]

    @classmethod
    def read(cls, name: str) -> GoldenVectors:
        """Reads the stored vectors of a checkpoint."""
        facts = json.loads((VECTORS_FOLDER / f"{name}.json").read_text(encoding="utf-8"))
        return cls(facts, load_file(VECTORS_FOLDER / f"{name}.safetensors"))

    def write(self, name: str) -> None:
        """Stores the vectors; the facts one a line, so that diffs are readable."""
        lines = ",\n".join(
            f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in self.facts.items()
        )
        (VECTORS_FOLDER / f"{name}.json").write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
        save_file(self.tensors, VECTORS_FOLDER / f"{name}.safetensors")


def gradient_image(width: int, height: int) -> Array:
    """(height, width, 3): red increases to the right, green downwards, blue along the diagonal."""
    y, x = np.mgrid[:height, :width]
    return np.stack((255 * x // width, 255 * y // height, 7 * (x + y) % 256), axis=-1).astype(np.uint8)


def checkerboard_image(width: int, height: int) -> Array:
    """(height, width, 4): fields of three pixels, magenta and green, from clear at the top to solid."""
    y, x = np.mgrid[:height, :width]
    dark = (x // 3 + y // 3) % 2 * 255
    return np.stack((dark, 255 - dark, dark, 255 * y // (height - 1)), axis=-1).astype(np.uint8)


def rings_image(width: int, height: int) -> Array:
    """(height, width): grey rings that become finer outwards, so that a filter meets every frequency."""
    y, x = np.mgrid[:height, :width]
    squares: Array = (x - width // 2) ** 2 + (y - height // 2) ** 2
    return (squares % 256).astype(np.uint8)


def moving_bar_frames(num_frames: int) -> list[Array]:
    """Frames of 20 x 12 in which a bright bar moves to the right."""
    frames = [gradient_image(20, 12) // 2 for _ in range(num_frames)]
    for index, frame in enumerate(frames):
        frame[:, index : index + 2] = 255
    return frames


PROMPT_BY_CHECKPOINT: dict[str, Callable[[], list[Any]]] = {
    "idefics1": lambda: [
        user(Picture(gradient_image(37, 23)), "What is this?"),
        assistant("A café."),
        user(Picture(checkerboard_image(19, 40)), " What is in the picture from 2004?"),
    ],
    "idefics1-scalar": lambda: [
        *("This is a picture of", rings_image(21, 33), "the café.</s>What is"),
        *(gradient_image(64, 11), checkerboard_image(16, 16), "\nUser: "),
    ],
    "idefics2": lambda: [
        *(rings_image(41, 23), gradient_image(5, 18), " What is the following series of frames?\n"),
        *(checkerboard_image(18, 22), "User: "),
    ],
    "idefics2-split": lambda: [
        user(Picture(gradient_image(37, 23)), "What is this?"),
        assistant("A café."),
        user("Is it an <image>?"),  # a forged image token is text
    ],
    "idefics3": lambda: [user(Picture(rings_image(37, 23)), "What is in the café?")],
    "smolvlm": lambda: [
        user("What is this?"),
        assistant("A café."),
        user(Picture(checkerboard_image(21, 50)), "Is it?"),
    ],
    "smolvlm2": lambda: [user(Video(moving_bar_frames(17), fps=2.5), "What is in the video?")],
}


def load_tiny_checkpoint(name: str) -> Idefics:
    """Writes the checkpoint of that name in `CHECKPOINT_BY_NAME` to a temporary folder and loads it."""
    with TemporaryDirectory() as folder:
        return idefics.load(CHECKPOINT_BY_NAME[name].write(Path(folder)), device="cpu", dtype="float32")


def compute_vectors(vlm: Idefics, name: str) -> GoldenVectors:
    """Computes the vectors for the prompt of that name in `PROMPT_BY_CHECKPOINT` through the public API."""
    items = PROMPT_BY_CHECKPOINT[name]()
    prompt = vlm.prompt(items)
    is_chat = not isinstance(items[0], (str, np.ndarray))
    answer = (vlm.chat if is_chat else vlm.generate)(items, max_new_tokens=NUM_ANSWER_TOKENS, logprobs=True)
    facts = {
        "ids": list(prompt.ids),
        "sees": list(prompt.image_index),
        "places": [list(places) for places in prompt.image_token_positions],
        "grids": [[tiles.rows, tiles.columns] for tiles in prompt.pictures],
        "answer": list(answer.tokens),
        "text": answer.text,
    }
    frames = [frame for tiles in prompt.pictures for frame in tiles.frames]
    with torch.inference_mode():
        features = encode_frames(vlm.engine.model, frames, max_batch_frames=len(frames))
    tensors = {
        f"pixels.{index}": denormalize_frame(frame, vlm.processor.image_config)
        for index, frame in enumerate(frames)
    }
    tensors |= {f"frames.{index}": frame for index, frame in enumerate(frames)}
    tensors |= {f"features.{index}": rows.numpy() for index, rows in enumerate(features)}
    tensors |= {"logits": vlm.logits(prompt).numpy(), "logprobs": np.array(answer.logprobs, np.float32)}
    return GoldenVectors(facts, tensors)


def denormalize_frame(frame: Array, plan: ImageProcessorConfig) -> Array:
    """Normalised frame (3, h, w) -> uint8 (h, w, 3); exact, because the 256 values are far apart."""
    shares = frame.transpose(1, 2, 0) * np.array(plan.std, np.float32) + np.array(plan.mean, np.float32)
    return np.ascontiguousarray(np.rint(shares / plan.rescale_factor).astype(np.uint8))


def min_logit_margin(vlm: Idefics, name: str, vectors: GoldenVectors) -> float:
    """The smallest distance between the best and the second logit of an answer token, relative to the largest logit."""
    prompt, answer = vlm.prompt(PROMPT_BY_CHECKPOINT[name]()), tuple(vectors.facts["answer"])
    image_index = prompt.image_index + prompt.image_index[-1:] * len(answer)
    logits = vlm.logits(replace(prompt, ids=prompt.ids + answer, image_index=image_index))[
        len(prompt) - 1 : -1
    ]
    logits[:, list(vlm.processor.image_placeholder_ids)] = -torch.inf
    best, next_best = logits.topk(2).values.unbind(-1)
    return float((best - next_best).min() / np.abs(vectors.tensors["logits"]).max())
