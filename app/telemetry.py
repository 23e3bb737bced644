"""Metrics and logging.

Metric names are vLLM's with `softswap_` for `vllm:`, and buckets have vLLM's edges, so a vLLM dashboard works after
replacing the prefix (vllm 0.33, `vllm/v1/metrics/loggers.py`).
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from threading import Lock

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

MAX_LABEL_VALUES = 200
OTHER = "other"
MAX_LOG_CHARS = 8192

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The HTTP request that this code runs for; written in its log lines."""

_TTFT_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_INTER_TOKEN_BUCKETS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
_REQUEST_BUCKETS = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_ITERATION_BUCKETS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_TOKEN_BUCKETS = tuple(float(digit * 10**power) for power in range(6) for digit in (1, 2, 5))
_SHARE_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1)
_HTTP_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Metrics:
    """Every series that this program exports, in a registry of its own. Safe to call from any thread.

    A series that takes one value at a time is public; methods are for what needs more than that.
    """

    def __init__(self) -> None:
        disable_created_metrics()
        self.registry = CollectorRegistry()
        self._flows = _LabelCap(MAX_LABEL_VALUES)
        self._define_step()
        self._define_finished()
        self._define_http()
        self._define_tuning()

    def _define_step(self) -> None:
        self.running = self._gauge("num_requests_running", "Sequences in the batch")
        self.waiting = self._gauge("num_requests_waiting", "Sequences waiting to be admitted")
        self.kv_usage = self._gauge("kv_cache_usage_perc", "Share of key-value blocks in use; 1 is all of them")
        self.prompt_tokens = self._counter("prompt_tokens", "Text tokens whose keys and values were computed")
        self.generation_tokens = self._counter("generation_tokens", "Tokens generated")
        self.preemptions = self._counter("num_preemptions", "Sequences preempted because blocks ran out")
        self.prefix_queries = self._counter("prefix_cache_queries", "Tokens looked up in the prefix cache")
        self.prefix_hits = self._counter("prefix_cache_hits", "Tokens found in the prefix cache")
        self.prefix_loads = self._counter("prefix_store_loads", "Task prompts read from the store, not computed")
        self.prefix_bytes = self._gauge("prefix_store_bytes", "Size of the store's files")
        self.warmed = self._counter("prompts_warmed", "Task prompts computed or read before a request asked for them")
        self.drafts = self._counter("spec_decode_num_draft_tokens", "Tokens guessed from the text before them")
        self.accepted_drafts = self._counter("spec_decode_num_accepted_tokens", "Those the model chose too")
        self.iteration_tokens = self._histogram("iteration_tokens_total", "Tokens of one step", _ITERATION_BUCKETS)
        self.step_seconds = self._histogram("step_duration_seconds", "Time of one engine step", _INTER_TOKEN_BUCKETS)

    def _define_finished(self) -> None:
        self._success = self._counter("request_success", "Sequences that ended", ["finished_reason"])
        self._task_requests = self._counter("task_requests", "Sequences that ended", ["task", "finished_reason"])
        self._task_prompt = self._counter("task_prompt_tokens", "Text tokens of ended sequences", ["task"])
        self._task_generation = self._counter("task_generation_tokens", "Tokens generated for a task", ["task"])
        self._ttft = self._histogram("time_to_first_token_seconds", "Arrival to first token", _TTFT_BUCKETS)
        self.inter_token = self._histogram(
            "inter_token_latency_seconds", "Time between two tokens of a sequence", _INTER_TOKEN_BUCKETS
        )
        self._e2e = self._histogram("e2e_request_latency_seconds", "Arrival to last token", _REQUEST_BUCKETS)
        self._queue = self._histogram("request_queue_time_seconds", "Arrival to admission", _REQUEST_BUCKETS)
        self._prefill = self._histogram("request_prefill_time_seconds", "Admission to first token", _REQUEST_BUCKETS)
        self._decode = self._histogram("request_decode_time_seconds", "First to last token", _REQUEST_BUCKETS)
        self._inference = self._histogram("request_inference_time_seconds", "Admission to end", _REQUEST_BUCKETS)
        self._per_token = self._histogram(
            "request_time_per_output_token_seconds", "Mean time between two tokens", _INTER_TOKEN_BUCKETS
        )
        self._request_prompt = self._histogram("request_prompt_tokens", "Text tokens of a sequence", _TOKEN_BUCKETS)
        self._request_generation = self._histogram(
            "request_generation_tokens", "Tokens generated for a sequence", _TOKEN_BUCKETS
        )
        self._max_tokens = self._histogram("request_params_max_tokens", "max_tokens of a sequence", _TOKEN_BUCKETS)
        self.rejections = self._counter("admission_rejections", "Sequences refused on arrival", ["reason"])

    def _define_http(self) -> None:
        self._http = self._counter("http_requests", "HTTP responses", ["method", "route", "status"])
        self._http_time = self._histogram(
            "http_request_duration_seconds", "First byte in to last byte out", _HTTP_BUCKETS, ["method", "route"]
        )
        self.clients_left = self._counter("client_disconnects", "Requests whose client left early")
        self.label_mass = self._histogram(
            "decision_label_mass", "Probability of all labels together, before normalizing", _SHARE_BUCKETS
        )

    def _define_tuning(self) -> None:
        self.tuning_seconds = self._counter("tuning_device_seconds", "Time that the device spent on tuning")
        self._jobs = self._gauge("num_tuning_jobs", "Tuning jobs that have not ended", ["status"])
        self.jobs_ended = self._counter("tuning_jobs", "Tuning jobs that ended", ["status"])
        self.tuning_updates = self._counter("tuning_updates", "Updates, each of all prompts of its job")
        self.tuning_tokens = self._counter("tuning_tokens", "Example tokens, once for each prompt trained on them")

    def observe_jobs(self, status_to_num: Mapping[str, int]) -> None:
        """How many jobs there are now in each status that is not final."""
        for status, num_jobs in status_to_num.items():
            self._jobs.labels(status).set(num_jobs)

    def observe_finished(
        self,
        *,
        flow: str,
        finish_reason: str,
        num_prompt_tokens: int,
        num_generation_tokens: int,
        max_tokens: int,
        arrival_s: float,
        scheduled_s: float | None,
        first_token_s: float | None,
        end_s: float,
    ) -> None:
        """One sequence that ended. A time, in seconds of one clock, is None for a stage that it never reached."""
        task = self._flows.admit(flow)
        self._success.labels(str(finish_reason)).inc()
        self._task_requests.labels(task, str(finish_reason)).inc()
        self._task_prompt.labels(task).inc(num_prompt_tokens)
        self._task_generation.labels(task).inc(num_generation_tokens)
        self._request_prompt.observe(num_prompt_tokens)
        self._request_generation.observe(num_generation_tokens)
        self._max_tokens.observe(max_tokens)
        self._e2e.observe(end_s - arrival_s)
        if scheduled_s is not None:
            self._queue.observe(scheduled_s - arrival_s)
        if scheduled_s is not None and first_token_s is not None:
            self._prefill.observe(first_token_s - scheduled_s)
            self._inference.observe(end_s - scheduled_s)
        if first_token_s is not None:
            self._ttft.observe(first_token_s - arrival_s)
            self._decode.observe(end_s - first_token_s)
            if num_generation_tokens > 1:
                self._per_token.observe((end_s - first_token_s) / (num_generation_tokens - 1))

    def observe_http(self, *, method: str, route: str, status: int, duration_s: float) -> None:
        """Args: route: the matched route's path template, never the path a client sent."""
        self._http.labels(method, route, str(status)).inc()
        self._http_time.labels(method, route).observe(duration_s)

    def render(self) -> bytes:
        """The Prometheus text exposition of every series."""
        return generate_latest(self.registry)

    def _gauge(self, name: str, documentation: str, labels: Sequence[str] = ()) -> Gauge:
        return Gauge(f"softswap_{name}", documentation, labels, registry=self.registry)

    def _counter(self, name: str, documentation: str, labels: Sequence[str] = ()) -> Counter:
        return Counter(f"softswap_{name}", documentation, labels, registry=self.registry)

    def _histogram(
        self, name: str, documentation: str, buckets: Sequence[float], labels: Sequence[str] = ()
    ) -> Histogram:
        return Histogram(f"softswap_{name}", documentation, labels, buckets=buckets, registry=self.registry)


class _LabelCap:
    """The first `limit` values keep their name; later ones share "other", so that series stay few."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._values: set[str] = set()
        self._lock = Lock()

    def admit(self, value: str) -> str:
        with self._lock:
            if value in self._values or len(self._values) < self._limit:
                self._values.add(value)
                return value
        return OTHER


def configure_logging(level: str) -> None:
    """Log to stderr: one JSON object a line, or one plain line each if stderr is a terminal.

    Args: level: the name of one of the standard library's levels, in any case.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PlainFormatter() if sys.stderr.isatty() else JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    for name in ("httpx", "httpcore", "urllib3", "filelock", "asyncio", "python_multipart"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


class JsonFormatter(logging.Formatter):
    """One JSON object a line, so that no text from a caller can start a line of its own."""

    def format(self, record: logging.LogRecord) -> str:
        event: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage()[:MAX_LOG_CHARS],
        }
        if (current := request_id.get()) is not None:
            event["request_id"] = current
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)[-MAX_LOG_CHARS:]
        return json.dumps(event)


class PlainFormatter(logging.Formatter):
    """For a terminal: time, level and message, with control characters escaped."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        message = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in record.getMessage())
        line = f"{clock} {record.levelname.lower():<8}{message[:MAX_LOG_CHARS]}"
        if record.exc_info:
            line = f"{line}\n{self.formatException(record.exc_info)}"
        return line
