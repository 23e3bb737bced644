"""Population: prompts that are learned side by side in one batch, against as many runs that each learn one.

An update of eight prompts, and one of each of eight populations of one, on the same rows, in turns: forward, backward
and optimizer. Rows are of random length and content; speed does not depend on what they say.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from app.engine.threads.device_lease import run_to_end
from app.measure.encoding import EncodedExample
from app.model.backbone import Backbone
from app.model.prompted_forward import PromptPrefix
from app.settings import DEMO_BACKBONE
from app.task_prompt import PromptKind
from app.tuning.config import TuneConfig
from app.tuning.run.events import ignore_event
from app.tuning.run.initialization import embedding_rms, kv_rms
from app.tuning.run.objective import Objective
from app.tuning.run.population import Member, Population
from app.tuning.run.rows import Chunker
from app.tuning.run.trainer import Trainer
from benchmarks.machine import Device, Stopwatch
from benchmarks.part import Part, Ratio, Say
from benchmarks.setup import Setup

TOGETHER, SEPARATELY = "together", "separately"
NUM_PROMPTS = 8
NUM_VIRTUAL_TOKENS = 20
MIN_TOKENS, MAX_TOKENS, NUM_TARGET_TOKENS = 20, 60, 3
NUM_STEPS = 100
"""Of the schedule; the learning rate plays no part in the time."""
BATCH_SIZES = (4, 8)
MICRO_BATCH_SIZE = 32
"""Rows of a forward, at most."""


@dataclass
class Pair:
    """One kind and batch size. Attributes: seconds: of an update of all prompts, each way, by round."""

    kind: PromptKind
    batch_size: int
    seconds: dict[str, list[float]] = field(default_factory=lambda: {TOGETHER: [], SEPARATELY: []})

    @property
    def name(self) -> str:
        return f"{self.kind}, {self.batch_size} rows of each"

    @property
    def ratio(self) -> float:
        """Median over the rounds of together / separately: both halves of a round meet the same moment."""
        return statistics.median(one / other for one, other in zip(*self.seconds.values(), strict=True))


def measure(setup: Setup, say: Say) -> Iterator[Part]:
    """On the demo backbone, whatever the setting's shape is."""
    kinds, setting = (PromptKind.EMBEDDINGS, PromptKind.KV), setup.setting
    pairs = [Pair(kind, size) for kind in kinds for size in BATCH_SIZES[: 1 if setting.is_smoke else None]]
    yield measure_pairs(Backbone.load(DEMO_BACKBONE), pairs, setting.num_rounds, say, name="population")


def measure_pairs(
    backbone: Backbone, pairs: Sequence[Pair], num_rounds: int, say: Say, *, name: str, at_most: float | None = None
) -> Part:
    """Args: at_most: what the ratios should be."""
    with Stopwatch() as stopwatch:
        for pair in pairs:
            time_pair(backbone, pair, num_rounds)
            say(f"{pair.name}: {pair.ratio:.2f}")
    return Part(
        name=name,
        question=f"Is an update of {NUM_PROMPTS} prompts in one batch cheaper than {NUM_PROMPTS} updates?",
        setting={"backbone": backbone.name, "threads": torch.get_num_threads(), "rows_of_a_forward": MICRO_BATCH_SIZE},
        figures={
            pair.name: {f"{key}, ms": 1000 * statistics.median(each) for key, each in pair.seconds.items()}
            for pair in pairs
        },
        rounds={pair.name: {f"{key}, s": each for key, each in pair.seconds.items()} for pair in pairs},
        ratios={f"{pair.name}: together / separately": Ratio(pair.ratio, at_most=at_most) for pair in pairs},
        foreign_cores=stopwatch.foreign_cores,
    )


def time_pair(backbone: Backbone, pair: Pair, num_rounds: int) -> None:
    """Adds to the pair's seconds."""
    device, batches = Device(backbone.device, backbone.dtype), draw_batches(backbone, pair.batch_size)
    groups: dict[str, list[Sequence[int]]] = {
        TOGETHER: [range(NUM_PROMPTS)],
        SEPARATELY: [[number] for number in range(NUM_PROMPTS)],
    }
    trainers = {
        way: [make_trainer(backbone, make_population(backbone, pair.kind, numbers)) for numbers in each]
        for way, each in groups.items()
    }
    for each in trainers.values():
        update(each[:1], next(batches))
    for _ in range(num_rounds):
        rows = next(batches)
        for way, each in trainers.items():
            device.settle()
            began_s = time.perf_counter()
            update(each, rows)
            device.settle()
            pair.seconds[way].append(time.perf_counter() - began_s)


def update(trainers: Sequence[Trainer], rows: Sequence[EncodedExample]) -> None:
    """One of each trainer, on the same rows."""
    for trainer in trainers:
        updated = run_to_end(trainer.update(rows, 0, NUM_STEPS))
        assert updated, "no prompt's gradient is finite"


def make_population(backbone: Backbone, kind: PromptKind, numbers: Sequence[int]) -> Population:
    """Args: numbers: seeds of its prompts."""
    population = Population(backbone)
    population.members += [_member(backbone, kind, number) for number in numbers]
    return population


def make_trainer(backbone: Backbone, population: Population) -> Trainer:
    chunker = Chunker(max_rows=MICRO_BATCH_SIZE, num_extra_tokens=0)
    return Trainer(backbone, Objective(backbone), population, chunker, ignore_event)


def draw_batches(backbone: Backbone, batch_size: int) -> Iterator[list[EncodedExample]]:
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
