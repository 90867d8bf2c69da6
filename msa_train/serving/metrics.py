"""What a server counts and times, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from msa_train.serving.banks import Banks

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class ServerMetrics:
    """requests: by route, method and status. first_token, routing, answer: seconds. tokens: as many
    as the model wrote."""

    def __init__(self, banks: Banks):
        disable_created_metrics()  # no *_created series beside every counter
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)  # process_resident_memory_bytes and more
        self._registry.register(_BankSizes(banks))
        self.requests = Counter(
            "msa_requests", "Requests answered", ("route", "method", "status"),
            registry=self._registry,
        )  # fmt: skip
        self.first_token = self._seconds(
            "msa_first_token_seconds", "From a question's arrival to its answer's first text"
        )
        self.routing = self._seconds(
            "msa_routing_seconds", "Of a round: prefill and routing, until its documents are chosen"
        )
        self.answer = self._seconds("msa_answer_seconds", "From a question's arrival to its end")
        self.tokens = Counter(
            "msa_tokens_written", "Tokens of answers and ids", registry=self._registry
        )

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def _seconds(self, name: str, meaning: str) -> Histogram:
        return Histogram(name, meaning, buckets=_SECONDS, registry=self._registry)

    def gauge(self, name: str, meaning: str, value: Callable[[], int]) -> None:
        """A number that is read whenever the metrics are."""
        Gauge(name, meaning, registry=self._registry).set_function(value)


class _BankSizes(Collector):
    """Read at every scrape: banks come and go."""

    def __init__(self, banks: Banks):
        self._banks = banks

    def collect(self) -> Iterator[GaugeMetricFamily]:
        for kind in ("documents", "removed", "chunks", "tokens", "bytes"):
            family = GaugeMetricFamily(f"msa_bank_{kind}", f"Of a bank: {kind}", labels=["bank"])
            for bank in self._banks.opened:
                family.add_metric([bank.name], bank.snapshot.info()[kind])
            yield family
