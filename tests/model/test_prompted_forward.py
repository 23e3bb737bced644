"""A prompt computed once for all rows is the same as a prompt written before every row, gradients included."""

from __future__ import annotations

import pytest
import torch

from app.errors import BackboneMismatch
from app.measure.dataset import Example
from app.measure.encoding import EncodedExample, collate, encode_examples
from app.model.backbone import Backbone
from app.model.layout import Template
from app.model.prompted_forward import PromptPrefix, target_log_likelihoods
from app.task_prompt import TaskPrompt
from tests.support.models import ARCHITECTURE_TO_CONFIG, tiny_backbone

TEMPLATE = Template("{input}\nA: {target}")
EXAMPLES = [
    Example("hello world, a text longer than the window", "yes"),
    Example("a", "yesterday"),
    Example("b c", "no"),
]


def encode(backbone: Backbone) -> list[EncodedExample]:
    return encode_examples(backbone, TEMPLATE, EXAMPLES, max_input_tokens=100, max_target_tokens=40)


def one_row(backbone: Backbone, prompt: torch.Tensor, row: EncodedExample) -> torch.Tensor:
    """The slow truth: [prompt][BOS][text][target][EOS] in one plain call, without cache, padding or neighbors."""
    token_ids = torch.tensor([*row.text_ids, *row.target_ids])
    embeds = torch.cat([prompt.to(backbone.dtype), backbone.embed(token_ids)])[None]
    log_probs = backbone.model(inputs_embeds=embeds).logits[0].float().log_softmax(dim=-1)
    first = len(prompt) + len(row.text_ids) - 1
    return torch.stack([log_probs[first + i, token_id] for i, token_id in enumerate(row.target_ids)])


@pytest.mark.parametrize("architecture", ARCHITECTURE_TO_CONFIG)
def test_a_population_in_one_forward_equals_each_row_alone(architecture: str) -> None:
    backbone = tiny_backbone(architecture)
    rows = encode(backbone)
    prompts = (
        torch.randn(2, 7, backbone.hidden_size, generator=torch.Generator().manual_seed(1)) * 0.2
    ).requires_grad_()
    index = [0, 1, 1]
    batch = collate(rows, backbone.device, index)
    together = target_log_likelihoods(backbone, PromptPrefix.of_embeddings(backbone, prompts), batch).sum(dim=1)
    alone = torch.stack([one_row(backbone, prompts[p], row).sum() for p, row in zip(index, rows, strict=True)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-5)
    (gradient,) = torch.autograd.grad(together.sum(), prompts)
    (expected,) = torch.autograd.grad(alone.sum(), prompts)
    torch.testing.assert_close(gradient, expected, atol=1e-4, rtol=1e-3)


def test_columns_outside_the_target_count_nothing() -> None:
    backbone = tiny_backbone()
    batch = collate(encode(backbone), backbone.device)
    log_likelihoods = target_log_likelihoods(backbone, PromptPrefix(), batch)
    assert bool((log_likelihoods[~batch.is_target] == 0).all())
    assert bool((log_likelihoods[batch.is_target] < 0).all())


def test_without_a_prompt_the_text_stands_alone() -> None:
    backbone = tiny_backbone()
    rows = encode(backbone)
    got = target_log_likelihoods(backbone, PromptPrefix.of_prompt(backbone, None), collate(rows, backbone.device))
    alone = [one_row(backbone, torch.empty(0, backbone.hidden_size), row).sum() for row in rows]
    torch.testing.assert_close(got.sum(dim=1), torch.stack(alone), atol=1e-4, rtol=1e-5)


def test_the_three_kinds_of_one_text_mean_the_same() -> None:
    backbone = tiny_backbone()
    token_ids = backbone.tokenizer("answer: ")["input_ids"]
    embedded = backbone.embed(torch.tensor(token_ids))
    keys_values = PromptPrefix.of_embeddings(backbone, embedded[None]).keys_values
    kv_rows = torch.stack([torch.stack([k[0], v[0]]) for k, v in keys_values])  # (layers, 2, heads, n, head_dim)
    kv_rows = kv_rows.permute(3, 0, 1, 2, 4).reshape(len(token_ids), -1)
    torch.testing.assert_close(PromptPrefix.of_embeddings(backbone, embedded[None]).kv_rows()[0], kv_rows)
    prompts = [
        TaskPrompt.from_text("answer: ", token_ids, backbone.fingerprint),
        TaskPrompt.from_embeddings(embedded, backbone.fingerprint),
        TaskPrompt.from_kv(kv_rows, backbone.fingerprint),
    ]
    batch = collate(encode(backbone), backbone.device)
    scores = [target_log_likelihoods(backbone, PromptPrefix.of_prompt(backbone, prompt), batch) for prompt in prompts]
    torch.testing.assert_close(scores[0], scores[1])
    torch.testing.assert_close(scores[0], scores[2])


def test_the_prompt_of_another_backbone_is_refused() -> None:
    prompt = TaskPrompt.from_embeddings(torch.zeros(3, 32), "0" * 64)
    with pytest.raises(BackboneMismatch):
        PromptPrefix.of_prompt(tiny_backbone(), prompt)
