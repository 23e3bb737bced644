"""Tunes, measures and tabulates the demo tasks: `python -m research.demo.tasks --help`.

`tune` learns a prompt, measures it on the test split once, and publishes it. `compare` measures hand-written prompts on
the same backbone through the same evaluation: the best of several on validation, once with instructions alone and once
with examples. `table` writes what both found into docs/demo_tasks.md. Each task has a file of results, so several may
run at once.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from app.measure.dataset import Dataset, Example
from app.measure.evaluation import Evaluation
from app.measure.example_file import read_dataset
from app.measure.plain_model import evaluate
from app.measure.served_prompt import ServedPrompt
from app.model.backbone import Backbone
from app.model.layout import Template
from app.registry.registry import Registry
from app.registry.store import FileStore
from app.task_prompt import TaskPrompt
from app.tuning.plan import TuningPlan
from app.tuning.result import TuneResult
from app.tuning.run.events import Evaluated, TuneEvent
from app.tuning.run.rows import spread
from app.tuning.run.run import tune_task
from research.demo.recipes import RECIPES, Recipe, find_recipe
from research.demo.results_table import render_table, write_between_markers

ROOT = Path(__file__).parents[2]
BACKBONE = ROOT / "app" / "demo" / "backbone"
RESULTS = ROOT / "docs" / "demo_tasks"
PAGE = ROOT / "docs" / "demo_tasks.md"
NUM_SELECTION_ROWS = 200
MAX_VALIDATION_ROWS = 1000
MAX_TEXT_PROMPT_TOKENS = 600


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    if arguments.command == "table":
        results = [json.loads(path.read_text()) for path in sorted(arguments.results.glob("*.json"))]
        write_between_markers(arguments.page, "demo-table", render_table(results, [r.task for r in RECIPES]))
        return
    backbone = Backbone.load(arguments.backbone)
    for recipe in [find_recipe(name) for name in arguments.task or [r.task for r in RECIPES]]:
        splits = read_splits(arguments.data / recipe.data)
        measure = compare if arguments.command == "compare" else tune
        found = measure(backbone, recipe, splits, arguments)
        merge_results(arguments.results / f"{recipe.task}.json", describe(recipe, splits) | found)


@dataclass(frozen=True)
class Splits:
    train: Dataset
    validation: Dataset
    test: Dataset

    def labels(self, recipe: Recipe) -> tuple[str, ...]:
        return tuple(sorted({e.target for e in self.train.examples})) if recipe.is_labelled else ()


def read_splits(folder: Path) -> Splits:
    return Splits(*(read_dataset(folder / f"{name}.jsonl") for name in ("train", "validation", "test")))


def tune(backbone: Backbone, recipe: Recipe, splits: Splits, arguments: argparse.Namespace) -> dict[str, Any]:
    """Tunes, measures on test and publishes; what the table says about it."""
    template, labels, started = Template(recipe.template), splits.labels(recipe), time.monotonic()
    validation = Dataset(splits.validation.name, tuple(spread(splits.validation.examples, MAX_VALIDATION_ROWS)))
    registry = Registry(FileStore(arguments.registry), backbone)
    plan = TuningPlan.make(
        splits.train,
        validation,
        recipe.config,
        template=template,
        labels=labels,
        init_prompt=registry.prompt(registry.resolve(recipe.start_from)) if recipe.start_from else None,
    )
    result = tune_task(backbone, plan, on_event=show)
    tuning_s = time.monotonic() - started
    test = measure(backbone, recipe, splits, result.prompt, splits.test.examples)
    version = publish(registry, recipe, result, test)
    show_line(f"{version}: test {test.main_metric} {test.metrics[test.main_metric]:.3f} after {tuning_s:.0f} s")
    folder = arguments.registry / version.replace("@", "/")
    return {
        "tuned": {
            "version": version,
            "metrics": rounded(test.metrics),
            "validation": rounded(result.validation.metrics),
            "kind": str(result.prompt.kind),
            "num_virtual_tokens": result.prompt.num_virtual_tokens,
            "num_parameters": result.initial.numel(),
            "num_bytes": sum(path.stat().st_size for path in folder.iterdir()),
            "num_steps": result.num_steps,
            "best_step": result.best_step,
            "curve": [[event.step, round(event.value, 4)] for event in result.history],
            "tuning_s": round(tuning_s),
        }
    }


def publish(registry: Registry, recipe: Recipe, result: TuneResult, test: Evaluation) -> str:
    found = result.publication(recipe.description)
    start = {"start_from": registry.resolve(recipe.start_from).id} if recipe.start_from else {}
    publication = replace(
        found,
        initial=None,  # half of a shipped version's room, for a figure of the token report
        sampling={"temperature": 0.0, "max_tokens": 16 if result.plan.labels else recipe.max_new_tokens},
        metrics=rounded(result.metrics | {f"test_{name}": value for name, value in test.metrics.items()}),
        provenance={**found.provenance, "data": recipe.data, "data_licence": recipe.licence, **start},
    )
    return registry.publish(recipe.task, publication).id


def compare(backbone: Backbone, recipe: Recipe, splits: Splits, arguments: argparse.Namespace) -> dict[str, Any]:
    """The best hand-written prompt, chosen on validation, measured on test: alone and with examples."""
    found: dict[str, Any] = {}
    rows = spread(splits.validation.examples, NUM_SELECTION_ROWS)
    tests = spread(splits.test.examples, arguments.max_test_rows)
    for name, num_shots in (("zero_shot", 0), ("few_shot", recipe.num_shots)):
        scored = []
        for text in written_prompts(backbone, recipe, splits, num_shots):
            prompt = as_task_prompt(backbone, text)
            chosen = measure(backbone, recipe, splits, prompt, rows)
            scored.append((chosen.metrics[chosen.main_metric], text))
            show_line(f"{recipe.task} {name}: validation {scored[-1][0]:.3f} for {text[:60]!r}")
        value, text = max(scored, key=lambda pair: pair[0])
        test = measure(backbone, recipe, splits, as_task_prompt(backbone, text), tests)
        show_line(f"{recipe.task} {name}: test {test.metrics[test.main_metric]:.3f}")
        found[name] = {
            "metrics": rounded(test.metrics),
            "validation": round(value, 4),
            "num_candidates": len(scored),
            "prompt": text,
        }
    return found


def written_prompts(backbone: Backbone, recipe: Recipe, splits: Splits, num_shots: int) -> Iterator[str]:
    """Each instruction, alone or followed by examples; without any instruction too. Long ones lose examples."""
    template = Template(recipe.template)
    shots = choose_shots(splits.train.examples, num_shots)
    written = [f"{template.render(e.input)}{gap(recipe.template)}{e.target}" for e in shots]
    for instruction in (*recipe.instructions, ""):
        kept = list(written)
        while len(backbone.tokenizer("\n\n".join([instruction, *kept]))["input_ids"]) > MAX_TEXT_PROMPT_TOKENS:
            kept.pop()
        yield "\n\n".join(part for part in (instruction, *kept) if part)


def gap(template: str) -> str:
    """The blank between what is asked and the answer."""
    return " " if template.endswith(" {target}") else ""


def choose_shots(examples: Sequence[Example], num: int) -> list[Example]:
    """Short examples from the front, with as many different targets as there are."""
    by_novelty: dict[str, list[Example]] = {}
    for example in examples[:2000]:
        if 20 <= len(example.input) <= 200 or len(examples[0].input) > 200:
            by_novelty.setdefault(example.target, []).append(example)
    shots: list[Example] = []
    for turn in range(num):
        shots += [group[turn] for group in by_novelty.values() if turn < len(group)]
        if len(shots) >= num:
            break
    return shots[:num]


def as_task_prompt(backbone: Backbone, text: str) -> TaskPrompt | None:
    if not text:
        return None
    return TaskPrompt.from_text(text, backbone.tokenizer(text)["input_ids"], backbone.fingerprint)


def measure(
    backbone: Backbone, recipe: Recipe, splits: Splits, prompt: TaskPrompt | None, examples: Sequence[Example]
) -> Evaluation:
    return evaluate(
        backbone,
        ServedPrompt(prompt, Template(recipe.template), splits.labels(recipe), max_new_tokens=recipe.max_new_tokens),
        examples,
    )


def describe(recipe: Recipe, splits: Splits) -> dict[str, Any]:
    targets = [example.target for example in splits.test.examples]
    return {
        "task": recipe.task,
        "data": recipe.data,
        "licence": recipe.licence,
        "num_labels": len(splits.labels(recipe)),
        "num_train": len(splits.train.examples),
        "num_test": len(splits.test.examples),
        "majority": round(Counter(targets).most_common(1)[0][1] / len(targets), 4) if recipe.is_labelled else None,
    }


def merge_results(path: Path, found: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(known | found, indent=1, ensure_ascii=False) + "\n")


def rounded(name_to_value: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in name_to_value.items()}


def show(event: TuneEvent) -> None:
    if isinstance(event, Evaluated):
        show_line(f"update {event.step}: {event.metric} {event.value:.3f}{' (best)' if event.is_best else ''}")


def show_line(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("tune", "compare", "table"))
    parser.add_argument("--data", type=Path, help="folder that holds a folder for each data set; not for `table`")
    parser.add_argument("--task", action="append", help="one demo task; may be given several times; all without it")
    parser.add_argument("--registry", type=Path, default=Path("prompts"), help="where `tune` publishes")
    parser.add_argument("--backbone", type=Path, default=BACKBONE)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of one JSON file for each task")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page into which `table` writes")
    parser.add_argument("--max-test-rows", type=int, default=1000, help="most test examples `compare` measures on")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.command != "table" and arguments.data is None:
        parser.error("--data is needed")
    return arguments


if __name__ == "__main__":
    main()
