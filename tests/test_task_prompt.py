"""Tests of what a task prompt's values may be."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from app.errors import InvalidInput
from app.task_prompt import PromptKind, TaskPrompt, is_finite

ROWS = torch.tensor([[1.0, -2.0], [65_504.0, 0.0]])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", range(4))
def test_a_value_that_is_no_number_is_refused_wherever_it_stands(value: float, place: int) -> None:
    rows = ROWS.clone()
    rows.view(-1)[place] = value
    assert not is_finite(rows)
    with pytest.raises(InvalidInput, match="finite"):
        TaskPrompt.from_embeddings(rows, "backbone")


@pytest.mark.parametrize("sign", [1, -1])
def test_what_overflows_depends_on_the_dtype(sign: int) -> None:
    assert is_finite(sign * ROWS, torch.float16)
    assert not is_finite(sign * (ROWS + 16), torch.float16)
    assert is_finite(sign * (ROWS + 16), torch.bfloat16)
    assert not is_finite(torch.full((1, 1), sign * 3.4e38), torch.bfloat16)


def test_a_look_for_what_is_no_number_copies_nothing() -> None:
    """Copies of a prompt's size, freed between what is kept, left holes that malloc could not use again."""
    rows = torch.ones(50, 576)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        assert is_finite(rows, torch.bfloat16)
    assert max(event.self_cpu_memory_usage for event in seen.key_averages()) < rows.numel()


def test_values_are_a_copy_in_float32_and_in_order() -> None:
    rows = torch.arange(6, dtype=torch.float64).view(2, 3).T
    prompt = TaskPrompt.from_embeddings(rows, "backbone")
    rows += 1
    assert prompt.rows is not None
    assert prompt.rows.is_contiguous()
    assert prompt.rows.tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]


@pytest.mark.parametrize("kind", [PromptKind.EMBEDDINGS, PromptKind.KV])
def test_a_rounded_prompt_is_another_one_of_values_that_the_dtype_holds(kind: PromptKind) -> None:
    prompt = TaskPrompt.from_rows(kind, torch.randn(3, 8, generator=torch.Generator().manual_seed(0)), "f" * 64)
    rounded = prompt.rounded(torch.bfloat16)
    assert rounded.rows is not None
    assert prompt.rows is not None
    assert torch.equal(rounded.rows, prompt.rows.bfloat16().float())
    assert (rounded.kind, rounded.backbone_fingerprint) == (kind, prompt.backbone_fingerprint)
    assert rounded.digest != prompt.digest
    assert rounded.rounded(torch.bfloat16).digest == rounded.digest == rounded.rounded(torch.float32).digest


def test_what_cannot_be_rounded_is_refused_and_a_text_stays_what_it_is() -> None:
    with pytest.raises(InvalidInput, match="finite"):
        TaskPrompt.from_embeddings(torch.full((1, 4), 1e5), "f" * 64).rounded(torch.float16)
    text = TaskPrompt.from_text("Be kind.", [0, 5], "f" * 64)
    assert text.rounded(torch.bfloat16) is text
