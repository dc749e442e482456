"""What is counted while a server runs, in Prometheus' form. Names are vLLM's where the meaning is the same,
so that dashboards made for it work."""

import resource
import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from paragone.serve.messages import State

TTFT = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)
WHOLE = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 300.0, 600.0)
TOKENS = (1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
LAG = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)


class Metrics:
    """A registry of its own: several servers may be in one process, as in tests."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        model = ["model_name"]

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, model, registry=registry)

        def counter(name: str, text: str, labels: list[str] = model) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, text, model, buckets=buckets, registry=registry)

        self.running = gauge("vllm:num_requests_running", "Requests that the engine computes.")
        self.waiting = gauge("vllm:num_requests_waiting", "Requests that wait for the engine.")
        self.cache = gauge("vllm:kv_cache_usage_perc", "Share of the cache's blocks that are in use, 0 to 1.")
        self.prompt = counter("vllm:prompt_tokens", "Tokens of prompts.")
        self.generated = counter("vllm:generation_tokens", "Tokens of answers.")
        self.queries = counter("vllm:prefix_cache_queries", "Tokens that were looked for in the cache.")
        self.hits = counter("vllm:prefix_cache_hits", "Tokens that were found in the cache.")
        self.preempted = counter("vllm:num_preemptions", "Requests that had to begin anew.")
        self.success = counter("vllm:request_success", "Answers that ended.", [*model, "finished_reason"])
        self.ttft = histogram("vllm:time_to_first_token_seconds", "From arrival to the first token.", TTFT)
        self.between = histogram("vllm:inter_token_latency_seconds", "Between two tokens.", BETWEEN)
        self.whole = histogram("vllm:e2e_request_latency_seconds", "From arrival to the end.", WHOLE)
        self.prompt_size = histogram("vllm:request_prompt_tokens", "Tokens of a prompt.", TOKENS)
        self.answer_size = histogram("vllm:request_generation_tokens", "Tokens of an answer.", TOKENS)
        self.http = Counter(
            "paragone_http_requests", "Answers by route and status.", ["route", "status"], registry=registry
        )
        self.inside = Gauge("paragone_requests_inside", "Requests that were admitted.", registry=registry)
        self.restarts = Gauge(
            "paragone_engine_restarts", "Times the engine was started again.", registry=registry
        )
        self.lag = Histogram(
            "paragone_event_loop_lag_seconds", "How late the event loop is.", buckets=LAG, registry=registry
        )
        self.memory = Gauge(
            "paragone_resident_memory_bytes", "Memory of the two processes.", ["process"], registry=registry
        )
        self._seen: dict[str, State] = {}
        self.states: dict[str, State] = {}

    def step(self, model: str, state: State) -> None:
        """After a step of a model's engine."""
        before = self._seen.get(model)
        self.running.labels(model).set(state.running)
        self.waiting.labels(model).set(state.waiting)
        self.cache.labels(model).set(state.blocks_used / state.blocks if state.blocks else 0.0)
        self.queries.labels(model).inc(state.prefix_queries - (before.prefix_queries if before else 0))
        self.hits.labels(model).inc(state.prefix_hits - (before.prefix_hits if before else 0))
        self.preempted.labels(model).inc(state.preemptions - (before.preemptions if before else 0))
        self.memory.labels("engine").set(state.resident_bytes)
        self._seen[model] = self.states[model] = state

    def forget(self, model: str) -> None:
        """A model was loaded anew: its engine counts from the beginning."""
        self._seen.pop(model, None)

    def down(self) -> None:
        """The engine's process has ended: nothing runs."""
        for model in self.states:
            for each in (self.running, self.waiting, self.cache):
                each.labels(model).set(0)
        self.states.clear()

    def text(self) -> bytes:
        """All of it, as /metrics gives it."""
        self.memory.labels("http").set(resident_bytes())
        return generate_latest(self.registry)


def resident_bytes() -> int:
    """Of this process."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class RequestTimes:
    """One request's moments, for the histograms. `begin` is when it arrived, by time.perf_counter."""

    def __init__(self, metrics: Metrics, model: str, begin: float) -> None:
        self._metrics, self._model = metrics, model
        self._between, self._generated = metrics.between.labels(model), metrics.generated.labels(model)
        self.begin = begin
        self._last: dict[int, float] = {}  # of each answer
        self.ttft_s: float | None = None

    def tokens(self, answer: int, count: int) -> None:
        """So many tokens of one of its answers have come now."""
        if not count:
            return
        now = time.perf_counter()
        self._generated.inc(count)
        if self.ttft_s is None:
            self.ttft_s = now - self.begin
            self._metrics.ttft.labels(self._model).observe(self.ttft_s)
        if answer in self._last:
            for _ in range(count):  # they were made one after the other, and have come together
                self._between.observe((now - self._last[answer]) / count)
        self._last[answer] = now

    def done(self, prompt_tokens: int, completion_tokens: int, reasons: list[str]) -> None:
        """The request has ended."""
        metrics, model = self._metrics, self._model
        metrics.whole.labels(model).observe(time.perf_counter() - self.begin)
        metrics.prompt.labels(model).inc(prompt_tokens)
        metrics.prompt_size.labels(model).observe(prompt_tokens)
        metrics.answer_size.labels(model).observe(completion_tokens)
        for reason in reasons:
            metrics.success.labels(model, reason).inc()
