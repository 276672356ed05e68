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

from idefics.config import CacheLayout
from idefics.engine.cache import PagedCache
from idefics.engine.contract import VLM
from idefics.engine.decode import DecodeRows
from idefics.engine.pages import PAGE
from idefics.engine.reading import Reading, reading
from idefics.nn.attention import LayerMemory, Memory
from idefics.nn.joined import JoinedStack
from idefics.nn.kernels import Kernel

Step = Callable[[], Tensor]
Capture = Callable[[Step], Step]  # a step -> what repeats it
FEW_PAGES, MANY_PAGES = 8, 64


class GraphDecode:
    """Reads one token more of each row: a `DecodeStep` for a model on one device.

    The graphs have the addresses of weights and pages in them: these stay where they are while this lives.

    Args:
        capture: what records a step; without it each step is started kernel by kernel.
    """

    def __str__(self) -> str:
        return "CUDA graphs"

    def __init__(self, model: VLM, cache: PagedCache, capture: Capture) -> None:
        self.model, self.cache, self.capture = model, cache, capture
        stack = model.stack()
        self.forward = model.forward if stack is None else JoinedStack(stack)
        self.reading = reading(cache, model.kernel)
        self._places: dict[int, Places] = {}  # for each number of rows
        self._steps: dict[tuple[int, int, bool], Step] = {}

    def __call__(self, rows: DecodeRows) -> Tensor:
        count = len(rows.ids)
        places = self._places_for(rows_size(count))
        places.take(rows)
        pages = min(pages_size(rows.longest // PAGE + 1), places.tables.shape[1])
        size = len(places.ids), pages, places.sees
        if size not in self._steps:
            self._steps[size] = self.capture(lambda: self._step(places, pages, places.sees))
        # A copy: the next step writes over it.
        return self._steps[size]()[:count].to(torch.float32, copy=True)

    def _places_for(self, rows: int) -> Places:
        if rows not in self._places:
            self._places[rows] = Places(rows, self.cache.layout, self.cache.keys[0].device)
        return self._places[rows]

    def _step(self, places: Places, pages: int, sees: bool) -> Tensor:
        attn = PlacesAttn(self.cache, places, pages, sees, self.reading, self.model.kernel)
        h = self.forward(self.model.embed(places.ids), places.positions, attn)
        return self.model.logits(h)


def rows_size(count: int) -> int:
    """The number of rows that are computed for `count` of them: the next power of two."""
    return 1 << (count - 1).bit_length()


def pages_size(count: int) -> int:
    """The number of pages that each row may have where the longest has `count`: 8, 16, 32, or a multiple of 64."""
    if count > MANY_PAGES // 2:
        return -(-count // MANY_PAGES) * MANY_PAGES
    return max(FEW_PAGES, rows_size(count))


class Places:
    """Where a step of R rows finds what it reads. Rows that nobody asks for are at position 0 of page 0.

    Attributes:
        ids, positions: (R,) int64.
        tables: (R, P) int32 with P for the longest that a row can be.
        memory: for each cross layer (R, M, H, K) keys and values; empty until a row sees a picture.
        blind: (R, 1, 1) which rows see none.
        sees: whether any does.
    """

    def __init__(self, rows: int, layout: CacheLayout, device: torch.device) -> None:
        self.layout = layout
        self.ids = torch.zeros(rows, dtype=torch.long, device=device)
        self.positions = torch.zeros_like(self.ids)
        self.tables = torch.zeros(rows, -(-layout.max_positions // PAGE), dtype=torch.int32, device=device)
        self.memory: list[LayerMemory] = []
        self.blind = torch.ones(rows, 1, 1, dtype=torch.bool, device=device)
        self.sees = False
        self._memories: Sequence[Memory] = ()
        self._taken = 0, 0

    def take(self, rows: DecodeRows) -> None:
        """Puts rows where the step finds them."""
        count, pages = rows.tables.shape
        if self._taken != (count, pages):
            self.tables.zero_()
            self.positions.zero_()
            self._taken = count, pages
        self.ids[:count].copy_(rows.ids)
        self.positions[:count].copy_(rows.positions)
        self.tables[:count, :pages].copy_(rows.tables)
        if rows.memories is not self._memories:
            self._look(rows.memories)
            self._memories = rows.memories

    def _look(self, memories: Sequence[Memory]) -> None:
        seeing = [row for row, memory in enumerate(memories) if memory]
        self.sees = bool(seeing)
        if not seeing:
            return
        rows = torch.tensor(seeing, device=self.blind.device)
        self.blind.fill_(True)[rows] = False
        layers = zip(*(memories[row] for row in seeing), strict=True)
        new = [LayerMemory(*map(torch.cat, zip(*layer, strict=True))) for layer in layers]
        if not self.memory:
            size = len(self.blind)
            self.memory = [LayerMemory(*(x.new_zeros(size, *x.shape[1:]) for x in layer)) for layer in new]
        for kept, layer in zip(self.memory, new, strict=True):
            kept.keys[rows], kept.values[rows] = layer


class PlacesAttn:
    """One new token in each row, which joins the cache and sees its row, as far back as the window."""

    def __init__(
        self,
        cache: PagedCache,
        places: Places,
        pages: int,
        sees: bool,
        reading: type[Reading],
        kernel: Kernel,
    ) -> None:
        self.cache, self.places, self.sees, self.kernel = cache, places, sees, kernel
        tables, positions = places.tables[:, :pages], places.positions
        page = tables.gather(1, (positions // PAGE)[:, None])[:, 0]
        self.place = page.long(), positions % PAGE
        self.reading = reading(tables, positions, cache.layout, kernel)

    def self_(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.cache.layer(layer, k.device)
        page, place = self.place
        keys[page, :, place] = k
        values[page, :, place] = v
        return self.reading(q, keys, values)

    def cross(self, layer: int, q: Tensor) -> Tensor:
        if not self.sees:
            return torch.zeros_like(q)
        keys, values = (x.transpose(1, 2) for x in self.places.memory[layer])  # (R, H, M, K)
        seen = self.kernel(q[:, :, None], keys, values).squeeze(2)
        return seen.masked_fill(self.places.blind, 0)


class CudaGraphs:
    """Records steps as CUDA graphs. They share their memory: what one has computed is used before the next one runs."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, step: Step) -> Step:
        """Runs a step once, as libraries want before they are recorded, and records it.

        What cannot be recorded is run as it is, with a warning: slower, and the same numbers.
        """
        with torch.cuda.device(self.device):
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                step()
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            try:
                # Other threads may use the device meanwhile.
                with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
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
