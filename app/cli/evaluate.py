"""`softswap eval`."""

from __future__ import annotations

import math
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
    from app.measure.dataset import Dataset
    from app.settings import Settings


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
        from app.cli.views.evaluation_view import print_evaluation

        print_evaluation(shown, dataset.name)


async def _evaluate_here(
    settings: Settings, task: str, dataset: Dataset, combine: str | None, *, record: bool, with_predictions: bool
) -> dict[str, Any]:
    """As the server does it: through an engine, which has no other requests here."""
    from app.answers.call import Call
    from app.answers.ensembles import Combine
    from app.answers.finder import TaskFinder
    from app.answers.measuring.evaluation import Evaluator
    from app.answers.views.evaluations import evaluation_object
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
