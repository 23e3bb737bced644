"""A setting splits without overlap, fits every method alike, and knows when it is another."""

from __future__ import annotations

from dataclasses import replace

import pytest

from app.compare.setting import Setting, automatic_instructions
from app.errors import InvalidInput
from app.measure.dataset import Dataset, Example, split_examples
from app.task_prompt import PromptKind
from tests.support.comparison_setting import CONFIG, LABELS, toy_setting
from tests.support.models import tiny_backbone

DATA = Dataset("d.jsonl", tuple(Example(f"text {i}", LABELS[i % 2]) for i in range(400)))
OTHER = Dataset("o.jsonl", tuple(Example(f"other {i}", LABELS[i % 2]) for i in range(20)))


def test_one_file_is_split_in_three_and_validation_is_what_tune_would_take() -> None:
    setting = Setting.make(DATA, None, None, CONFIG)
    parts = (setting.plan.train, setting.plan.validation, setting.test)
    assert sorted(e.input for part in parts for e in part) == sorted(e.input for e in DATA.examples)
    assert len({e.input for part in parts for e in part}) == 400
    assert list(setting.plan.validation) == split_examples(DATA.examples)[1]
    assert 20 < len(setting.test) < 60


def test_a_file_given_is_used_whole() -> None:
    with_test = Setting.make(DATA, None, OTHER, CONFIG)
    assert with_test.test == OTHER.examples
    assert list(with_test.plan.validation) == split_examples(DATA.examples)[1]
    with_validation = Setting.make(DATA, OTHER, None, CONFIG)
    assert with_validation.plan.validation == OTHER.examples
    assert list(with_validation.test) == split_examples(DATA.examples)[1]


def test_labels_of_the_test_split_must_be_known() -> None:
    strange = Dataset("s.jsonl", (Example("x", "perhaps"),))
    with pytest.raises(InvalidInput, match=r"s\.jsonl, example 1: the target is none of"):
        Setting.make(DATA, None, strange, CONFIG, labels=LABELS)


def test_a_fitted_setting_leaves_room_for_text_target_and_prompt() -> None:
    backbone = tiny_backbone()
    setting = toy_setting().fitted(backbone)
    config = setting.plan.config
    assert config.max_target_tokens == len(" yes") + 1
    assert config.max_input_tokens == 256
    assert setting.max_prompt_tokens(backbone) + config.max_input_tokens + config.max_target_tokens == 512


def test_two_seeds_share_no_member_of_a_population() -> None:
    setting = toy_setting()
    first, second = (
        {m.seed for m in plan.search.members(plan.config)}
        for plan in (setting.prompt_plan(PromptKind.KV, 0), setting.prompt_plan(PromptKind.KV, 1))
    )
    assert not first & second


def test_what_changes_a_result_changes_the_digest() -> None:
    setting = toy_setting()
    others = [toy_setting(max_steps=5), replace(setting, lora_rank=2), replace(setting, test=setting.test[:5])]
    assert setting.digest("a") == toy_setting().digest("a")
    assert len({setting.digest("a"), setting.digest("b"), *(other.digest("a") for other in others)}) == 5


def test_instructions_are_made_of_the_labels_unless_given() -> None:
    assert all("no" in text and "yes" in text for text in automatic_instructions(LABELS))
    assert Setting.make(DATA, None, None, CONFIG, instructions=("x",)).instructions == ("x",)
    assert automatic_instructions(())
