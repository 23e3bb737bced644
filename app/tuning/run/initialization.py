"""Members as they start: their rows, and the unit they are learned in."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from app.errors import BackboneMismatch, InvalidInput
from app.measure.encoding import EncodedExample
from app.model.backbone import Backbone
from app.model.prompted_forward import PromptPrefix
from app.task_prompt import PromptKind, TaskPrompt
from app.tuning.config import Init, TuneConfig
from app.tuning.plan import TuningPlan
from app.tuning.run.population import Member


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
    width = backbone.kv_shape.num_kv_heads * backbone.kv_shape.head_dim
    sizes = rows.unflatten(1, (-1, width)).square().mean(dim=(0, 2)).sqrt()
    return sizes.clamp(min=1e-6).repeat_interleave(width)


def make_member(
    backbone: Backbone, number: int, config: TuneConfig, plan: TuningPlan, train: Sequence[EncodedExample]
) -> Member:
    """Member `number` of a run, as `config` says. Raises InvalidInput, BackboneMismatch."""
    rows = initial_rows(backbone, config, plan, train)
    if config.kind is PromptKind.EMBEDDINGS:
        return Member(number, config, rows, torch.tensor(embedding_rms(backbone), device=backbone.device))
    if config.init is not Init.PROMPT:
        with torch.no_grad():
            rows = PromptPrefix.of_embeddings(backbone, rows[None]).kv_rows()[0].float()
    return Member(number, config, rows, kv_rms(backbone, rows))


def initial_rows(
    backbone: Backbone, config: TuneConfig, plan: TuningPlan, train: Sequence[EncodedExample]
) -> torch.Tensor:
    """Embeddings, (num_virtual_tokens, hidden_size) float32 on the backbone's device; for init "prompt" its rows.

    Raises InvalidInput, BackboneMismatch.
    """
    generator = torch.Generator().manual_seed(config.seed)
    tokenizer, num_rows = backbone.tokenizer, config.num_virtual_tokens
    match config.init:
        case Init.PROMPT:
            return _cycled(_rows_of(backbone, config.kind, plan.init_prompt), num_rows)
        case Init.TEXT:
            return _cycled(
                _embedded(backbone, tokenizer(config.init_text, add_special_tokens=False)["input_ids"]), num_rows
            )
        case Init.LABELS:
            if not plan.labels:
                raise InvalidInput('init "labels" needs a task with labels', param="init")
            label_ids = [plan.template.encode_target(tokenizer, label) for label in plan.labels[:num_rows]]
            means = torch.stack([_embedded(backbone, token_ids).mean(dim=0) for token_ids in label_ids])
            return torch.cat([means, _sampled(backbone, num_rows - len(means), train, generator)])
        case Init.VOCAB:
            return _sampled(backbone, num_rows, train, generator)
        case Init.RANDOM:
            shape = (num_rows, backbone.hidden_size)
            return torch.randn(shape, generator=generator).to(backbone.device) * embedding_rms(backbone)


def _rows_of(backbone: Backbone, kind: PromptKind, prompt: TaskPrompt | None) -> torch.Tensor:
    if prompt is None or prompt.kind is not kind or prompt.rows is None:
        raise InvalidInput(f'init "prompt" needs a prompt of kind {kind}', param="init")
    if prompt.backbone_fingerprint != backbone.fingerprint:
        raise BackboneMismatch("the prompt to start from was made for another backbone", param="init")
    return prompt.rows.to(backbone.device)


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
