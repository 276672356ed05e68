"""Ours, seen as a rival: the one place of the benchmarks that knows the engine's calls."""

from __future__ import annotations

import time
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

import idefics
from checkpoints import CACHE
from harness import Run
from idefics.config import EngineConfig, QuantizationConfig, Sampling
from idefics.engine.engine import Engine
from idefics.engine.request import Request
from idefics.models import read_checkpoint
from idefics.pipeline.quantising import quantise
from idefics.prompt import Prompt
from idefics.tasks import classify
from idefics.tasks.record import compose

# What a user gives to `load` for each kind of weights.
KINDS: dict[str, dict[str, Any]] = {
    "fp32": {"dtype": "float32"},
    "bf16": {},
    "int8": {"quantize": "int8"},
    "int4": {"quantize": "int4"},
}
# What no decode step reads, or one row of it.
ELSEWHERE = ("vision_model", "connector", "perceiver_resampler", "embed_tokens")


class Ours:
    """An engine over a checkpoint, its weights of one kind."""

    def __init__(self, folder: Path, kind: str, *, rows: int = 8) -> None:
        self.vlm = _loaded(folder, kind)
        model = self.vlm.engine.model
        self.vlm.engine.close()
        self.engine = Engine(model, EngineConfig(batch_rows=rows))
        self.vlm.engine = self.engine

    def run(self, prompts: list[Prompt], tokens: int) -> Run:
        """Exactly `tokens` greedy tokens for each prompt: no id stops them."""
        stamps: list[list[float]] = [[] for _ in prompts]
        requests = [
            Request(prompt, Sampling(max_new_tokens=tokens), watch=_stamper(mine))
            for prompt, mine in zip(prompts, stamps, strict=True)
        ]
        began = time.perf_counter()
        for handle in [self.engine.submit(request, wait=True) for request in requests]:
            handle.result()
        started = max(mine[0] for mine in stamps)
        after = [stamp for stamp in chain(*stamps) if stamp > started]
        return Run(started - began, max(after, default=started) - started, len(after))

    def bytes_a_token(self, context: int) -> int:
        """What one decode step of one row has to read: the decoder, its head, and keys and values so far."""
        model, layout = self.engine.model, self.engine.cache.layout
        tensors = chain(model.named_parameters(), model.named_buffers())  # type: ignore[attr-defined]
        weights = sum(
            tensor.nbytes for name, tensor in tensors if not any(part in name for part in ELSEWHERE)
        )
        cache = 2 * layout.layers * layout.kv_heads * layout.head_size * self.engine.cache.dtype.itemsize
        return weights + context * cache


def _loaded(folder: Path, kind: str) -> idefics.Idefics:
    """Of the benchmarks' own checkpoints few bits are written once: int4 takes its time to find its steps."""
    if "quantize" not in KINDS[kind] or folder.parent != CACHE:
        return idefics.load(folder, **KINDS[kind])
    packed = CACHE / f"{folder.name}-{kind}"
    quantise(str(folder), QuantizationConfig(kind=KINDS[kind]["quantize"]), packed)
    return idefics.load(packed)


def _stamper(stamps: list[float]) -> Any:
    def watch(id: int) -> bool:
        stamps.append(time.perf_counter())
        return False

    return watch


def words(folder: Path, count: int, rows: int, seed: int) -> list[Prompt]:
    """Prompts of text: `count` random ids each, none of them special."""
    vocabulary = read_checkpoint(folder).config.text.vocabulary
    drawn = np.random.default_rng(seed).integers(3, min(vocabulary, 32000), size=(rows, count)).tolist()
    return [Prompt(tuple(ids), (), (), (-1,) * count) for ids in drawn]


def photo(seed: int, side: int = 1200) -> PIL.Image.Image:
    """A square picture with something in it everywhere, a new one for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, size=(24, 24, 3), dtype=np.uint8)
    return PIL.Image.fromarray(coarse).resize((side, side), PIL.Image.Resampling.BICUBIC)


def question(
    vlm: idefics.Idefics, labels: list[str], picture: idefics.Picture
) -> tuple[Prompt, list[list[int]]]:
    """The prompt that `classify` asks of the model, with the shots that `vlm` has, and the ids of each label."""
    kind = vlm.processor.style.kind
    task, listed = classify.worded(labels, kind)
    return vlm.processor.chat_endings(compose(task, kind, picture, listed, vlm.shots).items, labels)
