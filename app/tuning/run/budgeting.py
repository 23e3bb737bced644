"""Budgeted: a run's plan, made to fit a budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from app.model.backbone import Backbone
from app.task_prompt import PromptKind
from app.tuning.budget import BudgetPlan, Costs, Limits, plan_within
from app.tuning.candidates import NUM_LARGE_PARAMETERS, default_candidates
from app.tuning.plan import TuningPlan
from app.tuning.run.events import TuningPlanned
from app.tuning.run.population import start_ids
from app.tuning.run.rows import RunRows, spread
from app.tuning.run.timetable import BudgetTimetable, Clock
from app.tuning.search import MAX_MEMBERS


def with_candidates(plan: TuningPlan, backbone: Backbone, init_text: str) -> TuningPlan:
    """The plan with all that may be tried.

    Args: init_text: the written prompt to start from, if there is one.

    Raises InvalidInput: more prompts are to be kept than that.
    """
    num_tokens = len(start_ids(backbone, PromptKind.KV, init_text)) if init_text else 0
    search = plan.search
    candidates = default_candidates(
        init_text,
        num_tokens,
        has_labels=bool(plan.labels),
        is_large=sum(each.numel() for each in backbone.model.parameters()) >= NUM_LARGE_PARAMETERS,
        rate_factor=search.rate_factor,
    )
    kinds = search.values.get("kind")
    candidates = tuple(each for each in candidates if not kinds or each["kind"] in kinds)
    at_most = max(1, MAX_MEMBERS // search.num_members)
    return replace(plan, search=replace(search, candidates=candidates[:at_most], is_open=False))


def _limits(plan: TuningPlan, rows: RunRows) -> Limits:
    config = plan.config
    return Limits(
        num_train=len(rows.train),
        num_validation=len(rows.validation),
        num_final=len(plan.validation),
        num_members=plan.search.num_members,
        min_members=plan.search.num_kept,
        max_steps=config.max_steps,
        num_epochs=config.num_epochs,
        batch_size=config.batch_size,
        max_cuts=plan.search.num_cuts,
    )


@dataclass(frozen=True)
class Budgeted:
    """Attributes: plan: what fits. costs: what it was made with."""

    plan: BudgetPlan
    costs: Costs

    @classmethod
    def plan_for(cls, plan: TuningPlan, rows: RunRows, costs: Costs, left_s: float) -> Budgeted:
        """Args: plan: with all candidates. left_s: seconds of the budget that are left."""
        return cls(plan_within(plan.config.budget_s, left_s, costs, _limits(plan, rows)), costs)

    def apply(self, plan: TuningPlan) -> TuningPlan:
        """With the members that fit."""
        search = plan.search.first(self.plan.num_members, self.plan.num_cuts)
        return replace(plan, config=replace(plan.config, batch_size=self.plan.batch_size), search=search)

    def apply_to_rows(self, rows: RunRows) -> RunRows:
        """With the validation rows that fit."""
        return replace(rows, validation=spread(rows.validation, self.plan.num_validation))

    def timetable(self, plan: TuningPlan, rows: RunRows, *, ends_s: float, clock: Clock) -> BudgetTimetable:
        """Args: plan: as `apply` gave it. ends_s: by `clock`, when the budget is spent."""
        return BudgetTimetable(
            self.plan,
            self.costs,
            budget_s=plan.config.budget_s,
            ends_s=ends_s,
            max_steps=_limits(plan, rows).most_steps(self.plan.batch_size),
            num_kept=plan.search.num_kept,
            clock=clock,
        )

    def as_event(self, left_s: float) -> TuningPlanned:
        plan = self.plan
        update_s = plan.batch_size * self.costs.learn_s
        return TuningPlanned(
            plan.num_members, plan.batch_size, plan.num_steps, plan.num_validation, plan.num_final, update_s, left_s
        )

    def record(self) -> dict[str, Any]:
        return {"plan": asdict(self.plan), "costs": asdict(self.costs)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Budgeted:
        return cls(BudgetPlan(**record["plan"]), Costs(**record["costs"]))
