"""`softswap tune`."""

from __future__ import annotations

from functools import partial
from typing import Any

from app.cli import options
from app.cli.backbones.pull import obtain
from app.cli.places.paths import require_publishable
from app.cli.views.data_view import show_data
from app.cli.views.tuning_view import open_to_publish, report_result, tune_and_publish
from app.measure.example_file import read_dataset
from app.measure.reading.labels import settle
from app.measure.reading.look import DataLook
from app.settings import Settings
from app.tuning.budget import process_began_s
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
    promote: options.Promote = False,
    keep_examples: options.KeepExamples = False,
    as_json: options.AsJson = False,
    settings: Settings,
) -> None:
    """Tune a task on your examples, and publish the state that did best on validation.

    A line of the data: {"input": "a gorgeous film", "target": "positive"}. Nothing else needs to be said: it measures
    what an update takes, plans how many prompts it can tune side by side within the budget (10 minutes on a CPU, 5 on a
    GPU), says so, and ends in time. Values you give are tried instead of its own. Interrupting once (Ctrl-C) ends the
    tuning and publishes the best state so far; twice publishes nothing. A server that watches the folder serves it at
    once.

        softswap tune reviews.jsonl --task sentiment
        softswap run sentiment "a gorgeous, witty film"
    """
    began_s = process_began_s()
    require_publishable(settings, task, alias, promote=promote)
    config, tried = options.split_asked(asked, patience=DEFAULT_PATIENCE)
    form = options.parse_template(template)
    read = partial(read_dataset, input_field=input_field, target_field=target_field)
    held_out = None if validation is None else read(validation)
    found = settle(read(data), held_out, options.parse_labels(labels))
    show_data(DataLook.of(found), as_json=as_json)
    settings = obtain(settings, may_fall_back=False)

    from app.main import load_backbone
    from app.tuning.candidates import fit_to_device
    from app.tuning.plan import TuningPlan

    plan = TuningPlan.make(found.train, found.validation, config, template=form, labels=found.labels)
    backbone = load_backbone(settings)
    plan = fit_to_device(plan, backbone, has_template=template is not None, num_kept=publish, **tried)
    registry = open_to_publish(settings, backbone, task, alias)
    result, versions, released = tune_and_publish(
        backbone,
        registry,
        task,
        plan,
        description=description,
        alias=alias,
        promote=promote,
        keep_examples=keep_examples,
        as_json=as_json,
        began_s=began_s,
    )
    report_result(versions, result, released, as_json=as_json)
