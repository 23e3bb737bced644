"""What sharing computed text is worth: `python -m benchmarks.shared_work`.

Random weights of SmolLM2-135M's shape, float32. Contenders take turns within every repetition; figures are medians and
their ratios. The last line is one JSON object.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable
from itertools import count

import typer

from app.engine.config import EngineConfig
from app.engine.engine import Engine
from app.engine.output.scoring import plan_scoring
from app.model.backbone import Backbone
from app.sampling import SamplingParams
from benchmarks.machine import Machine
from benchmarks.shapes import SMOLLM2_135M, TINY

Ids = list[int]
Load = Callable[[Engine, int], None]
VOCAB = range(10, 500)


def text(seed: str, num_tokens: int) -> Ids:
    return random.Random(seed).choices(VOCAB, k=num_tokens)


def generate(engine: Engine, texts: list[Ids], max_tokens: int) -> list[Ids]:
    """Greedy continuations of all texts, computed together."""
    params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
    found: dict[int, Ids] = {engine.add(ids, params=params): [] for ids in texts}
    while engine.has_unfinished:
        for sequence_id, delta in engine.step():
            found[sequence_id] += delta.token_ids
    return list(found.values())


def chat(engine: Engine, repetition: int) -> None:
    """8 conversations of 4 turns, 60 tokens in and 16 out each."""
    talks: list[Ids] = [[] for _ in range(8)]
    for turn in range(4):
        talks = [[*talk, *text(f"chat {repetition} {k} {turn}", 60)] for k, talk in enumerate(talks)]
        answers = generate(engine, talks, 16)
        talks = [[*talk, *answer] for talk, answer in zip(talks, answers, strict=True)]


def instructions(engine: Engine, repetition: int) -> None:
    """16 inputs of 30 tokens behind the same 400, 8 tokens out."""
    shared = text(f"instruction {repetition}", 400)
    generate(engine, [[*shared, *text(f"input {repetition} {k}", 30)] for k in range(16)], 8)


def nothing_shared(engine: Engine, repetition: int) -> None:
    """32 texts of 60 tokens that nobody has seen, 16 tokens out."""
    generate(engine, [text(f"alone {repetition} {k}", 60) for k in range(32)], 16)


def labels(num_labels: int) -> list[tuple[int, ...]]:
    """1 to 3 tokens each; many begin alike, as the labels of a task do."""
    ids = random.Random(num_labels)
    first = ids.choices(VOCAB, k=max(2, num_labels // 5))
    return [(ids.choice(first), *ids.choices(VOCAB, k=ids.randint(0, 2)), 100 + k % 200) for k in range(num_labels)]


def decide_over_tree(engine: Engine, ids: Ids, wanted: list[tuple[int, ...]]) -> None:
    """What `AsyncEngine.score` asks of the engine."""
    paths, last = plan_scoring(wanted), len(ids) - 1
    for path in paths:
        targets = {last + place: found for place, found in path.targets.items()}
        engine.add_scoring([*ids, *path.token_ids], targets, num_shared_tokens=last if len(paths) > 1 else 0)


def decide_one_by_one(engine: Engine, ids: Ids, wanted: list[tuple[int, ...]]) -> None:
    """A sequence for each label."""
    last = len(ids) - 1
    for label in wanted:
        engine.add_scoring([*ids, *label[:-1]], {last + i: (token,) for i, token in enumerate(label)})


def decisions(num_labels: int, num_texts: int, decide: Callable[[Engine, Ids, list[tuple[int, ...]]], None]) -> Load:
    wanted = labels(num_labels)

    def load(engine: Engine, repetition: int) -> None:
        for k in range(num_texts):
            decide(engine, text(f"decision {num_labels} {repetition} {k}", 40), wanted)
        while engine.has_unfinished:
            engine.step()

    return load


def compare(contenders: dict[str, tuple[Engine, Load]], repetitions: int) -> dict[str, list[float]]:
    """Seconds of each contender in each repetition, after one that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    numbers = count()
    for repetition in range(-1, repetitions):
        order = list(contenders.items())
        if repetition % 2:
            order.reverse()
        number = next(numbers)
        for name, (engine, load) in order:
            began = time.perf_counter()
            load(engine, number)
            if repetition >= 0:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def main(*, quick: bool = False, repetitions: int = 3) -> None:
    """Measure. `--quick` is a rehearsal on a tiny model, without meaning."""
    shape = TINY if quick else SMOLLM2_135M
    backbone = Backbone.from_model(shape.build_model(), shape.build_tokenizer(), name=shape.name)
    machine = Machine.here()
    typer.echo(str(machine))

    def engine(*, prefix_caching: bool) -> Engine:
        return Engine(backbone, EngineConfig.sized_for(backbone, prefix_caching=prefix_caching, kv_cache_bytes=2**29))

    cached, plain = engine(prefix_caching=True), engine(prefix_caching=False)
    report = {}
    for load in (chat, instructions, nothing_shared):
        report[load.__name__] = compare({"without": (plain, load), "cached": (cached, load)}, repetitions)
    for num_labels, num_texts in ((4, 16), (150, 1)):
        report[f"decisions of {num_labels} labels ({num_texts} texts)"] = compare(
            {
                "one by one": (plain, decisions(num_labels, num_texts, decide_one_by_one)),
                "tree": (plain, decisions(num_labels, num_texts, decide_over_tree)),
            },
            repetitions,
        )
    for name, seconds in report.items():
        slow, fast = (statistics.median(values) for values in seconds.values())
        first, second = seconds
        typer.echo(f"{name}: {first} {slow:.3f} s, {second} {fast:.3f} s, ratio {slow / fast:.2f}")
    typer.echo(json.dumps({"shape": shape.name, "machine": str(machine), "seconds": report}))


if __name__ == "__main__":
    typer.run(main)
