"""Prompts that are learned side by side in one batch, beside as many runs that each learn one.

An update of eight prompts, and one of each of eight populations of one, on the same rows, in turns. What is compared is
the whole update: forward, backward and optimiser. Rows are of random length and content; speed does not depend on what
they say.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from app.engine.threads.slices import run_to_end
from app.measure.encoding import EncodedExample
from app.model.backbone import Backbone
from app.model.prompted_forward import PromptPrefix
from app.task_prompt import PromptKind
from app.tuning.config import TuneConfig
from app.tuning.run.chunks import Chunker
from app.tuning.run.events import ignore_event
from app.tuning.run.initialization import embedding_rms, kv_rms
from app.tuning.run.objective import TokenObjective
from app.tuning.run.population import Member, Population
from app.tuning.run.trainer import Trainer
from benchmarks.machine import Stopwatch

Say = Callable[[str], None]

NUM_PROMPTS = 8
NUM_VIRTUAL_TOKENS = 20
MIN_TOKENS, MAX_TOKENS, NUM_TARGET_TOKENS = 20, 60, 3
NUM_STEPS = 100
"""Of the schedule; the learning rate plays no part in the time."""


@dataclass
class Pair:
    """One kind and batch size. Attributes: together_s, separate_s: of an update of all prompts, by round."""

    kind: PromptKind
    batch_size: int
    micro_batch_size: int
    together_s: list[float] = field(default_factory=list)
    separate_s: list[float] = field(default_factory=list)
    together_cpu_s: list[float] = field(default_factory=list)
    separate_cpu_s: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Median over the rounds of together / separate: both halves of a round meet the same moment."""
        return _median_ratio(self.together_s, self.separate_s)

    @property
    def cpu_ratio(self) -> float:
        return _median_ratio(self.together_cpu_s, self.separate_cpu_s)

    @property
    def medians_ms(self) -> dict[str, float]:
        """Of the rounds, as columns of a table."""
        return {
            "together, ms": 1000 * statistics.median(self.together_s),
            "separately, ms": 1000 * statistics.median(self.separate_s),
        }

    def as_json(self) -> dict[str, Any]:
        return {
            "kind": str(self.kind),
            "batch_size": self.batch_size,
            "micro_batch_size": self.micro_batch_size,
            "together_s": [round(each, 4) for each in self.together_s],
            "separate_s": [round(each, 4) for each in self.separate_s],
            "ratio": round(self.ratio, 3),
            "cpu_ratio": round(self.cpu_ratio, 3),
        }


@dataclass(frozen=True)
class SideBySidePart:
    """The answer on one backbone."""

    setting: Mapping[str, Any]
    pairs: Sequence[Pair]
    foreign_cores: float | None

    name = "population"
    question = f"is an update of {NUM_PROMPTS} prompts in one batch cheaper than {NUM_PROMPTS} updates?"

    def as_json(self) -> dict[str, Any]:
        return {
            "question": self.question,
            "setting": dict(self.setting),
            "pairs": [pair.as_json() for pair in self.pairs],
            "foreign_cores": self.foreign_cores,
        }

    def show(self, console: Console) -> None:
        console.print("  " + ", ".join(f"{name} {value}" for name, value in self.setting.items()), style="dim")
        table = Table("kind", "rows a prompt", "rows a forward", "together, ms", "separate, ms", "ratio", "by CPU time")
        for pair in self.pairs:
            times = (f"{1000 * statistics.median(each):.0f}" for each in (pair.together_s, pair.separate_s))
            sizes = str(pair.batch_size), str(pair.micro_batch_size)
            table.add_row(str(pair.kind), *sizes, *times, f"{pair.ratio:.2f}", f"{pair.cpu_ratio:.2f}")
        console.print(table)
        if self.foreign_cores is not None:
            console.print(f"  cores of other programs: {self.foreign_cores:.2f}", style="dim")


def measure_side_by_side(
    backbone: Backbone,
    say: Say,
    *,
    kinds: Sequence[PromptKind],
    batch_sizes: Sequence[int],
    micro_batch_size: int,
    num_rounds: int,
) -> SideBySidePart:
    """Args: micro_batch_size: rows of a forward, for both."""
    pairs = [Pair(kind, size, micro_batch_size) for kind in kinds for size in batch_sizes]
    with Stopwatch() as stopwatch:
        for pair in pairs:
            _measure(backbone, pair, num_rounds)
            say(f"{pair.kind}, {pair.batch_size} rows a prompt: {pair.ratio:.2f}")
    setting = {
        "backbone": backbone.name,
        "threads": torch.get_num_threads(),
        "prompts": NUM_PROMPTS,
        "virtual_tokens": NUM_VIRTUAL_TOKENS,
        "text_tokens": f"{MIN_TOKENS}-{MAX_TOKENS}",
        "rounds": num_rounds,
    }
    return SideBySidePart(setting, pairs, stopwatch.foreign_cores)


def _measure(backbone: Backbone, pair: Pair, num_rounds: int) -> None:
    numbers = range(NUM_PROMPTS)
    together = [_descent(backbone, pair, numbers)]
    separate = [_descent(backbone, pair, [number]) for number in numbers]
    batches = _batches(backbone, pair.batch_size)
    for descents in (together, separate[:1]):
        _update(descents, next(batches))
    for _ in range(num_rounds):
        rows = next(batches)
        for descents, wall_s, cpu_s in (
            (together, pair.together_s, pair.together_cpu_s),
            (separate, pair.separate_s, pair.separate_cpu_s),
        ):
            _settle(backbone)
            with Stopwatch() as stopwatch:
                _update(descents, rows)
                _settle(backbone)
            wall_s.append(stopwatch.wall_s)
            cpu_s.append(stopwatch.cpu_s)


def _update(descents: Sequence[Trainer], rows: Sequence[EncodedExample]) -> None:
    for descent in descents:
        updated = run_to_end(descent.update(rows, 0, NUM_STEPS))
        assert updated, "no prompt's gradient is finite"


def _settle(backbone: Backbone) -> None:
    """Wait for the device, where it works on its own."""
    if backbone.device.type == "cuda":
        torch.cuda.synchronize(backbone.device)


def _descent(backbone: Backbone, pair: Pair, numbers: Sequence[int]) -> Trainer:
    population = Population(backbone)
    population.members += [_member(backbone, pair.kind, number) for number in numbers]
    chunker = Chunker(max_rows=pair.micro_batch_size, num_extra_tokens=0)
    return Trainer(backbone, TokenObjective(backbone), population, chunker, ignore_event)


def _member(backbone: Backbone, kind: PromptKind, number: int) -> Member:
    config = TuneConfig(kind=kind, num_virtual_tokens=NUM_VIRTUAL_TOKENS)
    generator = torch.Generator().manual_seed(number)
    ids = torch.randint(0, backbone.vocab_size, (NUM_VIRTUAL_TOKENS,), generator=generator)
    with torch.no_grad():
        rows = backbone.embed(ids.to(backbone.device)).float()
        if kind is PromptKind.EMBEDDINGS:
            return Member(number, config, rows, torch.tensor(embedding_rms(backbone), device=backbone.device))
        rows = PromptPrefix.of_embeddings(backbone, rows[None]).kv_rows()[0].float()
    return Member(number, config, rows, kv_rms(backbone, rows))


def _batches(backbone: Backbone, batch_size: int) -> Iterator[list[EncodedExample]]:
    """Of rows of similar length, as a run has them."""
    generator = random.Random(0)

    def draw(count: int) -> tuple[int, ...]:
        return tuple(generator.randrange(3, backbone.vocab_size) for _ in range(count))

    while True:
        length = generator.randint(MIN_TOKENS, MAX_TOKENS)
        yield [
            EncodedExample(draw(max(1, length - generator.randint(0, 2))), draw(NUM_TARGET_TOKENS))
            for _ in range(batch_size)
        ]


def _median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return statistics.median(one / other for one, other in zip(ours, theirs, strict=True))
