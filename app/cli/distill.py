"""`softswap distill`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli import options
from app.cli.backbones.pull import obtain
from app.cli.places.paths import require_publishable
from app.cli.views.data_view import show_data
from app.cli.views.tuning_view import open_to_publish, report_result, tune_and_publish
from app.errors import InvalidInput
from app.measure.example_file import read_unlabeled
from app.measure.reading.labels import TaskData
from app.measure.reading.look import DataLook
from app.model.layout import Template
from app.settings import Settings
from app.tuning.budget import process_began_s

if TYPE_CHECKING:
    from app.model.backbone import Backbone
    from app.registry.registry import Registry
    from app.task_prompt import TaskPrompt

TEACHER = "Teacher"


@options.takes_settings("model", "registry", "device")
@options.takes_hyperparameters(without=("patience", "metric", "balance"))
def distill(
    *,
    inputs: Annotated[
        Path,
        typer.Argument(
            help="Inputs: JSON lines or CSV with input, or a .txt file of one a line. Targets are not read.",
            exists=True,
            dir_okay=False,
        ),
    ],
    task: options.NewTask,
    prompt: Annotated[Path | None, options.existing_file("The written prompt: a text file.", TEACHER)] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Or a published version, such as sentiment@2.", rich_help_panel=TEACHER)
    ] = None,
    input_field: options.InputField = None,
    template: options.TemplateText = None,
    labels: options.Labels = None,
    asked: dict[str, Any],
    description: options.Description = "",
    alias: options.Alias = "live",
    promote: options.Promote = False,
    keep_examples: options.KeepExamples = False,
    as_json: options.AsJson = False,
    settings: Settings,
) -> None:
    """Turn a long written prompt into a few virtual tokens that answer alike.

    A tenth of the inputs is held out; on these the command says how often the new prompt decides as the old one does,
    how many tokens each request saves, and after how many requests that outweighs the tuning.

        softswap distill reviews.txt --prompt few_shot.txt --labels negative,positive --task sentiment-short
    """
    began_s = process_began_s()
    require_publishable(settings, task, alias, promote=promote)
    config, tried = options.split_asked(asked)
    asked_template, said = options.parse_template(template), options.parse_labels(labels)
    if (prompt is None) == (teacher is None):
        raise InvalidInput("give the teacher as --prompt or as --teacher, one of them", param="prompt")
    written = None if prompt is None else _read_prompt(prompt)
    read = read_unlabeled(inputs, input_field=input_field)
    look = DataLook.of(TaskData(read, None, ()))
    show_data(look, as_json=as_json)
    settings = obtain(settings, may_fall_back=False)

    from app.main import load_backbone
    from app.tuning.distillation import DistillationPlan
    from app.tuning.search import Search

    backbone = load_backbone(settings)
    registry = open_to_publish(settings, backbone, task, alias)
    found, its_template, its_labels, sampling = _find_teacher(backbone, registry, written, teacher)
    chosen = its_labels if said is None else said
    config = config.with_budget(backbone.device.type)
    tried = {"num_virtual_tokens": (config.num_virtual_tokens,), **tried}
    search = Search.asked(tried) if config.budget_s else Search.default(config, has_labels=bool(chosen), **tried)
    plan = DistillationPlan.make(
        read.inputs,
        look=look,
        teacher=found,
        template=(asked_template or its_template).after_system(read.system),
        labels=chosen,
        config=config,
        search=search,
        sampling=sampling,
    )
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
    report = result.distillation
    assert report is not None
    if as_json:
        figures = {**released.as_dict(), **report.as_dict(), "stop_reason": result.stop_reason}
        options.write_json({"id": versions[0].id, **figures})
        return
    report_result(versions, result, released, as_json=False)
    typer.echo(report.in_words())


def _read_prompt(prompt: Path) -> str:
    """Raises InvalidInput."""
    try:
        text = prompt.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{prompt.name}: is not UTF-8; save the file as UTF-8", param="prompt") from error
    if not text:
        raise InvalidInput(f"{prompt.name}: the file is empty", param="prompt")
    return text


def _find_teacher(
    backbone: Backbone, registry: Registry, written: str | None, teacher: str | None
) -> tuple[TaskPrompt, Template, tuple[str, ...], Mapping[str, Any]]:
    """The prompt, its template, its labels and its sampling defaults. Raises InvalidInput, NotFound.

    Args: written: the prompt's text; None: it is the version `teacher`.
    """
    from app.tuning.distillation import write_teacher

    if written is None:
        version = registry.resolve(str(teacher))
        return registry.prompt(version), version.template or Template(), version.labels, version.sampling
    return write_teacher(backbone, written), Template(), (), {}
