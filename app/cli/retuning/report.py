"""What became of each task, as `softswap retune` tells it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from app.cli.options import write_json
from app.cli.views.rows import print_rows
from app.tuning.budget import in_words

if TYPE_CHECKING:
    from app.tuning.retuning.side_by_side import SideBySide

HEADINGS = ("task", "old", "new", "live", "agree", "metric", "old scores", "new scores", "inputs", "took")


@dataclass(frozen=True)
class Outcome:
    """Attributes:
    version: id of the new one; None if there is none.
    alias: that means it now; None if none was moved.
    fault: why there is no version, or why the alias stayed where it was; empty if neither is so.
    """

    task: str
    origin: str
    version: str | None = None
    alias: str | None = None
    side_by_side: SideBySide | None = None
    seconds: float = 0.0
    fault: str = ""

    def as_dict(self) -> dict[str, Any]:
        compared = None if self.side_by_side is None else self.side_by_side.as_dict()
        return {
            "task": self.task,
            "origin": self.origin,
            "id": self.version,
            "alias": self.alias,
            "comparison": compared,
            "seconds": round(self.seconds, 1),
            "fault": self.fault or None,
        }

    @property
    def cells(self) -> tuple[str, ...]:
        compared = self.side_by_side
        figures = ("-",) * 5
        if compared is not None:
            scores = (_figure(compared.agreement), compared.metric, _figure(compared.old), _figure(compared.new))
            figures = (*scores, str(max(compared.num_inputs, compared.num_scored)))
        is_live = "-" if self.version is None else "yes" if self.alias else "no"
        return self.task, self.origin, self.version or "-", is_live, *figures, in_words(self.seconds)


def report(outcomes: Sequence[Outcome], *, as_json: bool) -> None:
    """Old and new side by side, a line for each task; what went wrong is told after it."""
    if as_json:
        for outcome in outcomes:
            write_json(outcome.as_dict())
        return
    print_rows(HEADINGS, (outcome.cells for outcome in outcomes))
    for outcome in outcomes:
        if outcome.fault:
            typer.echo(f"{outcome.task}: {outcome.fault}", err=True)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
