"""An update of eight prompts in one batch, against eight updates: what learning side by side saves on this device."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence

import torch

from app.engine.threads.device_lease import run_to_end
from app.measure.encoding import EncodedExample
from app.model.backbone import Backbone
from app.tuning.config import TuneConfig
from app.tuning.run.objective import Objective
from app.tuning.run.population import Member, Population, embedding_rms
from app.tuning.run.rows import Chunker
from app.tuning.run.trainer import Trainer
from benchmarks.machine import Stopwatch
from benchmarks.part import Part, Ratio
from benchmarks.setup import Setup

NUM_PROMPTS, NUM_VIRTUAL_TOKENS, NUM_ROWS, NUM_TARGET_TOKENS = 8, 20, 4, 3
TOGETHER, SEPARATELY = "together, ms", "separately, ms"
MAX_TOGETHER = 0.35
"""Of the time that eight prompts take separately."""


def measure_tuning(setup: Setup) -> Part:
    """Both ways get the same rows in a round; their content plays no part in the time."""
    backbone, generator, numbers = setup.backbone, random.Random(0), range(NUM_PROMPTS)
    ways = {
        TOGETHER: [_trainer(backbone, numbers)],
        SEPARATELY: [_trainer(backbone, [number]) for number in numbers],
    }
    found_ms: dict[str, list[float]] = {way: [] for way in ways}
    with Stopwatch() as stopwatch:
        for _ in range(1 + setup.setting.num_rounds):
            rows = _rows(backbone, generator)
            for way, trainers in ways.items():
                setup.device.settle()
                began_s = time.perf_counter()
                for trainer in trainers:
                    assert run_to_end(trainer.update(rows, 0, 100)), "no prompt's gradient is finite"
                setup.device.settle()
                found_ms[way].append(1000 * (time.perf_counter() - began_s))
    found_ms = {way: each[1:] for way, each in found_ms.items()}  # the first round warms up
    ratio = statistics.median(one / other for one, other in zip(*found_ms.values(), strict=True))
    return Part(
        name="tuning",
        question=f"Is an update of {NUM_PROMPTS} prompts in one batch cheaper than {NUM_PROMPTS} updates?",
        setting={"rows_of_each": NUM_ROWS, "virtual_tokens": NUM_VIRTUAL_TOKENS},
        figures={"an update": {way: statistics.median(each) for way, each in found_ms.items()}},
        rounds={"an update": found_ms},
        ratios={"together / separately": Ratio(ratio, at_most=MAX_TOGETHER)},
        foreign_cores=stopwatch.foreign_cores,
    )


def _trainer(backbone: Backbone, numbers: Sequence[int]) -> Trainer:
    """Of prompts that start at random tokens. Args: numbers: their seeds."""
    population = Population(backbone)
    rms = torch.tensor(embedding_rms(backbone), device=backbone.device)
    for number in numbers:
        ids = torch.randint(0, backbone.vocab_size, (NUM_VIRTUAL_TOKENS,), generator=torch.manual_seed(number))
        rows = backbone.embed(ids.to(backbone.device)).detach().float()
        population.members.append(Member(number, TuneConfig(num_virtual_tokens=NUM_VIRTUAL_TOKENS), rows, rms))
    chunker = Chunker(max_rows=NUM_PROMPTS * NUM_ROWS, num_extra_tokens=0)
    return Trainer(backbone, Objective(backbone), population, chunker, lambda event: None)


def _rows(backbone: Backbone, generator: random.Random) -> list[EncodedExample]:
    """Random ids; rows of a batch have one length, as a run's nearly do."""
    length = generator.randint(20, 60)

    def draw(count: int) -> tuple[int, ...]:
        return tuple(generator.randrange(3, backbone.vocab_size) for _ in range(count))

    return [EncodedExample(draw(length), draw(NUM_TARGET_TOKENS)) for _ in range(NUM_ROWS)]
