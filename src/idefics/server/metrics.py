"""What `/metrics` tells Prometheus: counts and times. Never a word of what anyone has said."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from idefics.messages import Usage

if TYPE_CHECKING:
    from idefics import Idefics
    from idefics.engine.engine import Engine

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100)
SECONDS_A_TOKEN = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


class EngineCollector(Collector):
    """What the engine counts itself, read when somebody asks."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def collect(self) -> Iterator[Metric]:
        """Each as it is now."""
        scheduler, pictures, pages = self.engine.scheduler, self.engine.pictures, self.engine.scheduler.pages
        for name, help, value in (
            ("idefics_queue", "Answers that wait for a place in the batch.", len(scheduler.queue)),
            ("idefics_batch", "Answers in the running batch.", len(scheduler.running)),
            ("idefics_cache_pages", "Pages of 16 tokens in the cache.", pages.count),
            ("idefics_cache_pages_free", "Those of them that can be taken.", pages.room),
            ("idefics_picture_cache_bytes", "Size of the pictures that are kept encoded.", pictures.size),
        ):
            yield GaugeMetricFamily(name, help, value)
        yield CounterMetricFamily(
            "idefics_prompt_tokens_cached", "Tokens of prompts that were found in the cache.", scheduler.found
        )
        yield CounterMetricFamily(
            "idefics_pictures_encoded", "Pictures that were not found in the cache.", pictures.encoded
        )


class Metrics:
    """The server's counters. Each app has its own."""

    def __init__(self, vlm: Idefics) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "idefics_requests", "Requests answered.", ["path", "status"], registry=self.registry
        )
        self.refusals = Counter(
            "idefics_refusals",
            "Requests refused because there was no room.",
            ["reason"],
            registry=self.registry,
        )
        self.gone = Counter(
            "idefics_clients_gone",
            "Clients that left before their answer was complete.",
            registry=self.registry,
        )
        self.prompt_tokens = Counter("idefics_prompt_tokens", "Tokens of prompts.", registry=self.registry)
        self.tokens = Counter("idefics_completion_tokens", "Tokens of answers.", registry=self.registry)
        self.pictures = Counter("idefics_pictures", "Pictures of prompts.", registry=self.registry)
        self.first = Histogram(
            "idefics_time_to_first_token_seconds",
            "From a request's arrival to its first token.",
            registry=self.registry,
            buckets=SECONDS,
        )
        self.each = Histogram(
            "idefics_time_per_token_seconds",
            "From one token of an answer to the next, on average over the answer.",
            registry=self.registry,
            buckets=SECONDS_A_TOKEN,
        )
        self.registry.register(EngineCollector(vlm.engine))

    def visits(self, count: Callable[[], int]) -> None:
        """What counts the requests that are there."""
        gauge = Gauge(
            "idefics_visits", "Requests that have been let in and are not over.", registry=self.registry
        )
        gauge.set_function(count)

    def answered(self, usage: Usage, first: float, rest: float) -> None:
        """One answer has ended.

        Args:
            first, rest: seconds to its first token, and from there to its last.
        """
        self.tokens.inc(usage.completion_tokens)
        if usage.completion_tokens:
            self.first.observe(first)
        if usage.completion_tokens > 1:
            self.each.observe(rest / (usage.completion_tokens - 1))

    def text(self) -> bytes:
        """In Prometheus' format."""
        return generate_latest(self.registry)
