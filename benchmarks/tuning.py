"""`python -m benchmarks.tuning`: what learning prompts costs, and whether it finds good ones by itself.

On the demo backbone, float32. `co-serving` asks a server while a job runs there. `population` updates eight prompts in
one batch, and one by one; on other shapes too. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Protocol

import torch
from rich.console import Console
from transformers.utils import logging as transformers_logging

from app.model.backbone import Backbone
from app.task_prompt import PromptKind
from benchmarks.co_serving import measure_co_serving
from benchmarks.machine import Machine
from benchmarks.report import Say, save
from benchmarks.shapes import SMOLLM2_135M, TINY
from benchmarks.side_by_side import measure_side_by_side
from research.demo.tasks import BACKBONE

DEMO = BACKBONE


class Part(Protocol):
    """One question, answered."""

    name: str
    question: str

    def as_json(self) -> dict[str, Any]: ...

    def show(self, console: Console) -> None: ...


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    progress = Console(stderr=True)
    console = Console(quiet=options.json, width=140)
    machine = Machine.here()
    console.print(str(machine))
    parts = []
    for name in options.only:
        parts.append(NAME_TO_PART[name](options, lambda line: progress.print(line, style="dim", highlight=False)))
        console.print(f"\n[bold]{parts[-1].name}[/bold]: {parts[-1].question}")
        parts[-1].show(console)
    result = {
        "benchmark": "tuning",
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": asdict(machine),
        "setting": {"shape": "-".join(options.only)},
        "parts": {part.name: part.as_json() for part in parts},
    }
    if options.save:
        progress.print(f"kept as {save(result)}")
    print(json.dumps(result))


def _co_serving(options: argparse.Namespace, say: Say) -> Part:
    return measure_co_serving(say, num_rounds=options.repetitions, round_s=options.seconds)


def _population(options: argparse.Namespace, say: Say) -> Part:
    return measure_side_by_side(
        _load(options.shape),
        say,
        kinds=[PromptKind(kind) for kind in options.kind],
        batch_sizes=options.batch_size,
        micro_batch_size=options.micro_batch_size,
        num_rounds=options.repetitions,
    )


def _load(name: str) -> Backbone:
    """The demo backbone, or random weights of a known shape."""
    shape = next((shape for shape in (SMOLLM2_135M, TINY) if shape.name == name), None)
    if shape is None:
        return Backbone.load(str(DEMO))
    return Backbone.from_model(shape.build_model(), shape.build_tokenizer(), name=shape.name)


NAME_TO_PART: Mapping[str, Callable[[argparse.Namespace, Say], Part]] = {
    "co-serving": _co_serving,
    "population": _population,
}


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tuning", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=list(NAME_TO_PART), help="one part; may be repeated")
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    parser.add_argument("--threads", type=int, default=0, help="torch's threads (default: as torch chooses)")
    parser.add_argument("--save", action="store_true", help="keep the result in benchmarks/results")
    parser.add_argument("--repetitions", type=int, default=3, help="rounds in which every contender has its turn")
    serving = parser.add_argument_group("co-serving")
    serving.add_argument("--seconds", type=float, default=12.0, help="of each load in a round")
    population = parser.add_argument_group("population")
    population.add_argument("--shape", default="demo", choices=["demo", SMOLLM2_135M.name, TINY.name])
    population.add_argument("--kind", nargs="+", default=["embeddings", "kv"], choices=["embeddings", "kv"])
    population.add_argument("--batch-size", nargs="+", type=int, default=[4, 8, 16], help="rows of each prompt")
    population.add_argument("--micro-batch-size", type=int, default=32, help="rows of a forward")
    options = parser.parse_args(arguments)
    options.only = options.only or list(NAME_TO_PART)
    return options


if __name__ == "__main__":
    main()
