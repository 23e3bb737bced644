"""The drawing is one SVG that needs nothing else, whatever the prompt."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ElementTree

import pytest
import torch

from app.errors import InvalidInput
from app.insight.plot import draw_report
from app.insight.report import Effect, PromptReport, TokenEffects, view_prompt
from app.insight.similarity import compare_prompts
from app.task_prompt import PromptKind, TaskPrompt
from tests.support.models import tiny_backbone
from tests.support.prompts import random_prompt, random_rows


def report_of(prompt: TaskPrompt, *, is_full: bool = True) -> PromptReport:
    backbone = tiny_backbone()
    if not is_full:
        return PromptReport("task@1", view_prompt(backbone, prompt))
    change = Effect(0.1, None)
    effects = TokenEffects(3, "a" * 64, Effect(1.0, None), (change,) * prompt.num_virtual_tokens, ())
    view = view_prompt(backbone, prompt, initial=prompt.rows + 1)
    return PromptReport("task@1", view, compare_prompts(prompt, prompt, "task@2"), effects)


@pytest.mark.parametrize("kind", [PromptKind.EMBEDDINGS, PromptKind.KV])
@pytest.mark.parametrize(("num", "is_full"), [(1, True), (2, False), (20, True), (150, True)])
def test_any_prompt_can_be_drawn(kind: PromptKind, num: int, is_full: bool) -> None:
    drawn = draw_report(report_of(random_prompt(tiny_backbone(), num, kind=kind), is_full=is_full))
    root = ElementTree.fromstring(drawn)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert len(drawn) < 2_000_000


def test_the_drawing_fetches_nothing_and_runs_nothing() -> None:
    drawn = draw_report(report_of(random_prompt(tiny_backbone(), 80)))
    links = re.findall(r'(?:href|src)="([^"]*)"', drawn)
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)
    assert "<script" not in drawn
    assert "<foreignObject" not in drawn


def test_tokens_that_mean_something_to_xml_or_to_a_formula_are_letters() -> None:
    """Rows that are the tokens `$`, `<`, `&`, `_`, `^`, `\\` and a half of a character."""
    token_ids = [*tiny_backbone().tokenizer("$<&_^\\$é", add_special_tokens=False)["input_ids"], 2]
    rows = tiny_backbone().embed(torch.tensor(token_ids))
    ElementTree.fromstring(draw_report(report_of(TaskPrompt.from_embeddings(rows, tiny_backbone().fingerprint))))


def test_rows_of_no_length_can_be_drawn() -> None:
    rows = torch.zeros_like(random_rows(tiny_backbone(), 3))
    ElementTree.fromstring(draw_report(report_of(TaskPrompt.from_embeddings(rows, tiny_backbone().fingerprint))))


def test_without_matplotlib_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    report = report_of(random_prompt(tiny_backbone(), 2), is_full=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InvalidInput, match=r"pip install 'softswap\[plot\]'"):
        draw_report(report)
