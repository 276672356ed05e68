"""Ours, seen as a rival: the one place of the benchmarks that knows the engine's calls."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from harness import Run

import idefics
from idefics.config import EngineConfig, Sampling
from idefics.engine.engine import Engine
from idefics.engine.request import Request, Sequence
from idefics.models import read_checkpoint
from idefics.processing.processor import Processor
from idefics.prompt import Prompt

# What a user gives to `load` for each kind of weights.
KINDS: dict[str, dict[str, Any]] = {
    "fp32": {"dtype": "float32"},
    "bf16": {"dtype": "bfloat16"},
    "int8": {"quantize": "int8"},
    "int4": {"quantize": "int4"},
}


class Ours:
    """An engine over a checkpoint, its weights of one kind."""

    def __init__(self, folder: Path, kind: str, *, rows: int = 32) -> None:
        self.vlm = idefics.load(folder, **KINDS[kind])
        self.engine = Engine(self.vlm.engine.model, EngineConfig(batch_rows=rows))

    def run(self, prompts: list[Prompt], tokens: int) -> Run:
        """Exactly `tokens` greedy tokens for each prompt: no id stops them."""
        sampling = Sampling(max_new_tokens=tokens)
        began = time.perf_counter()
        stamps = [
            time.perf_counter()
            for _ in self.engine.run([Sequence(Request(prompt, sampling)) for prompt in prompts])
        ]
        return Run(stamps[0] - began, stamps[-1] - stamps[0], len(prompts) * (len(stamps) - 1))


def words(folder: Path, count: int, rows: int, seed: int) -> list[Prompt]:
    """Prompts of text: `count` random ids each, none of them special."""
    vocabulary = read_checkpoint(folder).config.text.vocabulary
    draw = np.random.default_rng(seed)
    drawn = draw.integers(3, min(vocabulary, 32000), size=(rows, count)).tolist()
    return [Prompt(tuple(ids), (), (), (-1,) * count) for ids in drawn]
