"""Decode steps: one token of each row through the model, over the paged KV cache; and the choice of implementation.

R rows, P pages of the longest row, M feature rows of a picture, H query heads, K head size, V vocabulary.
"""

from __future__ import annotations

import logging
from typing import Protocol

from torch import Tensor

from idefics.engine.decode_attention import BatchedCrossKV, GatheredPages
from idefics.engine.decode_inputs import DecodeInputs
from idefics.engine.kv_cache import PagedKVCache
from idefics.engine.model_interface import VLM
from idefics.engine.native import NativeDecode, unsupported_reason
from idefics.nn.attention_backends import SDPA_BACKENDS

log = logging.getLogger(__name__)


class DecodeStep(Protocol):
    """An implementation of the decode step for one model and cache."""

    def __call__(self, inputs: DecodeInputs) -> Tensor:
        """Writes the tokens' keys and values to the cache; returns (R, V) float32 next-token logits."""
        ...


def choose_decode_step(model: VLM, cache: PagedKVCache, *, reference: bool = False) -> DecodeStep:
    """The fastest implementation for a model and its cache: native on the CPU, CUDA graphs on one GPU, else torch.

    The log says why if it is torch on the CPU.

    Args:
        reference: use `TorchDecode` in any case.
    """
    if reference:
        return TorchDecode(model, cache)
    parts, reason = model.decoder_parts(), unsupported_reason(model, cache)
    if reason is None and model.attention_backend not in SDPA_BACKENDS:
        reason = "another attn_implementation was chosen"
    if parts is not None and reason is None:
        return NativeDecode(parts, cache)
    devices = {weight.device for weight in model.parameters()}
    if {device.type for device in devices} == {"cuda"} and len(devices) == 1:
        from idefics.engine.cuda_graphs import CudaGraphDecode, CudaGraphRecorder

        return CudaGraphDecode(model, cache, CudaGraphRecorder(devices.pop()))
    log.info("decode steps are computed by torch: %s", reason)
    return TorchDecode(model, cache)


class TorchDecode:
    """The decode step in eager PyTorch, for any device and for models spread over several devices."""

    def __str__(self) -> str:
        return "torch"

    def __init__(self, model: VLM, cache: PagedKVCache) -> None:
        self.model, self.cache = model, cache
        self.batched_cross_kv = BatchedCrossKV(())

    def __call__(self, inputs: DecodeInputs) -> Tensor:
        """Writes the tokens' keys and values to the cache; returns (R, V) float32 next-token logits."""
        if inputs.cross_kvs is not self.batched_cross_kv.cross_kvs:
            self.batched_cross_kv = BatchedCrossKV(inputs.cross_kvs)
        attn = GatheredPages(
            self.cache,
            inputs.page_tables,
            inputs.positions,
            self.batched_cross_kv.cross_attend,
            self.model.attention_backend,
            (inputs.min_position, inputs.max_position),
        )
        h = self.model.forward(self.model.embed(inputs.ids), inputs.positions, attn)
        return self.model.logits(h).float()
