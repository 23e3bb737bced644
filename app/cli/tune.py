"""`softswap tune`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.options import AsJson, Device, Model, RegistryFolder, read_settings, write_json
from app.errors import GateFailed, InvalidInput

if TYPE_CHECKING:
    from app.model.backbone import Backbone
    from app.registry.registry import Registry
    from app.registry.version import Version
    from app.tuning.config import TuneConfig
    from app.tuning.events import TuneEvent
    from app.tuning.tune import TuneResult

DATA, TUNING = "Data", "Tuning"


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
        int | None, typer.Option("--virtual-tokens", help="Rows to learn. (default: 20)", rich_help_panel=TUNING)
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(help="embeddings (prompt tuning), or kv (prefix tuning; suits small models).",
                     rich_help_panel=TUNING),
    ] = None,
    init: Annotated[
        str | None, typer.Option(help="Where they start: vocab, labels, text or random.", rich_help_panel=TUNING)
    ] = None,
    init_text: Annotated[str | None, typer.Option(help="For --init text.", rich_help_panel=TUNING)] = None,
    num_epochs: Annotated[
        float | None, typer.Option("--epochs", help="Passes over the examples. (default: 3)", rich_help_panel=TUNING)
    ] = None,
    max_steps: Annotated[
        int | None, typer.Option(help="Updates, whatever the number of examples.", rich_help_panel=TUNING)
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples in an update.", rich_help_panel=TUNING)] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="In units of the vocabulary's scale.", rich_help_panel=TUNING)
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(help="Measurements without progress until it ends; 0 never. (default: 5)", rich_help_panel=TUNING),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of initialisation and order.", rich_help_panel=TUNING)] = None,
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

    A line of DATA: {"input": "a gorgeous film", "target": "positive"}. Interrupting once (Ctrl-C) ends the tuning and
    publishes the best state so far; twice publishes nothing. A server that watches the folder serves it at once.
    """
    settings = read_settings(model=model, registry=registry, device=device)
    given = {
        "kind": kind, "num_virtual_tokens": num_virtual_tokens, "init": init, "init_text": init_text,
        "num_epochs": num_epochs, "max_steps": max_steps, "batch_size": batch_size,
        "learning_rate": learning_rate, "seed": seed,
        "patience": 5 if patience is None else patience,
    }  # fmt: skip
    config = _make_config(given)
    from app.main import load_backbone
    from app.model.layout import Template
    from app.registry.registry import Registry
    from app.registry.store import FileStore
    from app.tuning.dataset import read_dataset
    from app.tuning.tune import tune_task

    fields = {"input_field": input_field, "target_field": target_field}
    train = read_dataset(data, **fields)
    held_out = None if validation is None else read_dataset(validation, **fields)
    backbone = load_backbone(settings)
    opened = Registry(FileStore(settings.registry), backbone)
    with _interruptible() as should_stop, _Progress(as_json=as_json) as progress:
        result = tune_task(
            backbone, train, held_out, config,
            template=None if template is None else Template(template.replace("\\n", "\n")),
            labels=None if labels is None else [label.strip() for label in labels.split(",") if label.strip()],
            on_event=progress.show, should_stop=should_stop,
        )  # fmt: skip
    version = _publish(backbone, opened, task, result, description, alias)
    _report(version, result, as_json=as_json)


def _make_config(given: dict[str, Any]) -> TuneConfig:
    from app.task_prompt import PromptKind
    from app.tuning.config import Init, TuneConfig

    values = {name: value for name, value in given.items() if value is not None}
    if "kind" in values:
        kinds = [PromptKind.EMBEDDINGS.value, PromptKind.KV.value]
        if values["kind"] not in kinds:
            raise InvalidInput(f"--kind must be one of {', '.join(kinds)}", param="kind")
        values["kind"] = PromptKind(values["kind"])
    if "init" in values:
        names = [each.value for each in Init if each is not Init.PROMPT]
        if values["init"] not in names:
            raise InvalidInput(f"--init must be one of {', '.join(names)}", param="init")
        values["init"] = Init(values["init"])
    return TuneConfig(**values)


def _publish(
    backbone: Backbone, registry: Registry, task: str, result: TuneResult, description: str, alias: str
) -> Version:
    """Onto the alias where its gate allows it, else aside: what was tuned is not lost."""
    from app.tuning.gates import publish_measured

    provenance = result.provenance
    config = provenance.pop("config")
    fields: dict[str, Any] = {
        "initial": result.tuned.initial,
        "template": result.template,
        "labels": result.labels,
        "label_temperature": result.validation.label_temperature,
        "sampling": {} if result.labels else {"temperature": 0.0, "max_tokens": result.config.max_target_tokens},
        "metrics": result.metrics,
        "data_sha256": provenance.pop("data_hash"),
        "tuning": config,
        "provenance": provenance,
        "description": description,
    }
    try:
        return publish_measured(backbone, registry, task, result.prompt, alias=alias or None, **fields)
    except GateFailed as error:
        typer.echo(f"{alias} stays where it is: {error.message}", err=True)
        return registry.publish(task, result.prompt, alias=None, **fields)


def _report(version: Version, result: TuneResult, *, as_json: bool) -> None:
    if as_json:
        write_json({"id": version.id, "metrics": result.metrics, **result.provenance})
        return
    main = result.validation.main_metric
    typer.echo(
        f"{version.id} published: validation {main} {result.validation.metrics[main]:.3f} on {result.num_validation} "
        f"examples, best after {result.tuned.best_step} of {result.tuned.num_steps} updates"
    )


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C asks tuning to end, the second one ends the command."""
    has_asked = False

    def ask(_: int, __: FrameType | None) -> None:
        nonlocal has_asked
        if has_asked:
            raise KeyboardInterrupt
        has_asked = True
        typer.echo("ending after this update; interrupt again to publish nothing", err=True)

    previous = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: has_asked
    finally:
        signal.signal(signal.SIGINT, previous)


class _Progress:
    """Shows a run's events on stderr: a bar where it is a terminal, lines otherwise; with --json, JSON on stdout."""

    def __init__(self, *, as_json: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._as_json = as_json
        self._is_live = sys.stderr.isatty() and not as_json
        self._score = ""
        self._bar = Progress(
            TextColumn("tuning"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            TextColumn("loss {task.fields[loss]:.3f} {task.fields[score]}"),
            console=Console(stderr=True), disable=not self._is_live,
        )  # fmt: skip
        self._row = self._bar.add_task("tuning", total=None, loss=float("nan"), score="")

    def __enter__(self) -> _Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, event: TuneEvent) -> None:
        from app.tuning.events import Evaluated, StepDone, TuningStarted

        if self._as_json:
            write_json({"event": type(event).__name__, **asdict(event)})
        elif isinstance(event, TuningStarted):
            self._bar.update(self._row, total=event.num_steps)
            typer.echo(
                f"{event.num_train} examples, {event.num_validation} for validation, "
                f"{event.num_parameters} parameters, {event.num_steps} updates",
                err=True,
            )
        elif isinstance(event, StepDone):
            self._bar.update(self._row, completed=event.step, loss=event.loss, score=self._score)
        elif isinstance(event, Evaluated):
            self._score = f"validation {event.metric} {event.value:.3f}"
            if not self._is_live:
                typer.echo(f"update {event.step}: {self._score}{' (best)' if event.is_best else ''}", err=True)
