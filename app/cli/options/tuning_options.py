"""Options of the commands that tune: what is tried side by side, and what all that is tried shares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.errors import InvalidInput

if TYPE_CHECKING:
    from app.tuning.config import Metric, TuneConfig

TRIED, SHARED = "Tried side by side: one value, or several separated by commas", "Tuning"

Kind = Annotated[
    str | None,
    typer.Option(help="embeddings (prompt tuning), or kv (prefix tuning; suits small models).", rich_help_panel=TRIED),
]
Init = Annotated[
    str | None, typer.Option(help="Where they start: vocab, labels, text or random.", rich_help_panel=TRIED)
]
InitText = Annotated[str | None, typer.Option(help="For --init text.", rich_help_panel=TRIED)]
LearningRate = Annotated[str | None, typer.Option(help="In units of the vocabulary's scale.", rich_help_panel=TRIED)]
NumVirtualTokens = Annotated[
    str | None,
    typer.Option("--virtual-tokens", help="Rows to learn. (default: 20,50; to distill: 20)", rich_help_panel=TRIED),
]
Seed = Annotated[str | None, typer.Option(help="Of the initialisation.", rich_help_panel=TRIED)]
NumEpochs = Annotated[
    float | None,
    typer.Option("--epochs", help="Passes over the data. (default: 3, at least 50 updates)", rich_help_panel=SHARED),
]
MaxSteps = Annotated[int | None, typer.Option(help="Updates, whatever the size of the data.", rich_help_panel=SHARED)]
BatchSize = Annotated[int | None, typer.Option(help="Examples in an update.", rich_help_panel=SHARED)]
MetricName = Annotated[
    str | None,
    typer.Option(help="What the best is chosen by: loss; accuracy or macro_f1 of labels; exact_match, token_f1, "
                      "rouge_l or entity_f1 of answers that are written. (default: accuracy, or loss of texts)",
                 rich_help_panel=SHARED),
]  # fmt: skip
Balance = Annotated[
    bool,
    typer.Option("--balance", help="Leave out what the commonest target has more than all others together.",
                 rich_help_panel=SHARED),
]  # fmt: skip
Publish = Annotated[
    int, typer.Option(help="Publish the best N prompts, an ensemble of N versions.", rich_help_panel=SHARED)
]


def parse_tried(**texts: str | None) -> dict[str, Any]:
    """Fields of Search, of the options that were given. Raises InvalidInput that names the option."""
    return {name: _parse_values(name, text) for name, text in texts.items() if text is not None}


def make_config(tried: dict[str, Any], shared: dict[str, Any]) -> TuneConfig:
    """What all members share. Where they differ, the first value stands for all.

    Args: tried: of `parse_tried`. shared: fields of TuneConfig, None where nothing was said.
    """
    from app.tuning.config import Init, TuneConfig

    names = {"kinds": "kind", "nums_virtual_tokens": "num_virtual_tokens", "seeds": "seed"}
    values = {name: tried[plural][0] for plural, name in names.items() if plural in tried}
    values |= {name: value for name, value in shared.items() if value is not None}
    if "metric" in values:
        values["metric"] = _parse_metric(values["metric"])
    return TuneConfig(**values, init=Init.TEXT if Init.TEXT in tried.get("inits", ()) else Init.VOCAB)


def _parse_metric(text: str) -> Metric:
    """Raises InvalidInput that names the option."""
    from app.tuning.config import Metric

    if text not in set(Metric):
        raise InvalidInput(f"--metric must be one of {', '.join(Metric)}", param="metric")
    return Metric(text)


def _parse_values(name: str, text: str) -> tuple[Any, ...]:
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
