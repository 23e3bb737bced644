"""What an old version answers on its own backbone: what the new one learns, and what it is compared with."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Final

from app.model.backbone import Backbone
from app.registry.registry import Registry
from app.tuning.config import TuneConfig
from app.tuning.distillation import DistillationPlan, TeacherAnswers, Teaching
from app.tuning.retuning.move import Material, Move
from app.tuning.search import Search

TEACHING_SHARE: Final = 0.35
"""Of a task's budget, for answers that are learned, at most."""
COMPARING_SHARE: Final = 0.1
"""Of a task's budget, for answers that are only compared with, at most."""
DEFAULT_ANSWER_TOKENS: Final = 128


@dataclass(frozen=True, eq=False)
class OldAnswers:
    """Attributes:
    plan: with the old prompt as the teacher.
    learned, measured: to the inputs to learn from, if the old version teaches, and to those held out.
    spent_s: what they took.
    """

    plan: DistillationPlan
    learned: TeacherAnswers
    measured: TeacherAnswers
    spent_s: float

    @property
    def input_to_answer(self) -> dict[str, str]:
        """Of inputs held out."""
        return {example.input: example.target for example in self.measured.examples}


def answer(backbone: Backbone, registry: Registry, move: Move, material: Material, config: TuneConfig) -> OldAnswers:
    """Args:
        backbone: that the old version was made for; alone on its device.
        registry: of that backbone.
        config: of the new version; with a budget, a share of it ends the answers.

    Raises what `Registry.prompt` raises; InvalidInput: the old prompt leaves no room for a text.
    """
    began_s = time.monotonic()
    config = config.with_budget(backbone.device.type)
    share = TEACHING_SHARE if move.has_teacher else COMPARING_SHARE
    plan = DistillationPlan(
        teacher=registry.prompt(move.origin),
        train=tuple(dict.fromkeys(example.input for example in material.train)) if move.has_teacher else (),
        validation=tuple(dict.fromkeys(example.input for example in material.held_out)),
        template=move.template,
        labels=move.origin.labels,
        config=replace(config, max_target_tokens=move.origin.sampling.get("max_tokens", DEFAULT_ANSWER_TOKENS)),
        search=Search(),
    )
    ends_s = began_s + share * config.budget_s if config.budget_s else None
    teaching = Teaching(backbone, plan, None, ends_s=ends_s)
    for _ in teaching.slices():
        pass
    learned, measured = teaching.answers()
    return OldAnswers(plan, learned, measured, time.monotonic() - began_s)
