"""`python -m benchmarks.reparameterization`: whether learning a prompt through a small network finds better ones.

P-tuning (Liu et al. 2021) does not learn a prompt's rows but a network that gives them, and residual prompt tuning
(Razdaibiedina et al. 2023) adds the network's output to the rows. The network is thrown away afterwards. Prompts of
equal start, length and number of updates are learned in each way, at learning rates of each way's own; validation
chooses, and test judges. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from app.measure.plain_model import evaluate
from app.model.backbone import Backbone
from app.tuning.config import Init, TuneConfig
from app.tuning.plan import TuningPlan
from app.tuning.run.optimizer import make_optimizer
from app.tuning.run.population import Member
from app.tuning.search import Search
from app.tuning.tune import tune_task
from benchmarks.machine import Machine
from benchmarks.report import save
from research.demo.recipes import find_recipe
from research.demo.tasks import PACKAGE, read_splits

TASKS = ("subjectivity", "domain")


class ThroughNetwork(Member):
    """P-tuning's multilayer perceptron, whose input is learned too."""

    is_residual = False

    def __init__(self, number: int, config: TuneConfig, initial: torch.Tensor, unit: torch.Tensor) -> None:
        super().__init__(number, config, initial, unit)
        size = initial.shape[1]
        torch.manual_seed(config.seed)
        self.network = nn.Sequential(
            nn.Linear(size, size), nn.ReLU(), nn.Linear(size, size), nn.ReLU(), nn.Linear(size, size)
        )
        self.optimizer = make_optimizer(config, [self.scaled, *self.network.parameters()])

    @property
    def rows(self) -> torch.Tensor:
        output = self.network(self.scaled)
        return (self.scaled + output if self.is_residual else output) * self.unit

    def update(self, step: int, num_steps: int) -> None:
        super().update(step, num_steps)
        self.optimizer.zero_grad()


class Residual(ThroughNetwork):
    is_residual = True


WAYS: dict[str, tuple[type[Member], tuple[float, ...]]] = {
    "rows": (Member, (0.03, 0.1, 0.3)),
    "network (P-tuning)": (ThroughNetwork, (0.001, 0.003, 0.01)),
    "network and rows (residual)": (Residual, (0.001, 0.003, 0.01)),
}


def learn(backbone: Backbone, data: Path, task: str, way: str, max_steps: int) -> dict[str, Any]:
    """Accuracies of the learning rate that does best on validation, and of each on validation."""
    member, learning_rates = WAYS[way]
    splits = read_splits(data / find_recipe(task).data)
    config = TuneConfig(max_steps=max_steps, batch_size=16, max_validation_rows=250, eval_every=max(1, max_steps // 4))
    search = Search(
        (config.kind,), (Init.VOCAB,), learning_rates, (config.num_virtual_tokens,), (config.seed,), num_cuts=0
    )
    labels = tuple(sorted({example.target for example in splits.train.examples}))
    plan = TuningPlan.make(splits.train, splits.validation, config, labels=labels, search=search)
    began_s = time.process_time()
    with patch("app.tuning.run.run.Member", member):
        result = tune_task(backbone, plan)
    tuning_cpu_s = time.process_time() - began_s
    test = evaluate(backbone, result.prompt, plan.template, labels, splits.test.examples)
    rate_to_best = {
        str(rate): max(e.value for e in result.history if e.member == i) for i, rate in enumerate(learning_rates)
    }
    return {
        "learning_rate": result.members[result.member].learning_rate,
        "validation": round(result.validation.metrics["accuracy"], 4),
        "test": round(test.metrics["accuracy"], 4),
        "test_interval": [round(test.metrics[f"accuracy_{end}"], 4) for end in ("low", "high")],
        "learning_rate_to_best": rate_to_best,
        "tuning_cpu_s": round(tuning_cpu_s, 1),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reparameterization",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the sets, one folder each")
    parser.add_argument("--task", nargs="+", default=list(TASKS), help="demo tasks with labels")
    parser.add_argument("--max-steps", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save", action="store_true", help="keep the result in benchmarks/results")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    backbone = Backbone.load(str(PACKAGE / "backbone"))
    table = Table("set", "what is learned", "learning rate", "validation, %", "test, %", "CPU s")
    found: dict[str, dict[str, Any]] = {}
    for task in options.task:
        for way in WAYS:
            figures = found.setdefault(task, {})[way] = learn(backbone, options.data, task, way, options.max_steps)
            sys.stderr.write(f"{task}, {way}: {figures}\n")
            percent = [f"{100 * figures[name]:.1f}" for name in ("validation", "test")]
            table.add_row(task, way, str(figures["learning_rate"]), *percent, str(figures["tuning_cpu_s"]))
    machine = Machine.here()
    console = Console(width=120)
    console.print(str(machine))
    console.print(table)
    result = {
        "benchmark": "reparameterization",
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": asdict(machine),
        "setting": {"shape": "demo", "max_steps": options.max_steps},
        "tasks": found,
    }
    if options.save:
        console.print(f"kept as {save(result)}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
