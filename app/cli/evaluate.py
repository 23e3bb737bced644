"""`softswap eval`."""

from __future__ import annotations

import asyncio
import math
from functools import partial
from typing import Annotated, Any

import typer

from app.cli import options
from app.cli.backbones.pull import obtain
from app.cli.places.paths import require_registry, require_tasks
from app.cli.places.remote_server import RemoteServer, example_items, naming_rows, task_path
from app.cli.views.data_view import show_reading
from app.errors import InvalidInput
from app.measure.dataset import Dataset
from app.measure.example_file import read_dataset
from app.registry.reference import JOINT
from app.settings import Settings


@options.takes_place("model", "registry", "device", "quantize")
def evaluate(
    *,
    task: options.TaskOrEnsemble,
    data: options.ExampleFile,
    input_field: options.InputField = None,
    target_field: options.TargetField = None,
    combine: options.Combined = None,
    record: Annotated[bool, typer.Option("--record", help="Keep the figures with the version.")] = False,
    with_predictions: Annotated[
        bool, typer.Option("--predictions", help="With --json: the prediction of each example too.")
    ] = False,
    as_json: options.AsJson = False,
    place: RemoteServer | Settings,
) -> None:
    """Measure a task on examples it was not tuned on.

    Labels: accuracy with a 95 % interval, macro F1, precision and recall of each, confusion, calibration. Texts: exact
    match, token F1, ROUGE-L. The backbone is loaded here, unless --url names a running server.

        softswap eval sentiment test.jsonl
        softswap eval sentiment@2 test.csv --json
        softswap eval sentiment@1+2+3 test.jsonl
    """
    if with_predictions and not as_json:
        raise InvalidInput("--predictions belongs to --json", param="predictions")
    options.require_ensemble(task, combine)
    if record and JOINT in task:
        raise InvalidInput("--record keeps figures with one version, and an ensemble is several", param="record")
    if isinstance(place, Settings):
        require_registry(place)
    dataset = read_dataset(data, input_field=input_field, target_field=target_field)
    show_reading(dataset)
    if isinstance(place, Settings):
        settings = obtain(place)
        require_tasks(settings, task)
        measuring = _evaluate_here(settings, task, dataset, combine, record=record, with_predictions=with_predictions)
        shown = asyncio.run(measuring)
    else:
        examples = example_items(dataset.examples)
        body: dict[str, Any] = {"examples": examples, "with_predictions": with_predictions}
        if combine is not None:
            body["combine"] = combine
        if record:
            body |= {"record": True, "data_name": dataset.name}
        with naming_rows(dataset.examples):
            shown = place.call("POST", task_path(task, "evaluate"), body)
    from app.cli.views.evaluation_view import print_evaluation

    options.write(shown, partial(print_evaluation, name=dataset.name), as_json=as_json)


async def _evaluate_here(
    settings: Settings, task: str, dataset: Dataset, combine: str | None, *, record: bool, with_predictions: bool
) -> dict[str, Any]:
    """As the server does it: through an engine, which has no other requests here."""
    from app.answers.call import Call
    from app.answers.measuring.evaluation import Evaluator, evaluation_object
    from app.answers.targets import Combine, TaskFinder
    from app.main import open_engine

    with open_engine(settings) as opened:
        backbone, engine = opened.backbone, opened.engine
        engine.start()
        target = await TaskFinder(backbone, opened.registry).find(task, param="task")
        if target.labels:
            dataset.require_labels(target.labels)
        measured = await Evaluator(backbone, opened.registry, engine).evaluate(
            target,
            dataset.examples,
            Call(math.inf),
            combine=None if combine is None else Combine(combine),
            data_name=dataset.name if record else None,
        )
    shown = evaluation_object(target.model_id, dataset.examples, measured, with_predictions=with_predictions)
    return shown.model_dump(exclude_unset=True)
