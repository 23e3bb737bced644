"""The rows a prompt starts with."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from app.errors import BackboneMismatch, InvalidInput
from app.measure.encoding import EncodedExample
from app.model.backbone import Backbone
from app.model.layout import Template
from app.task_prompt import TaskPrompt
from app.tuning.config import Init, TuneConfig


def embedding_rms(backbone: Backbone) -> float:
    """Root mean square of the vocabulary's embeddings as they enter the model: the unit of learning rates."""
    sample = torch.arange(min(backbone.vocab_size, 20_000), device=backbone.device)
    with torch.no_grad():
        return float(backbone.embed(sample).float().square().mean().sqrt())


def kv_rms(backbone: Backbone, rows: torch.Tensor) -> torch.Tensor:
    """Root mean square of each layer's keys and of its values: their unit of learning rates.

    Args: rows: (num_virtual_tokens, kv_row_size).

    Returns: (kv_row_size,), equal over the numbers that belong together.
    """
    width = backbone.num_kv_heads * backbone.head_dim
    sizes = rows.unflatten(1, (-1, width)).square().mean(dim=(0, 2)).sqrt()
    return sizes.clamp(min=1e-6).repeat_interleave(width)


def initial_rows(
    backbone: Backbone,
    config: TuneConfig,
    *,
    labels: Sequence[str],
    template: Template,
    train: Sequence[EncodedExample],
    init_prompt: TaskPrompt | None = None,
) -> torch.Tensor:
    """Embeddings, (num_virtual_tokens, hidden_size) float32 on the backbone's device; for init "prompt" its rows.

    Raises InvalidInput, BackboneMismatch.
    """
    generator = torch.Generator().manual_seed(config.seed)
    match config.init:
        case Init.PROMPT:
            return _of_prompt(backbone, config, init_prompt)
        case Init.TEXT:
            return _of_text(backbone, config.num_virtual_tokens, config.init_text)
        case Init.LABELS:
            label_ids = [template.encode_target(backbone.tokenizer, label) for label in labels]
            return _of_labels(backbone, config.num_virtual_tokens, label_ids, train, generator)
        case Init.VOCAB:
            return _sampled(backbone, config.num_virtual_tokens, train, generator)
        case Init.RANDOM:
            shape = (config.num_virtual_tokens, backbone.hidden_size)
            return torch.randn(shape, generator=generator).to(backbone.device) * embedding_rms(backbone)


def _of_prompt(backbone: Backbone, config: TuneConfig, prompt: TaskPrompt | None) -> torch.Tensor:
    if prompt is None or prompt.kind is not config.kind or prompt.rows is None:
        raise InvalidInput(f'init "prompt" needs a prompt of kind {config.kind}', param="init")
    if prompt.backbone_fingerprint != backbone.fingerprint:
        raise BackboneMismatch("the prompt to start from was made for another backbone", param="init")
    return _cycled(prompt.rows.to(backbone.device), config.num_virtual_tokens)


def _of_text(backbone: Backbone, num_rows: int, text: str) -> torch.Tensor:
    token_ids = backbone.tokenizer(text, add_special_tokens=False)["input_ids"]
    return _cycled(_embedded(backbone, token_ids), num_rows)


def _of_labels(
    backbone: Backbone,
    num_rows: int,
    label_ids: Sequence[Sequence[int]],
    train: Sequence[EncodedExample],
    generator: torch.Generator,
) -> torch.Tensor:
    if not label_ids:
        raise InvalidInput('init "labels" needs a task with labels', param="init")
    means = torch.stack([_embedded(backbone, token_ids).mean(dim=0) for token_ids in label_ids[:num_rows]])
    return torch.cat([means, _sampled(backbone, num_rows - len(means), train, generator)])


def _sampled(
    backbone: Backbone, num_rows: int, train: Sequence[EncodedExample], generator: torch.Generator
) -> torch.Tensor:
    """Different tokens of the training inputs: tokens no text contains were never trained themselves."""
    seen = sorted({token_id for row in train for token_id in row.text_ids})
    order = torch.randperm(len(seen), generator=generator).tolist()
    return _cycled(_embedded(backbone, [seen[i] for i in order]), num_rows)


def _embedded(backbone: Backbone, token_ids: Sequence[int]) -> torch.Tensor:
    with torch.no_grad():
        return backbone.embed(torch.tensor(token_ids, device=backbone.device)).float()


def _cycled(rows: torch.Tensor, num_rows: int) -> torch.Tensor:
    return rows[torch.arange(num_rows, device=rows.device) % len(rows)].clone()
