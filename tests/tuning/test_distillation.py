"""A few virtual tokens learn to decide as a long written prompt does, and the report says what that saves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from app.engine.threads.device_lease import run_to_end
from app.errors import InvalidInput
from app.measure.dataset import Example
from app.measure.encoding import EncodedExample
from app.measure.plain_model import PlainModel, evaluate
from app.measure.served_prompt import ServedPrompt
from app.model.layout import Template
from app.model.prompted_forward import PromptPrefix
from app.task_prompt import TaskPrompt
from app.tuning.config import TuneConfig
from app.tuning.distillation import (
    MIN_ANSWERS,
    DistillationPlan,
    TeacherAnswers,
    Teaching,
    plan_student,
    teach_in_slices,
)
from app.tuning.result import DistillationReport, TuneResult
from app.tuning.run.objective import DistillationObjective, choose_objective
from app.tuning.run.rows import Chunk
from app.tuning.run.run import tune_task
from app.tuning.search import Search
from tests.support.models import tiny_backbone

TEMPLATE = Template("{input}\nA: {target}")
LABELS = ("no", "yes")
INPUTS = [f"{a}{b}{c}" for a in "abcd" for b in "efg" for c in "hijkl"]
WRITTEN = "Say yes or no. zz is yes, qq is no. " * 3
CONFIG = TuneConfig(num_virtual_tokens=4, max_steps=60, batch_size=16, eval_every=20, max_target_tokens=6)
SEARCH = Search({"learning_rate": (0.1,), "seed": (0, 1)})


def teacher() -> TaskPrompt:
    backbone = tiny_backbone()
    return TaskPrompt.from_text(WRITTEN, backbone.tokenizer(WRITTEN)["input_ids"], backbone.fingerprint)


def plan(
    labels: tuple[str, ...], config: TuneConfig = CONFIG, search: Search = SEARCH, template: Template = TEMPLATE
) -> DistillationPlan:
    asked = {"template": template, "labels": labels, "config": config, "search": search}
    return DistillationPlan.make(INPUTS, teacher=teacher(), **asked)


def teach(labels: tuple[str, ...]) -> TeacherAnswers:
    return run_to_end(teach_in_slices(PlainModel(tiny_backbone()), plan(labels), INPUTS))


def distill(config: TuneConfig, search: Search, labels: tuple[str, ...]) -> TuneResult:
    return tune_task(tiny_backbone(), plan(labels, config, search))


@pytest.mark.parametrize("labels", [LABELS, ()])
def test_a_teacher_without_time_answers_a_few_inputs_of_both_parts(labels: tuple[str, ...]) -> None:
    """And says the same of them as one that has time."""
    hurried = plan(labels, replace(CONFIG, budget_s=60.0))
    teaching = Teaching(tiny_backbone(), hurried, None, ends_s=0.0, clock=lambda: 1.0)
    assert run_to_end(teaching.slices()) is None
    learned, held_out = teaching.answers()
    assert len(learned.examples) + len(held_out.examples) == teaching.num_answers == MIN_ANSWERS
    assert learned.examples
    assert held_out.examples
    assert {*learned.examples, *held_out.examples} <= set(teach(labels).examples)


def test_the_answers_are_those_of_the_teacher_when_it_is_served() -> None:
    answers = teach(LABELS)
    examples = [Example(text, "no") for text in INPUTS]
    served = evaluate(tiny_backbone(), ServedPrompt(teacher(), TEMPLATE, LABELS), examples)
    assert tuple(example.target for example in answers.examples) == served.predictions
    assert [example.input for example in answers.examples] == INPUTS
    written = evaluate(tiny_backbone(), ServedPrompt(teacher(), TEMPLATE, (), max_new_tokens=6), examples)
    assert tuple(example.target for example in teach(()).examples) == written.predictions


def test_the_loss_is_the_divergence_of_the_labels_and_nothing_if_student_and_teacher_are_one() -> None:
    """The teacher's own prefix as the student: its text follows a BOS, so it is taught with the same one."""
    backbone, answers = tiny_backbone(), teach(LABELS)
    student_plan = plan_student(backbone, plan(LABELS), answers, answers)
    ids = tuple(TEMPLATE.encode_input(backbone.tokenizer, INPUTS[0]))
    target = tuple(TEMPLATE.encode_target(backbone.tokenizer, "no"))
    chunk = Chunk([EncodedExample(ids, (*target, backbone.tokenizer.eos_token_id))], [(0, 0)])
    prompts = torch.randn(2, 4, backbone.hidden_size, generator=torch.Generator().manual_seed(0)) * 0.2
    student, other = (PromptPrefix.of_embeddings(backbone, prompts[i : i + 1]) for i in (0, 1))
    judge = choose_objective(backbone, student_plan, [_row((i,)) for i in range(len(student_plan.train))])
    assert isinstance(judge, DistillationObjective)
    own = judge.label_scores(student, chunk).detach()[0]
    student_plan = replace(student_plan, config=replace(CONFIG, token_weight=0.5))
    objective = DistillationObjective(backbone, student_plan, {ids: own})
    assert float(objective.loss_per_row(student, chunk)) == pytest.approx(0.0, abs=1e-5)
    found = judge.label_scores(other, chunk).detach()[0].double()
    p, q = own.double().softmax(0), found.softmax(0)
    mass, its_mass = (float(each.double().logsumexp(0).exp()) for each in (own, found))
    pairs = [(mass, its_mass), (1 - mass, 1 - its_mass)]
    expected = float((p * (p / q).log()).sum()) + 0.5 * sum(a * float(torch.tensor(a / b).log()) for a, b in pairs)
    assert float(objective.loss_per_row(other, chunk)) == pytest.approx(expected, rel=1e-3)


def _row(ids: tuple[int, ...]) -> EncodedExample:

    return EncodedExample(ids, ())


def test_the_student_comes_to_agree_with_the_teacher() -> None:
    backbone = tiny_backbone()
    result = distill(CONFIG, SEARCH, LABELS)
    report = result.distillation
    assert report is not None
    start = next(event.value for event in result.history if event.step == 0)
    assert report.agreement >= max(start, 0.8)
    assert report.num_teacher_tokens == len(backbone.tokenizer(WRITTEN)["input_ids"])
    assert report.num_tokens_saved == report.num_teacher_tokens - 4
    assert report.num_requests_to_break_even is not None
    assert (report.num_requests_to_break_even - 1) * report.num_tokens_saved < report.num_tuning_tokens
    assert report.num_requests_to_break_even * report.num_tokens_saved >= report.num_tuning_tokens


def test_a_task_that_writes_is_distilled_from_what_the_teacher_writes() -> None:
    config = TuneConfig(num_virtual_tokens=4, max_steps=20, batch_size=16, max_target_tokens=6, learning_rate=0.1)
    result = distill(config, Search(), ())
    losses = [event.value for event in result.history]
    assert min(losses) < 0.9 * losses[0]
    assert result.distillation is not None
    assert 0.0 <= result.distillation.agreement <= 1.0


def test_a_prompt_no_longer_than_the_student_never_breaks_even() -> None:
    report = DistillationReport(1.0, 0.9, 1.0, 4, 4, 100)
    assert report.num_requests_to_break_even is None


def test_a_teacher_that_says_nothing_is_refused() -> None:
    silent = TeacherAnswers((Example("a", ""), Example("b", "")))
    with pytest.raises(InvalidInput, match="empty"):
        plan_student(tiny_backbone(), plan(()), silent, silent)


def test_answers_that_were_cut_off_are_left_out() -> None:
    """With its end an answer may have six tokens: five letters, and not six."""
    mixed = TeacherAnswers((Example("a", "fives"), Example("b", "sixsix"), Example("c", "four")))
    kept = plan_student(tiny_backbone(), plan((), template=Template("{input}{target}")), mixed, mixed)
    assert [example.input for example in kept.train] == ["a", "c"]
