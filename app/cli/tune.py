"""`softswap tune`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.options.data_options import (
    DATA,
    ExampleFile,
    InputField,
    Labels,
    TargetField,
    TemplateText,
    parse_labels,
    parse_template,
)
from app.cli.options.json_output import AsJson
from app.cli.options.setting_options import Device, Model, RegistryFolder, read_settings
from app.cli.options.task_options import Alias, Description, NewTask
from app.cli.options.tuning_options import Publish, split_asked, takes_hyperparameters
from app.cli.views.tuned_version import open_to_publish, publish_all, report_result
from app.cli.views.tuning_view import TuningView, interruptible


@takes_hyperparameters()
def tune(
    *,
    data: ExampleFile,
    task: NewTask,
    validation: Annotated[
        Path | None,
        typer.Option(help="More examples, to choose the best state by. (default: a tenth of the data)", exists=True,
                     dir_okay=False, rich_help_panel=DATA),
    ] = None,
    input_field: InputField = None,
    target_field: TargetField = None,
    template: TemplateText = None,
    labels: Labels = None,
    asked: dict[str, Any],
    publish: Publish = 1,
    description: Description = "",
    alias: Alias = "live",
    as_json: AsJson = False,
    model: Model = None,
    registry: RegistryFolder = None,
    device: Device = None,
) -> None:  # fmt: skip
    """Tune a task on your examples, and publish the state that did best on validation.

    A line of the data: {"input": "a gorgeous film", "target": "positive"}. Nothing else needs to be said: prompts
    that differ in learning rate, start and length are tuned side by side, and the worse half is dropped three times;
    values you give are tried instead. Interrupting once (Ctrl-C) ends the tuning and publishes the best state so far;
    twice publishes nothing. A server that watches the folder serves it at once.

        softswap tune reviews.jsonl --task sentiment
        softswap run sentiment "a gorgeous, witty film"
    """
    settings = read_settings(model=model, registry=registry, device=device)
    from app.main import load_backbone
    from app.measure.example_file import read_dataset
    from app.tuning.config import DEFAULT_PATIENCE
    from app.tuning.plan import TuningPlan
    from app.tuning.search import Search
    from app.tuning.tune import tune_task

    config, tried = split_asked(asked, patience=DEFAULT_PATIENCE)
    train, held_out = (
        None if path is None else read_dataset(path, input_field=input_field, target_field=target_field)
        for path in (data, validation)
    )
    assert train is not None
    plan = TuningPlan.make(train, held_out, config, template=parse_template(template), labels=parse_labels(labels))
    plan = replace(plan, search=Search.default(config, has_labels=bool(plan.labels), num_kept=publish, **tried))
    backbone = load_backbone(settings)
    opened = open_to_publish(settings, backbone, task, alias)
    with interruptible() as should_stop, TuningView(as_json=as_json) as progress:
        result = tune_task(backbone, plan, on_event=progress.show, should_stop=should_stop)
    versions = publish_all(backbone, opened, task, result, description=description, alias=alias)
    report_result(versions, result, as_json=as_json)
