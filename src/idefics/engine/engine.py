"""The engine: continuous batching of requests, run by a thread of its own. Requests join and leave between steps.

Works on token ids and preprocessed images; independent of text and of model families.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterable, Sequence
from functools import cache, partial
from typing import NoReturn

import torch
from torch import Tensor

from idefics.config import EngineConfig
from idefics.engine.adapters import NO_ADAPTERS, ModelAdapters
from idefics.engine.decode import DecodeStep, choose_decode_step
from idefics.engine.encoder_cache import EncoderCache, encode_frames, first_float_parameter
from idefics.engine.engine_thread import EngineThread
from idefics.engine.handle import RequestHandle
from idefics.engine.kv_cache import PagedKVCache
from idefics.engine.kv_cache_size import compute_num_pages, kv_cache_dtype
from idefics.engine.model_interface import VLM
from idefics.engine.model_runner import ModelRunner
from idefics.engine.output_processor import OutputProcessor
from idefics.engine.page_pool import PagePool
from idefics.engine.page_toucher import PageToucher
from idefics.engine.reference import ReferenceModel
from idefics.engine.request import Continuation, Deadline, Request, validate_prompt, validate_request
from idefics.engine.request_state import RequestOutputs, RequestState, SchedulerOutput
from idefics.engine.scheduler import Scheduler
from idefics.engine.tensor_files import TensorFileCache
from idefics.errors import BadCall, ModelClosed, RequestTimeout
from idefics.prompt import PreprocessedImage, Prompt

log = logging.getLogger(__name__)

CLOSED_MESSAGE = "the model is closed: load it again"
FORKED_MESSAGE = "the process that this one was forked from generates the answer: submit the request again"
FORKED_GPU_MESSAGE = (
    "the model is on a GPU, which a forked process cannot use: start the process with "
    "multiprocessing.get_context('spawn') and load the model in it"
)


@cache
def _register_one_thread_fork_hook() -> None:
    """Makes torch compute with one thread in forked processes, which lack OpenMP's threads, as its data loaders do."""
    if sys.platform != "win32":
        os.register_at_fork(after_in_child=partial(torch.set_num_threads, 1))


class Engine:
    """Runs requests with a model, on the model's device and in its dtype. Thread-safe.

    Args:
        free_bytes: bytes of memory that the engine's caches may use; None: what is free now on the model's device.
        feature_cache: files of encoded pictures that the engine reads and writes; None: no files.
        adapters: of the model.

    Attributes:
        condition: the lock over requests and scheduler; notified when there is work, or a free place in the queue.
    """

    def __init__(
        self,
        model: VLM,
        config: EngineConfig,
        free_bytes: int | None = None,
        feature_cache: TensorFileCache | None = None,
        adapters: ModelAdapters = NO_ADAPTERS,
    ) -> None:
        self._model: VLM | None = model
        self._unavailable_reason = CLOSED_MESSAGE  # the message of ModelClosed, once `_model` is None
        self.config, self._feature_cache, self.adapters = config, feature_cache, adapters
        self._device = first_float_parameter(model).device
        devices = {parameter.device for parameter in model.parameters()}
        cache_dtype = kv_cache_dtype(model)
        num_pages = compute_num_pages(model.layout, cache_dtype, self._device, config, free_bytes)
        cache_device = self._device if len(devices) == 1 else None
        self.kv_cache = PagedKVCache(model.layout, num_pages, cache_dtype, cache_device)
        self._is_async = self._device.type == "cuda" and len(devices) == 1
        decode_step = choose_decode_step(
            model, self.kv_cache, has_adapters=bool(adapters.adapters), reference=config.reference
        )
        self._initialize(model, num_pages, decode_step)
        self._thread = EngineThread(self)
        _register_one_thread_fork_hook()

    def _initialize(self, model: VLM, num_pages: int, decode_step: DecodeStep) -> None:
        """Creates everything but the KV cache and the decode step: no requests, empty caches."""
        self.encoder_cache = EncoderCache(model, self.config, self._feature_cache, self.adapters)
        self.scheduler = Scheduler(
            PagePool(num_pages), self.config, self.encoder_cache, uses_lookahead_pages=self._is_async
        )
        self.page_toucher = PageToucher(self.kv_cache, self.scheduler.page_pool)
        self.model_runner = ModelRunner(
            model, self.kv_cache, decode_step, self.encoder_cache, self._device, is_async=self._is_async
        )
        self.output_processor = OutputProcessor(model, self.adapters, is_async=self._is_async)
        self.condition = threading.Condition(threading.RLock())
        self._state_by_handle: dict[RequestHandle, RequestState] = {}
        self._compute_lock = threading.Lock()

    def __reduce__(self) -> NoReturn:
        """Raises BadCall: an engine is not pickled or copied, as its thread and caches belong to one process."""
        raise BadCall("a loaded model cannot be pickled or copied: load it in each process, by its name")

    @property
    def model(self) -> VLM:
        """The model that runs the requests; raises ModelClosed after `close`."""
        if self._model is None:
            raise ModelClosed(self._unavailable_reason)
        return self._model

    def submit(self, request: Request, *, wait: bool = False) -> RequestHandle:
        """Queues a request to generate an answer or to score continuations.

        Args:
            wait: whether to wait if the queue is full; otherwise EngineBusy is raised.

        Raises:
            PromptTooLong, BadPrompt, BadSetting: the request does not fit the model (`validate_request`) or the cache.
            EngineBusy: the queue is full and `wait` is false.
            ModelClosed: the engine is closed, or was closed while this call waited.
            RequestTimeout: the queue was full until the request's deadline.
        """
        layout = self.model.layout
        max_new_tokens = validate_request(request, layout)
        self.adapters.check(request.prompt)
        handle = RequestHandle(request, self._cancel_request)
        state = RequestState(request, handle, max_new_tokens, layout.num_cross_attention_layers > 0)
        with self.condition:
            while wait and self._model is not None and self.scheduler.is_full:
                if request.deadline is not None:
                    request.deadline.raise_if_expired()
                self.condition.wait(None if request.deadline is None else request.deadline.remaining_seconds)
            _ = self.model  # raises if it was closed meanwhile
            self.scheduler.submit(state)
            self._state_by_handle[handle] = state
            if log.isEnabledFor(logging.DEBUG):
                log.debug("submitted: %s; %d waiting", request.log_summary, len(self.scheduler.waiting))
            self._thread.ensure_running()
        return handle

    def score(
        self, prompt: Prompt, continuations: Iterable[Continuation], deadline: Deadline | None = None
    ) -> list[list[float]]:
        """Scores continuations of a prompt, which is computed once; waits for the result.

        Returns:
            For each continuation the natural-log probability of each token; no id is banned.

        Raises:
            IdeficsError: as `submit`, or RequestTimeout at the deadline.
        """
        request = Request(prompt, continuations=tuple(continuations), deadline=deadline)
        return self.submit(request, wait=True).result().continuation_logprobs

    @torch.no_grad()  # not inference_mode: the caller may go on computing with an ordinary tensor
    def logits(self, prompt: Prompt) -> Tensor:
        """(N, V) float32 next-token logits after each of the N prompt tokens, in one pass without the cache."""
        validate_prompt(prompt, self.model.layout, num_new_tokens=0)
        self.adapters.check(prompt)
        with self._compute_lock:
            self.adapters.select(prompt.adapter)
            return self.model.logits(ReferenceModel(self.model, prompt).hidden_states()).float()

    @torch.no_grad()
    def attention(self, prompt: Prompt, continuation: Continuation, keys: Sequence[int]) -> Tensor:
        """How much tokens attend to those at `keys`: see `ReferenceModel.attention`; in one pass without the cache."""
        validate_prompt(prompt, self.model.layout, len(continuation), continuation)
        self.adapters.check(prompt)
        with self._compute_lock:
            self.adapters.select(prompt.adapter)
            return ReferenceModel(self.model, prompt).attention(tuple(continuation), keys)

    @torch.no_grad()
    def embed(self, image: PreprocessedImage) -> Tensor:
        """(D',) float32 on the CPU: the mean of a picture's features over the rows of all its frames; not cached."""
        with self._compute_lock:
            self.adapters.select(image.adapter)
            features = encode_frames(self.model, image.frames, self.config.encode_frames)
            return torch.cat(features).float().mean(dim=0).cpu()

    def clear_caches(self) -> None:
        """Empties the prefix and encoder caches in memory, except for pictures that running requests need."""
        _ = self.model  # raises if the engine is closed
        with self._compute_lock, self.condition:
            self.scheduler.page_pool.clear_prefix_cache()
            self.encoder_cache.evict_unused(self.scheduler.image_keys_in_use(), max_bytes=0)

    def close(self) -> None:
        """Ends the thread after its current step and frees all memory. Unfinished requests fail with ModelClosed."""
        with self.condition:
            if self._model is None:
                return
            self._model = None
            for handle, state in self._state_by_handle.items():
                handle.fail(ModelClosed(CLOSED_MESSAGE))
                self.scheduler.cancel(state)
            self._state_by_handle.clear()
            self.condition.notify_all()
        if self._thread.close():
            with self._compute_lock:  # waits for a pass of `logits`
                del self.kv_cache, self.encoder_cache, self.scheduler
                del self.model_runner, self.output_processor, self.page_toucher

    def reset_after_fork(self) -> None:
        """In a forked process: starts again without requests; the parent's requests fail here.

        CUDA cannot be used in a forked process: if the model is on a GPU, every call raises ModelClosed.
        """
        handles, model = list(self._state_by_handle), self._model
        if model is None:
            return
        self._initialize(model, self.scheduler.page_pool.num_pages, self.model_runner.decode_step)
        for handle in handles:
            handle.fail_after_fork(ModelClosed(FORKED_MESSAGE))
        if self._device.type != "cpu":
            self._model, self._unavailable_reason = None, FORKED_GPU_MESSAGE

    @property
    def is_busy(self) -> bool:
        """Whether any request is waiting or running."""
        return self.scheduler.is_busy

    @torch.inference_mode()
    def step(self) -> None:
        """Schedules, runs the model, samples, and records the results. Raises nothing: errors fail requests instead."""
        try:
            with self.condition:
                self._fail_expired_requests()
                scheduler_output = self.scheduler.schedule()
            with self._compute_lock:
                self.kv_cache.copy_pages(scheduler_output.copy_source_by_page)
                outputs = self._compute_or_isolate_failures(scheduler_output)
            with self.condition:
                self.scheduler.update_from_output(scheduler_output, outputs)
                if self.encoder_cache.size_bytes > self.encoder_cache.max_bytes:
                    self.encoder_cache.evict_unused(self.scheduler.image_keys_in_use())
        except Exception as error:  # of no particular request: all fail, or their callers would wait forever
            with self.condition:
                self.scheduler.fail_all(error)
        with self.condition:
            for handle in [handle for handle in self._state_by_handle if handle.is_done]:
                del self._state_by_handle[handle]
                if log.isEnabledFor(logging.DEBUG):
                    log.debug("done: %s", handle.log_summary)
            self.condition.notify_all()

    def _compute_or_isolate_failures(self, scheduler_output: SchedulerOutput) -> RequestOutputs:
        """Computes a step; if that raises, each request on its own: the output of one that fails is its error."""
        try:
            return self._compute_step(scheduler_output)
        except Exception:
            outputs: RequestOutputs = {}
        for state in scheduler_output.requests:
            self._discard_launched_step()
            try:
                outputs |= self._compute_step(scheduler_output.select_request(state))
            except Exception as error:
                outputs[state] = error
        return outputs

    def _compute_step(self, scheduler_output: SchedulerOutput) -> RequestOutputs:
        """Runs the model and samples; returns each request's output. A GPU computes the next step in the meantime."""
        step_output = self.model_runner.run(scheduler_output)
        batch = self.output_processor.sample(step_output)
        if batch is not None:
            self.model_runner.launch_next_step(batch.sequences, batch.ids)
        outputs = self.output_processor.process(step_output, batch)
        if self.output_processor.has_replaced_tokens:
            self._discard_launched_step()
        return outputs

    def _discard_launched_step(self) -> None:
        """Discards the step launched ahead and the sampler, whose ids are no longer those of the sequences."""
        self.model_runner.discard_launched_step()
        self.output_processor.reset_sampler()

    def _fail_expired_requests(self) -> None:
        """Fails the requests whose deadline has passed, before scheduling, so that this step can use their pages."""
        for handle, state in self._state_by_handle.items():
            deadline = handle.request.deadline
            if deadline is not None and not deadline.remaining_seconds:
                handle.fail(RequestTimeout(deadline.timeout))
                self.scheduler.cancel(state)

    def _cancel_request(self, handle: RequestHandle) -> None:
        """Cancels a request (`RequestHandle.cancel`); no effect once it is done."""
        with self.condition:
            if handle in self._state_by_handle:
                self.scheduler.cancel(self._state_by_handle.pop(handle))
                self.condition.notify_all()
