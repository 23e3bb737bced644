"""What makes values a prompt of one backbone."""

from __future__ import annotations

import pytest
import torch

from app.errors import BackboneMismatch, InvalidInput
from app.model.backbone import Backbone
from app.model.layout import encode_text
from app.registry.formats.binding import MAX_TEXT_CHARS, bind_rows, bind_text, norm_warnings, require_fit
from app.task_prompt import PromptKind, TaskPrompt
from tests.support.models import tiny_backbone
from tests.support.prompts import random_prompt, random_rows


@pytest.fixture
def backbone() -> Backbone:
    return tiny_backbone()


@pytest.mark.parametrize("kind", [PromptKind.EMBEDDINGS, PromptKind.KV])
def test_rows_of_the_right_width_are_bound_to_the_backbone(backbone: Backbone, kind: PromptKind) -> None:
    rows = random_rows(backbone, 7, kind=kind)
    prompt = bind_rows(rows.double(), kind, backbone)
    assert (prompt.kind, prompt.num_virtual_tokens) == (kind, 7)
    assert prompt.backbone_fingerprint == backbone.fingerprint
    assert torch.equal(prompt.rows, rows)


@pytest.mark.parametrize("shape", [(3, 31), (3, 33), (32,), (1, 3, 32), (0, 32), (512, 32), (1025, 32)])
def test_rows_of_another_shape_are_refused(backbone: Backbone, shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInput):
        bind_rows(torch.zeros(shape), PromptKind.EMBEDDINGS, backbone)


def test_rows_that_are_not_floats_are_refused(backbone: Backbone) -> None:
    with pytest.raises(InvalidInput):
        bind_rows(torch.zeros(3, 32, dtype=torch.int64), PromptKind.EMBEDDINGS, backbone)


def test_a_text_is_encoded_as_the_backbone_reads_it(backbone: Backbone) -> None:
    prompt = bind_text("Is this kind?", backbone)
    assert prompt.text == "Is this kind?"
    assert list(prompt.token_ids) == encode_text(backbone.tokenizer, "Is this kind?")
    require_fit(prompt, backbone)


@pytest.mark.parametrize("text", ["", " \n", "\ud800", "a\udfffb", "a" * 600, "a" * (MAX_TEXT_CHARS + 1)])
def test_a_text_that_cannot_be_a_prompt_is_refused(backbone: Backbone, text: str) -> None:
    with pytest.raises(InvalidInput):
        bind_text(text, backbone)


def test_a_prompt_of_another_backbone_is_refused_whatever_its_kind(backbone: Backbone) -> None:
    other = tiny_backbone("qwen2")
    for prompt in (random_prompt(other), random_prompt(other, kind=PromptKind.KV), bind_text("Kind?", other)):
        with pytest.raises(BackboneMismatch):
            require_fit(prompt, backbone)


def test_a_text_the_tokenizer_reads_differently_is_refused(backbone: Backbone) -> None:
    with pytest.raises(BackboneMismatch, match="publish it again"):
        require_fit(TaskPrompt.from_text("Kind?", [5, 6, 7], backbone.fingerprint), backbone)


def test_norms_far_from_the_vocabularys_are_warned_of_and_not_refused(backbone: Backbone) -> None:
    ordinary = backbone.embed(torch.arange(5, 10))
    prompt = bind_rows(ordinary, PromptKind.EMBEDDINGS, backbone)
    assert norm_warnings(prompt, backbone) == []
    loud = bind_rows(ordinary * 1_000, PromptKind.EMBEDDINGS, backbone)
    assert "5 of 5 rows" in norm_warnings(loud, backbone)[0]
    assert norm_warnings(random_prompt(backbone, kind=PromptKind.KV), backbone) == []
