"""A virtual token can be left out, and a prompt can be made of real tokens."""

from __future__ import annotations

import pytest
import torch

from app.insight.report import made_of_tokens, without_token
from app.task_prompt import PromptKind
from tests.support.models import tiny_backbone
from tests.support.prompts import random_prompt


@pytest.mark.parametrize("kind", [PromptKind.EMBEDDINGS, PromptKind.KV])
def test_a_virtual_token_is_left_out(kind: PromptKind) -> None:
    prompt = random_prompt(tiny_backbone(), 3, kind=kind)
    for index, kept in enumerate([[1, 2], [0, 2], [0, 1]]):
        shorter = without_token(prompt, index)
        assert shorter is not None
        assert shorter.kind is kind
        assert torch.equal(shorter.rows, prompt.rows[kept])
    assert without_token(random_prompt(tiny_backbone(), 1, kind=kind), 0) is None


def test_a_prompt_is_made_of_tokens() -> None:
    backbone = tiny_backbone()
    prompt = made_of_tokens(backbone, [70, 71, 70])
    assert torch.equal(prompt.rows, backbone.embed(torch.tensor([70, 71, 70])))
