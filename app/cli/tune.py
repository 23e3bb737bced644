"""`softswap tune`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from app.cli import options
from app.cli.places.paths import require_publishable
from app.cli.views.tuning_view import open_to_publish, report_result, tune_and_publish
from app.measure.example_file import read_dataset
from app.settings import Settings
from app.tuning.config import DEFAULT_PATIENCE


@options.takes_settings("model", "registry", "device")
@options.takes_hyperparameters()
def tune(
    *,
    data: options.ExampleFile,
    task: options.NewTask,
    validation: options.Validation = None,
    input_field: options.InputField = None,
    target_field: options.TargetField = None,
    template: options.TemplateText = None,
    labels: options.Labels = None,
    asked: dict[str, Any],
    publish: options.Publish = 1,
    description: options.Description = "",
    alias: options.Alias = "live",
    as_json: options.AsJson = False,
    settings: Settings,
) -> None:
    """Tune a task on your examples, and publish the state that did best on validation.

    A line of the data: {"input": "a gorgeous film", "target": "positive"}. Nothing else needs to be said: prompts
    that differ in learning rate, start and length are tuned side by side, and the worse half is dropped three times;
    values you give are tried instead. Interrupting once (Ctrl-C) ends the tuning and publishes the best state so far;
    twice publishes nothing. A server that watches the folder serves it at once.

        softswap tune reviews.jsonl --task sentiment
        softswap run sentiment "a gorgeous, witty film"
    """
    require_publishable(settings, task, alias)
    config, tried = options.split_asked(asked, patience=DEFAULT_PATIENCE)
    form: dict[str, Any] = {"template": options.parse_template(template), "labels": options.parse_labels(labels)}
    read = partial(read_dataset, input_field=input_field, target_field=target_field)
    train, held_out = read(data), None if validation is None else read(validation)
    from app.main import load_backbone
    from app.tuning.plan import TuningPlan
    from app.tuning.search import Search

    plan = TuningPlan.make(train, held_out, config, **form)
    plan = replace(plan, search=Search.default(config, has_labels=bool(plan.labels), num_kept=publish, **tried))
    backbone = load_backbone(settings)
    registry = open_to_publish(settings, backbone, task, alias)
    result, versions = tune_and_publish(
        backbone, registry, task, plan, description=description, alias=alias, as_json=as_json
    )
    report_result(versions, result, as_json=as_json)
