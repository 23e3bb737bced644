"""Binding: what makes values a task prompt of one particular backbone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from app.errors import BackboneMismatch, InvalidInput
from app.model.layout import encode_text
from app.task_prompt import MAX_VIRTUAL_TOKENS, PromptKind, TaskPrompt, is_finite

if TYPE_CHECKING:
    from app.model.backbone import Backbone

UNUSUAL_NORM_RATIO = 10.0
"""A row this many times longer or shorter than a vocabulary row is worth a warning; real prompts reach hundreds."""
MAX_TEXT_CHARS = 32_768
"""Far more than MAX_VIRTUAL_TOKENS can hold; bounds the time a tokenizer takes to find that out."""
_NUM_SAMPLED_TOKENS = 4_096


def bind_rows(rows: torch.Tensor, kind: PromptKind, backbone: Backbone) -> TaskPrompt:
    """Args: rows: (num_virtual_tokens, row_size(kind, backbone)), any floating dtype.

    Raises:
        InvalidInput: shape, length or values do not fit the backbone.
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
    prompt = TaskPrompt.from_text(text, encode_text(backbone.tokenizer, text), backbone.fingerprint)
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


def require_same_backbone(fingerprint: str, backbone: Backbone) -> None:
    """Raises BackboneMismatch."""
    if fingerprint != backbone.fingerprint:
        raise BackboneMismatch(
            f"the prompt was made for the backbone {fingerprint[:12]}, not for {backbone.name} "
            f"({backbone.fingerprint[:12]})",
            param="backbone",
        )


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
