"""State that all requests share: the model, admission control, metrics for Prometheus, and threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from idefics.host_memory import release_free_heap
from idefics.messages import PictureOrVideo, Usage
from idefics.processing.fetch import Fetcher, is_data_uri
from idefics.server.admission import AdmissionControl
from idefics.server.errors import APIError
from idefics.server.settings import Settings

if TYPE_CHECKING:
    from idefics import Idefics
    from idefics.engine.engine import Engine
    from idefics.processing.tokenizer import Tokenizer


# Upper bounds of histogram buckets, in seconds.
LATENCY_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100)
TOKEN_LATENCY_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


class EngineCollector(Collector):
    """Metrics of the engine, read from it when `/metrics` is requested."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def collect(self) -> Iterator[Metric]:
        """Yields the engine's metrics with their current values. Prometheus' client calls this."""
        scheduler, encoder_cache = self.engine.scheduler, self.engine.encoder_cache
        page_pool = scheduler.page_pool
        for name, help, value in (
            ("idefics_queue", "Answers that wait to join the batch.", len(scheduler.waiting)),
            ("idefics_batch", "Answers in the running batch.", len(scheduler.running)),
            ("idefics_cache_pages", "Pages of 16 tokens in the cache.", page_pool.num_pages),
            ("idefics_cache_pages_free", "Those of them that are free.", page_pool.num_free_pages),
            (
                "idefics_picture_cache_bytes",
                "Size of the cache of encoded pictures.",
                encoder_cache.size_bytes,
            ),
        ):
            yield GaugeMetricFamily(name, help, value)
        yield CounterMetricFamily(
            "idefics_prompt_tokens_cached",
            "Tokens of prompts that were found in the prefix cache.",
            scheduler.num_cached_tokens,
        )
        yield CounterMetricFamily(
            "idefics_pictures_encoded",
            "Pictures that were not found in the cache.",
            encoder_cache.num_encoded,
        )


class Metrics:
    """The Prometheus metrics of one app, in a registry of their own."""

    def __init__(self, vlm: Idefics, count_requests: Callable[[], int]) -> None:
        """`count_requests` returns the number of requests in progress."""
        self.registry = CollectorRegistry()
        counter = partial(Counter, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry)
        self.requests = counter("idefics_requests", "Requests answered.", ["path", "status"])
        self.refusals = counter(
            "idefics_refusals", "Requests refused because a limit was reached.", ["reason"]
        )
        self.disconnected_clients = counter(
            "idefics_clients_gone", "Clients that disconnected before their answer was complete."
        )
        self.prompt_tokens = counter("idefics_prompt_tokens", "Tokens of prompts.")
        self.completion_tokens = counter("idefics_completion_tokens", "Tokens of answers.")
        self.pictures = counter("idefics_pictures", "Pictures of prompts.")
        self.time_to_first_token = histogram(
            "idefics_time_to_first_token_seconds",
            "From a request's arrival to its first token.",
            buckets=LATENCY_BUCKETS,
        )
        self.time_per_token = histogram(
            "idefics_time_per_token_seconds",
            "From one token of an answer to the next, on average over the answer.",
            buckets=TOKEN_LATENCY_BUCKETS,
        )
        self.registry.register(EngineCollector(vlm.engine))
        active_requests = Gauge("idefics_visits", "Requests in progress.", registry=self.registry)
        active_requests.set_function(count_requests)

    def record_answer(self, usage: Usage, time_to_first_token: float, decode_time: float) -> None:
        """Records the tokens and times of a finished answer.

        Args:
            time_to_first_token: seconds from the arrival of the request to the first token.
            decode_time: seconds from the first token to the last.
        """
        self.completion_tokens.inc(usage.completion_tokens)
        if usage.completion_tokens:
            self.time_to_first_token.observe(time_to_first_token)
        if usage.completion_tokens > 1:
            self.time_per_token.observe(decode_time / (usage.completion_tokens - 1))

    def to_prometheus_text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)


NUM_WORKERS = 16  # threads that make prompts; most of them wait for one of the `decode_slots`
LONG_TEXT_CHARACTERS = (
    32_768  # prompts of more characters take tens of milliseconds, and have a thread of their own
)

R = TypeVar("R")


class ServerState:
    """State that all requests share.

    Attributes:
        vlm: the model; it opens no files, and fetches pictures only as the settings allow.
        metrics: counters for `/metrics`.
        admission: limits on what all requests use together.
        large_body_lock: held while a large body is parsed.
        workers: threads that make prompts: they decode pictures and tokenize texts.
        long_text_pool: one thread for prompts of long texts, so that they do not occupy the workers.
        num_long_texts: prompts that use or wait for `long_text_pool`.
        fetchers: threads for prompts with pictures on other machines, so that slow ones do not occupy the workers.
    """

    def __init__(self, vlm: Idefics, settings: Settings) -> None:
        self.vlm, self.settings = with_untrusted_fetcher(vlm, settings), settings
        self.vlm.processor.text_limit.precompute_byte_costs()
        self.admission = AdmissionControl(settings, lambda reason: self.metrics.refusals.labels(reason).inc())
        self.metrics = Metrics(vlm, lambda: len(self.admission.slots))
        self.workers = ThreadPoolExecutor(NUM_WORKERS, thread_name_prefix="idefics-server")
        self.large_body_lock = asyncio.Lock()
        self.num_long_texts = 0
        self.long_text_pool = ThreadPoolExecutor(1, thread_name_prefix="idefics-long-texts")
        self.fetchers = ThreadPoolExecutor(settings.fetched_at_once, thread_name_prefix="idefics-fetcher")

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self.vlm.processor.tokenizer

    def find_adapter(self, name: str) -> str | None:
        """The adapter of a model by the model's name; None: the served model itself has none.

        Raises:
            APIError: 404, there is no such model.
        """
        if name == self.settings.served_model_name:
            return None
        if name in self.vlm.adapters:
            return name
        names = ", ".join(map(repr, (self.settings.served_model_name, *self.vlm.adapters)))
        raise APIError(
            404,
            f"model {name[:100]!r} not found: this server has {names}",
            code="model_not_found",
            param="model",
        )

    async def run_in_worker(
        self, function: Callable[[], R], pictures: Sequence[PictureOrVideo] = (), *, num_characters: int = 0
    ) -> R:
        """Calls a function in a thread, and returns its result. A call that is cancelled while it waits never runs.

        Args:
            pictures: the pictures that the function opens; if some must be fetched, a thread for slow calls is used.
            num_characters: characters of the texts that the function tokenizes; many go to the thread for long texts.
        """
        run_in_executor = asyncio.get_running_loop().run_in_executor
        if any(isinstance(one.source, str) and not is_data_uri(one.source) for one in pictures):
            return await run_in_executor(self.fetchers, function)
        if num_characters <= LONG_TEXT_CHARACTERS:
            return await run_in_executor(self.workers, function)
        self.num_long_texts += 1
        try:
            return await run_in_executor(
                self.long_text_pool, run_in_thread_and_trim, function, lambda: self.num_long_texts == 1
            )
        finally:
            self.num_long_texts -= 1


def with_untrusted_fetcher(vlm: Idefics, settings: Settings) -> Idefics:
    """The model, with shared weights, for clients' pictures: opens no files, fetches pictures as the settings allow."""
    fetcher = Fetcher(
        policy=settings.remote_images,
        untrusted=True,
        decode_slots=threading.Semaphore(settings.decoded_at_once),
        fetch_slots=threading.Semaphore(settings.fetched_at_once),
    )
    return vlm.fetching(fetcher)


def run_in_thread_and_trim(function: Callable[[], R], should_trim: Callable[[], bool]) -> R:
    """Calls a function in a new thread, and returns its result.

    glibc keeps memory that a thread has freed for that thread, and returns the rest only on request: without this,
    tokenizing a text of a megabyte would leave the process 40 to 130 MB larger.

    Args:
        should_trim: called afterwards; whether to return freed memory now, which may make other threads wait.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="idefics-long-text") as executor:
        future = executor.submit(function)
    try:
        if should_trim():
            release_free_heap()
        return future.result()
    finally:
        del future  # an error refers to this frame: with the future in it, a cycle would keep all texts alive
