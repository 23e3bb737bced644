"""Inference while a job runs, beside inference without one: a real server, loopback HTTP, rounds that alternate.

The load comes from this process, the server is another. Capacity is measured first, by as many clients as the engine
computes at a time; then half of it arrives at random moments, and all of it stays, with and without a job in turns.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Mapping, Sequence
from csv import DictReader
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

from benchmarks.load import Answer, Client, Quantiles, arrive_at_random, completion_bodies, keep_busy
from benchmarks.machine import Stopwatch
from benchmarks.served import Served, SteadyJob, serve_demo
from research.demo.tasks import BACKBONE

Say = Callable[[str], None]

MESSAGES = Path(__file__).parents[1] / "docs" / "messages.csv"
MODELS = ("headline", "sentiment", "domain", "language")
DEMO = str(BACKBONE)
MIN_TOKENS, MAX_TOKENS = 20, 60
NUM_NEW_TOKENS = 32
NUM_CLIENTS = 64
"""As many as the engine computes at a time on a CPU by default."""
MAX_P99_RATIO = 1.5
MIN_THROUGHPUT_RATIO = 0.95
SETTLE_S = 1.0


@dataclass
class Phase:
    """One kind of load with or without a job, all rounds together.

    Attributes:
        lent_share: of the time, which the device computed for tuning; one entry for each round.
        num_updates: of the job, by round.
    """

    name: str
    answers: list[Answer] = field(default_factory=list)
    tokens_per_s: list[float] = field(default_factory=list)
    p99_latency_ms: list[float] = field(default_factory=list)
    lent_share: list[float] = field(default_factory=list)
    wall_s: float = 0.0

    def add(self, answers: Sequence[Answer], lent_s: float, wall_s: float, end_s: float) -> None:
        """Args: end_s: tokens that came later than that (time.perf_counter) do not count into the throughput."""
        start_s = min(answer.due_s for answer in answers)
        num_tokens = sum(token_s <= end_s for answer in answers for token_s in answer.token_s)
        self.answers += answers
        self.tokens_per_s.append(num_tokens / (end_s - start_s))
        self.p99_latency_ms.append(Quantiles.of([answer.latency_s for answer in answers]).p99)
        self.lent_share.append(lent_s / wall_s)
        self.wall_s += wall_s

    @property
    def latency(self) -> Quantiles:
        return Quantiles.of([answer.latency_s for answer in self.answers])

    @property
    def first_token(self) -> Quantiles:
        return Quantiles.of([answer.first_token_s for answer in self.answers])

    @property
    def gap(self) -> Quantiles:
        return Quantiles.of([gap_s for answer in self.answers for gap_s in answer.gaps_s])

    @property
    def throughput(self) -> float:
        """Tokens per second, mean over the rounds, which are equally long."""
        return sum(self.tokens_per_s) / len(self.tokens_per_s)

    @property
    def share(self) -> float:
        return sum(self.lent_share) / len(self.lent_share)

    @property
    def latest(self) -> str:
        """The last round, for a person who waits."""
        p99_ms, tokens_per_s, share = self.p99_latency_ms[-1], self.tokens_per_s[-1], self.lent_share[-1]
        return f"{self.name}: p99 {p99_ms:.0f} ms, {tokens_per_s:.0f} tokens/s, tuning's share {share:.2f}"

    def as_json(self) -> dict[str, Any]:
        return {
            "num_requests": len(self.answers),
            "latency_ms": vars(self.latency),
            "first_token_ms": vars(self.first_token),
            "gap_ms": vars(self.gap),
            "tokens_per_s": [round(value, 1) for value in self.tokens_per_s],
            "p99_latency_ms": [round(value, 1) for value in self.p99_latency_ms],
            "lent_share": [round(value, 3) for value in self.lent_share],
        }


@dataclass(frozen=True)
class CoServingPart:
    """The answer. `alone_share`: of the time, which a job gets from a server that nobody asks."""

    setting: Mapping[str, Any]
    phases: Mapping[str, Phase]
    alone_share: float
    foreign_cores: float | None

    name = "co-serving"
    question = "what does a job that runs cost those who ask meanwhile?"

    @property
    def ratios(self) -> dict[str, tuple[float, float]]:
        """With a job over without: the figure, and the bound."""
        half, half_with, full, full_with = (self.phases[name] for name in PHASES)
        return {
            "p99 of a request at half capacity": (half_with.latency.p99 / half.latency.p99, MAX_P99_RATIO),
            "p99 of the first token at half capacity": (
                half_with.first_token.p99 / half.first_token.p99,
                MAX_P99_RATIO,
            ),
            "p99 between tokens at half capacity": (half_with.gap.p99 / half.gap.p99, MAX_P99_RATIO),
            "throughput at full capacity": (full_with.throughput / full.throughput, MIN_THROUGHPUT_RATIO),
        }

    def as_json(self) -> dict[str, Any]:
        return {
            "question": self.question,
            "setting": dict(self.setting),
            "phases": {name: phase.as_json() for name, phase in self.phases.items()},
            "ratios": {
                name: {"value": round(value, 3), "bound": bound} for name, (value, bound) in self.ratios.items()
            },
            "alone_share": round(self.alone_share, 3),
            "foreign_cores": self.foreign_cores,
        }

    def show(self, console: Console) -> None:
        console.print("  " + ", ".join(f"{name} {value}" for name, value in self.setting.items()), style="dim")
        table = Table(
            "load", "requests", "request ms, p50 / p99", "first token", "between tokens", "tokens/s", "tuning's share"
        )
        for phase in self.phases.values():
            cells = (f"{each.p50:.1f} / {each.p99:.1f}" for each in (phase.latency, phase.first_token, phase.gap))
            table.add_row(phase.name, str(len(phase.answers)), *cells, f"{phase.throughput:.0f}", f"{phase.share:.3f}")
        console.print(table)
        for name, (value, bound) in self.ratios.items():
            console.print(f"  {name}, with a job / without: {value:.2f} (wanted: {bound:g})")
        console.print(f"  a job on an idle server has the device for {self.alone_share:.2f} of the time")
        if self.foreign_cores is not None:
            console.print(f"  cores of other programs, the server's among them: {self.foreign_cores:.2f}", style="dim")


PHASES = ("half", "half, with a job", "full", "full, with a job")


def measure_co_serving(say: Say, *, num_rounds: int, round_s: float, num_examples: int = 800) -> CoServingPart:
    """Args: round_s: of each of the four phases of a round."""
    with serve_demo() as served:
        return asyncio.run(_measure(served, say, num_rounds, round_s, num_examples))


async def _measure(served: Served, say: Say, num_rounds: int, round_s: float, num_examples: int) -> CoServingPart:
    texts = Texts()
    bodies = completion_bodies(MODELS, [texts.draw()[0] for _ in range(256)], NUM_NEW_TOKENS)
    client = Client(served.host, served.port)
    file = await asyncio.to_thread(served.upload, texts.examples(num_examples))
    job = SteadyJob(served, file, {})
    say("measuring the capacity")
    await keep_busy(client, bodies, NUM_CLIENTS, min(2.0, round_s), seed=0)
    answers = await keep_busy(client, bodies, NUM_CLIENTS, round_s, seed=1)
    capacity = len(answers) / (max(a.ended_s for a in answers) - min(a.due_s for a in answers))
    phases = {name: Phase(name) for name in PHASES}
    alone_share = 0.0
    with Stopwatch() as stopwatch:
        for number in range(num_rounds):
            say(f"round {number + 1} of {num_rounds}; capacity {capacity:.1f} requests/s")
            for name in PHASES if number % 2 == 0 else reversed(PHASES):
                await _run_phase(phases[name], served, client, job, bodies, capacity / 2, round_s, seed=number)
                say(f"  {phases[name].latest}")
        await asyncio.to_thread(job.resume)
        await asyncio.sleep(SETTLE_S)
        before = await asyncio.to_thread(served.metric, TUNING_S)
        await asyncio.sleep(round_s)
        alone_share = (await asyncio.to_thread(served.metric, TUNING_S) - before) / round_s
    await client.close()
    setting = {
        "capacity_requests_per_s": round(capacity, 1),
        "new_tokens": NUM_NEW_TOKENS,
        "tasks": len(MODELS),
        "clients_at_full": NUM_CLIENTS,
        "rounds": num_rounds,
        "round_s": round_s,
        "examples_of_the_job": num_examples,
        "jobs": job.num_jobs,
    }
    return CoServingPart(setting, phases, alone_share, stopwatch.foreign_cores)


TUNING_S = "softswap_tuning_device_seconds_total"


async def _run_phase(
    phase: Phase,
    served: Served,
    client: Client,
    job: SteadyJob,
    bodies: Sequence[bytes],
    rate: float,
    duration_s: float,
    seed: int,
) -> None:
    has_job = phase.name.endswith("job")
    await asyncio.to_thread(job.resume if has_job else job.pause)
    await asyncio.sleep(SETTLE_S)
    watch = asyncio.create_task(_keep_running(job)) if has_job else None
    before = await asyncio.to_thread(served.metric, TUNING_S)
    with Stopwatch() as stopwatch:
        if phase.name.startswith("half"):
            answers = await arrive_at_random(client, bodies, rate, duration_s, seed)
        else:
            answers = await keep_busy(client, bodies, NUM_CLIENTS, duration_s, seed)
    lent_s = await asyncio.to_thread(served.metric, TUNING_S) - before
    if watch is not None:
        watch.cancel()
    start_s = min(answer.due_s for answer in answers)
    phase.add(answers, lent_s, stopwatch.wall_s, start_s + duration_s)


async def _keep_running(job: SteadyJob) -> None:
    while True:
        await asyncio.sleep(1.0)
        await asyncio.to_thread(job.keep_running)


class Texts:
    """Messages of one language after another, until there are as many tokens as were drawn."""

    def __init__(self, seed: int = 0) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(DEMO)
        self._random = random.Random(seed)
        with MESSAGES.open(encoding="utf-8", newline="") as file:
            rows = list(DictReader(file))
        self._label_to_texts = {
            label: [row["text"] for row in rows if row["label"] == label]
            for label in sorted({r["label"] for r in rows})
        }

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
