"""The table of demo tasks in docs/demo_tasks.md, made from the files of results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

METRIC_TO_NAME = {"accuracy": "accuracy", "entity_f1": "entity F1", "rouge_l": "ROUGE-L"}
HEADER = (
    "| task | data (classes) | metric | tuned prompt, test [95 %] | majority class | written prompt, zero-shot | "
    "written prompt, few-shot | parameters | bytes on disk |\n|---|---|---|---|---|---|---|---|---|"
)


def render_table(results: Sequence[dict[str, Any]], order: Sequence[str]) -> str:
    """Markdown: one row for each task that was tuned, and what stays weak in words below."""
    by_task = {result["task"]: result for result in results if "tuned" in result}
    known = [by_task[task] for task in order if task in by_task]
    notes = [note for result in known if (note := weakness(result))]
    return "\n".join([HEADER, *map(render_row, known), "", *explain(known), *notes])


def render_row(result: dict[str, Any]) -> str:
    metric, tuned = main_metric(result), result["tuned"]
    classes = f" ({result['num_labels']})" if result["num_labels"] else ""
    cells = [
        f"`{result['task']}`",
        f"{result['data']}{classes}",
        METRIC_TO_NAME[metric],
        f"**{percent(tuned['metrics'][metric])}**{interval(tuned['metrics'])} (n = {result['num_test']:,})",
        "-" if result["majority"] is None else percent(result["majority"]),
        written(result, "zero_shot", metric),
        written(result, "few_shot", metric),
        f"{tuned['num_parameters']:,}",
        f"{tuned['num_bytes']:,}",
    ]
    return f"| {' | '.join(cells)} |"


def main_metric(result: dict[str, Any]) -> str:
    return next(name for name in METRIC_TO_NAME if name in result["tuned"]["metrics"])


def interval(metrics: dict[str, float]) -> str:
    if "accuracy_low" not in metrics:
        return ""
    return f" [{percent(metrics['accuracy_low'])}, {percent(metrics['accuracy_high'])}]"


def written(result: dict[str, Any], kind: str, metric: str) -> str:
    if kind not in result:
        return "not measured"
    metrics = result[kind]["metrics"]
    num_rows = int(metrics["num_examples"])
    return percent(metrics[metric]) + ("" if num_rows == result["num_test"] else f" (n = {num_rows:,})")


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def explain(results: Sequence[dict[str, Any]]) -> list[str]:
    num = max(
        (r[kind]["num_candidates"] for r in results for kind in ("zero_shot", "few_shot") if kind in r), default=0
    )
    shapes = sorted({f"{r['tuned']['num_virtual_tokens']} virtual tokens (`{r['tuned']['kind']}`)" for r in results})
    return [
        f"All in percent, one tuning run each, measured once on the test split. Tuned prompts: {', '.join(shapes)}.",
        f"Written prompts: the best of {num} on 200 validation examples, same backbone, same evaluation;",
        "few-shot ones show up to 12 training examples. The majority class is the test split's.",
        "",
    ]


def weakness(result: dict[str, Any]) -> str:
    """What the row must not be read as; empty if there is nothing to warn of."""
    metric, metrics = main_metric(result), result["tuned"]["metrics"]
    name, value = f"`{result['task']}`", metrics[metric]
    rivals = [result[kind]["metrics"][metric] for kind in ("zero_shot", "few_shot") if kind in result]
    best_rival = max(rivals, default=-math.inf)
    if metric != "accuracy":
        if value <= best_rival:
            word = "no better" if value == best_rival else "worse"
            return f"- {name} is weak: {word} than a written prompt, which needs no tuning at all."
        return f"- {name} is weak: {percent(value)} {METRIC_TO_NAME[metric]} is far from usable." if value < 0.3 else ""
    if metrics["accuracy_low"] <= max(best_rival, result["majority"]):
        return f"- {name} is weak: not clearly better than the majority class and written prompts."
    if value < 0.7:
        return f"- {name} is weak: it beats the baselines, but {percent(1 - value)} % of its answers are wrong."
    return ""


def write_between_markers(path: Path, marker: str, content: str) -> None:
    """Replaces what stands between `<!-- marker:begin -->` and `<!-- marker:end -->`."""
    begin, end = f"<!-- {marker}:begin -->", f"<!-- {marker}:end -->"
    text = path.read_text(encoding="utf-8")
    head, rest = text.split(begin)
    tail = rest.split(end)[1]
    path.write_text(f"{head}{begin}\n{content}\n{end}{tail}", encoding="utf-8")
