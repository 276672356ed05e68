"""This package as one of the measured systems; the only benchmark module that calls the engine."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

import idefics
from checkpoints import CACHE
from harness import RunTiming
from idefics.config import EngineConfig, QuantizationConfig, Sampling
from idefics.engine.engine import Engine
from idefics.engine.request import Request
from idefics.generation.quantize import quantize_checkpoint
from idefics.models import read_checkpoint
from idefics.prompt import Prompt
from idefics.tasks import classify
from idefics.tasks.task import compose_task_prompt

# Weight format -> arguments of `load`.
LOAD_ARGUMENTS_BY_FORMAT: dict[str, dict[str, Any]] = {
    "fp32": {"dtype": "float32"},
    "bf16": {},
    "int8": {"quantize": "int8"},
    "int4": {"quantize": "int4"},
}
# Modules that a decode step does not read, or only one row of.
MODULES_NOT_IN_DECODE = ("vision_model", "connector", "perceiver_resampler", "embed_tokens")


class ForcedAnswer:
    """A constraint that allows given ids, one after another: random weights repeat nothing that they are shown."""

    def __init__(self, ids: Sequence[int], vocab_size: int) -> None:
        self.ids, self.num_accepted, self.num_bytes = ids, 0, -(-vocab_size // 8)

    def compute_token_bitmask(self) -> bytes:
        """The one id that may follow."""
        return (1 << self.ids[self.num_accepted]).to_bytes(self.num_bytes, "little")

    def accept_token(self, id: int, max_remaining_tokens: int) -> int:
        """Counts the id."""
        self.num_accepted += 1
        return id


class IdeficsRunner:
    """An engine over a checkpoint in one weight format, which adapters may share.

    No tokens are drafted from the prompt unless `has_drafts` is set: random weights soon repeat themselves.
    """

    def __init__(
        self,
        folder: Path,
        weight_format: str,
        *,
        batch_rows: int = 8,
        adapters: Mapping[str, Path] | None = None,
    ) -> None:
        self.vlm = _load_model(folder, weight_format, adapters)
        model, model_adapters = self.vlm.engine.model, self.vlm.engine.adapters
        self.vlm.engine.close()
        self.engine = Engine(model, EngineConfig(batch_rows=batch_rows), adapters=model_adapters)
        self.vlm.loaded_model.engine = self.engine
        self._prompt_lookup, self.has_drafts = self.engine.model_runner.prompt_lookup, False

    def run(
        self, prompts: list[Prompt], num_tokens: int, constraints: Sequence[ForcedAnswer | None] = ()
    ) -> RunTiming:
        """Generates exactly `num_tokens` greedy tokens for each prompt; no id stops them."""
        self.engine.model_runner.prompt_lookup = self._prompt_lookup if self.has_drafts else None
        token_times: list[list[float]] = [[] for _ in prompts]
        requests = [
            Request(
                prompt,
                Sampling(max_new_tokens=num_tokens),
                on_token=_make_token_timer(mine),
                constraint=constraint,
            )
            for prompt, mine, constraint in zip_longest(prompts, token_times, constraints)
        ]
        started = time.perf_counter()
        for handle in [self.engine.submit(request, wait=True) for request in requests]:
            handle.result()
        last_first_token = max(mine[0] for mine in token_times)
        decode_times = [stamp for stamp in chain(*token_times) if stamp > last_first_token]
        return RunTiming(
            last_first_token - started,
            max(decode_times, default=last_first_token) - last_first_token,
            len(decode_times),
        )

    def bytes_per_token(self, num_context_tokens: int) -> int:
        """Bytes that one decode step of one row reads: decoder, head, and keys and values so far."""
        model, layout = self.engine.model, self.engine.kv_cache.layout
        tensors = chain(model.named_parameters(), model.named_buffers())  # type: ignore[attr-defined]
        weight_bytes = sum(
            tensor.nbytes
            for name, tensor in tensors
            if not any(part in name for part in MODULES_NOT_IN_DECODE)
        )
        kv_bytes_per_position = (
            2
            * layout.num_layers
            * layout.num_kv_heads
            * layout.head_size
            * self.engine.kv_cache.dtype.itemsize
        )
        return weight_bytes + num_context_tokens * kv_bytes_per_position


def _load_model(
    folder: Path, weight_format: str, adapters: Mapping[str, Path] | None = None
) -> idefics.Idefics:
    """Loads a checkpoint; quantised copies of the benchmarks' own checkpoints are written once, as int4 takes long."""
    if "quantize" not in LOAD_ARGUMENTS_BY_FORMAT[weight_format] or folder.parent != CACHE:
        return idefics.load(folder, adapters=adapters, **LOAD_ARGUMENTS_BY_FORMAT[weight_format])
    quantized_folder = CACHE / f"{folder.name}-{weight_format}"
    quantize_checkpoint(
        str(folder),
        QuantizationConfig(kind=LOAD_ARGUMENTS_BY_FORMAT[weight_format]["quantize"]),
        quantized_folder,
    )
    return idefics.load(quantized_folder, adapters=adapters)


def _make_token_timer(token_times: list[float]) -> Any:
    def on_token(id: int) -> bool:
        token_times.append(time.perf_counter())
        return False

    return on_token


def random_text_prompts(folder: Path, num_tokens: int, num_prompts: int, seed: int) -> list[Prompt]:
    """`num_prompts` text prompts of `num_tokens` random ids, none of them special."""
    vocab_size = read_checkpoint(folder).config.text.vocab_size
    id_rows = (
        np.random.default_rng(seed)
        .integers(3, min(vocab_size, 32000), size=(num_prompts, num_tokens))
        .tolist()
    )
    return [Prompt(tuple(ids), (), (), (-1,) * num_tokens) for ids in id_rows]


def random_photo(seed: int, size: int = 1200) -> PIL.Image.Image:
    """A square picture without uniform areas, another one for each seed."""
    noise = np.random.default_rng(seed).integers(0, 256, size=(24, 24, 3), dtype=np.uint8)
    return PIL.Image.fromarray(noise).resize((size, size), PIL.Image.Resampling.BICUBIC)


def classification_prompt(
    vlm: idefics.Idefics, labels: list[str], picture: idefics.Picture
) -> tuple[Prompt, list[list[int]]]:
    """The prompt of `classify`, with the shots of `vlm`, and the token ids of each label."""
    style_kind = vlm.processor.prompt_format.kind
    task, label_list = classify.task_and_label_text(labels, style_kind)
    return vlm.processor.encode_chat_continuations(
        compose_task_prompt(task, style_kind, picture, label_list, vlm.shots).items, labels
    )
