"""Method: the ways to make one backbone do a task that are compared."""

from __future__ import annotations

from enum import StrEnum


class Method(StrEnum):
    """In the order of tables: from what leaves the backbone alone to what changes all of it."""

    ZERO_SHOT = "zero_shot"
    """A written instruction before the text, or none."""
    FEW_SHOT = "few_shot"
    """The same, followed by examples of the training split."""
    PROMPT_TUNING = "prompt_tuning"
    """Rows before the text's embeddings (Lester et al. 2021)."""
    PREFIX_TUNING = "prefix_tuning"
    """Keys and values before every layer's own (Li and Liang 2021)."""
    LORA = "lora"
    """Low-rank updates of all matrices of the layers (Hu et al. 2021, with the targets of Dettmers et al. 2023)."""
    FULL = "full"
    """All weights."""

    @property
    def words(self) -> str:
        """Its name in tables."""
        return {
            Method.ZERO_SHOT: "written prompt, zero-shot",
            Method.FEW_SHOT: "written prompt, few-shot",
            Method.PROMPT_TUNING: "prompt tuning",
            Method.PREFIX_TUNING: "prefix tuning",
            Method.LORA: "LoRA",
            Method.FULL: "full fine-tuning",
        }[self]

    @property
    def is_tuned(self) -> bool:
        return self not in (Method.ZERO_SHOT, Method.FEW_SHOT)

    @property
    def depends_on_seed(self) -> bool:
        """Whether a different seed gives a different result."""
        return self is not Method.ZERO_SHOT

    @property
    def packages(self) -> tuple[str, ...]:
        """What it needs of the extra `compare`."""
        return ("peft",) if self is Method.LORA else ()
