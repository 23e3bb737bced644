"""`softswap distill`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.options.data_options import Labels, TemplateText, parse_labels, parse_template
from app.cli.options.json_output import AsJson, write_json
from app.cli.options.setting_options import Device, Model, RegistryFolder, read_settings
from app.cli.options.task_options import Alias, Description, NewTask
from app.cli.options.tuning_options import split_asked, takes_hyperparameters
from app.cli.views.tuned_version import open_to_publish, publish_all, report_result
from app.cli.views.tuning_view import TuningView, interruptible
from app.errors import InvalidInput

if TYPE_CHECKING:
    from app.model.backbone import Backbone
    from app.model.layout import Template
    from app.registry.registry import Registry
    from app.task_prompt import TaskPrompt

TEACHER = "Teacher"


@takes_hyperparameters(without=("patience", "metric", "balance"))
def distill(
    *,
    inputs: Annotated[
        Path,
        typer.Argument(help="Inputs: JSON lines or CSV with input, or a .txt file of one a line. Targets are not read.",
                       exists=True, dir_okay=False),
    ],
    task: NewTask,
    prompt: Annotated[
        Path | None,
        typer.Option(help="The written prompt: a text file.", exists=True, dir_okay=False, rich_help_panel=TEACHER),
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Or a published version, such as sentiment@2.", rich_help_panel=TEACHER)
    ] = None,
    template: TemplateText = None,
    labels: Labels = None,
    asked: dict[str, Any],
    description: Description = "",
    alias: Alias = "live",
    as_json: AsJson = False,
    model: Model = None,
    registry: RegistryFolder = None,
    device: Device = None,
) -> None:  # fmt: skip
    """Turn a long written prompt into a few virtual tokens that answer alike.

    A tenth of the inputs is held out; on these the command says how often the new prompt decides as the old one does,
    how many tokens each request saves, and after how many requests that outweighs the tuning.

        softswap distill reviews.txt --prompt few_shot.txt --labels negative,positive --task sentiment-short
    """
    settings = read_settings(model=model, registry=registry, device=device)
    config, tried = split_asked(asked)
    from app.main import load_backbone
    from app.measure.example_file import read_inputs
    from app.tuning.distillation.distillation import DistillationPlan
    from app.tuning.search import Search
    from app.tuning.tune import tune_task

    texts = read_inputs(inputs)
    backbone = load_backbone(settings)
    opened = open_to_publish(settings, backbone, task, alias)
    found, its_template, its_labels = _find_teacher(backbone, opened, prompt, teacher)
    said = parse_labels(labels)
    chosen = its_labels if said is None else said
    tried = {"num_virtual_tokens": (config.num_virtual_tokens,), **tried}
    search = Search.default(config, has_labels=bool(chosen), **tried)
    plan = DistillationPlan.make(
        found, texts, config, search, template=parse_template(template) or its_template, labels=chosen
    )
    with interruptible() as should_stop, TuningView(as_json=as_json) as view:
        result = tune_task(backbone, plan, on_event=view.show, should_stop=should_stop)
    [version] = publish_all(backbone, opened, task, result, description=description, alias=alias)
    if as_json:
        write_json({"id": version.id, **result.origin["distillation"], "stop_reason": result.stop_reason})
        return
    report_result([version], result, as_json=False)
    typer.echo(result.note)


def _find_teacher(
    backbone: Backbone, registry: Registry, prompt: Path | None, teacher: str | None
) -> tuple[TaskPrompt, Template, tuple[str, ...]]:
    """The prompt, its template and its labels. Raises InvalidInput, NotFound."""
    from app.model.layout import Template
    from app.task_prompt import TaskPrompt

    if (prompt is None) == (teacher is None):
        raise InvalidInput("give the teacher as --prompt or as --teacher, one of them", param="prompt")
    if teacher is not None:
        version = registry.resolve(teacher)
        return registry.prompt(version), version.template or Template(), version.labels
    assert prompt is not None
    try:
        text = prompt.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{prompt.name}: is not UTF-8; save the file as UTF-8", param="prompt") from error
    if not text:
        raise InvalidInput(f"{prompt.name}: the file is empty", param="prompt")
    return TaskPrompt.from_text(text, backbone.tokenizer(text)["input_ids"], backbone.fingerprint), Template(), ()
