"""Co-serving: what a fine-tuning job costs those who ask the server while it runs.

A real server with the demo tasks, asked over HTTP on the loopback. Capacity is measured first, by as many clients as
the engine computes at a time. Then half of it arrives at random moments, and all of it stays, each with and without a
job, in rounds whose order alternates.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import time
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from csv import DictReader
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import httpx
import numpy as np
from transformers import AutoTokenizer

from app.settings import DEMO_BACKBONE
from benchmarks.load import Answer, arrive_at_random, completion_body, keep_busy
from benchmarks.machine import Stopwatch
from benchmarks.part import Part, Ratio, Say
from benchmarks.server import ROOT, RunningServer, serve
from benchmarks.setup import Setting, Setup

T = TypeVar("T")
MESSAGES = ROOT / "docs" / "messages.csv"
MODELS = ("headline", "sentiment", "domain", "language")
MIN_TOKENS, MAX_TOKENS = 20, 60
NUM_NEW_TOKENS = 32
NUM_CLIENTS = 64
"""As many as the engine computes at a time on a CPU by default."""
NUM_EXAMPLES, NUM_SMOKE_EXAMPLES = 800, 60
SETTLE_S, TIMEOUT_S = 1.0, 120.0
P99, SHARE = "request p99, ms", "tuning's share"
ENDLESS = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1000}}}
TUNING_S = "softswap_tuning_device_seconds_total"
LOADS = HALF, HALF_WITH_JOB, FULL, FULL_WITH_JOB = "half", "half, with a job", "full", "full, with a job"


@dataclass
class Phase:
    """One load with or without a job, all rounds together. Attributes: rounds: columns with a value for each round."""

    answers: list[Answer] = field(default_factory=list)
    rounds: dict[str, list[float]] = field(default_factory=lambda: {"tokens/s": [], P99: [], SHARE: []})

    def add(self, answers: Sequence[Answer], lent_share: float, duration_s: float) -> None:
        """Args:
        lent_share: of the time, which the device computed for tuning.
        duration_s: tokens that came later than that do not count into the throughput.
        """
        end_s = min(answer.due_s for answer in answers) + duration_s
        num_tokens = sum(token_s <= end_s for answer in answers for token_s in answer.token_s)
        self.answers += answers
        self.rounds["tokens/s"].append(num_tokens / duration_s)
        self.rounds[P99].append(_quantiles([answer.latency_s for answer in answers])[1])
        self.rounds[SHARE].append(lent_share)

    @property
    def figures(self) -> dict[str, float]:
        found: dict[str, float] = {"requests": len(self.answers)}
        for name, seconds in {
            "request": [answer.latency_s for answer in self.answers],
            "first token": [answer.first_token_s for answer in self.answers],
            "between tokens": [gap_s for answer in self.answers for gap_s in answer.gaps_s],
        }.items():
            found[f"{name} p50, ms"], found[f"{name} p99, ms"] = _quantiles(seconds)
        return found | {name: float(np.mean(self.rounds[name])) for name in ("tokens/s", SHARE)}


class SteadyJob:
    """A fine-tuning job that outlasts the rounds, and is paused while none is wanted."""

    def __init__(self, server: RunningServer, examples: bytes) -> None:
        self._url = server.url
        files = {"file": ("examples.jsonl", examples)}
        file = self._call("POST", "files", data={"purpose": "fine-tune"}, files=files)
        request = {"model": "backbone", "training_file": file["id"], "suffix": "busy", "method": ENDLESS}
        self._id = self._call("POST", "fine_tuning/jobs", json=request)["id"]

    def set_running(self, is_wanted: bool) -> None:
        """It runs, or no longer asks for the device, when this returns."""
        if is_wanted == (self._status == "paused"):
            self._call("POST", f"fine_tuning/jobs/{self._id}/{'resume' if is_wanted else 'pause'}")
        while is_wanted and self._status != "running":
            time.sleep(0.1)
        device_s = float("inf") if is_wanted else -1.0
        while (now_s := self.device_s()) > device_s:
            device_s = now_s
            time.sleep(0.5)

    def device_s(self) -> float:
        """Seconds that the device computed for tuning so far."""
        lines = httpx.get(f"{self._url}/metrics", timeout=TIMEOUT_S).text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(TUNING_S))

    @property
    def _status(self) -> str:
        status = str(self._call("GET", f"fine_tuning/jobs/{self._id}")["status"])
        assert status in {"queued", "running", "paused"}, f"the job ended, {status}; see the server's log"
        return status

    def _call(self, method: str, path: str, **content: Any) -> Any:
        url = f"{self._url}/v1/{path}"
        return httpx.request(method, url, timeout=TIMEOUT_S, **content).raise_for_status().json()


class Texts:
    """Messages of one language after another, until there are as many tokens as were drawn."""

    def __init__(self, seed: int = 0) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(str(DEMO_BACKBONE))
        self._random = random.Random(seed)
        self._label_to_texts: dict[str, list[str]] = {}
        with MESSAGES.open(encoding="utf-8", newline="") as file:
            for row in DictReader(file):
                self._label_to_texts.setdefault(row["label"], []).append(row["text"])

    def draw(self) -> tuple[str, str]:
        """A text of MIN_TOKENS to MAX_TOKENS, and its language."""
        label = self._random.choice(list(self._label_to_texts))
        messages = self._random.sample(self._label_to_texts[label], 10)
        token_ids = self._tokenizer(", ".join(messages), add_special_tokens=False)["input_ids"]
        return self._tokenizer.decode(token_ids[: self._random.randint(MIN_TOKENS, MAX_TOKENS)]), label

    def examples(self, num_examples: int) -> bytes:
        """JSON lines."""
        pairs = (self.draw() for _ in range(num_examples))
        return "\n".join(json.dumps({"input": text, "target": label}) for text, label in pairs).encode()


def measure(setup: Setup, say: Say) -> Iterator[Part]:
    """On the demo backbone, whatever the setting's shape is."""
    with TemporaryDirectory() as folder:
        registry = Path(folder) / "prompts"
        shutil.copytree(ROOT / "prompts", registry, ignore=shutil.ignore_patterns(".state", ".lock"))
        with serve(DEMO_BACKBONE, registry) as server, Stopwatch() as stopwatch:
            phases, facts = asyncio.run(_measure(server, setup.setting, say))
            served_s = server.cpu_s
    figures = {name: phase.figures for name, phase in phases.items()}
    half, half_job, full, full_job = (figures[name] for name in LOADS)
    ratios = {
        f"{column} at half capacity, with a job / without": Ratio(_quotient(half_job, half, column), at_most=bound)
        for column, bound in ((P99, 1.5), ("first token p99, ms", None), ("between tokens p99, ms", None))
    }
    throughput = Ratio(_quotient(full_job, full, "tokens/s"), at_least=0.95)
    yield Part(
        name="co-serving",
        question="What does a job that runs cost those who ask meanwhile?",
        setting=facts,
        figures=figures,
        rounds={name: phase.rounds for name, phase in phases.items()},
        ratios=ratios | {"tokens/s at full capacity, with a job / without": throughput},
        foreign_cores=stopwatch.foreign_cores_without(served_s),
    )


async def _measure(server: RunningServer, setting: Setting, say: Say) -> tuple[dict[str, Phase], dict[str, object]]:
    texts = Texts()
    # of tasks with labels too, which write text like the others
    more = {"free_text": True, "stream": True}
    bodies = [completion_body(model, texts.draw()[0], NUM_NEW_TOKENS, **more) for model in MODELS * 64]
    address, duration_s = (server.host, server.port), setting.phase_s
    num_examples = NUM_SMOKE_EXAMPLES if setting.is_smoke else NUM_EXAMPLES
    job = await asyncio.to_thread(SteadyJob, server, texts.examples(num_examples))
    await asyncio.to_thread(job.set_running, False)
    say("measuring the capacity")
    await keep_busy(address, bodies, NUM_CLIENTS, min(2.0, duration_s), seed=0)
    answers = await keep_busy(address, bodies, NUM_CLIENTS, duration_s, seed=1)
    capacity = len(answers) / (max(each.ended_s for each in answers) - min(each.due_s for each in answers))
    phases = {name: Phase() for name in LOADS}
    for number in range(setting.num_rounds):
        for name in LOADS if number % 2 == 0 else reversed(LOADS):
            say(f"round {number + 1} of {setting.num_rounds}: {name} of {capacity:.1f} requests/s")
            await asyncio.to_thread(job.set_running, name.endswith("job"))
            await asyncio.sleep(SETTLE_S)
            if name.startswith(HALF):
                load = arrive_at_random(address, bodies, capacity / 2, duration_s, seed=number)
            else:
                load = keep_busy(address, bodies, NUM_CLIENTS, duration_s, seed=number)
            answers, lent_share = await _with_lent_share(job, load)
            phases[name].add(answers, lent_share, duration_s)
    await asyncio.to_thread(job.set_running, True)
    await asyncio.sleep(SETTLE_S)
    _, alone_share = await _with_lent_share(job, asyncio.sleep(duration_s))
    return phases, {
        "capacity, requests/s": round(capacity, 1),
        "new_tokens": NUM_NEW_TOKENS,
        "tasks": len(MODELS),
        "clients_at_full": NUM_CLIENTS,
        "rounds": setting.num_rounds,
        "seconds_of_a_load": duration_s,
        "examples_of_the_job": num_examples,
        "share_of_a_job_alone": round(alone_share, 3),
    }


async def _with_lent_share(job: SteadyJob, load: Awaitable[T]) -> tuple[T, float]:
    """What came of a load, and the share of its time in which the device computed for tuning."""
    before_s, began_s = await asyncio.to_thread(job.device_s), time.perf_counter()
    found = await load
    lent_s = await asyncio.to_thread(job.device_s) - before_s
    return found, lent_s / (time.perf_counter() - began_s)


def _quotient(one: Mapping[str, float], other: Mapping[str, float], column: str) -> float:
    """Not a number if a rehearsal was too short to have seen anything."""
    return one[column] / other[column] if other[column] else float("nan")


def _quantiles(seconds: Sequence[float]) -> tuple[float, float]:
    """(median, 99th percentile), milliseconds."""
    p50, p99 = np.quantile(seconds, [0.5, 0.99])
    return float(1000 * p50), float(1000 * p99)
