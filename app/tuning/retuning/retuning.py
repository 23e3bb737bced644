"""From a planned move to what is published: the new version's plan, and what is said about its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from app.model.backbone import Backbone
from app.registry.formats.binding import bind_text
from app.registry.publication import Publication
from app.task_prompt import TaskPrompt
from app.tuning.candidates import fit_to_device
from app.tuning.config import TuneConfig
from app.tuning.distillation import plan_student
from app.tuning.plan import TuningPlan
from app.tuning.result import TuneResult
from app.tuning.retuning.answers import OldAnswers
from app.tuning.retuning.move import Material, Move
from app.tuning.retuning.side_by_side import SideBySide
from app.tuning.search import Search

OF_A_TOKENIZER: Final = ("max_tokens", "min_tokens", "logit_bias", "stop_token_ids")
"""Sampling defaults that another backbone's tokenizer gives another meaning."""


def plan_new(
    backbone: Backbone, move: Move, material: Material, answers: OldAnswers | None, config: TuneConfig, **tried: Any
) -> TuningPlan:
    """What the new version learns, with the old one's template and labels.

    Args:
        backbone: the new one.
        answers: of the old version; needed if it teaches.
        tried: values to try instead of the default ones, by hyperparameter.

    Raises InvalidInput.
    """
    if move.has_teacher:
        assert answers is not None
        asked = replace(answers.plan, config=config, search=Search())
        plan = plan_student(backbone, asked, answers.learned, answers.measured)
    else:
        plan = TuningPlan(
            material.train, material.held_out, move.template, move.origin.labels, config=config, search=Search()
        )
    return fit_to_device(plan, backbone, has_template=True, **tried)


@dataclass(frozen=True, eq=False)
class Retuned:
    """A new version as it is to be published. Attributes: side_by_side: with the old one; None if nothing was asked."""

    publication: Publication
    side_by_side: SideBySide | None
    stop_reason: str


def rebind(backbone: Backbone, move: Move, old: TaskPrompt) -> Retuned:
    """A written prompt as the new backbone's tokenizer reads it; nothing is learned. Raises InvalidInput."""
    prompt = bind_text(old.text or "", backbone)
    publication = Publication(prompt, template=move.origin.template, labels=move.origin.labels)
    return Retuned(_described(publication, move), None, "finished")


def describe(move: Move, material: Material, answers: OldAnswers | None, result: TuneResult) -> Retuned:
    """The best result, with how it compares with the old version instead of figures against the old one's answers."""
    held_out = [example.input for example in result.plan.validation]
    side_by_side = SideBySide.make(
        dict(zip(held_out, result.validation.predictions, strict=True)),
        {} if answers is None else answers.input_to_answer,
        move.input_to_target,
        move.origin.labels,
    )
    publication = result.publication()
    figures = {} if move.has_teacher else publication.metrics
    figures = {**figures, **side_by_side.figures, "validation_num_examples": float(len(held_out))}
    kept = {name: value for name, value in publication.provenance.items() if name != "distillation"}
    publication = replace(publication, metrics=figures, provenance=kept, examples=material.kept)
    return Retuned(_described(publication, move), side_by_side, result.stop_reason)


def _described(publication: Publication, move: Move) -> Publication:
    """With what does not depend on the backbone, and where it is from."""
    origin = move.origin
    sampling: Mapping[str, Any] = {name: value for name, value in origin.sampling.items() if name not in OF_A_TOKENIZER}
    source = {"retuned_from": origin.id, "retuned_from_backbone": origin.backbone_name}
    return replace(
        publication,
        sampling={**publication.sampling, **sampling},
        description=origin.description,
        provenance={**publication.provenance, **source},
    )
