"""Timetable: how many updates a run makes, when it measures, when it drops prompts, and when it ends.

By number (Timetable) or within a budget of time (BudgetTimetable). All that a run decides is a function of
`step / num_steps`; a budget lowers or raises `num_steps` after every update, by what the last ones took. So a busy
machine makes fewer updates, under the same schedule of learning rates, and does not end later.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from app.tuning.budget import BudgetPlan, Costs, mean_alive
from app.tuning.config import TuneConfig
from app.tuning.search import Search

Clock = Callable[[], float]
SMOOTHING: Final = 0.3
"""Weight of the last update in what an update is expected to take."""
MAX_SLOWDOWN: Final = 20.0
MAX_RESERVE_SHARE: Final = 0.25
PATIENT_SHARE: Final = 0.7
"""Of the updates, before which a run with a budget does not end for want of progress: rates are still high."""
LATE_SHARE: Final = 0.03
"""Of the budget: an update that is not done by then is given up."""


class Timetable:
    """By number: the updates that the plan asks for, at whatever time they are done.

    Attributes:
        num_steps: updates of the whole run, as far as is known now.
        reason_at_end: why a run ends after the last of them.
    """

    def __init__(self, config: TuneConfig, search: Search, num_examples: int) -> None:
        self.num_steps = config.num_steps(num_examples)
        self._every = config.num_steps_between_evals(self.num_steps)
        self._search = search
        self._update_s: float | None = None

    @property
    def reason_at_end(self) -> str:
        return "finished"

    def is_time_to_measure(self, step: int) -> bool:
        """After update `step`, apart from cuts."""
        return step % self._every == 0 or step == self.num_steps

    def is_time_to_cut(self, step: int) -> bool:
        """Whether the worse half is dropped after update `step`."""
        return self._search.is_cut_at(step, self.num_steps)

    def is_last_cut(self) -> bool:
        """Whether the next cut leaves none but the best."""
        return False

    def is_settled(self, step: int) -> bool:
        """Whether no cut is to come, and want of progress may end the run."""
        return self._search.is_settled_at(step, self.num_steps)

    def is_late(self) -> bool:
        """Whether even an update that has begun must be given up."""
        return False

    def seconds_left(self, step: int) -> float | None:
        """Until the run's end; None if nothing is known yet."""
        return None if self._update_s is None else self._update_s * (self.num_steps - step)

    def note_update(self, step: int, *, took_s: float, size: float, num_alive: int) -> None:
        """Update `step` is done. Args: size: its rows, in rows of the mean length. num_alive: prompts from now on."""
        self._update_s = took_s if self._update_s is None else _smoothed(self._update_s, took_s)

    def note_measurement(self, *, took_s: float, num_alive: int) -> None:
        """All prompts alive were measured, after an update."""

    def note_cuts(self, step: int) -> None:
        """The cuts that were due after update `step` are made."""

    def record(self) -> dict[str, Any]:
        """What a saved run keeps of it, in JSON's types."""
        return {}

    def restore(self, record: Mapping[str, Any]) -> None:
        """Take over what was saved."""


class BudgetTimetable(Timetable):
    """As many updates as fit before `ends_s`.

    Args:
        plan: made with `costs`.
        budget_s: of the whole run.
        ends_s: by `clock`: when the result must be there.
        max_steps: updates at most, whatever the time.
        num_kept: prompts that no cut drops.
    """

    def __init__(
        self,
        plan: BudgetPlan,
        costs: Costs,
        *,
        budget_s: float,
        ends_s: float,
        max_steps: int,
        num_kept: int,
        clock: Clock,
    ) -> None:
        self.plan = plan
        self._budget_s = budget_s
        self.num_steps = plan.num_steps
        self._costs = costs
        self._ends_s = ends_s
        self._max_steps = max_steps
        self._num_kept = num_kept
        self._clock = clock
        self._learn_s = costs.learn_s
        self._judge_s = costs.judge_s
        self._num_measured = 0
        self._num_cuts = 0
        self._num_alive: int | None = None

    def is_time_to_measure(self, step: int) -> bool:
        return self._has_come(step, (self._num_measured + 1) / self.plan.num_measurements) or step >= self.num_steps

    def is_time_to_cut(self, step: int) -> bool:
        return self._num_cuts < self.plan.num_cuts and self._has_come(step, self.plan.cuts[self._num_cuts])

    def is_settled(self, step: int) -> bool:
        return self._num_cuts >= self.plan.num_cuts and self._has_come(step, PATIENT_SHARE)

    def is_last_cut(self) -> bool:
        return self._num_cuts == self.plan.num_cuts - 1

    def seconds_left(self, step: int) -> float | None:
        left_s = max(0.0, self._ends_s - self._clock())
        if self._num_alive is None or self.num_steps < self._max_steps:
            return left_s
        return min(left_s, self._rest_s(step, max(step, self.num_steps), self._num_alive) + self.reserve_s)

    @property
    def slowdown(self) -> float:
        """How many times as long as planned an update takes by now, at least 1."""
        return min(MAX_SLOWDOWN, max(1.0, self._learn_s / self._costs.learn_s, self._judge_s / self._costs.judge_s))

    @property
    def reserve_s(self) -> float:
        """What is kept for the end by now; of a machine that has become slow, fewer rows measure the result."""
        return max(self.plan.reserve_s, min(self.plan.reserve_s * self.slowdown, MAX_RESERVE_SHARE * self._budget_s))

    @property
    def left_to_learn_s(self) -> float:
        """Until what follows the last update must begin."""
        return self._ends_s - self.reserve_s - self._clock()

    def num_final(self) -> int:
        """Rows that the result can still be measured on."""
        left_s = max(0.0, self._ends_s - self._clock())
        share = min(1.0, left_s / (self.plan.reserve_s * self.slowdown))
        return max(1, math.ceil(self.plan.num_final * share))

    def is_late(self) -> bool:
        return self.left_to_learn_s < -LATE_SHARE * self._budget_s

    def note_update(self, step: int, *, took_s: float, size: float, num_alive: int) -> None:
        if size > 0:
            self._learn_s = _smoothed(self._learn_s, took_s / size)
        self._num_alive = num_alive
        self.num_steps = self._fit(step, num_alive)

    def note_measurement(self, *, took_s: float, num_alive: int) -> None:
        self._num_measured += 1
        self._judge_s = took_s / (self.plan.num_validation * max(1, num_alive))

    def note_cuts(self, step: int) -> None:
        while self.is_time_to_cut(step):
            self._num_cuts += 1

    @property
    def reason_at_end(self) -> str:
        return "finished" if self.num_steps >= self._max_steps else "budget"

    def record(self) -> dict[str, Any]:
        return {
            "num_steps": self.num_steps,
            "learn_s": self._learn_s,
            "judge_s": self._judge_s,
            "num_measured": self._num_measured,
            "num_cuts": self._num_cuts,
        }

    def restore(self, record: Mapping[str, Any]) -> None:
        self.num_steps = record["num_steps"]
        self._learn_s, self._judge_s = record["learn_s"], record["judge_s"]
        self._num_measured, self._num_cuts = record["num_measured"], record["num_cuts"]

    def _has_come(self, step: int, share: float) -> bool:
        return step >= math.ceil(share * self.num_steps)

    def _fit(self, step: int, num_alive: int) -> int:
        """The largest number of updates whose rest fits the time that is left; `step` if no other does."""
        left_s = self.left_to_learn_s
        low, high = step, max(step, self._max_steps)
        while low < high:
            middle = (low + high + 1) // 2
            if self._rest_s(step, middle, num_alive) <= left_s:
                low = middle
            else:
                high = middle - 1
        return low

    def _rest_s(self, step: int, num_steps: int, num_alive: int) -> float:
        """What is still to do if there are `num_steps` updates in all."""
        done = step / num_steps
        cuts = (
            tuple(max(0.0, (cut - done) / (1 - done)) for cut in self.plan.cuts[self._num_cuts :]) if done < 1 else ()
        )
        alive = mean_alive(num_alive, cuts, self._num_kept)
        updates_s = (num_steps - step) * self.plan.batch_size * self._learn_s
        num_measurements = max(1, self.plan.num_measurements * (1 - done))
        return alive * (updates_s + num_measurements * self.plan.num_validation * self._judge_s)


def _smoothed(before: float, now: float) -> float:
    return before + SMOOTHING * (now - before)
