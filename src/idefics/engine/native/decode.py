"""`NativeDecode`: the decode step of `engine.decode` in C. R rows, V vocabulary, h key/value heads, K head size."""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from idefics.engine.decode_inputs import DecodeInputs
from idefics.engine.kv_cache import PagedKVCache
from idefics.engine.model_interface import VLM
from idefics.engine.native.huge_pages import pack_into_huge_pages
from idefics.engine.native.native_model import (
    NativeModelStruct,
    find_hooked_module,
    list_linears,
    unsupported_layer_reason,
)
from idefics.lazy import cached_property
from idefics.native import library
from idefics.native import structures as c
from idefics.native.library import InstructionSet
from idefics.nn.attention import CrossKV
from idefics.nn.decoder import DecoderParts


def unsupported_reason(model: VLM, cache: PagedKVCache) -> str | None:
    """Why `NativeDecode` cannot compute a model's decode steps; None if it can."""
    if reason := library.missing_reason():
        return reason
    parts = model.decoder_parts()
    if parts is None:
        return "the decoder has other parts than the supported ones"
    for layer in (*parts.embeddings, *list_linears(parts)):
        if reason := unsupported_layer_reason(layer):
            return reason
    if module := find_hooked_module(parts):
        return f"a {type(module).__name__} has a hook, which would not be called"
    for pages in (*cache.keys, *cache.values):
        if pages.device.type != "cpu" or pages.dtype not in (torch.float32, torch.float16):
            return f"the cache is {pages.dtype} on {pages.device}, and it needs float32 or float16 on the CPU"
    return None


class NativeDecode:
    """The `DecodeStep` in C: next-token logits of each row, with as many threads as torch has.

    Thread-safe: calls run one after another. The first call moves the weights into huge pages, unless there are too
    many: what comes before it, a prompt for one, does not wait for that. Then weights and KV cache are read in place,
    and must not be replaced while this object lives.

    Args:
        instruction_set: one that this machine has; None: the fastest.
    """

    def __init__(
        self, parts: DecoderParts, cache: PagedKVCache, instruction_set: InstructionSet | None = None
    ) -> None:
        self.vocab_size = sum(head.out_features for head in parts.lm_heads)
        self.num_cross_layers = sum(cross is not None for cross in parts.cross_blocks)
        if instruction_set is None:
            instruction_set = library.available_instruction_sets("decode step")[0]
        self.instruction_set = instruction_set
        self._parts, self._cache = parts, cache
        self._cross_kv_pointers = CrossKVPointers((), self.num_cross_layers)
        self._loading_process_id = self._process_id = os.getpid()
        self._num_threads, self._lock = torch.get_num_threads(), threading.RLock()
        self._engine: int | None = None

    def __str__(self) -> str:
        return f"C ({self.instruction_set.label}, {self._num_threads} threads)"

    def __call__(self, inputs: DecodeInputs) -> Tensor:
        """Appends the rows' tokens to the KV cache; returns logits (R, V) float32.

        Raises:
            IndexError: an id is not in the vocabulary.
            MemoryError: not enough memory.
        """
        if os.getpid() != self._process_id:  # a fork has no threads, and one of them may have held the lock
            self._process_id, self._lock, self._engine = os.getpid(), threading.RLock(), None
        with self._lock:
            if self._engine is not None and torch.get_num_threads() != self._num_threads:
                self._finalizer()
                self._engine = None
            if self._engine is None:
                self._create_native_engine()
            if inputs.cross_kvs is not self._cross_kv_pointers.cross_kvs:
                self._cross_kv_pointers = CrossKVPointers(inputs.cross_kvs, self.num_cross_layers)
            return self._run_step(inputs)

    @cached_property
    def native_model(self) -> NativeModelStruct:
        """The weights and the KV cache as C reads them."""
        if os.getpid() == self._loading_process_id:  # forked processes share the weights where they are
            pack_into_huge_pages(
                weight for layer in list_linears(self._parts) for weight in layer.parameters(recurse=False)
            )
        return NativeModelStruct(self._parts, self._cache.keys, self._cache.values)

    def _create_native_engine(self) -> None:
        """Creates the C engine with its threads, which end when this object is garbage-collected."""
        kernels = library.load_library()
        assert kernels is not None, "see unsupported_reason"
        self._num_threads = torch.get_num_threads()
        engine = kernels.idefics_decode_new(self.native_model.struct, self.instruction_set, self._num_threads)
        if engine is None:
            raise MemoryError(f"not enough memory for a decode step with {self._num_threads} threads")
        self._engine = engine
        self._finalizer = weakref.finalize(
            self,
            _free_native_engine,
            kernels.idefics_decode_free,
            engine,
            self._process_id,
            self.native_model,
        )
        self._decode_step = kernels.idefics_decode_step

    def _run_step(self, inputs: DecodeInputs) -> Tensor:
        """Computes a step in C, at most `MAX_ROWS` rows at a time: returns logits (R, V) float32."""
        logits = torch.empty(len(inputs.ids), self.vocab_size)
        page_tables = inputs.page_tables.contiguous()
        adapters = inputs.adapters if self.native_model.num_adapters else None
        for start in range(0, len(inputs.ids), c.MAX_ROWS):
            step = c.StepStruct(
                rows=min(c.MAX_ROWS, len(inputs.ids) - start),
                pages=page_tables.shape[1],
                ids=inputs.ids.data_ptr() + 8 * start,
                positions=inputs.positions.data_ptr() + 8 * start,
                tables=page_tables.data_ptr() + 4 * start * page_tables.shape[1],
                cross_kvs=self._cross_kv_pointers.pointers_address(start),
                num_features=self._cross_kv_pointers.num_features_address(start),
                adapters=None if adapters is None else adapters.data_ptr() + 4 * start,
                logits=logits.data_ptr() + 4 * start * self.vocab_size,
            )
            status = self._decode_step(self._engine, ctypes.byref(step))
            if status == c.ID_OUT_OF_RANGE:
                raise IndexError(
                    f"ids {inputs.ids.tolist()} are not all below the vocabulary size, {self.vocab_size}"
                )
            if status:
                raise MemoryError(
                    f"not enough memory to attend to {int(inputs.positions.max()) + 1} positions"
                )
        return logits


class CrossKVPointers:
    """C arrays of the addresses and lengths of each row's image keys and values. Rebuilt when the rows change."""

    def __init__(self, cross_kvs: Sequence[CrossKV], num_cross_layers: int) -> None:
        self.cross_kvs, self.num_cross_layers = cross_kvs, num_cross_layers
        self.contiguous_kvs = [
            [[x.float().contiguous() for x in layer] for layer in memory] for memory in cross_kvs
        ]
        self.pointers = (c.CrossKVStruct * max(1, len(cross_kvs) * num_cross_layers))()
        self.lengths = (ctypes.c_int32 * max(1, len(cross_kvs)))()
        for row, memory in enumerate(self.contiguous_kvs):
            for index, (keys, values) in enumerate(memory):
                self.pointers[row * num_cross_layers + index] = c.CrossKVStruct(
                    keys.data_ptr(), values.data_ptr()
                )
                self.lengths[row] = keys.shape[1]

    def pointers_address(self, row: int) -> int:
        """The address of the first `CrossKVStruct` of a row."""
        return ctypes.addressof(self.pointers) + ctypes.sizeof(c.CrossKVStruct) * row * self.num_cross_layers

    def num_features_address(self, row: int) -> int:
        """The address of the number of image features of a row."""
        return ctypes.addressof(self.lengths) + 4 * row


def _free_native_engine(
    free: ctypes._NamedFuncPointer, engine: int, process_id: int, native_model: NativeModelStruct
) -> None:
    """Frees a C engine and stops its threads; `native_model` is an argument so that its memory lives until then."""
    if os.getpid() == process_id:  # a forked process has no threads to stop
        free(engine)
