"""`NativeDecode`: the step of `engine.decode` in one call. R rows, P pages, V vocabulary."""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from idefics.engine.contract import VLM
from idefics.engine.native import structures as c
from idefics.engine.native.description import Description, hooked, lacks, linears
from idefics.engine.native.library import instruction_sets, library
from idefics.engine.native.together import bring_together
from idefics.nn.attention import Memory
from idefics.nn.stack import Stack


class Rows(Protocol):
    """What a step reads: see `engine.decode`."""

    ids: Tensor
    positions: Tensor
    tables: Tensor
    memories: Sequence[Memory]


class Pages(Protocol):
    """(pages, h, 16, K) float32 or float16 for each layer, which stay where they are."""

    keys: list[Tensor]
    values: list[Tensor]


def why_not(model: VLM, cache: Pages) -> str | None:
    """The reason why a model's steps cannot be computed here, or None."""
    if library() is None:
        return "it was not compiled when the package was installed"
    stack = model.stack()
    if stack is None:
        return "the decoder's steps are not the known ones"
    for layer in (*stack.tables, *linears(stack)):
        if lack := lacks(layer):
            return lack
    if module := hooked(stack):
        return f"a {type(module).__name__} has a hook, which would not run"
    for pages in (*cache.keys, *cache.values):
        if pages.device.type != "cpu" or pages.dtype not in (torch.float32, torch.float16):
            return f"the cache is {pages.dtype} on {pages.device}, and it needs float32 or float16 on the CPU"
    return None


class NativeDecode:
    """Reads one token more of each row, with as many threads as torch has. Threads may call it at once: they wait.

    The weights are moved once, into large pages, unless they are very many; then they and the cache's pages are read
    where they lie, and stay as they are while this lives.

    Args:
        instructions: one of `instruction_sets`; None: the best.
    """

    def __init__(self, stack: Stack, cache: Pages, instructions: str | None = None) -> None:
        self.vocabulary = sum(head.out_features for head in stack.heads)
        self.crosses = sum(cross is not None for cross in stack.crosses)
        self.instructions = instructions or instruction_sets()[0]
        bring_together(linears(stack))
        self.description = Description(stack, cache.keys, cache.values)
        self._tables = stack.tables
        self._sight = Sight((), self.crosses)
        self._start()

    def __str__(self) -> str:
        return f"C ({self.instructions}, {self._threads} threads)"

    def __call__(self, rows: Rows) -> Tensor:
        if os.getpid() != self._process:  # a fork: it has memory, but none of the threads
            self._start()
        with self._lock:
            if torch.get_num_threads() != self._threads:
                self._finish()
                self._start()
            if rows.memories is not self._sight.memories:
                self._sight = Sight(rows.memories, self.crosses)
            return self._step(rows)

    def _start(self) -> None:
        found = library()
        assert found is not None
        self._process, self._threads, self._lock = os.getpid(), torch.get_num_threads(), threading.RLock()
        engine = found.native_new(
            ctypes.byref(self.description.model), self.instructions.encode(), self._threads
        )
        if engine is None:
            raise MemoryError(f"no memory for a decode step with {self._threads} threads")
        self._engine = engine
        self._finish = weakref.finalize(
            self, _free, found.native_free, engine, self._process, self.description
        )
        self._call = found.native_step

    def _step(self, rows: Rows) -> Tensor:
        logits = torch.empty(len(rows.ids), self.vocabulary)
        tables = rows.tables.contiguous()
        for start in range(0, len(rows.ids), c.MOST_ROWS):
            step = c.Step(
                rows=min(c.MOST_ROWS, len(rows.ids) - start),
                pages=tables.shape[1],
                ids=rows.ids.data_ptr() + 8 * start,
                positions=rows.positions.data_ptr() + 8 * start,
                tables=tables.data_ptr() + 4 * start * tables.shape[1],
                seen=self._sight.seen_from(start),
                places=self._sight.places_from(start),
                logits=logits.data_ptr() + 4 * start * self.vocabulary,
            )
            wrong = self._call(self._engine, ctypes.byref(step))
            if wrong == c.NO_SUCH_ID:
                raise IndexError(f"ids {rows.ids.tolist()} for {self.vocabulary} tokens")
            if wrong:
                raise MemoryError(f"no memory to attend to {int(rows.positions.max()) + 1} positions")
        return logits


class Sight:
    """Where the pictures lie that rows see: made when the rows change."""

    def __init__(self, memories: Sequence[Memory], crosses: int) -> None:
        self.memories, self.crosses = memories, crosses
        self.kept = [[_whole(layer.keys, layer.values) for layer in memory] for memory in memories]
        self.seen = (c.Seen * max(1, len(memories) * crosses))()
        self.places = (ctypes.c_int32 * max(1, len(memories)))()
        for row, memory in enumerate(self.kept):
            for index, (keys, values) in enumerate(memory):
                self.seen[row * crosses + index] = c.Seen(keys.data_ptr(), values.data_ptr())
                self.places[row] = keys.shape[1]

    def seen_from(self, row: int) -> int:
        return ctypes.addressof(self.seen) + ctypes.sizeof(c.Seen) * row * self.crosses

    def places_from(self, row: int) -> int:
        return ctypes.addressof(self.places) + 4 * row


def _whole(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    return keys.float().contiguous(), values.float().contiguous()


def _free(free: ctypes._NamedFuncPointer, engine: int, process: int, description: Description) -> None:
    if os.getpid() == process:  # threads are not there to be stopped in another
        free(engine)
