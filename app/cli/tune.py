"""`softswap tune`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.options import AsJson, Device, Model, RegistryFolder, read_settings
from app.cli.search_options import make_config, parse_values
from app.cli.tuned_version import publish_result, report_result
from app.cli.tuning_view import TuningView, interruptible

DATA, TUNING, TRIED = "Data", "Tuning", "Tried side by side: one value, or several separated by commas"


def tune(
    *,
    data: Annotated[
        Path, typer.Argument(help="Examples: JSON lines or CSV with input and target.", exists=True, dir_okay=False)
    ],
    task: Annotated[str, typer.Option(help="Name to publish under.")],
    validation: Annotated[
        Path | None,
        typer.Option(help="More examples, to choose the best state by. (default: a tenth of DATA)", exists=True,
                     dir_okay=False, rich_help_panel=DATA),
    ] = None,
    input_field: Annotated[str | None, typer.Option(help="Field of the input.", rich_help_panel=DATA)] = None,
    target_field: Annotated[str | None, typer.Option(help="Field of the answer.", rich_help_panel=DATA)] = None,
    template: Annotated[
        str | None,
        typer.Option(help=r"How an input becomes text: 'Review: {input}\nSentiment: {target}'.", rich_help_panel=DATA),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(help="Possible answers, separated by commas; '' for a task that writes text. "
                     "(default: found in DATA)", rich_help_panel=DATA),
    ] = None,
    num_virtual_tokens: Annotated[
        str | None, typer.Option("--virtual-tokens", help="Rows to learn. (default: 20)", rich_help_panel=TRIED)
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(help="embeddings (prompt tuning), or kv (prefix tuning; suits small models).",
                     rich_help_panel=TRIED),
    ] = None,
    init: Annotated[
        str | None, typer.Option(help="Where they start: vocab, labels, text or random.", rich_help_panel=TRIED)
    ] = None,
    num_epochs: Annotated[
        float | None,
        typer.Option("--epochs", help="Passes over the examples. (default: 3, at least 50 updates)",
                     rich_help_panel=TUNING),
    ] = None,
    max_steps: Annotated[
        int | None, typer.Option(help="Updates, whatever the number of examples.", rich_help_panel=TUNING)
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples in an update.", rich_help_panel=TUNING)] = None,
    learning_rate: Annotated[
        str | None, typer.Option(help="In units of the vocabulary's scale.", rich_help_panel=TRIED)
    ] = None,
    seed: Annotated[str | None, typer.Option(help="Of the initialisation.", rich_help_panel=TRIED)] = None,
    init_text: Annotated[str | None, typer.Option(help="For --init text.", rich_help_panel=TRIED)] = None,
    patience: Annotated[
        int | None,
        typer.Option(help="Measurements without progress until it ends; 0 never. (default: 5)", rich_help_panel=TUNING),
    ] = None,
    description: Annotated[str, typer.Option(help="One sentence for people.")] = "",
    alias: Annotated[str, typer.Option(help="Alias that shall mean the new version; '' moves none.")] = "live",
    as_json: AsJson = False,
    model: Model = None,
    registry: RegistryFolder = None,
    device: Device = None,
) -> None:  # fmt: skip
    """Tune a task on your examples, and publish the state that did best on validation.

        softswap tune reviews.jsonl --task sentiment
        softswap run sentiment "a gorgeous, witty film"

    A line of DATA: {"input": "a gorgeous film", "target": "positive"}. Nothing else need be said: prompts that differ
    in learning rate, start and seed are tuned side by side, and the worse half is dropped three times; what you do say
    is tried instead. Interrupting once (Ctrl-C) ends the tuning and publishes the best state so far; twice publishes
    nothing. A server that watches the folder serves it at once.
    """
    settings = read_settings(model=model, registry=registry, device=device)
    tried = {
        "kinds": kind, "inits": init, "learning_rates": learning_rate,
        "nums_virtual_tokens": num_virtual_tokens, "seeds": seed,
    }  # fmt: skip
    shared = {
        "init_text": init_text, "num_epochs": num_epochs, "max_steps": max_steps, "batch_size": batch_size,
        "patience": 5 if patience is None else patience,
    }  # fmt: skip
    values: dict[str, Any] = {name: parse_values(name, text) for name, text in tried.items() if text is not None}
    config = make_config(values, shared)
    from app.main import load_backbone
    from app.model.layout import Template
    from app.registry.registry import Registry
    from app.registry.store import FileStore
    from app.tuning.dataset import read_dataset
    from app.tuning.plan import TuningPlan
    from app.tuning.search import Search
    from app.tuning.tune import tune_task

    fields = {"input_field": input_field, "target_field": target_field}
    train = read_dataset(data, **fields)
    held_out = None if validation is None else read_dataset(validation, **fields)
    plan = TuningPlan.make(
        train, held_out, config,
        template=None if template is None else Template(template.replace("\\n", "\n")),
        labels=None if labels is None else [label.strip() for label in labels.split(",") if label.strip()],
    )  # fmt: skip
    search = replace(Search.default(config, has_labels=bool(plan.labels)), **values)
    backbone = load_backbone(settings)
    opened = Registry(FileStore(settings.registry), backbone)
    with interruptible() as should_stop, TuningView(as_json=as_json) as progress:
        result = tune_task(backbone, replace(plan, search=search), on_event=progress.show, should_stop=should_stop)
    version = publish_result(backbone, opened, task, result, description=description, alias=alias)
    report_result(version, result, as_json=as_json)
