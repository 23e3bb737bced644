"""How `softswap tasks` shows tasks and versions to a person."""

from __future__ import annotations

import json
import textwrap
import time
from typing import Any

import typer

from app.cli.views.rows import print_rows

NAME_CHARS, TEXT_CHARS = 24, 96
MAIN_METRICS = ("accuracy", "entity_f1", "rouge_l", "macro_f1", "token_f1", "exact_match", "loss")
SPLITS = ("test", "validation")


def print_tasks(found: list[dict[str, Any]]) -> None:
    """A line for each task. Args: found: as `GET /v1/tasks` has them."""
    print_rows(("task", "live", "versions", "kind", "virtual tokens", "labels", "figure"), map(_cells, found))


def _cells(task: dict[str, Any]) -> tuple[object, ...]:
    live = task["live"]
    if not live:
        return task["id"], *"-----", ""
    num_labels = len(live["labels"]) or "-"
    facts = live["number"], task["num_versions"], live["kind"], live["num_virtual_tokens"]
    return task["id"], *facts, num_labels, main_figure(live["metrics"])


def print_fields(shown: dict[str, Any]) -> None:
    """A task with a line for each version, or one version, under the names in JSON; empty values are left out."""
    for name, value in shown.items():
        if name in ("object", "versions") or value in ({}, [], "", None):
            continue
        first, *more = _lines(name, value)
        typer.echo(f"{name:<{NAME_CHARS}}{first}")
        for line in more:
            typer.echo(" " * NAME_CHARS + line)
    for version in shown.get("versions", ()):
        created = time.strftime("%Y-%m-%d %H:%M", time.localtime(version["created_at"]))
        typer.echo(f"  {version['id']:<22}{created}  {version['kind']:<12}{main_figure(version['metrics'])}")


def main_figure(metrics: dict[str, float]) -> str:
    """The figure to compare versions by, such as `test accuracy 0.635 [0.605, 0.664]`; empty if none is known."""
    known = (f"{split}_{name}" for split in SPLITS for name in MAIN_METRICS)
    found = next((name for name in known if name in metrics), None)
    if found is None:
        return ""
    low, high = metrics.get(f"{found}_low"), metrics.get(f"{found}_high")
    interval = "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
    return f"{found.replace('_', ' ', 1)} {metrics[found]:.3f}{interval}"


def _lines(name: str, value: Any) -> list[str]:
    if name == "created_at":
        return [time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value))]
    if name == "live":
        return [value["id"]]
    if isinstance(value, dict):
        return [f"{key} {_number_or_json(each)}" for key, each in value.items()]
    if isinstance(value, list):
        return textwrap.wrap(", ".join(map(str, value)), TEXT_CHARS)
    if isinstance(value, str):
        return value.splitlines()
    return [_number_or_json(value)]


def _number_or_json(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
