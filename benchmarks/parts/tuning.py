"""Tuning within a budget, as a user types it: does it end in time, and what is it worth on examples it never saw?

Every data set is a folder with `train.jsonl` and `test.jsonl`, of which a random sample is taken. `softswap tune` runs
in a process of its own with nothing chosen by hand; then the version and the best of the written prompts answer the
same test examples. With `--other`, another tree's `softswap tune` gets the same time, is interrupted when it is over,
and answers them too.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from app.measure.dataset import Example
from app.measure.example_file import read_dataset
from app.measure.plain_model import evaluate
from app.measure.served_prompt import ServedPrompt
from app.model.backbone import Backbone
from app.model.layout import Template, encode_text
from app.registry.registry import Registry
from app.registry.store import FileStore
from app.task_prompt import TaskPrompt
from benchmarks.machine import Stopwatch
from benchmarks.part import Part, Ratio, Say
from benchmarks.server import ROOT
from benchmarks.setup import Setting, Setup

NUM_TRAIN, NUM_TEST = 2000, 1000
AT_MOST = 1.2
"""Of the budget."""
TASK = "measured"


def measure(setup: Setup, say: Say) -> Iterator[Part]:
    setting = setup.setting
    if setting.data is None or setting.model is None:
        raise SystemExit("tuning: --data names a folder of data sets, and --model what to tune on")
    backbone = Backbone.load(setting.model)
    names = setting.only or tuple(sorted(path.name for path in setting.data.iterdir() if path.is_dir()))
    figures: dict[str, dict[str, float]] = {}
    for name in names:
        with TemporaryDirectory() as folder:
            for row, columns in _measure_one(backbone, setting.data / name, Path(folder), setting, say):
                figures[f"{name}: {row}"] = columns
        yield Part(
            name="tuning",
            question="Does tuning end within its budget, and does it beat the written prompt?",
            setting={"budget_s": setting.budget_s, "num_train": NUM_TRAIN, "num_test": NUM_TEST},
            figures=figures,
            ratios={
                f"{row}: seconds / budget": Ratio(columns["seconds"] / setting.budget_s, at_most=AT_MOST)
                for row, columns in figures.items()
                if row.endswith(": tuned")
            },
            foreign_cores=max(columns.get("foreign cores", 0.0) for columns in figures.values()),
        )


def _measure_one(
    backbone: Backbone, data: Path, folder: Path, setting: Setting, say: Say
) -> Iterator[tuple[str, dict[str, float]]]:
    """Row to its columns."""
    budget_s, model = setting.budget_s, str(setting.model)
    train = draw(data / "train.jsonl", folder / f"{data.name}.jsonl", NUM_TRAIN)
    test = read_dataset(draw(data / "test.jsonl", folder / "test.jsonl", NUM_TEST)).examples
    say(f"{data.name}: tuning for {budget_s:g} s")
    columns = _tune(ROOT, train, folder / "prompts", model, budget_s, ["--budget", f"{budget_s:g}s"])
    version, prompt = _published(backbone, folder / "prompts")
    served = ServedPrompt.of(prompt, version)
    yield "tuned", {**_score(backbone, served, test), **columns}
    written = version.provenance.get("written_prompt")
    if written:
        yield "written prompt", _score(backbone, serve_written(backbone, written, served), test)
    if setting.other is not None:
        say(f"{data.name}: the other tree for {budget_s:g} s")
        columns = _tune(setting.other, train, folder / "theirs", model, budget_s, [])
        version, prompt = _published(backbone, folder / "theirs")
        yield "other tree", {**_score(backbone, ServedPrompt.of(prompt, version), test), **columns}


def draw(source: Path, target: Path, num: int) -> Path:
    """At most `num` lines at random: files are often sorted. Returns the target."""
    lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
    random.Random(0).shuffle(lines)
    target.write_text("".join(lines[:num]), encoding="utf-8")
    return target


def _tune(tree: Path, data: Path, registry: Path, model: str, budget_s: float, more: list[str]) -> dict[str, float]:
    """Seconds from the command's start to its end, and what other programs used meanwhile.

    Without a budget of its own (`more`) it is interrupted when the time is over, as a person would.
    """
    command = [sys.executable, "-m", "app.cli", "tune", str(data), "--task", TASK, "--model", model]
    used_s = _children_s()
    with Stopwatch() as stopwatch:
        process = subprocess.Popen(
            [*command, "--registry", str(registry), *more], cwd=tree, env={**os.environ, "PYTHONPATH": str(tree)}
        )
        try:
            process.wait(None if more else budget_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            process.wait()
    if process.returncode:
        raise RuntimeError(f"softswap tune ended with {process.returncode}")
    foreign = stopwatch.foreign_cores_without(_children_s() - used_s)
    return {"seconds": stopwatch.wall_s, "foreign cores": foreign or 0.0}


def _children_s() -> float:
    """CPU time of processes that this one started and that have ended."""
    return os.times().children_user + os.times().children_system


def _published(backbone: Backbone, folder: Path) -> tuple[Any, TaskPrompt]:
    registry = Registry(FileStore(folder), backbone)
    version = registry.versions(TASK)[-1]
    return version, registry.prompt(version)


def serve_written(backbone: Backbone, written: Mapping[str, Any], like: ServedPrompt) -> ServedPrompt:
    """Args: written: as a version's provenance has it."""
    text = written["text"]
    prompt = TaskPrompt.from_text(text, encode_text(backbone.tokenizer, text), backbone.fingerprint)
    return ServedPrompt(prompt, Template(written["template"]), like.labels, max_new_tokens=like.max_new_tokens)


def _score(backbone: Backbone, served: ServedPrompt, test: tuple[Example, ...]) -> dict[str, float]:
    found = evaluate(backbone, served, test)
    known = json.loads(json.dumps(found.metrics))
    return {name: known[name] for name in ("accuracy", "label_mass", "rouge_l", "exact_match") if name in known}
