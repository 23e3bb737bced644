"""How `softswap tasks` shows tasks and versions to a person."""

from __future__ import annotations

import json
import textwrap
import time
from typing import Any

import typer

from app.cli.views.rows import print_rows

NAME_CHARS, TEXT_CHARS = 24, 96
FIELDS_OF_BACKBONES = ("live", "aliases", "gates", "backbones")
"""Of a task; they are shown for each of its backbones."""
MAIN_METRICS = ("accuracy", "entity_f1", "rouge_l", "macro_f1", "token_f1", "exact_match", "agreement", "loss")
SPLITS = ("test", "validation")


def print_tasks(found: list[dict[str, Any]]) -> None:
    """A line for each task and backbone. Args: found: as `GET /v1/tasks` has them."""
    headings = ("task", "live", "versions", "kind", "virtual tokens", "labels", "figure", "backbone", "other aliases")
    print_rows(headings, (_cells(task["id"], there) for task in found for there in task["backbones"]))


def _cells(task: str, there: dict[str, Any]) -> tuple[object, ...]:
    live, aliases = there["live"], dict(there["aliases"])
    target = aliases.pop("live", None)
    facts: tuple[object, ...] = ("-", "-", "-") if live is None else (
        live["kind"], live["num_virtual_tokens"], len(live["labels"]) or "-"
    )  # fmt: skip
    means = "-" if target is None else describe_target(target)
    others = ", ".join(_alias_in_words(name, each, {}) for name, each in aliases.items()) or "-"
    figure = "" if live is None else main_figure(live["metrics"])
    return task, means, there["num_versions"], *facts, figure, there["name"], others


def describe_target(target: int | dict[str, float]) -> str:
    """As `softswap tasks alias` takes it: 3, or 3=0.9,4=0.1."""
    if isinstance(target, dict):
        return ",".join(f"{number}={share:g}" for number, share in target.items())
    return str(target)


def _alias_in_words(name: str, target: int | dict[str, float], gates: dict[str, Any]) -> str:
    gate = f" (gate: {gates[name]['metric']})" if name in gates else ""
    return f"{name} {describe_target(target)}{gate}"


def print_fields(shown: dict[str, Any]) -> None:
    """A task with a line for each backbone and version, or one version, under the names in JSON; empty values are left
    out."""
    for name, value in shown.items():
        is_elsewhere = name in ("object", "versions") or ("backbones" in shown and name in FIELDS_OF_BACKBONES)
        if is_elsewhere or value in ({}, [], "", None):
            continue
        first, *more = _lines(name, value)
        typer.echo(f"{name:<{NAME_CHARS}}{first}")
        for line in more:
            typer.echo(" " * NAME_CHARS + line)
    for there in shown.get("backbones", ()):
        aliases = [_alias_in_words(name, target, there["gates"]) for name, target in there["aliases"].items()]
        typer.echo(f"{there['name']:<{NAME_CHARS - 1}} {', '.join(aliases) or 'no alias'}")
    for version in shown.get("versions", ()):
        created = time.strftime("%Y-%m-%d %H:%M", time.localtime(version["created_at"]))
        place, facts = f"  {version['id']:<22}{created}", f"{version['kind']:<12}{main_figure(version['metrics'])}"
        typer.echo(f"{place}  {version['backbone_name']:<{NAME_CHARS}}{facts}")


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
