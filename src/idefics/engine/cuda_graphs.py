"""The decode step for CUDA: everything of one size and in one place, so that it can be recorded once and replayed.

A step of a small batch is hundreds of kernels of a few microseconds, which a host cannot start as fast as a GPU ends
them. A CUDA graph starts all of them at once, but it repeats what was recorded: the same shapes at the same addresses.
So rows and pages are padded to a few sizes, and each size has a graph of its own, made when it is first needed.

R rows, P pages of the longest row, H query heads, h key/value heads, K head size, M feature rows a picture.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from idefics.config import KVCacheLayout
from idefics.engine.decode import DecodeInputs
from idefics.engine.decode_attention import DecodeAttention, choose_decode_attention
from idefics.engine.kv_cache import PagedKVCache
from idefics.engine.model_interface import VLM
from idefics.engine.page_pool import PAGE_SIZE
from idefics.nn.attention import CrossKV, LayerCrossKV
from idefics.nn.attention_backends import AttentionBackend
from idefics.nn.fused import FusedDecoder

StepFunction = Callable[[], Tensor]
Capture = Callable[[StepFunction], StepFunction]  # a step -> what repeats it
MIN_PADDED_PAGES, PADDED_PAGES_MULTIPLE = 8, 64


class CudaGraphDecode:
    """Reads one token more of each row: a `DecodeStep` for a model on one device.

    The graphs have the addresses of weights and pages in them: these stay where they are while this lives.

    Args:
        capture: what records a step; without it each step is started kernel by kernel.
    """

    def __str__(self) -> str:
        return "CUDA graphs"

    def __init__(self, model: VLM, cache: PagedKVCache, capture: Capture) -> None:
        self.model, self.cache, self.capture = model, cache, capture
        parts = model.decoder_parts()
        self.forward = model.forward if parts is None else FusedDecoder(parts)
        self.decode_attention = choose_decode_attention(cache, model.attention_backend)
        self._inputs_by_num_rows: dict[int, StaticInputs] = {}  # for each number of rows
        self._step_by_size: dict[tuple[int, int, bool], StepFunction] = {}

    def __call__(self, inputs: DecodeInputs) -> Tensor:
        num_rows = len(inputs.ids)
        static_inputs = self._get_static_inputs(pad_num_rows(num_rows))
        static_inputs.copy_from(inputs)
        num_pages = min(
            pad_num_pages(inputs.max_position // PAGE_SIZE + 1), static_inputs.page_tables.shape[1]
        )
        size = len(static_inputs.ids), num_pages, static_inputs.has_images
        if size not in self._step_by_size:
            self._step_by_size[size] = self.capture(
                lambda: self._compute_step(static_inputs, num_pages, static_inputs.has_images)
            )
        # A copy: the next step writes over it.
        return self._step_by_size[size]()[:num_rows].to(torch.float32, copy=True)

    def _get_static_inputs(self, num_rows: int) -> StaticInputs:
        if num_rows not in self._inputs_by_num_rows:
            self._inputs_by_num_rows[num_rows] = StaticInputs(
                num_rows, self.cache.layout, self.cache.keys[0].device
            )
        return self._inputs_by_num_rows[num_rows]

    def _compute_step(self, inputs: StaticInputs, num_pages: int, has_images: bool) -> Tensor:
        attn = StaticInputsAttn(
            self.cache, inputs, num_pages, has_images, self.decode_attention, self.model.attention_backend
        )
        h = self.forward(self.model.embed(inputs.ids), inputs.positions, attn)
        return self.model.logits(h)


def pad_num_rows(count: int) -> int:
    """The number of rows that are computed for `count` of them: the next power of two."""
    return 1 << (count - 1).bit_length()


def pad_num_pages(count: int) -> int:
    """The number of pages that each row may have where the longest has `count`: 8, 16, 32, or a multiple of 64."""
    if count > PADDED_PAGES_MULTIPLE // 2:
        return -(-count // PADDED_PAGES_MULTIPLE) * PADDED_PAGES_MULTIPLE
    return max(MIN_PADDED_PAGES, pad_num_rows(count))


class StaticInputs:
    """Where a step of R rows finds what it reads. Rows that nobody asks for are at position 0 of page 0.

    Attributes:
        ids, positions: (R,) int64.
        page_tables: (R, P) int32 with P for the longest that a row can be.
        cross_kv: for each cross layer (R, M, H, K) keys and values; empty until a row sees a picture.
        no_image_mask: (R, 1, 1) which rows see none.
        has_images: whether any does.
    """

    def __init__(self, num_rows: int, layout: KVCacheLayout, device: torch.device) -> None:
        self.layout = layout
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
        """Puts rows where the step finds them."""
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

    def _copy_cross_kvs(self, cross_kvs: Sequence[CrossKV]) -> None:
        image_rows = [row for row, memory in enumerate(cross_kvs) if memory]
        self.has_images = bool(image_rows)
        if not image_rows:
            return
        rows = torch.tensor(image_rows, device=self.no_image_mask.device)
        self.no_image_mask.fill_(True)[rows] = False
        layers = zip(*(cross_kvs[row] for row in image_rows), strict=True)
        new = [LayerCrossKV(*map(torch.cat, zip(*layer, strict=True))) for layer in layers]
        if not self.cross_kv:
            size = len(self.no_image_mask)
            self.cross_kv = [LayerCrossKV(*(x.new_zeros(size, *x.shape[1:]) for x in layer)) for layer in new]
        for static_layer, layer in zip(self.cross_kv, new, strict=True):
            static_layer.keys[rows], static_layer.values[rows] = layer


class StaticInputsAttn:
    """One new token in each row, which joins the cache and sees its row, as far back as the window."""

    def __init__(
        self,
        cache: PagedKVCache,
        inputs: StaticInputs,
        num_pages: int,
        has_images: bool,
        decode_attention: type[DecodeAttention],
        backend: AttentionBackend,
    ) -> None:
        self.cache, self.inputs, self.has_images, self.backend = cache, inputs, has_images, backend
        page_tables, positions = inputs.page_tables[:, :num_pages], inputs.positions
        page = page_tables.gather(1, (positions // PAGE_SIZE)[:, None])[:, 0]
        self.write_index = page.long(), positions % PAGE_SIZE
        self.decode_attention = decode_attention(page_tables, positions, cache.layout, backend)

    def self_attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.cache.layer_kv(layer, k.device)
        page, offset = self.write_index
        keys[page, :, offset] = k
        values[page, :, offset] = v
        return self.decode_attention(q, keys, values)

    def cross_attention(self, layer: int, q: Tensor) -> Tensor:
        if not self.has_images:
            return torch.zeros_like(q)
        keys, values = (x.transpose(1, 2) for x in self.inputs.cross_kv[layer])  # (R, H, M, K)
        out = self.backend(q[:, :, None], keys, values).squeeze(2)
        return out.masked_fill(self.inputs.no_image_mask, 0)


class CudaGraphRecorder:
    """Records steps as CUDA graphs. They share their memory: what one has computed is used before the next one runs."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.memory_pool = torch.cuda.graph_pool_handle()

    def __call__(self, step: StepFunction) -> StepFunction:
        """Runs a step once, as libraries want before they are recorded, and records it.

        What cannot be recorded is run as it is, with a warning: slower, and the same numbers.
        """
        with torch.cuda.device(self.device):
            side_stream = torch.cuda.Stream()
            side_stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side_stream):
                step()
            torch.cuda.current_stream().wait_stream(side_stream)
            graph = torch.cuda.CUDAGraph()
            try:
                # Other threads may use the device meanwhile.
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
