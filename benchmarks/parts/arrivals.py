"""W3: requests that arrive at random moments over HTTP, from a quarter of the capacity to twice of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from benchmarks.load import Answer, Client, arrive_at_random, keep_busy
from benchmarks.peers.http import completion_body
from benchmarks.report import Part, Say
from benchmarks.server import RunningServer
from benchmarks.setting import MAX_NUM_SEQS, Bench
from benchmarks.workloads import Workload

RATES = (0.25, 0.5, 1.0, 2.0)
FIRST_TOKEN_LIMIT_S = 2.0
GAP_LIMIT_S = 0.25


def measure_arrivals(bench: Bench, say: Say) -> Part:
    """Arrivals are a Poisson process that waits for nobody; waiting in the client counts as the server's delay."""
    workload = bench.mixed(replace(bench.setting.dimensions, num_requests=512))
    with bench.server(workload) as server:
        capacity, name_to_figures = asyncio.run(_measure(server, workload, bench.setting.arrivals_s, say))
    return Part(
        name="arrivals",
        question="how long do requests wait when they come at random?",
        setting={
            "capacity_requests_per_s": round(capacity, 2),
            "tasks": len(workload.prompts),
            "arrivals_s": bench.setting.arrivals_s,
            "goodput": f"first token within {FIRST_TOKEN_LIMIT_S:g} s, {GAP_LIMIT_S:g} s a token after it on average",
        },
        name_to_figures=name_to_figures,
    )


async def _measure(
    server: RunningServer, workload: Workload, duration_s: float, say: Say
) -> tuple[float, dict[str, dict[str, float]]]:
    client = Client(server.host, server.port)
    bodies = [completion_body(request, workload) for request in workload.requests]
    say("measuring the capacity")
    began_s = time.perf_counter()
    answers = await keep_busy(client, bodies, MAX_NUM_SEQS, duration_s, seed=0)
    capacity = len(answers) / (max(answer.ended_s for answer in answers) - began_s)
    name_to_figures = {}
    for number, share in enumerate(RATES):
        say(f"{share:g} of {capacity:.1f} requests/s")
        answers = await arrive_at_random(client, bodies, share * capacity, duration_s, seed=number + 1)
        if answers:
            name_to_figures[f"{share:g} of capacity"] = _figures(answers)
    await client.close()
    return capacity, name_to_figures


def _figures(answers: Sequence[Answer]) -> dict[str, float]:
    """Seconds, and requests per second until the last answer ended."""
    first_s = [answer.first_token_s for answer in answers]
    gaps_s = [gap_s for answer in answers for gap_s in answer.gaps_s]
    took_s = max(answer.ended_s for answer in answers) - min(answer.due_s for answer in answers)
    good = sum(
        answer.first_token_s <= FIRST_TOKEN_LIMIT_S and np.mean(answer.gaps_s) <= GAP_LIMIT_S for answer in answers
    )
    first, gap = np.quantile(first_s, [0.5, 0.95, 0.99]), np.quantile(gaps_s, [0.5, 0.95, 0.99])
    return {
        "requests": len(answers),
        **{f"first token p{p}, s": round(float(value), 4) for p, value in zip((50, 95, 99), first, strict=True)},
        **{f"between tokens p{p}, s": round(float(value), 4) for p, value in zip((50, 95, 99), gap, strict=True)},
        "good requests/s": round(good / took_s, 3),
        "requests/s": round(len(answers) / took_s, 3),
    }
