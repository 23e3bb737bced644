"""TaskPrompt: the immutable value that goes before a request's text."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from app.errors import InvalidInput

if TYPE_CHECKING:
    import torch

MAX_VIRTUAL_TOKENS = 1024


class PromptKind(StrEnum):
    """What the rows of a task prompt are.

    EMBEDDINGS: rows of the embedding layer's output (prompt tuning, Lester et al. 2021; P-tuning, Liu et al. 2021).
    KV: keys and values of every layer (prefix tuning, Li and Liang 2021; Cartridges, Eyuboglu et al. 2025).
    TEXT: token ids of a hand-written text.
    """

    EMBEDDINGS = "embeddings"
    KV = "kv"
    TEXT = "text"


@dataclass(frozen=True, eq=False)
class TaskPrompt:
    """Make one with `from_embeddings`, `from_kv` or `from_text`, which check the values.

    Attributes:
        kind: what the rows are.
        backbone_fingerprint: of the only backbone that can use this prompt.
        rows: float32, contiguous, on CPU. EMBEDDINGS: (num_virtual_tokens, hidden_size).
            KV: (num_virtual_tokens, num_layers * 2 * num_kv_heads * head_dim), ordered K0, V0, K1, V1, ... as PEFT
            stores them; keys as they are in the cache, so no rotary embedding is applied to them. None for TEXT.
        text: what a person wrote, for TEXT; None otherwise.
        token_ids: the text's ids, the beginning-of-sequence id included, for TEXT; empty otherwise.
        digest: sha256 over kind, backbone and values; caches identify a prompt by it.
    """

    kind: PromptKind
    backbone_fingerprint: str
    rows: torch.Tensor | None
    text: str | None
    token_ids: tuple[int, ...]
    digest: str

    @classmethod
    def from_embeddings(cls, rows: torch.Tensor, backbone_fingerprint: str) -> TaskPrompt:
        """Args: rows: any floating dtype, (num_virtual_tokens, hidden_size). Raises InvalidInput."""
        return cls.from_rows(PromptKind.EMBEDDINGS, rows, backbone_fingerprint)

    @classmethod
    def from_kv(cls, rows: torch.Tensor, backbone_fingerprint: str) -> TaskPrompt:
        """Args: rows: any floating dtype, (num_virtual_tokens, num_layers * 2 * num_kv_heads * head_dim)."""
        return cls.from_rows(PromptKind.KV, rows, backbone_fingerprint)

    @classmethod
    def from_text(cls, text: str, token_ids: list[int] | tuple[int, ...], backbone_fingerprint: str) -> TaskPrompt:
        """Args: token_ids: the text as the backbone's tokenizer encodes it, special tokens included."""
        _check_length(len(token_ids))
        content = text.encode() + b"\0" + b"".join(token.to_bytes(4, "little") for token in token_ids)
        digest = _digest(PromptKind.TEXT, backbone_fingerprint, (len(token_ids),), content)
        return cls(PromptKind.TEXT, backbone_fingerprint, None, text, tuple(token_ids), digest)

    @classmethod
    def from_rows(cls, kind: PromptKind, rows: torch.Tensor, backbone_fingerprint: str) -> TaskPrompt:
        """Args: kind: EMBEDDINGS or KV. rows: as `from_embeddings` and `from_kv` take them. Raises InvalidInput."""
        import torch

        if rows.ndim != 2 or not rows.numel() or not rows.is_floating_point():
            raise InvalidInput(f"{kind} must be a matrix of floating-point numbers", param="prompt_embeddings")
        _check_length(rows.shape[0])
        values = rows.detach().to("cpu", torch.float32, copy=True).contiguous()
        if not is_finite(values):
            raise InvalidInput("every value must be finite", param="prompt_embeddings")
        digest = _digest(kind, backbone_fingerprint, tuple(values.shape), values.numpy().data)
        return cls(kind, backbone_fingerprint, values, None, (), digest)

    def rounded(self, dtype: torch.dtype) -> TaskPrompt:
        """Another prompt, of each value as that dtype holds it; a text is not rounded.

        Raises InvalidInput: a value is too large for that dtype.
        """
        return self if self.rows is None else self.from_rows(self.kind, self.rows.to(dtype), self.backbone_fingerprint)

    @property
    def num_virtual_tokens(self) -> int:
        return len(self.token_ids) if self.rows is None else self.rows.shape[0]

    @property
    def num_bytes(self) -> int:
        """Size of the values, without the key-value blocks that are computed from them."""
        return 4 * (len(self.token_ids) if self.rows is None else self.rows.numel())


def is_finite(rows: torch.Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether every value is finite in that dtype; None is float32. Only the extremes are converted."""
    extremes = (each.float() if dtype is None else each.to(dtype) for each in rows.aminmax())
    return all(bool(each.isfinite()) for each in extremes)


def _check_length(num_virtual_tokens: int) -> None:
    if not 1 <= num_virtual_tokens <= MAX_VIRTUAL_TOKENS:
        raise InvalidInput(f"a prompt has 1 to {MAX_VIRTUAL_TOKENS} virtual tokens", param="num_virtual_tokens")


def _digest(kind: PromptKind, backbone_fingerprint: str, shape: tuple[int, ...], content: bytes | memoryview) -> str:
    header = f"softswap-prompt-1 {kind} {backbone_fingerprint} {'x'.join(map(str, shape))}\n"
    digest = hashlib.sha256(header.encode())
    digest.update(content)
    return digest.hexdigest()
