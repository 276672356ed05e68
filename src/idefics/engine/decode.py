"""One token more of each row, over pages: the step that an answer is made of, and who computes it.

R rows, P pages of the longest row, h key/value heads, H query heads, K head size, V vocabulary. Chooses no tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from idefics.engine.cache import PagedCache, narrowed
from idefics.engine.contract import VLM
from idefics.engine.native import NativeDecode, why_not
from idefics.engine.pages import PAGE
from idefics.nn.attention import LayerMemory, Memory, visible
from idefics.nn.kernels import fast, fused

log = logging.getLogger(__name__)


@dataclass(slots=True)
class DecodeRows:
    """What is read in one step. While the same rows go on, `tables` and `memories` stay the same objects.

    Attributes:
        ids: (R,) int64: the tokens to be read.
        positions: (R,) int64: where they stand.
        tables: (R, P) int32: which page holds positions 16j and on; 0 beyond the row's end. The page that holds a
            row's position is owned by that row alone.
        memories: for each row what it sees: (1, M, H, K) keys and values for each cross layer, or nothing.
        longest, shortest: the highest and the lowest of `positions`, known to the host.
    """

    ids: Tensor
    positions: Tensor
    tables: Tensor
    memories: Sequence[Memory]
    longest: int
    shortest: int


class DecodeStep(Protocol):
    """Reads one token more of each row."""

    def __call__(self, rows: DecodeRows) -> Tensor:
        """The tokens' keys and values go into the cache: -> (R, V) float32 logits of the next ones."""
        ...


def decode_step(model: VLM, cache: PagedCache, *, reference: bool = False) -> DecodeStep:
    """The quickest step for a model and its cache, chosen once; the log says why where it is torch's plain one.

    Args:
        reference: torch's plain one in any case.
    """
    if reference:
        return TorchDecode(model, cache)
    stack, reason = model.stack(), why_not(model, cache)
    if reason is None and model.kernel not in (fast, fused):
        reason = "another attn_implementation was asked for"
    if stack is not None and reason is None:
        return NativeDecode(stack, cache)
    devices = {weight.device for weight in model.parameters()}
    if {device.type for device in devices} == {"cuda"} and len(devices) == 1:
        from idefics.engine.graph import CudaGraphs, GraphDecode

        return GraphDecode(model, cache, CudaGraphs(devices.pop()))
    log.info("decode steps are computed by torch: %s", reason)
    return TorchDecode(model, cache)


class TorchDecode:
    """In plain torch, on every device: gathers each row's pages and attends to them."""

    def __str__(self) -> str:
        return "torch"

    def __init__(self, model: VLM, cache: PagedCache) -> None:
        self.model, self.cache = model, cache
        self.sight = Sight(())

    def __call__(self, rows: DecodeRows) -> Tensor:
        if rows.memories is not self.sight.memories:
            self.sight = Sight(rows.memories)
        attn = DecodeAttn(self.model, self.cache, rows, self.sight)
        h = self.model.forward(self.model.embed(rows.ids), rows.positions, attn)
        return self.model.logits(h).float()


class Sight:
    """The pictures that rows see, side by side: made when the rows change.

    Attributes:
        seeing: (S,) the rows that see one.
        layers: (S, M, H, K) keys and values of their pictures for each cross layer; empty where S is 0.
    """

    def __init__(self, memories: Sequence[Memory]) -> None:
        self.memories = memories
        seeing = [row for row, memory in enumerate(memories) if memory]
        self.seeing = torch.tensor(seeing, dtype=torch.long)
        layers = zip(*(memories[row] for row in seeing), strict=True)
        self.layers = [
            LayerMemory(torch.cat([one.keys for one in layer]), torch.cat([one.values for one in layer]))
            for layer in layers
        ]


class DecodeAttn:
    """One new token in each row, which joins the cache and sees its row, as far back as the window."""

    def __init__(self, model: VLM, cache: PagedCache, rows: DecodeRows, sight: Sight) -> None:
        self.cache, self.kernel, self.sight = cache, model.kernel, sight
        window, heads = cache.layout.window, cache.layout.kv_heads
        self.length = rows.longest + 1
        first = 0 if window is None else max(0, rows.shortest + 1 - window) // PAGE
        tables = rows.tables[:, first : -(-self.length // PAGE)].long()  # (R, P) the pages that are seen
        self.length -= first * PAGE
        device = tables.device
        # Rows of (pages * h, 16 * K): one copy brings keys into the order in which they are read.
        self.gather = (tables[:, None] * heads + torch.arange(heads, device=device)[:, None]).flatten()
        pages = rows.tables.gather(1, (rows.positions // PAGE)[:, None])  # (R, 1)
        self.place = pages[:, 0].long(), rows.positions % PAGE
        self.mask = None  # (R, 1, 1, L)
        if rows.shortest < rows.longest:
            places = torch.arange(first * PAGE, rows.longest + 1, device=device)
            self.mask = visible(rows.positions, places, window)[:, None, None]
        elif window is not None and (skipped := self.length - window) > 0:
            self.mask = torch.arange(self.length, device=device)[None, None, None] >= skipped

    def self_(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.cache.layer(layer, k.device)
        pages, places = (x.to(k.device) for x in self.place)
        keys[pages, :, places] = narrowed(k, keys.dtype)
        values[pages, :, places] = narrowed(v, values.dtype)
        seen = (self._gathered(pages, len(q)).to(q.dtype) for pages in (keys, values))
        # Query heads that share a key head are taken for that head's queries: no key is copied.
        q = q.unflatten(1, (k.shape[1], -1))  # (R, h, H/h, K)
        out = self.kernel(q, *seen, mask=self.mask if self.mask is None else self.mask.to(q.device))
        return out.flatten(1, 2)

    def cross(self, layer: int, q: Tensor) -> Tensor:
        out = torch.zeros_like(q)
        if self.sight.layers:
            keys, values = (x.transpose(1, 2) for x in self.sight.layers[layer])  # (S, H, M, K)
            seeing = self.sight.seeing.to(q.device)
            out[seeing] = self.kernel(q[seeing, :, None], keys, values).squeeze(2)
        return out

    def _gathered(self, pages: Tensor, rows: int) -> Tensor:
        """(pages, h, 16, K) -> (R, h, L, K): each row's own."""
        _, heads, _, size = pages.shape
        flat = pages.view(-1, PAGE * size).index_select(0, self.gather.to(pages.device))
        return flat.view(rows, heads, -1, size)[:, :, : self.length]
