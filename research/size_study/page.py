"""The page of the size study: a picture, what each method scores on each backbone, and what it costs there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.compare.method import Method
from app.compare.plot import METRIC_TO_NAME
from app.compare.trial import Summary, Trial, summarize
from app.errors import InvalidInput
from research.size_study.plot import Line, plot_sizes

PAGE = """# Size study: what prompt tuning buys as the backbone grows

The task `{task}` on {num_backbones} backbones that were pre-trained alike, on the same {num_tokens:,} tokens
(`research/demo/pretrain.py`); compare Lester et al. 2021, figure 1. Every method has the same data ({num_train:,}
examples to learn from, {num_validation:,} to choose by, {num_test:,} to measure on), batches of {batch_size},
{max_steps} updates, objective and evaluation, see `softswap compare --help`.

![Score against the backbone's parameters, one line for each method](size_study.svg)

## {metric}, % [95 %]

{scores}

Over several seeds the interval is Student's, of the mean over seeds on one test split; of one seed it is Wilson's, over
the test examples. The zero-shot prompt depends on no seed.

## What it costs

{costs}

Tries: candidates that validation chose among. CPU seconds: of all threads, all tries included. Peak memory: {memory}.
Latency: the median request, one at a time through the engine, with whatever else the machine did meanwhile; LoRA and
full fine-tuning are not served by softswap.

## The backbones

{backbones}

## How to remake it

```console
$ python -m research.size_study --work work --data data --task {task} \\
    --num-tokens {rounded_tokens} --max-steps {max_steps} --batch-size {batch_size} --seed {seeds}
$ python -m research.size_study --plot
```

The first command may be interrupted and continues where it stopped; `--size`, `--method` and `--seed` run a piece.
`data` holds `corpora/` and `tasks/`; the demo backbone's card names their sources. Measured on {cpu} with {num_threads}
threads, torch {torch}.
"""


@dataclass(frozen=True, eq=False)
class SizeResult:
    """What was found on one backbone. Attributes: reports: the files, one for each trial."""

    name: str
    reports: tuple[dict[str, Any], ...]

    @property
    def trials(self) -> list[Trial]:
        return [Trial.from_json(report["trial"]) for report in self.reports]

    @property
    def summaries(self) -> list[Summary]:
        return summarize(self.trials)

    @property
    def num_parameters(self) -> int:
        return self.trials[0].num_backbone_parameters


def read_results(folder: Path) -> list[SizeResult]:
    """Smallest backbone first. Raises InvalidInput: there is nothing, or trials of different settings lie together."""
    reports = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    if not reports:
        raise InvalidInput(f"there are no results in {folder.name}", param="results")
    _require_alike(reports)
    names = dict.fromkeys(report["size"] for report in reports)
    results = [SizeResult(name, tuple(report for report in reports if report["size"] == name)) for name in names]
    return sorted(results, key=lambda result: result.num_parameters)


def write_page(results: Sequence[SizeResult], folder: Path) -> None:
    """Writes size_study.md and size_study.svg."""
    first = results[0].reports[0]
    plot_sizes(
        lines_of(results), folder / "size_study.svg", f"{first['task']}: {first['setting']['num_test']} test examples"
    )
    (folder / "size_study.md").write_text(render_page(results), encoding="utf-8")


def lines_of(results: Sequence[SizeResult]) -> list[Line]:
    """One for each method that was tried on any backbone."""
    lines = []
    for method in Method:
        points = [(r.num_parameters, summary) for r in results for summary in r.summaries if summary.method is method]
        if points:
            lines.append(Line(method, points))
    return lines


def render_page(results: Sequence[SizeResult]) -> str:
    first = results[0].reports[0]
    setting, machine = first["setting"], first["machine"]
    return PAGE.format(
        task=first["task"],
        num_backbones=len(results),
        num_tokens=first["pretraining"]["num_tokens"],
        rounded_tokens=-(-first["pretraining"]["num_tokens"] // 10_000) * 10_000,  # steps are whole
        seeds=" ".join(map(str, sorted({trial.seed for result in results for trial in result.trials}))),
        batch_size=setting["config"]["batch_size"],
        max_steps=setting["config"]["max_steps"],
        metric=METRIC_TO_NAME[results[0].trials[0].metric],
        scores=_score_table(results),
        costs=_cost_table(results),
        memory=results[0].trials[0].memory_measure,
        backbones=_backbone_table(results),
        cpu=machine["cpu"],
        num_threads=machine["num_threads"],
        torch=machine["versions"]["torch"],
        **{name: setting[name] for name in ("num_train", "num_validation", "num_test")},
    )


def _score_table(results: Sequence[SizeResult]) -> str:
    methods = [line.method for line in lines_of(results)]
    rows = []
    for result in results:
        known = {summary.method: summary for summary in result.summaries}
        rows.append([result.name, *(_score(known[m]) if m in known else "not measured" for m in methods)])
    return _table(["backbone", *(method.words for method in methods)], rows)


def _score(summary: Summary) -> str:
    low, high = summary.interval.low, summary.interval.high
    reach = "" if low is None or high is None else f" [{100 * low:.1f}, {100 * high:.1f}]"
    seeds = f" ({len(summary.seeds)} seeds)" if len(summary.seeds) > 1 else ""
    return f"{100 * summary.value:.1f}{reach}{seeds}"


def _cost_table(results: Sequence[SizeResult]) -> str:
    header = ["backbone", "method", "trained parameters", "bytes per task", "tries", "tuning, CPU s", "peak memory, MB"]
    rows = [
        [
            result.name,
            summary.method.words,
            f"{summary.num_parameters:,}",
            f"{summary.num_stored_bytes:,}",
            str(summary.num_tries),
            f"{summary.tuning_cpu_s:.0f}",
            "not measured" if summary.peak_memory_bytes is None else f"{summary.peak_memory_bytes / 1e6:.0f}",
            "not served" if summary.latency_s is None else f"{1000 * summary.latency_s:.1f}",
        ]
        for result in results
        for summary in result.summaries
    ]
    return _table([*header, "latency, ms"], rows)


def _backbone_table(results: Sequence[SizeResult]) -> str:
    rows = []
    for result in results:
        pretraining = result.reports[0]["pretraining"]
        recipe, nats = pretraining["recipe"], pretraining["held_out_nats"]
        shape = (
            f"{recipe['num_layers']} layers, width {recipe['hidden_size']}, {recipe['num_heads']} heads, "
            f"{recipe['num_kv_heads']} key-value heads, SwiGLU {recipe['intermediate_size']}"
        )
        rows.append([result.name, f"{result.num_parameters:,}", shape, *(f"{value:.3f}" for value in nats.values())])
    nats_of = [f"held-out {name}, nats per token" for name in results[0].reports[0]["pretraining"]["held_out_nats"]]
    return _table(["backbone", "parameters", "shape", *nats_of], rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _require_alike(reports: Sequence[dict[str, Any]]) -> None:
    for name in ("task", "setting"):
        if any(report[name] != reports[0][name] for report in reports):
            raise InvalidInput(f"the results differ in {name}: remove those of another run", param="results")
    if len({report["pretraining"]["num_tokens"] for report in reports}) > 1:
        raise InvalidInput("the backbones saw different numbers of tokens", param="results")
