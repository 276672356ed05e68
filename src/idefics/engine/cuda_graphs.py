"""The decode step with CUDA graphs: static shapes and addresses, so that it is recorded once and replayed.

A step of a small batch is hundreds of kernels of a few microseconds each, which the host cannot launch as fast as a GPU
runs them. A CUDA graph launches all of them at once, but always with the recorded shapes and addresses. So rows and
pages are padded to a few sizes, and each size has its own graph, recorded when it is first needed.

R rows, P pages of the longest row, H query heads, K head size, M feature rows of a picture.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import torch
from torch import Tensor

from idefics.config import KVCacheLayout
from idefics.engine.decode import BatchedCrossKV, choose_decode_attention
from idefics.engine.decode_inputs import DecodeInputs
from idefics.engine.kv_cache import PagedKVCache
from idefics.engine.model_interface import VLM
from idefics.engine.page_pool import PAGE_SIZE
from idefics.nn.attention import CrossKV, LayerCrossKV
from idefics.nn.attention_backends import AttentionBackend
from idefics.nn.fused import FusedDecoder

StepFunction = Callable[[], Tensor]
Capture = Callable[[StepFunction], StepFunction]  # records a step and returns a function that replays it
MIN_PADDED_PAGES, PADDED_PAGES_MULTIPLE = 8, 64


class CudaGraphDecode:
    """A `DecodeStep` for a model on one CUDA device.

    The graphs contain the addresses of weights and of the cache, which must not move while this object is in use.

    Args:
        capture: records a step, for instance a `CudaGraphRecorder`.
    """

    def __str__(self) -> str:
        return "CUDA graphs"

    def __init__(self, model: VLM, cache: PagedKVCache, capture: Capture) -> None:
        self.model, self.cache, self.capture = model, cache, capture
        parts = model.decoder_parts()
        self.forward = model.forward if parts is None else FusedDecoder(parts)
        self.decode_attention = choose_decode_attention(cache, model.attention_backend)
        self._get_static_inputs = lru_cache(maxsize=None)(
            partial(StaticInputs, layout=cache.layout, device=cache.keys[0].device)
        )
        self._step_by_size: dict[tuple[int, int, bool], StepFunction] = {}

    def __call__(self, inputs: DecodeInputs) -> Tensor:
        """Writes the tokens' keys and values to the cache; returns (R, V) float32 next-token logits."""
        num_rows = len(inputs.ids)
        static_inputs = self._get_static_inputs(pad_num_rows(num_rows))
        static_inputs.copy_from(inputs)
        num_pages = min(
            pad_num_pages(inputs.max_position // PAGE_SIZE + 1), static_inputs.page_tables.shape[1]
        )
        size = len(static_inputs.ids), num_pages, static_inputs.has_images
        if size not in self._step_by_size:
            self._step_by_size[size] = self.capture(lambda: self._compute_step(static_inputs, num_pages))
        # A copy: the next step overwrites the graph's output.
        return self._step_by_size[size]()[:num_rows].to(torch.float32, copy=True)

    def _compute_step(self, inputs: StaticInputs, num_pages: int) -> Tensor:
        """Computes the step that is recorded: (R, V) logits; attention reads each row's first `num_pages` pages."""
        attn = self.decode_attention(
            self.cache,
            inputs.page_tables[:, :num_pages],
            inputs.positions,
            inputs.cross_attend,
            self.model.attention_backend,
        )
        h = self.forward(self.model.embed(inputs.ids), inputs.positions, attn)
        return self.model.logits(h)


def pad_num_rows(count: int) -> int:
    """How many rows a step of `count` rows is padded to: `count` or the next power of two."""
    return 1 << (count - 1).bit_length()


def pad_num_pages(count: int) -> int:
    """How many pages each row is padded to if the longest has `count`: the next of 8, 16, 32 and multiples of 64."""
    if count > PADDED_PAGES_MULTIPLE // 2:
        return -(-count // PADDED_PAGES_MULTIPLE) * PADDED_PAGES_MULTIPLE
    return max(MIN_PADDED_PAGES, pad_num_rows(count))


class StaticInputs:
    """The inputs of a step of R rows, at fixed addresses. Padding rows write to position 0 of page 0.

    Attributes:
        ids, positions: (R,) int64.
        page_tables: (R, P) int32; P pages hold a sequence of the greatest length that the model allows.
        cross_kv: (R, M, H, K) keys and values for each cross-attention layer; empty until a row has a picture.
        no_image_mask: (R, 1, 1) bool: the rows without a picture.
        has_images: whether any row has one.
    """

    def __init__(self, num_rows: int, layout: KVCacheLayout, device: torch.device) -> None:
        self.ids = torch.zeros(num_rows, dtype=torch.long, device=device)
        self.positions = torch.zeros_like(self.ids)
        self.page_tables = torch.zeros(
            num_rows, -(-layout.max_positions // PAGE_SIZE), dtype=torch.int32, device=device
        )
        self.cross_kv: list[LayerCrossKV] = []
        self.no_image_mask = torch.ones(num_rows, 1, 1, dtype=torch.bool, device=device)
        self.has_images = False
        self._cross_kvs: Sequence[CrossKV] = ()
        self._filled_shape = 0, 0

    def copy_from(self, inputs: DecodeInputs) -> None:
        """Copies the inputs of a step, of at most R rows, into the first rows."""
        num_rows, num_pages = inputs.page_tables.shape
        if self._filled_shape != (num_rows, num_pages):
            self.page_tables.zero_()
            self.positions.zero_()
            self._filled_shape = num_rows, num_pages
        self.ids[:num_rows].copy_(inputs.ids)
        self.positions[:num_rows].copy_(inputs.positions)
        self.page_tables[:num_rows, :num_pages].copy_(inputs.page_tables)
        if inputs.cross_kvs is not self._cross_kvs:
            self._copy_cross_kvs(inputs.cross_kvs)
            self._cross_kvs = inputs.cross_kvs

    def cross_attend(self, layer: int, q: Tensor, backend: AttentionBackend) -> Tensor:
        """Cross-attention of all rows, (R, H, K) -> (R, H, K), set to 0 for rows without a picture."""
        if not self.has_images:
            return torch.zeros_like(q)
        keys, values = (x.transpose(1, 2) for x in self.cross_kv[layer])  # (R, H, M, K)
        return backend(q[:, :, None], keys, values).squeeze(2).masked_fill(self.no_image_mask, 0)

    def _copy_cross_kvs(self, cross_kvs: Sequence[CrossKV]) -> None:
        """Copies each row's cross-attention keys and values, and updates which rows have a picture."""
        batched = BatchedCrossKV(cross_kvs)
        self.has_images = bool(batched.layers)
        if not batched.layers:
            return
        rows = batched.image_rows.to(self.no_image_mask.device)
        self.no_image_mask.fill_(True)[rows] = False
        if not self.cross_kv:
            size = len(self.no_image_mask)
            self.cross_kv = [
                LayerCrossKV(*(x.new_zeros(size, *x.shape[1:]) for x in layer)) for layer in batched.layers
            ]
        for static_layer, layer in zip(self.cross_kv, batched.layers, strict=True):
            static_layer.keys[rows], static_layer.values[rows] = layer


class CudaGraphRecorder:
    """Records steps as CUDA graphs with one memory pool: a step's output must be used before the next is replayed."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.memory_pool = torch.cuda.graph_pool_handle()

    def __call__(self, step: StepFunction) -> StepFunction:
        """Runs a step once to initialise libraries, records it, and returns the function that replays it.

        A step that cannot be recorded is returned as it is, with a warning: slower, with the same results.
        """
        with torch.cuda.device(self.device):
            side_stream = torch.cuda.Stream()
            side_stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side_stream):
                step()
            torch.cuda.current_stream().wait_stream(side_stream)
            graph = torch.cuda.CUDAGraph()
            try:
                # thread_local: other threads may use the device meanwhile
                with torch.cuda.graph(graph, pool=self.memory_pool, capture_error_mode="thread_local"):
                    out = step()
            except RuntimeError as error:
                reason = str(error).partition("\n")[0]
                warnings.warn(f"decode steps are not recorded as a CUDA graph: {reason}", stacklevel=2)
                return step

        def replay() -> Tensor:
            with torch.cuda.device(self.device):
                graph.replay()
            return out

        return replay
