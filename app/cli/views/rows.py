"""Lists, as commands show them to a person."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

MAX_LINE_CHARS = 1000
"""A pipe has no width, a terminal wraps lines itself, and an id that is cut is useless."""


def print_rows(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A line for each row, under the headings."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*headings, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*map(str, row))
    Console(width=MAX_LINE_CHARS, soft_wrap=True, highlight=False).print(table)
