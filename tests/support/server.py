"""A real server on a free port, with a tiny backbone and a registry of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
import torch
import uvicorn
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

from app.address import bind
from app.engine.async_engine import AsyncEngine
from app.http.dependencies import Serving
from app.http.protection.guard import Guard
from app.http.protection.protocol import DeadlineProtocol
from app.http.protection.uploads import UploadLimits
from app.main import create_app
from app.model.backbone import Backbone
from app.model.layout import Template
from app.registry.publication import Publication
from app.registry.registry import Registry
from app.settings import Settings
from app.task_prompt import TaskPrompt
from app.tuning.job.service import TuningService

Part = TypeVar("Part")
LABELS = ("negative", "positive")
REVIEW = "Review: {input}\nSentiment: {target}"


@dataclass(frozen=True)
class LiveServer:
    url: str
    app: FastAPI
    loop: asyncio.AbstractEventLoop

    @property
    def backbone(self) -> Backbone:
        return self.part(Backbone)

    @property
    def registry(self) -> Registry:
        return self.part(Registry)

    @property
    def engine(self) -> AsyncEngine:
        return self.part(AsyncEngine)

    @property
    def tuning(self) -> TuningService:
        return self.part(Serving).require_tuning()

    @property
    def uploads(self) -> UploadLimits:
        return self.part(Guard).uploads

    @property
    def routes(self) -> list[Any]:
        return [context.original_route for context in iter_route_contexts(self.app.routes)]

    def part(self, kind: type[Part]) -> Part:
        """What routes get when they ask for this class."""
        part: Part = self.app.state.parts[kind]
        return part


@contextmanager
def run_server(
    settings: Settings, backbone: Backbone, *, protocol: type[DeadlineProtocol] = DeadlineProtocol
) -> Iterator[LiveServer]:
    app = create_app(settings, backbone=backbone)
    with run_application(app, protocol=protocol) as (url, loop):
        yield LiveServer(url, app, loop)


@contextmanager
def run_application(
    app: FastAPI, *, protocol: type[DeadlineProtocol] = DeadlineProtocol
) -> Iterator[tuple[str, asyncio.AbstractEventLoop]]:
    """Serve an application from a thread. Gives its URL and its event loop."""
    address = bind("127.0.0.1", 0)
    server = uvicorn.Server(
        uvicorn.Config(app, http=protocol, ws="none", log_config=None, access_log=False, server_header=False)
    )
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_until_complete, args=(server.serve([address]),), daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise RuntimeError("the server did not start")
        threading.Event().wait(0.01)
    try:
        yield f"http://127.0.0.1:{address.getsockname()[1]}", loop
    finally:
        server.should_exit = True
        thread.join(timeout=30)
        loop.close()


def read_metric(live: LiveServer, name: str) -> float:
    """A series without labels, by its name without `softswap_`."""
    lines = httpx.get(f"{live.url}/metrics").text.splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(f"softswap_{name} "))


def make_settings(folder: Path, **changes: object) -> Settings:
    """A server that computes nothing while idle, so that a test can use the same model in its own thread."""
    return Settings(**{"registry": folder, "watch_interval": 0, "warm_prompts": False, **changes})


def watch_deadlines(monkeypatch: pytest.MonkeyPatch, live: LiveServer, method: str) -> list[float]:
    """A list that grows by the seconds left to each call of an engine's method."""
    left_s: list[float] = []
    plain = getattr(live.engine, method)

    def watched(*arguments: Any, **options: Any) -> Any:
        left_s.append(options["deadline_s"])
        return plain(*arguments, **options)

    monkeypatch.setattr(live.engine, method, watched)
    return left_s


def soft_prompt(backbone: Backbone, *, rows: int = 7, seed: int = 0) -> TaskPrompt:
    generator = torch.Generator().manual_seed(seed)
    return TaskPrompt.from_embeddings(
        torch.randn(rows, backbone.hidden_size, generator=generator), backbone.fingerprint
    )


def publish_tasks(registry: Registry, backbone: Backbone) -> None:
    """sentiment has labels and two versions, headline generates, raw has no template."""
    for seed in (1, 2):
        registry.publish(
            "sentiment", Publication(soft_prompt(backbone, seed=seed), template=Template(REVIEW), labels=LABELS)
        )
    registry.publish(
        "headline",
        Publication(
            soft_prompt(backbone, rows=20, seed=3),
            template=Template("{input}\nHeadline: {target}"),
            sampling={"max_tokens": 5, "temperature": 0.0},
        ),
    )
    registry.publish("raw", Publication(soft_prompt(backbone, rows=1, seed=4)))
