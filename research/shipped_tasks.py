"""Tunes, measures and ships tasks on a model of the catalog: `python -m research.shipped_tasks --help`.

`softswap tune` gets a random sample of each data set and a budget; nothing is chosen by hand. What it publishes and
the written prompt that it compares with answer the same random sample of the test split. Then the version goes into
`prompts/` in bfloat16, as it was measured, without the rows that its tuning started from.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from app.main import load_backbone
from app.measure.dataset import Example
from app.measure.example_file import read_dataset
from app.measure.plain_model import evaluate
from app.measure.served_prompt import ServedPrompt
from app.model.backbone import Backbone
from app.registry.formats.manifest import Manifest
from app.registry.prompts import PromptReader
from app.registry.publication import Publication
from app.registry.registry import Registry
from app.registry.store import FileStore
from app.registry.version import Version
from app.settings import Settings
from app.task_prompt import TaskPrompt
from app.tuning.budget import in_words, parse_duration
from benchmarks.parts.tuning import draw, serve_written
from research.demo.recipes import Recipe, find_recipe
from research.demo.results_table import write_between_markers
from research.demo.tasks import merge_results, rounded

ROOT = Path(__file__).parents[1]
TASKS = ("sentiment", "subjectivity", "domain", "language", "headline")
NUM_TRAIN, NUM_TEST, NUM_WRITTEN_TEST = 2000, 1000, 200
"""Rows of the samples; of a task that writes fewer are tested: each takes seconds."""


def main() -> None:
    arguments = parse_arguments()
    for recipe in map(find_recipe, arguments.task or TASKS):
        folder = arguments.work / recipe.task
        folder.mkdir(parents=True, exist_ok=True)
        data = arguments.data / recipe.data
        train = draw(data / "train.jsonl", folder / f"{recipe.data}.jsonl", NUM_TRAIN)
        test = draw(data / "test.jsonl", folder / "test.jsonl", NUM_TEST if recipe.is_labelled else NUM_WRITTEN_TEST)
        if not (folder / "seconds").exists():
            (folder / "seconds").write_text(str(round(tune(train, recipe.task, folder / "prompts", arguments))))
        backbone = load_backbone(Settings(model=arguments.model))
        found = ship(backbone, recipe, folder / "prompts", read_dataset(test).examples, arguments.registry)
        found |= {"budget_s": arguments.budget, "seconds": int((folder / "seconds").read_text())}
        merge_results(arguments.results, {recipe.task: found})
    if arguments.page is not None:
        write_between_markers(arguments.page, "shipped-table", render(json.loads(arguments.results.read_text())))


def tune(data: Path, task: str, registry: Path, arguments: argparse.Namespace) -> float:
    """As a user types it. Returns the seconds from the command's start to its end."""
    command = [sys.executable, "-m", "app.cli", "tune", str(data), "--task", task, "--registry", str(registry)]
    began_s = time.monotonic()
    subprocess.run([*command, "--model", arguments.model, "--budget", f"{arguments.budget:g}s"], check=True)
    return time.monotonic() - began_s


def ship(backbone: Backbone, recipe: Recipe, tuned: Path, test: tuple[Example, ...], registry: Path) -> dict[str, Any]:
    """Measure the newest version and its written prompt, publish the version, and say what was found."""
    source = Registry(FileStore(tuned), backbone)
    version = source.versions(recipe.task)[-1]
    prompt = source.prompt(version).rounded(torch.bfloat16)
    served = ServedPrompt.of(prompt, version)
    metrics = rounded(evaluate(backbone, served, test).metrics)
    written = version.provenance.get("written_prompt")
    found = {"data": recipe.data, "num_test": len(test), "tuned": metrics}
    if written:
        found |= {"written": rounded(evaluate(backbone, serve_written(backbone, written, served), test).metrics)}
    publication = as_shipped(
        version, PromptReader(FileStore(tuned), backbone).read_manifest(version), prompt, recipe, metrics
    )
    published = Registry(FileStore(registry), backbone).publish(recipe.task, publication)
    print(published.id, json.dumps(found))
    return found | {"version": published.id, "num_bytes": published.num_bytes}


def as_shipped(
    version: Version, manifest: Manifest, prompt: TaskPrompt, recipe: Recipe, test: dict[str, float]
) -> Publication:
    return Publication(
        prompt,
        template=version.template,
        labels=version.labels,
        label_temperature=version.label_temperature,
        sampling=version.sampling,
        metrics=rounded(dict(version.metrics)) | {f"test_{name}": value for name, value in test.items()},
        data_sha256=manifest.data_sha256,
        tuning=manifest.tuning,
        provenance={**version.provenance, "data": recipe.data, "data_licence": recipe.licence},
        description=recipe.description,
    )


def render(results: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| task | data | metric | tuned prompt, test [95 %] | written prompt | budget, took | bytes on disk |",
        "|---|---|---|---|---|---|---|",
    ]
    for task in (task for task in TASKS if task in results):
        found = results[task]
        tuned, written = found["tuned"], found.get("written", {})
        name = "accuracy" if "accuracy" in tuned else "rouge_l"
        time_spent = f"{in_words(found['budget_s'])}, {in_words(found['seconds'])}"
        interval = f" [{tuned['accuracy_low']:.1%}, {tuned['accuracy_high']:.1%}]" if name == "accuracy" else ""
        lines.append(
            f"| `{task}` | {found['data']} | {name} | **{tuned[name]:.1%}**{interval} (n = {found['num_test']:,}) | "
            f"{written.get(name, 0):.1%} | {time_spent} | {found['num_bytes']:,} |"
        )
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", nargs="*", help=f"(default: {', '.join(TASKS)})")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds a folder for each data set")
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for samples and what `softswap tune` publishes"
    )
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--budget", type=parse_duration, default=1200.0, help="of each task, such as 20m (the default)")
    parser.add_argument("--registry", type=Path, default=ROOT / "prompts", help="where the versions go")
    parser.add_argument("--results", type=Path, default=ROOT / "research" / "results" / "shipped-tasks.json")
    parser.add_argument("--page", type=Path, help="into which a table of the results is written, between its markers")
    return parser.parse_args()


if __name__ == "__main__":
    main()
