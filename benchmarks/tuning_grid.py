"""The default settings of `softswap tune` beside a grid of single runs: what they find, and what they cost.

A grid's members share no number with one another, so those of one length are learned side by side without halving: each
becomes what it would have become alone (`test_population.py`). Every run lies in a file of its own, and
what lies there is not done again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from app.measure.dataset import Dataset
from app.measure.plain_model import evaluate
from app.model.backbone import Backbone
from app.tuning.config import Init, TuneConfig
from app.tuning.plan import TuningPlan
from app.tuning.run.events import Evaluated, MembersDropped, StepDone, TuneEvent, TuningStarted
from app.tuning.run.rows import spread
from app.tuning.search import Search
from app.tuning.tune import tune_task
from benchmarks.machine import Stopwatch
from research.demo.recipes import find_recipe
from research.demo.tasks import Splits, read_splits

Say = Callable[[str], None]

TASKS = ("sentiment", "subjectivity", "domain", "intent")
LEARNING_RATES = (0.01, 0.03, 0.1, 0.3)
INITS = (Init.VOCAB, Init.LABELS)
LENGTHS = (5, 20, 50)
PATIENCE = 5
"""What `softswap tune` and a job of the API take."""
MAX_POINTS_BEHIND = 2.0
MAX_COST = 6.0


@dataclass
class Work:
    """Counts what a run does, from its events.

    Attributes:
        num_member_updates: updates of one prompt; each costs the rows of a batch.
    """

    say: Say
    num_alive: int = 0
    num_member_updates: int = 0

    def note(self, event: TuneEvent) -> None:
        match event:
            case TuningStarted():
                self.num_alive = len(event.members)
            case StepDone():
                self.num_member_updates += self.num_alive
            case MembersDropped():
                self.num_alive -= len(event.members)
            case Evaluated(is_best=True):
                self.say(f"    after {event.step} updates: {event.metric} {event.value:.3f}")
            case _:
                pass


@dataclass(frozen=True)
class Run:
    """A search over one task, as it is kept.

    Attributes:
        setting: all that decides how it goes.
        chosen: what the member that validation chose is.
        validation, test: its metrics on all examples of the split.
        member_to_best: of each member, its configuration and its best accuracy on the rows that chose.
        num_steps: updates of the search.
        num_member_updates: updates of one prompt, all members counted.
        num_tokens: put through the backbone, measurements included; a backward counts like a forward.
        cpu_s: of all threads.
    """

    setting: Mapping[str, Any]
    chosen: Mapping[str, Any]
    validation: Mapping[str, float]
    test: Mapping[str, float]
    member_to_best: Sequence[Mapping[str, Any]]
    num_steps: int
    num_member_updates: int
    num_tokens: int
    wall_s: float
    cpu_s: float
    foreign_cores: float | None

    @property
    def rank(self) -> tuple[float, float]:
        """By what a run is chosen: accuracy on validation, ties by the likelihood of the labels there."""
        return self.validation["accuracy"], -self.validation["nll"]


@dataclass(frozen=True)
class Grid:
    """What a person would have to run to find good settings: every point once, to the end."""

    config: TuneConfig
    learning_rates: tuple[float, ...] = LEARNING_RATES
    inits: tuple[Init, ...] = INITS
    lengths: tuple[int, ...] = LENGTHS

    @property
    def num_points(self) -> int:
        return len(self.learning_rates) * len(self.inits) * len(self.lengths)

    def searches(self) -> Iterator[tuple[TuneConfig, Search]]:
        """One for each length: prompts of equal length waste no padding on each other."""
        for length in self.lengths:
            config = replace(self.config, num_virtual_tokens=length)
            yield (
                config,
                Search((config.kind,), self.inits, self.learning_rates, (length,), (config.seed,), num_cuts=0),
            )


@dataclass(frozen=True)
class TaskComparison:
    """On one task: the default settings, one run of the middle of the grid alone, and the grid."""

    task: str
    default: Run
    single: Run
    grid: tuple[Run, ...]

    @property
    def best(self) -> Run:
        """Of the grid, chosen by validation."""
        return max(self.grid, key=lambda run: run.rank)

    @property
    def points_behind(self) -> float:
        """Points of accuracy on test by which the default is worse than the grid's best."""
        return 100 * (self.best.test["accuracy"] - self.default.test["accuracy"])

    @property
    def cost(self) -> dict[str, float]:
        """The default's over the single run's."""
        one, default = self.single, self.default
        return {
            "update_rows": default.num_member_updates / one.num_member_updates,
            "tokens": default.num_tokens / one.num_tokens,
            "wall_s": default.wall_s / one.wall_s,
            "cpu_s": default.cpu_s / one.cpu_s,
        }

    @property
    def is_reached(self) -> bool:
        return self.points_behind <= MAX_POINTS_BEHIND and self.cost["cpu_s"] <= MAX_COST

    def as_json(self) -> dict[str, Any]:
        return {
            "points_behind": round(self.points_behind, 2),
            "cost": {name: round(value, 2) for name, value in self.cost.items()},
            "is_reached": self.is_reached,
            "default": asdict(self.default),
            "single": asdict(self.single),
            "best_of_grid": dict(self.best.chosen),
            "grid": [asdict(run) for run in self.grid],
        }


@dataclass(frozen=True)
class GridPart:
    """The answer on all tasks."""

    setting: Mapping[str, Any]
    comparisons: tuple[TaskComparison, ...] = field(default=())

    name = "grid"
    question = "do the default settings find what a search by hand finds?"

    def as_json(self) -> dict[str, Any]:
        return {
            "question": self.question,
            "setting": dict(self.setting),
            "tasks": {each.task: each.as_json() for each in self.comparisons},
        }

    def show(self, console: Console) -> None:
        table = Table(
            "task", "default, test %", "best of grid, test %", "points behind", "cost: rows", "CPU s", "wall s"
        )
        for each in self.comparisons:
            chosen = ", ".join(f"{value}" for value in each.best.chosen.values())
            table.add_row(
                each.task,
                f"{100 * each.default.test['accuracy']:.1f}",
                f"{100 * each.best.test['accuracy']:.1f} ({chosen})",
                f"{each.points_behind:+.1f}",
                *(f"{each.cost[name]:.2f}x" for name in ("update_rows", "cpu_s", "wall_s")),
            )
        console.print(table)
        console.print(
            "  rows, CPU s, wall s: the default's over those of one run; wanted: 2 points behind and 6x at most",
            style="dim",
        )


def measure_grid(
    backbone: Backbone,
    data: Path,
    work: Path,
    say: Say,
    *,
    tasks: Sequence[str],
    config: TuneConfig,
    grid: Grid,
    num_final_rows: int = 0,
) -> GridPart:
    """Args:
    data: folder with a folder for each set.
    work: folder of one file for each run; is made.
    config: what all runs share; the default settings but for the number of updates.
    num_final_rows: of validation and of test, evenly spread, that results are measured on; 0 takes all.
    """
    work.mkdir(parents=True, exist_ok=True)
    comparisons = []
    for task in tasks:
        splits = read_splits(data / find_recipe(task).data)
        if num_final_rows:
            few = [_few(part, num_final_rows) for part in (splits.validation, splits.test)]
            splits = Splits(splits.train, *few)
        comparisons.append(_compare(backbone, splits, work, say, task, config, grid))
    axes = {"learning_rates": grid.learning_rates, "inits": grid.inits, "lengths": grid.lengths}
    return GridPart(
        {
            **axes,
            "max_steps": config.max_steps,
            "batch_size": config.batch_size,
            "measured_rows": config.max_validation_rows,
            "final_rows": num_final_rows or "all",
        },
        tuple(comparisons),
    )


def _few(dataset: Dataset, num_rows: int) -> Dataset:
    return Dataset(dataset.name, tuple(spread(dataset.examples, num_rows)))


def _compare(
    backbone: Backbone, splits: Splits, work: Path, say: Say, task: str, config: TuneConfig, grid: Grid
) -> TaskComparison:
    run = partial(_run, backbone, splits, say)
    patient = replace(config, patience=PATIENCE)
    default = run(work / f"{task}-default.json", patient, Search.default(patient, has_labels=True))
    single = run(work / f"{task}-single.json", config, Search.single(config))
    points = tuple(
        run(work / f"{task}-grid-{each.num_virtual_tokens}.json", each, search) for each, search in grid.searches()
    )
    return TaskComparison(task, default, single, points)


def _run(backbone: Backbone, splits: Splits, say: Say, path: Path, config: TuneConfig, search: Search) -> Run:
    """From the file, if the same run lies there already."""
    plan = TuningPlan.make(splits.train, splits.validation, config, search)
    setting = {
        "plan": plan.digest(backbone.fingerprint),
        "test": splits.test.data_hash,
        "config": asdict(config),
        "search": asdict(search),
    }
    setting = json.loads(json.dumps(setting))
    if path.exists() and (known := json.loads(path.read_text()))["setting"] == setting:
        return Run(**known)
    say(f"{path.stem}: {search.num_members} prompts, {config.num_steps(len(plan.train))} updates")
    run = _tune(backbone, plan, splits, setting, say)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(asdict(run), indent=2) + "\n")
    temporary.replace(path)
    say(f"{path.stem}: test accuracy {run.test['accuracy']:.3f} after {run.wall_s:.0f} s")
    return run


def _tune(backbone: Backbone, plan: TuningPlan, splits: Splits, setting: Mapping[str, Any], say: Say) -> Run:
    work = Work(say)
    with Stopwatch() as stopwatch:
        result = tune_task(backbone, plan, on_event=work.note)
    test = evaluate(backbone, result.prompt, plan.template, plan.labels, splits.test.examples)
    return Run(
        setting=setting,
        chosen=_point(result.config),
        validation=result.validation.metrics,
        test=test.metrics,
        member_to_best=[
            {**_point(result.members[number]), "best": max(value for _, value in curve), "measured": len(curve)}
            for number, curve in result.curves.items()
        ],
        num_steps=result.num_steps,
        num_member_updates=work.num_member_updates,
        num_tokens=result.num_tokens_computed,
        wall_s=stopwatch.wall_s,
        cpu_s=stopwatch.cpu_s,
        foreign_cores=stopwatch.foreign_cores,
    )


def _point(config: TuneConfig) -> dict[str, Any]:
    """What the members of a search differ in."""
    return {
        "learning_rate": config.learning_rate,
        "init": str(config.init),
        "num_virtual_tokens": config.num_virtual_tokens,
        "seed": config.seed,
    }
