"""`softswap run`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli import options
from app.cli.backbones.pull import obtain
from app.cli.places.paths import require_registry, require_tasks
from app.cli.places.remote_server import RemoteServer, task_path
from app.errors import InvalidInput
from app.measure.reading.table import split_lines
from app.settings import Settings

if TYPE_CHECKING:
    from app.answers.targets import AnyTarget
    from app.main import OpenEngine

BATCH_SIZE = 64


@options.takes_place("model", "registry", "device", "quantize")
def run(
    *,
    task: options.TaskOrEnsemble,
    text: Annotated[
        str | None, typer.Argument(help="The input; without it, or with -, one input per line is read from a pipe.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Maximum number of tokens to generate.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Sampling temperature. (default: 0, greedy)")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed that makes sampling repeatable.")] = None,
    combine: options.Combined = None,
    as_json: options.AsJson = False,
    place: RemoteServer | Settings,
) -> None:
    """Run a task: get a label from a task with labels, or text from one that generates.

    The backbone is loaded here unless --url names a running server. Generated text appears as it is written.
    An ensemble answers with the average of its members' probabilities, or by a vote.

        softswap run sentiment "a gorgeous, witty film"
        cat reviews.txt | softswap run sentiment --json
        softswap run sentiment@1+2+3 "a gorgeous, witty film"
    """
    given: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    given = {name: value for name, value in given.items() if value is not None}
    options.require_sampling(given)
    options.require_ensemble(task, combine)
    given |= {} if combine is None else {"combine": combine}
    if text is None and sys.stdin.isatty():
        raise typer.BadParameter("give a text, or pipe in one input per line", param_hint="text")
    if isinstance(place, Settings):
        require_registry(place)
    asyncio.run(_answer(_open_runner(place, task, given), text, as_json=as_json))


@asynccontextmanager
async def _open_runner(
    place: RemoteServer | Settings, task: str, given: dict[str, Any]
) -> AsyncIterator[_LocalRunner | _RemoteRunner]:
    if isinstance(place, RemoteServer):
        yield _RemoteRunner(place, task, given)
        return
    from app.telemetry import configure_logging

    configure_logging("warning")
    settings = obtain(place)
    require_tasks(settings, task)
    from app.answers.targets import TaskFinder
    from app.main import open_engine

    with open_engine(settings) as opened:
        opened.engine.start()
        target = await TaskFinder(opened.backbone, opened.registry).find(task, param="task")
        yield _LocalRunner(opened, target, given, place.request_timeout)


async def _answer(
    opening: AbstractAsyncContextManager[_LocalRunner | _RemoteRunner], text: str | None, *, as_json: bool
) -> None:
    async with opening as runner:
        if text in (None, "-"):
            lines = _read_lines()
            while batch := list(islice(lines, BATCH_SIZE)):
                for result in await runner.run(batch):
                    _show(result, as_json=as_json, is_line=True)
        elif as_json or not runner.can_stream:
            [result] = await runner.run([text])
            _show(result, as_json=as_json)
        else:
            async with aclosing(runner.stream(text)) as pieces:
                async for piece in pieces:
                    typer.echo(piece, nl=False)
            typer.echo()


def _read_lines() -> Iterator[str]:
    """Raises InvalidInput."""
    try:
        for line in sys.stdin:
            yield line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise InvalidInput("what is piped in is not UTF-8", param="text") from error


class _LocalRunner:
    """Runs a task on a backbone in this process."""

    def __init__(self, opened: OpenEngine, target: AnyTarget, given: dict[str, Any], timeout_s: float) -> None:
        from app.answers.generating.generation import TextGenerator
        from app.answers.generating.labels import LabelScorer
        from app.answers.generating.runs import RunService
        from app.answers.targets import Combine

        texts, labels = TextGenerator(opened.engine), LabelScorer(opened.backbone, opened.engine, opened.metrics)
        self._runs = RunService(opened.backbone, texts, labels)
        self._target = target
        asked = given.pop("combine", None)
        self._combine = target.choose_combine(None if asked is None else Combine(asked))
        self._given = given
        self._timeout_s = timeout_s
        self.can_stream = not target.is_ensemble and not target.labels

    async def run(self, texts: list[str]) -> list[dict[str, Any]]:
        from app.answers.call import Call
        from app.answers.generating.runs import Run

        runs = [Run(self._target, text, f"line {number}", self._combine) for number, text in enumerate(texts, 1)]
        results = await self._runs.run_all(runs, self._given, Call.within(self._timeout_s))
        return [result.answer.model_dump(exclude_unset=True) for result in results]

    async def stream(self, text: str) -> AsyncGenerator[str, None]:
        from app.answers.call import Call
        from app.answers.generating.runs import Run

        run = Run(self._target, text, "input")
        async with aclosing(self._runs.stream(run, self._given, Call.within(self._timeout_s))) as pieces:
            async for piece in pieces:
                yield piece.text


class _RemoteRunner:
    """Runs a task on a running server."""

    def __init__(self, server: RemoteServer, task: str, given: dict[str, Any]) -> None:
        self._server = server
        self._path = task_path(task, "run")
        self._given = given
        self.can_stream = "+" not in task and not self._has_labels(task_path(task.partition("@")[0]))

    def _has_labels(self, path: str) -> bool:
        live = self._server.call("GET", path)["live"]
        return bool(live and live["labels"])

    async def run(self, texts: list[str]) -> list[dict[str, Any]]:
        answer = self._server.call("POST", self._path, {"inputs": texts, **self._given})
        return list(answer["results"])

    async def stream(self, text: str) -> AsyncGenerator[str, None]:
        for event in self._server.stream(self._path, {"input": text, "stream": True, **self._given}):
            yield event["text"]


def _show(result: dict[str, Any], *, as_json: bool, is_line: bool = False) -> None:
    """Args: is_line: join the lines of a text, so that each input gets one line; --json keeps it as it is."""
    if as_json:
        options.write_json(result)
        return
    answer = result["label"] if "label" in result else result["text"]
    typer.echo(" ".join(split_lines(answer)) if is_line else answer)
