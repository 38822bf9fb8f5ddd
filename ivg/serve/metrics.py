"""What the server measures, under the names that vLLM's dashboards know."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from ivg.serve.answers import Answer

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)


class Metrics:
    """Counters of one server.

    Args:
        registry: gets them.
        prefix: `vllm` for vLLM's own names; where vLLM itself counts under those, `ivg`.
        num_rows: how many sequences the models hold now.
    """

    def __init__(self, registry: CollectorRegistry, prefix: str, num_rows: Callable[[], int]) -> None:
        labels = ("model_name",)

        def named(kind: type, name: str, text: str, *more: str, **kwargs: object):  # type: ignore[no-untyped-def]
            return kind(f"{prefix}:{name}", text, (*labels, *more), registry=registry, **kwargs)

        self.running = named(Gauge, "num_requests_running", "Requests that are answered or wait for rows.")
        self.prompt_tokens = named(Counter, "prompt_tokens", "Tokens of prompts, in the base's ids.")
        self.generation_tokens = named(Counter, "generation_tokens", "Tokens of responses.")
        self.success = named(Counter, "request_success", "Responses, by why they ended.", "finished_reason")
        self.latency = named(
            Histogram, "e2e_request_latency_seconds", "From a request to its whole answer.", buckets=_SECONDS
        )
        self.first_token = named(
            Histogram,
            "time_to_first_token_seconds",
            "From a request to its first text, where it is streamed.",
            buckets=_SECONDS,
        )
        self.cancelled = Counter(
            "ivg:request_cancelled", "Requests whose client hung up.", labels, registry=registry
        )
        self.refused = Counter(
            "ivg:request_refused", "Requests that were not served, by status.", ("status",), registry=registry
        )
        self.rows = Gauge("ivg:num_rows", "Sequences that the models hold.", registry=registry)
        self.rows.set_function(num_rows)

    @contextmanager
    def request(self, model: str) -> Iterator[Request]:
        """Count a request while it runs."""
        running = self.running.labels(model)
        running.inc()
        try:
            yield Request(self, model)
        finally:
            running.dec()


class Request:
    """One running request."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._metrics = metrics
        self._model = model
        self._begun = time.monotonic()
        self._has_text = False

    def text_came(self) -> None:
        """Note the first piece of streamed text."""
        if not self._has_text:
            self._has_text = True
            self._metrics.first_token.labels(self._model).observe(time.monotonic() - self._begun)

    def answered(self, answers: list[Answer], n: int) -> None:
        """Count a request that was answered in full."""
        metrics, model = self._metrics, self._model
        metrics.latency.labels(model).observe(time.monotonic() - self._begun)
        metrics.prompt_tokens.labels(model).inc(sum(a.num_prompt_tokens for a in answers[::n]))
        metrics.generation_tokens.labels(model).inc(sum(a.num_tokens for a in answers))
        for answer in answers:
            reason = "stop" if answer.finish_reason in ("eos", "stop") else "length"
            metrics.success.labels(model, reason).inc()
