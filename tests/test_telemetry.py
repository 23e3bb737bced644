from __future__ import annotations

import json
import logging
import sys

import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.telemetry import MAX_LABEL_VALUES, JsonFormatter, Metrics, PlainFormatter, request_id


def _finish(metrics: Metrics, flow: str) -> None:
    metrics.observe_finished(
        flow=flow, finish_reason="stop", num_prompt_tokens=7, num_generation_tokens=3, max_tokens=16,
        arrival_s=1.0, scheduled_s=1.1, first_token_s=1.3, end_s=1.7,
    )  # fmt: skip


def _samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(metrics.render().decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def test_series_carry_vllm_suffixes() -> None:
    metrics = Metrics()
    metrics.running.set(2)
    metrics.waiting.set(3)
    metrics.kv_usage.set(0.5)
    metrics.prompt_tokens.inc(10)
    metrics.generation_tokens.inc(4)
    metrics.prefix_hits.inc(20)
    metrics.prefix_loads.inc(2)
    metrics.prefix_bytes.set(4096)
    _finish(metrics, "sentiment")
    samples = _samples(metrics)
    assert samples["softswap_num_requests_running", ()] == 2
    assert samples["softswap_num_requests_waiting", ()] == 3
    assert samples["softswap_kv_cache_usage_perc", ()] == 0.5
    assert samples["softswap_prompt_tokens_total", ()] == 10
    assert samples["softswap_generation_tokens_total", ()] == 4
    assert samples["softswap_prefix_cache_hits_total", ()] == 20
    assert samples["softswap_prefix_store_loads_total", ()] == 2
    assert samples["softswap_prefix_store_bytes", ()] == 4096
    assert samples["softswap_request_success_total", (("finished_reason", "stop"),)] == 1
    assert samples["softswap_time_to_first_token_seconds_bucket", (("le", "0.5"),)] == 1
    assert samples["softswap_request_time_per_output_token_seconds_sum", ()] == pytest.approx(0.2)
    assert samples["softswap_task_generation_tokens_total", (("task", "sentiment"),)] == 3


def test_the_number_of_task_labels_is_capped() -> None:
    metrics = Metrics()
    for number in range(MAX_LABEL_VALUES + 50):
        _finish(metrics, f"task-{number}")
    labels = {dict(labels)["task"] for name, labels in _samples(metrics) if name == "softswap_task_requests_total"}
    assert len(labels) == MAX_LABEL_VALUES + 1
    assert _samples(metrics)["softswap_task_prompt_tokens_total", (("task", "other"),)] == 50 * 7


def test_a_stage_never_reached_is_not_observed() -> None:
    metrics = Metrics()
    metrics.observe_finished(
        flow="a", finish_reason="abort", num_prompt_tokens=7, num_generation_tokens=0, max_tokens=16,
        arrival_s=1.0, scheduled_s=None, first_token_s=None, end_s=1.7,
    )  # fmt: skip
    samples = _samples(metrics)
    assert samples["softswap_request_queue_time_seconds_count", ()] == 0
    assert samples["softswap_e2e_request_latency_seconds_count", ()] == 1


def _record(message: str) -> logging.LogRecord:
    try:
        int(message)
    except ValueError:
        return logging.LogRecord("app", logging.ERROR, "file.py", 1, "%s", (message,), sys.exc_info())


HOSTILE = 'a\r\n\x1b[31m{"level":"error"}\u2028\u0085b'


def test_no_text_can_start_a_log_line_of_its_own() -> None:
    line = JsonFormatter().format(_record(HOSTILE))
    assert len(line.splitlines()) == 1
    assert json.loads(line)["message"] == HOSTILE
    record = _record(HOSTILE)
    record.exc_info = None
    assert len(PlainFormatter().format(record).splitlines()) == 1
    assert "\x1b" not in PlainFormatter().format(record)


def test_a_log_line_names_the_request_it_belongs_to() -> None:
    token = request_id.set("req-1")
    try:
        assert json.loads(JsonFormatter().format(_record("x")))["request_id"] == "req-1"
    finally:
        request_id.reset(token)
    assert "request_id" not in json.loads(JsonFormatter().format(_record("x")))
