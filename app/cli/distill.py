"""`softswap distill`."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.options import AsJson, Device, Model, RegistryFolder, read_settings, write_json
from app.cli.search_options import make_config, parse_values
from app.cli.tuned_version import publish_result, report_result
from app.cli.tuning_view import TuningView, interruptible
from app.errors import InvalidInput

if TYPE_CHECKING:
    from app.model.backbone import Backbone
    from app.registry.registry import Registry
    from app.task_prompt import TaskPrompt

TEACHER, STUDENT, TRIED = "Teacher", "Student", "Tried side by side: one value, or several separated by commas"


def distill(
    *,
    inputs: Annotated[
        Path,
        typer.Argument(help="Inputs: JSON lines or CSV with input, or a .txt file of one a line. Targets are not read.",
                       exists=True, dir_okay=False),
    ],
    task: Annotated[str, typer.Option(help="Name to publish under.")],
    prompt: Annotated[
        Path | None,
        typer.Option(help="The written prompt: a text file.", exists=True, dir_okay=False, rich_help_panel=TEACHER),
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Or a published version, such as sentiment@2.", rich_help_panel=TEACHER)
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(help=r"What stands behind the prompt: 'Review: {input}\nSentiment: {target}'.",
                     rich_help_panel=TEACHER),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(help="Possible answers, separated by commas. (default: the teacher's, or it writes text)",
                     rich_help_panel=TEACHER),
    ] = None,
    num_virtual_tokens: Annotated[
        str | None, typer.Option("--virtual-tokens", help="Rows to learn. (default: 20)", rich_help_panel=TRIED)
    ] = None,
    kind: Annotated[str | None, typer.Option(help="embeddings or kv.", rich_help_panel=TRIED)] = None,
    init: Annotated[
        str | None, typer.Option(help="Where they start: vocab, labels, text or random.", rich_help_panel=TRIED)
    ] = None,
    init_text: Annotated[str | None, typer.Option(help="For --init text.", rich_help_panel=TRIED)] = None,
    learning_rate: Annotated[
        str | None, typer.Option(help="In units of the vocabulary's scale.", rich_help_panel=TRIED)
    ] = None,
    seed: Annotated[str | None, typer.Option(help="Of the initialisation.", rich_help_panel=TRIED)] = None,
    num_epochs: Annotated[
        float | None,
        typer.Option("--epochs", help="Passes over the inputs. (default: 3, at least 50 updates)",
                     rich_help_panel=STUDENT),
    ] = None,
    max_steps: Annotated[
        int | None, typer.Option(help="Updates, whatever the number of inputs.", rich_help_panel=STUDENT)
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Inputs in an update.", rich_help_panel=STUDENT)] = None,
    description: Annotated[str, typer.Option(help="One sentence for people.")] = "",
    alias: Annotated[str, typer.Option(help="Alias that shall mean the new version; '' moves none.")] = "live",
    as_json: AsJson = False,
    model: Model = None,
    registry: RegistryFolder = None,
    device: Device = None,
) -> None:  # fmt: skip
    """Turn a long written prompt into some virtual tokens that answer alike.

        softswap distill reviews.txt --prompt few_shot.txt --labels negative,positive --task sentiment-short

    A tenth of the inputs is held out; on these the command says how often the new prompt decides as the old one does,
    how many tokens each request saves, and after how many requests that outweighs the tuning.
    """
    settings = read_settings(model=model, registry=registry, device=device)
    tried = {
        "kinds": kind, "inits": init, "learning_rates": learning_rate,
        "nums_virtual_tokens": num_virtual_tokens, "seeds": seed,
    }  # fmt: skip
    shared = {"init_text": init_text, "num_epochs": num_epochs, "max_steps": max_steps, "batch_size": batch_size}
    values: dict[str, Any] = {name: parse_values(name, text) for name, text in tried.items() if text is not None}
    config = make_config(values, shared)
    from app.main import load_backbone
    from app.model.layout import Template
    from app.registry.registry import Registry
    from app.registry.store import FileStore
    from app.tuning.dataset import read_inputs
    from app.tuning.distillation import DistillationReport, distill_prompt
    from app.tuning.search import Search

    texts = read_inputs(inputs)
    backbone = load_backbone(settings)
    opened = Registry(FileStore(settings.registry), backbone)
    found, its_template, its_labels = _find_teacher(backbone, opened, prompt, teacher)
    chosen = its_labels if labels is None else tuple(each.strip() for each in labels.split(",") if each.strip())
    with interruptible() as should_stop, TuningView(as_json=as_json) as view:
        result = distill_prompt(
            backbone, found, texts, config,
            replace(Search.default(config, has_labels=bool(chosen)), **values),
            template=its_template if template is None else Template(template.replace("\\n", "\n")),
            labels=chosen, on_event=view.show, should_stop=should_stop,
        )  # fmt: skip
    report = DistillationReport.of(result, found)
    distilled = {"method": "distillation", "teacher": found.digest, "distillation": report.as_dict()}
    version = publish_result(
        backbone, opened, task, result, description=description, alias=alias, more_provenance=distilled
    )
    if as_json:
        write_json({"id": version.id, **report.as_dict(), "stop_reason": result.stop_reason})
        return
    report_result(version, result, as_json=False)
    typer.echo(_in_words(asdict(report) | report.as_dict()))


def _find_teacher(
    backbone: Backbone, registry: Registry, prompt: Path | None, teacher: str | None
) -> tuple[TaskPrompt, Any, tuple[str, ...]]:
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


def _in_words(report: dict[str, Any]) -> str:
    agreement = "{agreement:.1%} [{agreement_low:.1%}, {agreement_high:.1%}]".format(**report)
    lines = [
        f"decides as the teacher does on {agreement} of the held-out inputs",
        "{num_teacher_tokens} tokens became {num_virtual_tokens}: {num_tokens_saved} saved in each request".format(
            **report
        ),
    ]
    if report["num_requests_to_break_even"] is not None:
        lines.append(
            "tuning computed {num_tuning_tokens:,} tokens, as many as {num_requests_to_break_even:,} requests "
            "save where the teacher is computed for each".format(**report)
        )
    return "\n".join(lines)
