"""`softswap eval`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.options.data_options import ExampleFile, InputField, TargetField
from app.cli.options.json_output import AsJson, write_json
from app.cli.options.setting_options import (
    ApiKey,
    Device,
    Model,
    Quantize,
    RegistryFolder,
    Url,
    find_server,
    read_settings,
)
from app.cli.options.task_options import Combined, TaskOrEnsemble

if TYPE_CHECKING:
    from rich.console import RenderableType

    from app.measure.dataset import Dataset
    from app.settings import Settings

MAX_CONFUSION = 12
"""Labels up to which the confusion matrix fits a terminal."""
MAX_LABELS_SHOWN = 30
BAR_WIDTH = 30


def evaluate(
    *,
    task: TaskOrEnsemble,
    data: ExampleFile,
    input_field: InputField = None,
    target_field: TargetField = None,
    combine: Combined = None,
    record: Annotated[bool, typer.Option("--record", help="Keep the figures with the version.")] = False,
    with_predictions: Annotated[
        bool, typer.Option("--predictions", help="With --json: the prediction of each example too.")
    ] = False,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    model: Model = None,
    registry: RegistryFolder = None,
    device: Device = None,
    quantize: Quantize = None,
) -> None:
    """Measure a task on examples it was not tuned on.

    Labels: accuracy with a 95 % interval, macro F1, precision and recall of each, confusion, calibration. Texts: exact
    match, token F1, ROUGE-L. The backbone is loaded here, unless --url names a running server.

        softswap eval sentiment test.jsonl
        softswap eval sentiment@2 test.csv --json
        softswap eval sentiment@1+2+3 test.jsonl
    """
    from app.measure.example_file import read_dataset

    dataset = read_dataset(data, input_field=input_field, target_field=target_field)
    server = find_server(url, api_key)
    if server is None:
        settings = read_settings(model=model, registry=registry, device=device, quantize=quantize, watch_interval=0)
        measuring = _evaluate_here(settings, task, dataset, combine, record=record, with_predictions=with_predictions)
        import asyncio

        shown = asyncio.run(measuring)
    else:
        from app.cli.remote.remote_server import example_items, task_path

        examples = example_items(dataset.examples)
        body: dict[str, Any] = {"examples": examples, "with_predictions": with_predictions}
        if combine is not None:
            body["combine"] = combine
        if record:
            body |= {"record": True, "data_name": dataset.name}
        shown = server.call("POST", task_path(task, "evaluate"), body)
    if as_json:
        write_json(shown)
    else:
        _print(shown, dataset.name)


async def _evaluate_here(
    settings: Settings, task: str, dataset: Dataset, combine: str | None, *, record: bool, with_predictions: bool
) -> dict[str, Any]:
    """As the server does it: through an engine, which has no other requests here."""
    from app.answers.call import Call
    from app.answers.ensembles import Combine
    from app.answers.finder import TaskFinder
    from app.answers.measuring.evaluation import Evaluator, record_evaluation
    from app.answers.views.evaluations import evaluation_object
    from app.main import open_engine

    with open_engine(settings) as opened:
        backbone, engine = opened.backbone, opened.engine
        engine.start()
        target = await TaskFinder(backbone, opened.registry).find(task, param="task")
        if target.labels:
            dataset.require_labels(target.labels)
        asked = None if combine is None else Combine(combine)
        examples = dataset.examples
        measured = await Evaluator(backbone, engine).evaluate_asked(
            target, examples, asked, Call(math.inf), record=record
        )
        if record:
            record_evaluation(opened.registry, target, examples, measured, dataset.name)
    shown = evaluation_object(target.model_id, examples, measured, with_predictions=with_predictions)
    return shown.model_dump(exclude_unset=True)


def _print(shown: dict[str, Any], name: str) -> None:
    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False)
    num_examples = round(shown["metrics"]["num_examples"])
    console.print(f"[bold]{shown['model']}[/bold] on {name}: {num_examples:,} examples\n")
    for part in _parts(shown):
        console.print(part)
        console.print()


def _parts(shown: dict[str, Any]) -> Iterator[RenderableType]:
    yield _figures(shown["metrics"])
    if "labels" not in shown:
        return
    yield _label_table(shown["labels"])
    if len(shown["labels"]) <= MAX_CONFUSION:
        yield _confusion_table([each["label"] for each in shown["labels"]], shown["confusion"])
    if "calibration" in shown:
        yield _calibration_table(shown["calibration"])


def _figures(metrics: dict[str, float]) -> RenderableType:
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in metrics.items():
        if name in ("accuracy_low", "accuracy_high", "num_examples"):
            continue
        interval = (
            f"95 %: {metrics['accuracy_low']:.3f} to {metrics['accuracy_high']:.3f}" if name == "accuracy" else ""
        )
        table.add_row(name, f"{value:.3f}", f"[dim]{interval}[/dim]")
    return table


def _label_table(labels: Sequence[dict[str, Any]]) -> RenderableType:
    """Of many labels those with the lowest F1."""
    from rich.markup import escape
    from rich.table import Table

    title = None if len(labels) <= MAX_LABELS_SHOWN else f"the {MAX_LABELS_SHOWN} weakest of {len(labels)} labels"
    chosen = labels if title is None else sorted(labels, key=lambda each: float(each["f1"]))[:MAX_LABELS_SHOWN]
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for heading in ("label", "precision", "recall", "F1", "examples"):
        table.add_column(heading, justify="left" if heading == "label" else "right")
    for each in chosen:
        table.add_row(
            escape(each["label"]),
            *(f"{each[name]:.3f}" for name in ("precision", "recall", "f1")),
            f"{each['num_examples']:,}",
        )
    return table


def _confusion_table(labels: Sequence[str], counts: Sequence[Sequence[int]]) -> RenderableType:
    from rich.markup import escape
    from rich.table import Table

    table = Table("target \\ answer", box=None, pad_edge=False)
    for label in labels:
        table.add_column(escape(label), justify="right")
    for row, label in enumerate(labels):
        cells = [f"[bold]{n}[/bold]" if row == column else str(n or "·") for column, n in enumerate(counts[row])]
        table.add_row(escape(label), *cells)
    return table


def _calibration_table(calibration: dict[str, Any]) -> RenderableType:
    """For each range of confidence, how often the answers are right."""
    from rich.table import Table

    title = f"calibration (temperature {calibration['temperature']:.3g})"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for heading in ("probability", "examples", "confidence", "accuracy"):
        table.add_column(heading, justify="right")
    table.add_column("", justify="left")
    for each in calibration["bins"]:
        bar = "█" * round(BAR_WIDTH * each["accuracy"])
        table.add_row(
            f"{each['low']:.2f} to {each['high']:.2f}",
            f"{each['num_examples']:,}",
            f"{each['confidence']:.3f}",
            f"{each['accuracy']:.3f}",
            f"[dim]{bar}[/dim]",
        )
    return table
