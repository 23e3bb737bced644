"""How `softswap eval` shows an evaluation to a person."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table

MAX_CONFUSION = 12
"""Labels up to which the confusion matrix fits a terminal."""
MAX_LABELS_SHOWN = 30
BAR_WIDTH = 30


def print_evaluation(shown: dict[str, Any], name: str) -> None:
    """Args: shown: as `/v1/tasks/{task}/evaluate` answers; name: of the data."""
    console = Console(soft_wrap=True, highlight=False)
    num_examples = round(shown["metrics"]["num_examples"])
    console.print(f"[bold]{shown['model']}[/bold] on {name}: {num_examples:,} examples\n")
    for part in _parts(shown):
        console.print(part)
        console.print()
    for warning in shown.get("warnings", ()):
        console.print(f"[bold]warning:[/bold] {escape(warning)}")


def _parts(shown: dict[str, Any]) -> Iterator[RenderableType]:
    yield _figures(shown["metrics"])
    if "labels" not in shown:
        return
    yield _label_table(shown["labels"])
    if len(shown["labels"]) <= MAX_CONFUSION:
        yield _confusion_table([each["label"] for each in shown["labels"]], shown["confusion"])
    if "calibration" in shown:
        yield _calibration_table(shown["calibration"])


def _figures(metrics: dict[str, float]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in metrics.items():
        low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
        interval = "" if low is None or high is None else f"[dim]95 %: {low:.3f} to {high:.3f}[/dim]"
        if name not in ("accuracy_low", "accuracy_high", "num_examples"):
            table.add_row(name, f"{value:.3f}", interval)
    return table


def _label_table(labels: Sequence[dict[str, Any]]) -> Table:
    """If there are many labels, those with the lowest F1."""
    title = None
    if len(labels) > MAX_LABELS_SHOWN:
        title = f"the {MAX_LABELS_SHOWN} weakest of {len(labels)} labels"
        labels = sorted(labels, key=lambda each: float(each["f1"]))[:MAX_LABELS_SHOWN]
    table = _table(title, "label", ("precision", "recall", "F1", "examples"))
    for each in labels:
        shares = (f"{each[name]:.3f}" for name in ("precision", "recall", "f1"))
        table.add_row(escape(each["label"]), *shares, f"{each['num_examples']:,}")
    return table


def _confusion_table(labels: Sequence[str], counts: Sequence[Sequence[int]]) -> Table:
    table = _table(None, "target \\ answer", map(escape, labels))
    for row, label in enumerate(labels):
        cells = [f"[bold]{n}[/bold]" if row == column else str(n or "·") for column, n in enumerate(counts[row])]
        table.add_row(escape(label), *cells)
    return table


def _calibration_table(calibration: dict[str, Any]) -> Table:
    """For each range of confidence, how often the answers are right."""
    title = f"calibration (temperature {calibration['temperature']:.3g})"
    table = _table(title, "probability", ("examples", "confidence", "accuracy"))
    table.add_column("")
    for each in calibration["bins"]:
        table.add_row(
            f"{each['low']:.2f} to {each['high']:.2f}",
            f"{each['num_examples']:,}",
            f"{each['confidence']:.3f}",
            f"{each['accuracy']:.3f}",
            f"[dim]{'█' * round(BAR_WIDTH * each['accuracy'])}[/dim]",
        )
    return table


def _table(title: str | None, first: str, others: Iterable[str]) -> Table:
    """Args: first, others: headings; the columns of the others are numbers."""
    table = Table(first, title=title, title_justify="left", box=None, pad_edge=False)
    for heading in others:
        table.add_column(heading, justify="right")
    return table
