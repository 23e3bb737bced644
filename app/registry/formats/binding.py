"""Binding: what makes rows or a text a task prompt of one particular backbone."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from app.errors import BackboneMismatch, InvalidInput
from app.model.backbone import Backbone
from app.model.layout import BARE, Template, encode_text, num_positions_after_prompt
from app.registry.formats.manifest import tell_apart
from app.task_prompt import MAX_VIRTUAL_TOKENS, PromptKind, TaskPrompt, is_finite

UNUSUAL_NORM_RATIO = 10.0
"""A row this many times longer or shorter than a vocabulary row is worth a warning; real prompts reach hundreds."""
MAX_TEXT_CHARS = 32_768
"""Far more than MAX_VIRTUAL_TOKENS can hold; bounds the time a tokenizer takes to find that out."""
_NUM_SAMPLED_TOKENS = 4_096
_MAX_TOKENS_PER_CHAR = 4
"""Of vocabularies that spell what they do not know in bytes."""


def bind_rows(rows: torch.Tensor, kind: PromptKind, backbone: Backbone) -> TaskPrompt:
    """Args: rows: (num_virtual_tokens, row_size(kind, backbone)), any floating dtype.

    Raises InvalidInput: shape, length or values do not fit the backbone.
    """
    check_shape(tuple(rows.shape), kind, backbone)
    prompt = TaskPrompt.from_rows(kind, rows, backbone.fingerprint)
    require_fit(prompt, backbone)
    return prompt


def bind_text(text: str, backbone: Backbone) -> TaskPrompt:
    """A text prompt: the text as the backbone's tokenizer encodes it, with its leading special tokens."""
    if not text.strip() or len(text) > MAX_TEXT_CHARS:
        raise InvalidInput(f"a text prompt has 1 to {MAX_TEXT_CHARS} characters, not only blanks", param="text")
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise InvalidInput("the text has half a surrogate pair, which is not valid Unicode", param="text")
    token_ids = encode_text(backbone.tokenizer, text)
    backbone.require_embedded(token_ids, "the text", param="text")
    prompt = TaskPrompt.from_text(text, token_ids, backbone.fingerprint)
    require_fit(prompt, backbone)
    return prompt


def require_fit(prompt: TaskPrompt, backbone: Backbone) -> None:
    """Whether this backbone, in the dtype it was loaded with, can serve the prompt.

    Raises:
        BackboneMismatch: it belongs to another backbone, even if the width fits.
        InvalidInput: too long for the context, or values overflow in the backbone's dtype.
    """
    require_same_backbone(prompt.backbone_fingerprint, backbone)
    if prompt.num_virtual_tokens >= backbone.max_model_len:
        raise InvalidInput(
            f"the prompt must be shorter than the model's {backbone.max_model_len} positions",
            param="num_virtual_tokens",
        )
    if prompt.rows is None:
        if list(prompt.token_ids) != encode_text(backbone.tokenizer, prompt.text or ""):
            raise BackboneMismatch(
                "the tokenizer no longer encodes the prompt's text as it did when it was published; publish it again",
                param="token_ids",
            )
        return
    check_shape(tuple(prompt.rows.shape), prompt.kind, backbone)
    if not is_finite(prompt.rows, backbone.dtype):
        raise InvalidInput(f"a value overflows in the backbone's {backbone.dtype}", param="prompt_embeddings")


def require_room(
    num_virtual_tokens: int,
    template: Template | None,
    labels: Sequence[str],
    *,
    is_written: bool,
    backbone: Backbone,
    max_positions: int,
) -> None:
    """Whether a request with such a prompt can be answered at all.

    Args:
        is_written: whether the prompt is a text.
        max_positions: of one sequence, in the engine that serves; those of the backbone if it has fewer.

    Raises InvalidInput: prompt, template and answer are longer; or as `encode_labels`.
    """
    template, max_positions = template or BARE, min(max_positions, backbone.max_model_len)
    num_chars = len(template.text) + max(map(len, labels), default=0)
    if num_virtual_tokens + _MAX_TOKENS_PER_CHAR * num_chars + 3 <= max_positions:
        return  # as nearly always, and without the tokenizer
    needed = num_positions_after_prompt(backbone, template, labels, is_written=is_written)
    if num_virtual_tokens + needed > max_positions:
        raise InvalidInput(
            f"{num_virtual_tokens} virtual tokens, and {needed} for the template with the shortest text and the "
            f"longest answer, are more than a sequence may have here: max_model_len is {max_positions}",
            param="num_virtual_tokens",
        )


def require_same_backbone(fingerprint: str, backbone: Backbone, name: str = "") -> None:
    """Args: name: of the backbone with this fingerprint, if it is known. Raises BackboneMismatch."""
    if fingerprint != backbone.fingerprint:
        names = tell_apart({fingerprint: name, backbone.fingerprint: backbone.name})
        raise BackboneMismatch(
            f"the prompt was made for the backbone {names[fingerprint]}, not for {names[backbone.fingerprint]}",
            param="backbone",
        )


def max_prompt_bytes(backbone: Backbone) -> int:
    """Of the largest prompt's values, in float32: as many virtual tokens as there can be, of the wider kind."""
    return 4 * MAX_VIRTUAL_TOKENS * max(row_size(kind, backbone) for kind in (PromptKind.EMBEDDINGS, PromptKind.KV))


def row_size(kind: PromptKind, backbone: Backbone) -> int:
    return backbone.kv_row_size if kind is PromptKind.KV else backbone.hidden_size


def check_shape(shape: tuple[int, ...], kind: PromptKind, backbone: Backbone) -> None:
    """Raises InvalidInput."""
    width = row_size(kind, backbone)
    if len(shape) != 2 or shape[1] != width:
        raise InvalidInput(
            f"{kind} for {backbone.name} must have the shape (num_virtual_tokens, {width})", param="prompt_embeddings"
        )
    if shape[0] > MAX_VIRTUAL_TOKENS:
        raise InvalidInput(f"a prompt has at most {MAX_VIRTUAL_TOKENS} virtual tokens", param="prompt_embeddings")


@torch.no_grad()
def norm_warnings(prompt: TaskPrompt, backbone: Backbone) -> list[str]:
    """What is unusual about the norms of a prompt's rows; nothing for keys and values, which have no yardstick.

    Released prompts have row norms from 0.5 to 2,300 and work, so this is for people to read; it refuses nothing.
    """
    if prompt.kind is not PromptKind.EMBEDDINGS or prompt.rows is None:
        return []
    token_ids = torch.arange(
        0, backbone.vocab_size, max(1, backbone.vocab_size // _NUM_SAMPLED_TOKENS), device=backbone.device
    )
    typical = float(backbone.embed(token_ids).float().norm(dim=-1).median())
    norms = prompt.rows.norm(dim=1)
    num_unusual = int(((norms > typical * UNUSUAL_NORM_RATIO) | (norms < typical / UNUSUAL_NORM_RATIO)).sum())
    if not num_unusual:
        return []
    spread = f"{norms.min():.3g} to {norms.max():.3g}"
    return [f"{num_unusual} of {len(norms)} rows are far from the vocabulary's norm {typical:.3g}; all are {spread}"]
