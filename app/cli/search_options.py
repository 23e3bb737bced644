"""What `--learning-rate 0.01,0.03` and its likes mean: values that are tried side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from app.errors import InvalidInput

if TYPE_CHECKING:
    from app.tuning.config import TuneConfig


def parse_values(name: str, text: str) -> tuple[Any, ...]:
    """The values of one option, separated by commas. Raises InvalidInput that names the option."""
    from app.task_prompt import PromptKind
    from app.tuning.config import Init

    kinds = {kind.value: kind for kind in (PromptKind.EMBEDDINGS, PromptKind.KV)}
    inits = {init.value: init for init in Init if init is not Init.PROMPT}
    option, convert, wanted = {
        "kinds": ("--kind", kinds.__getitem__, " or ".join(kinds)),
        "inits": ("--init", inits.__getitem__, ", ".join(inits)),
        "learning_rates": ("--learning-rate", float, "numbers such as 0.03"),
        "nums_virtual_tokens": ("--virtual-tokens", int, "whole numbers such as 20"),
        "seeds": ("--seed", int, "whole numbers such as 0"),
    }[name]
    try:
        return tuple(convert(part.strip()) for part in text.split(","))  # type: ignore[operator]
    except (KeyError, ValueError):
        raise InvalidInput(f"{option} must be {wanted}; several are separated by commas", param=name) from None


def make_config(tried: dict[str, Any], shared: dict[str, Any]) -> TuneConfig:
    """What all members share; what they differ in is set to the first value, so that every value is checked."""
    from app.tuning.config import Init, TuneConfig

    names = {"kinds": "kind", "nums_virtual_tokens": "num_virtual_tokens", "seeds": "seed"}
    values = {name: tried[plural][0] for plural, name in names.items() if plural in tried}
    values |= {name: value for name, value in shared.items() if value is not None}
    return TuneConfig(**values, init=Init.TEXT if Init.TEXT in tried.get("inits", ()) else Init.VOCAB)
