"""Population: prompts that are learned side by side in one batch, against as many runs that each learn one.

An update of eight prompts, and one of each of eight populations of one, on the same rows, in turns: forward, backward
and optimizer. Rows are of random length and content; speed does not depend on what they say.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from app.engine.threads.slices import run_to_end
from app.measure.encoding import EncodedExample
from app.model.backbone import Backbone
from app.model.prompted_forward import PromptPrefix
from app.settings import DEMO_BACKBONE
from app.task_prompt import PromptKind
from app.tuning.config import TuneConfig
from app.tuning.run.chunks import Chunker
from app.tuning.run.events import ignore_event
from app.tuning.run.initialization import embedding_rms, kv_rms
from app.tuning.run.objective import TokenObjective
from app.tuning.run.population import Member, Population
from app.tuning.run.trainer import Trainer
from benchmarks.machine import Stopwatch
from benchmarks.part import Part, Ratio, Say
from benchmarks.setup import Setup

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
    """One kind and batch size. Attributes: together_s, separate_s: of an update of all prompts, by round."""

    kind: PromptKind
    batch_size: int
    together_s: list[float] = field(default_factory=list)
    separate_s: list[float] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.kind}, {self.batch_size} rows of each"

    @property
    def ratio(self) -> float:
        """Median over the rounds of together / separate: both halves of a round meet the same moment."""
        return statistics.median(one / other for one, other in zip(self.together_s, self.separate_s, strict=True))


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
        setting={
            "backbone": backbone.name,
            "threads": torch.get_num_threads(),
            "virtual_tokens": NUM_VIRTUAL_TOKENS,
            "text_tokens": f"{MIN_TOKENS}-{MAX_TOKENS}",
            "rows_of_a_forward": MICRO_BATCH_SIZE,
            "rounds": num_rounds,
        },
        figures={
            pair.name: {
                "together, ms": 1000 * statistics.median(pair.together_s),
                "separately, ms": 1000 * statistics.median(pair.separate_s),
            }
            for pair in pairs
        },
        rounds={pair.name: {"together, s": pair.together_s, "separately, s": pair.separate_s} for pair in pairs},
        ratios={f"{pair.name}: together / separately": Ratio(pair.ratio, at_most=at_most) for pair in pairs},
        foreign_cores=stopwatch.foreign_cores,
    )


def time_pair(backbone: Backbone, pair: Pair, num_rounds: int) -> None:
    """Adds to the pair's seconds."""
    numbers = range(NUM_PROMPTS)
    together = [make_trainer(backbone, make_population(backbone, pair.kind, numbers))]
    separate = [make_trainer(backbone, make_population(backbone, pair.kind, [number])) for number in numbers]
    batches = draw_batches(backbone, pair.batch_size)
    for trainers in (together, separate[:1]):
        update(trainers, next(batches))
    for _ in range(num_rounds):
        rows = next(batches)
        for trainers, wall_s in ((together, pair.together_s), (separate, pair.separate_s)):
            _settle(backbone)
            with Stopwatch() as stopwatch:
                update(trainers, rows)
                _settle(backbone)
            wall_s.append(stopwatch.wall_s)


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
    return Trainer(backbone, TokenObjective(backbone), population, chunker, ignore_event)


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


def _settle(backbone: Backbone) -> None:
    """Wait for a device that works on its own."""
    if backbone.device.type == "cuda":
        torch.cuda.synchronize(backbone.device)


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
