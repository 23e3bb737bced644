"""What a version answers: the old one on its own backbone, to be learned and compared with, then the new one."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from app.model.backbone import Backbone
from app.model.layout import Template
from app.model.threads import by_load
from app.registry.registry import Registry
from app.task_prompt import TaskPrompt
from app.tuning.config import TuneConfig
from app.tuning.distillation import DistillationPlan, TeacherAnswers, Teaching
from app.tuning.retuning.move import Material, Move, mix
from app.tuning.search import Search

TEACHING_SHARE: Final = 0.35
"""Of a task's budget, for answers that are learned, at most."""
COMPARING_SHARE: Final = 0.1
"""Of a task's budget, for a version's answers that are only compared, at most."""
DEFAULT_ANSWER_TOKENS: Final = 128


@dataclass(frozen=True, eq=False)
class VersionAnswers:
    """Attributes:
    plan: with the version's prompt as the teacher.
    learned, measured: to the inputs to learn from, if the version teaches, and to those held out.
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


def ask_old(
    backbone: Backbone, registry: Registry, move: Move, material: Material, config: TuneConfig
) -> VersionAnswers:
    """Args:
        backbone: that the old version was made for; alone on its device.
        registry: of that backbone.
        config: of the new version; a share of its budget ends the answers.

    Raises what `Registry.prompt` raises; InvalidInput: the prompt leaves no room for a text.
    """
    config = config.with_budget(backbone.device.type)
    learned = [example.input for example in material.train] if move.has_teacher else []
    return _ask(
        backbone,
        registry.prompt(move.origin),
        move,
        move.template,
        replace(config, max_target_tokens=move.origin.sampling.get("max_tokens", DEFAULT_ANSWER_TOKENS)),
        sampling=move.origin.sampling,
        learned=learned,
        held_out=[example.input for example in material.held_out],
        allowed_s=(TEACHING_SHARE if learned else COMPARING_SHARE) * config.budget_s,
    )


def ask_new(
    backbone: Backbone, prompt: TaskPrompt, template: Template, move: Move, inputs: Sequence[str], config: TuneConfig
) -> VersionAnswers:
    """Args: inputs: held out. config: with the budget, if there is one. Raises InvalidInput: see `ask_old`."""
    return _ask(
        backbone,
        prompt,
        move,
        template,
        config,
        sampling=move.sampling,
        learned=(),
        held_out=inputs,
        allowed_s=COMPARING_SHARE * config.budget_s,
    )


def _ask(
    backbone: Backbone,
    prompt: TaskPrompt,
    move: Move,
    template: Template,
    config: TuneConfig,
    *,
    sampling: Mapping[str, Any],
    learned: Sequence[str],
    held_out: Sequence[str],
    allowed_s: float,
) -> VersionAnswers:
    """Args: allowed_s: after which the answers so far must do, if there is a budget."""
    began_s = time.monotonic()
    plan = DistillationPlan(
        teacher=prompt,
        train=tuple(mix(learned)),
        validation=tuple(mix(held_out)),
        template=template,
        labels=move.origin.labels,
        config=config,
        search=Search(),
        sampling=sampling,
    )
    teaching = Teaching(backbone, plan, None, ends_s=began_s + allowed_s if config.budget_s else None)
    for _ in by_load(teaching.slices()):
        pass
    return VersionAnswers(plan, *teaching.answers(), spent_s=time.monotonic() - began_s)
