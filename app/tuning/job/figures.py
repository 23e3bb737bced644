"""A job's figures as a file: CSV, one line for each update and for each measurement of a member."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Final

from app.jobs.event_log import JobEvent

COLUMNS: Final = ("step", "train_loss", "learning_rate", "member", "valid_accuracy", "valid_loss")


def write_figures(events: Sequence[JobEvent]) -> bytes:
    """By step and member; missing figures stay empty."""
    rows = [event.data for event in events if event.data is not None and "step" in event.data]
    rows.sort(key=lambda row: (row["step"], row.get("member", -1)))
    file = io.StringIO(newline="")
    table = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return file.getvalue().encode()
