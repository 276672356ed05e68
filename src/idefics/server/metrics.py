"""Metrics for Prometheus: counts and times, without any content of requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from idefics.messages import Usage

if TYPE_CHECKING:
    from idefics import Idefics
    from idefics.engine.engine import Engine

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
