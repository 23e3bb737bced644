"""From a planned move to what is published: the new version's plan, and what is said about its result."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, replace
from typing import Any

from app.errors import SoftswapError
from app.measure.reading.columns import Columns
from app.model.backbone import Backbone
from app.model.layout import INPUT, TARGET, Template
from app.registry.formats.binding import bind_text
from app.registry.publication import Publication
from app.task_prompt import TaskPrompt
from app.tuning.candidates import fit_to_device
from app.tuning.config import TuneConfig
from app.tuning.distillation import plan_student
from app.tuning.plan import TuningPlan
from app.tuning.result import TuneResult
from app.tuning.retuning.answers import COMPARING_SHARE, VersionAnswers, ask_new
from app.tuning.retuning.move import Material, Move
from app.tuning.retuning.side_by_side import SideBySide
from app.tuning.search import Search
from app.tuning.templates import WrittenPrompt

logger = logging.getLogger(__name__)


def plan_new(
    backbone: Backbone, move: Move, material: Material, answers: VersionAnswers | None, config: TuneConfig, **tried: Any
) -> TuningPlan:
    """What the new version learns, with the old one's labels.

    With a budget it chooses among the old version's template and those that suit the new backbone: the form of a
    conversation that one model knows is noise to another.

    Args:
        backbone: the new one.
        answers: of the old version; needed if it teaches.
        tried: values to try instead of the default ones, by hyperparameter.

    Raises InvalidInput.
    """
    template = replace(move.template, max_input_tokens=0)  # a number of another tokenizer's tokens
    if move.has_teacher:
        assert answers is not None
        asked = replace(answers.plan, template=template, config=config, search=Search(), sampling=move.sampling)
        plan = plan_student(backbone, asked, answers.learned, answers.measured)
    else:
        plan = TuningPlan(
            material.train, material.held_out, template, move.origin.labels, config=config, search=Search()
        )
    plan = fit_to_device(replace(plan, columns=columns_of(template)), backbone, has_template=False, **tried)
    if plan.written:
        own = WrittenPrompt(plan.written[0].text, template)
        plan = replace(plan, written=(own, *(each for each in plan.written if each != own)))
    return plan if plan.labels else _with_room(plan, backbone)


def columns_of(template: Template) -> Columns:
    """What a template calls input and target, as in `Message: {input}`; else what they are called in any data."""
    place_to_name = {INPUT: "text", TARGET: "label"}
    for place in place_to_name:
        if found := re.search(rf"(?:^|\n)([^\n:{{}}]{{1,40}}): *{re.escape(place)}", template.text):
            place_to_name[place] = found[1]
    return Columns(place_to_name[INPUT], place_to_name[TARGET])


def _with_room(plan: TuningPlan, backbone: Backbone) -> TuningPlan:
    """For the longest target in any of its templates and no more: every text that is measured may take that long."""
    templates = [plan.template, *(written.template for written in plan.written)]
    targets = {example.target for example in (*plan.train, *plan.validation)}
    lengths = (len(each.encode_target(backbone.tokenizer, target)) for each in templates for target in targets)
    most = min(plan.config.max_target_tokens, max(lengths) + len(backbone.taught_eos_ids))
    return replace(plan, config=replace(plan.config, max_target_tokens=most))


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


def comparing_s(config: TuneConfig) -> float:
    """Seconds of a task's budget that the new version's answers to held-out inputs get."""
    return COMPARING_SHARE * config.budget_s


def describe(
    backbone: Backbone, move: Move, material: Material, answers: VersionAnswers | None, result: TuneResult
) -> Retuned:
    """The best result, with how it compares with the old version; figures against the old one's answers are none of it.

    What was tuned is not lost if it cannot be compared or Ctrl-C ends that.
    """
    stop_reason, side_by_side = result.stop_reason, None
    try:
        side_by_side = _compare(backbone, move, material, answers, result)
    except KeyboardInterrupt:
        stop_reason = "stopped"
    except (SoftswapError, RuntimeError, MemoryError) as error:
        logger.warning("the new version of %s is not compared with the old one: %s", move.task, error)
    publication = result.publication()
    compared = {} if side_by_side is None else side_by_side.figures
    figures = compared if move.has_teacher else {**compared, **publication.metrics}
    kept = {name: value for name, value in publication.provenance.items() if name != "distillation"}
    publication = replace(publication, metrics=figures, provenance=kept, examples=material.kept)
    return Retuned(_described(publication, move), side_by_side, stop_reason)


def _compare(
    backbone: Backbone, move: Move, material: Material, answers: VersionAnswers | None, result: TuneResult
) -> SideBySide:
    """Asks the new version for the inputs that the old one was asked, or for all held out."""
    old = {} if answers is None else answers.input_to_answer
    inputs = [example.input for example in material.held_out if example.input in old or not old]
    new = ask_new(backbone, result.prompt, result.plan.template, move, inputs, result.plan.config)
    return SideBySide.make(new.input_to_answer, old, move.input_to_target, move.origin.labels)


def _described(publication: Publication, move: Move) -> Publication:
    """With what does not depend on the backbone, and where it is from."""
    origin = move.origin
    source = {"retuned_from": origin.id, "retuned_from_backbone": origin.backbone_name}
    return replace(
        publication,
        sampling={**publication.sampling, **move.sampling},
        description=origin.description,
        provenance={**publication.provenance, **source},
    )
