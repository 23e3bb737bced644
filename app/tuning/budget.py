"""A budget of time: what a run can do within it, planned from what this machine was measured to take.

Nothing here computes on a device: seconds come in, a plan goes out.
"""

from __future__ import annotations

import math
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

OPENING_SHARE: Final = 0.04
"""Of the budget, for choosing among written prompts."""
FIRST_SHARE: Final = 0.05
"""Of the budget, for the first measurement on validation, at most."""
MEASURING_SHARE: Final = 0.2
"""Of the time to learn, for all measurements on the way, at most."""
FINAL_SHARE: Final = 0.12
"""Of the budget, for all measurements at the end together, at most."""
NUM_MORE_MEASUREMENTS: Final = 2
"""At the end: of the written prompt and of the live version. Each result is measured twice, once as it is stored."""
MIN_MEASUREMENTS: Final = 6
MAX_MEASUREMENTS: Final = 20
MIN_VALIDATION_ROWS: Final = 16
SLOW_SHARE: Final = 0.02
"""Of the budget, kept free at the end for what is not foreseen, such as a busy disk."""
ROWS_PER_MEMBER: Final = 600
"""Rows that the best prompt should learn from for each prompt that is tried: fewer rows, fewer prompts."""
MANY_UPDATES: Final = 300
ENOUGH_UPDATES: Final = 100
BATCH_SIZES: Final = (32, 16, 8)
MAX_EPOCHS: Final = 40
"""Passes over the examples: small data are done sooner than the budget."""
MIN_LAST_UPDATES: Final = 300
"""Updates that even a few examples may take."""
LAST_CUT: Final = 0.5
"""Share of the updates after which the last cut is made."""

_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?")


def parse_duration(text: str) -> float:
    """Seconds of `90`, `90s`, `20m`, `1h30m`. Raises ValueError."""
    found = _DURATION.fullmatch(text.strip().lower())
    if not found or not any(found.groups()):
        raise ValueError("must be a time such as 20m, 90s or 1h30m")
    hours, minutes, seconds = (float(part or 0) for part in found.groups())
    return 3600 * hours + 60 * minutes + seconds


def process_began_s() -> float:
    """When this process began, by `time.monotonic`; now, where the system does not say (not Linux)."""
    now_s = time.monotonic()
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        began_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # since the system started
        return now_s - (time.clock_gettime(time.CLOCK_BOOTTIME) - began_s)
    except (OSError, IndexError, ValueError, AttributeError):
        return now_s


def in_words(seconds: float) -> str:
    """`1h05m`, `12m`, `1m30s`, `40s`."""
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    if minutes >= 60:
        return f"{minutes // 60}h{minutes % 60:02d}m"
    if minutes:
        return f"{minutes}m{rest:02d}s" if rest else f"{minutes}m"
    return f"{rest}s"


@dataclass(frozen=True)
class Costs:
    """What one prompt takes on this machine, in seconds, for a row of the mean length.

    Attributes:
        learn_s: in an update: forward and backward.
        judge_s: to be measured on it.
        answer_s: at the end, to be asked for its answer; 0 if that takes as long as `judge_s`.
    """

    learn_s: float
    judge_s: float
    answer_s: float = 0.0

    @property
    def final_s(self) -> float:
        return self.answer_s or self.judge_s


@dataclass(frozen=True)
class BudgetPlan:
    """Attributes:
    num_members: prompts that are tuned side by side.
    num_cuts: how often their worse half is dropped; the last time all but the best.
    batch_size: rows of an update.
    num_steps: updates that are expected to fit.
    num_measurements: on validation, after the first.
    num_validation: rows of each of them.
    num_final: rows that the result is measured on.
    reserve_s: kept free for what follows the last update.
    """

    num_members: int
    num_cuts: int
    batch_size: int
    num_steps: int
    num_measurements: int
    num_validation: int
    num_final: int
    reserve_s: float

    @property
    def cuts(self) -> tuple[float, ...]:
        """Shares of the updates after which the worse half is dropped."""
        return tuple(LAST_CUT / 2**i for i in reversed(range(self.num_cuts)))


@dataclass(frozen=True)
class Limits:
    """What a plan may not exceed.

    Attributes:
        num_train, num_validation: examples there are; of the latter as many as may be measured with on the way.
        num_final: examples there are to measure the result with.
        num_members: candidates there are.
        min_members: of them, as many as must be tuned.
        max_steps, num_epochs: updates or passes over the examples that were asked for; 0 if none were.
        batch_size: rows of an update that were asked for; 0 leaves them to the plan.
        max_cuts: that were asked for.
    """

    num_train: int
    num_validation: int
    num_final: int
    num_members: int
    min_members: int = 1
    max_steps: int = 0
    num_epochs: float = 0.0
    batch_size: int = 0
    max_cuts: int = 3

    def most_steps(self, batch_size: int) -> int:
        """Updates that may be made, whatever the time."""
        if self.max_steps:
            return self.max_steps
        num_steps = math.ceil((self.num_epochs or MAX_EPOCHS) * self.num_train / batch_size)
        return num_steps if self.num_epochs else max(MIN_LAST_UPDATES, num_steps)


def plan_within(budget_s: float, left_s: float, costs: Costs, limits: Limits) -> BudgetPlan:
    """The plan with the most prompts that leaves the best of them enough rows to learn from.

    Args:
        budget_s: of the whole run.
        left_s: what is left of it.
    """
    at_least = min(limits.min_members, limits.num_members)
    sizes = sorted({*(size for size in (12, 8, 6, 4, 3, 2, 1) if size <= limits.num_members), limits.num_members})
    for num_members in (size for size in reversed(sizes) if size >= at_least):
        plan = _plan_members(num_members, budget_s, left_s, costs, limits)
        if plan.num_steps * plan.batch_size >= ROWS_PER_MEMBER * num_members:
            return plan
    return _plan_members(at_least, budget_s, left_s, costs, limits)


def _plan_members(num_members: int, budget_s: float, left_s: float, costs: Costs, limits: Limits) -> BudgetPlan:
    num_cuts = min(limits.max_cuts, max(0, math.ceil(math.log2(num_members / limits.min_members))))
    cuts = tuple(LAST_CUT / 2**i for i in reversed(range(num_cuts)))
    row_at_end_s = (2 * limits.min_members + NUM_MORE_MEASUREMENTS) * costs.final_s
    num_final = _within(FINAL_SHARE * budget_s / row_at_end_s, limits.num_final)
    reserve_s = num_final * row_at_end_s + SLOW_SHARE * budget_s
    learn_s = max(0.0, left_s - reserve_s)
    mean_members = mean_alive(num_members, cuts, limits.min_members)
    measuring_s = MEASURING_SHARE * learn_s
    affordable = min(
        FIRST_SHARE * budget_s / num_members, measuring_s / MIN_MEASUREMENTS / mean_members
    )  # in seconds, for one prompt
    num_validation = _within(affordable / costs.judge_s, limits.num_validation)
    measurement_s = num_validation * costs.judge_s * mean_members
    num_measurements = max(MIN_MEASUREMENTS, min(MAX_MEASUREMENTS, int(measuring_s / measurement_s)))
    row_s = costs.learn_s * mean_members
    num_rows = max(0.0, learn_s - num_measurements * measurement_s) / row_s
    batch_size = min(limits.batch_size or _choose_batch_size(num_rows), limits.num_train)
    num_steps = max(1, min(int(num_rows / batch_size), limits.most_steps(batch_size)))
    return BudgetPlan(
        num_members=num_members,
        num_cuts=num_cuts,
        batch_size=batch_size,
        num_steps=num_steps,
        num_measurements=min(num_measurements, num_steps),
        num_validation=num_validation,
        num_final=num_final,
        reserve_s=reserve_s,
    )


def mean_alive(num_members: int, cuts: tuple[float, ...], at_least: int = 1) -> float:
    """Prompts that are trained on average over a run that drops the worse half at each of these shares of it, and at
    the last one all but `at_least`.
    """
    total, alive, begin = 0.0, num_members, 0.0
    for number, cut in enumerate(cuts, 1):
        total += alive * (cut - begin)
        alive, begin = min(alive, at_least if number == len(cuts) else max(at_least, math.ceil(alive / 2))), cut
    return total + alive * (1.0 - begin)


def _choose_batch_size(num_rows: float) -> int:
    """Large ones where there is time for many updates."""
    large, medium, small = BATCH_SIZES
    if num_rows >= MANY_UPDATES * large:
        return large
    return medium if num_rows >= ENOUGH_UPDATES * medium else small


def _within(affordable: float, available: int) -> int:
    return max(1, min(available, max(MIN_VALIDATION_ROWS, int(affordable))))
