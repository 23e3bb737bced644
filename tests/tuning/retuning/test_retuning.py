from __future__ import annotations

import pytest

from app.measure.reading.columns import Columns
from app.model.layout import BARE, Template
from app.tuning.config import TuneConfig
from app.tuning.retuning.move import Material, Move
from app.tuning.retuning.retuning import columns_of, plan_new
from tests.support.models import tiny_backbone
from tests.tuning.retuning.conftest import ROWS, make_version


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("Message: {input}\nCategory: {target}", ("Message", "Category")),
        ("{input}\nHeadline: {target}", ("text", "Headline")),
        ("{input}\n{target}", ("text", "label")),
        ("<|user|>\nReview: {input}<|end|>\n<|assistant|>\n{target}", ("Review", "label")),
        ("A note: read it. {input} {target}", ("text", "label")),
    ],
)
def test_what_a_template_calls_its_places_are_the_columns_names(text: str, columns: tuple[str, str]) -> None:
    assert columns_of(Template(text)) == Columns(*columns)


def test_with_a_budget_the_old_template_is_one_of_several_and_the_new_backbones_form_another() -> None:
    backbone = tiny_backbone()
    template = Template("Message: {input}\nLiked: {target}", max_input_tokens=9)
    move = Move(make_version(template), Material(ROWS[:80], ROWS[80:], has_answers=True))
    plan = plan_new(backbone, move, move.material, None, TuneConfig(budget_s=60.0))
    templates = [written.template.text for written in plan.written]
    assert templates[0] == template.text
    assert len(set(templates)) == len(templates) == 3
    assert "user: " in plan.written[-1].text
    assert plan.written[0].text == "Classify the message as no or yes.\n\n"
    assert all(written.template.max_input_tokens == 0 for written in plan.written)
    fixed = plan_new(backbone, move, move.material, None, TuneConfig(max_steps=2))
    assert (fixed.template.text, fixed.written) == (template.text, ())


@pytest.mark.parametrize("config", [TuneConfig(budget_s=60.0), TuneConfig(max_steps=2)])
def test_of_a_task_that_writes_there_is_room_for_the_longest_target_and_no_more(config: TuneConfig) -> None:
    backbone = tiny_backbone()
    version = make_version(Template("{input}\nLiked: {target}"), labels=())
    move = Move(version, Material(ROWS[:80], ROWS[80:], has_answers=True))
    assert plan_new(backbone, move, move.material, None, config).config.max_target_tokens == len(" yes") + 1
    bare = Move(make_version(BARE, labels=()), move.material)
    templates = 4 if config.budget_s else 0  # of which some write a blank before the target
    plan = plan_new(backbone, bare, bare.material, None, config)
    assert len(plan.written) == templates
    assert plan.config.max_target_tokens == len("yes") + 1 + bool(templates)


def test_labels_need_no_room_of_their_own() -> None:
    move = Move(make_version(Template("{input}\nLiked: {target}")), Material(ROWS[:80], ROWS[80:], has_answers=True))
    assert plan_new(tiny_backbone(), move, move.material, None, TuneConfig(max_steps=2)).config.max_target_tokens == 128
