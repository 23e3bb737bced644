"""create_app: wires everything, in one place. What was opened first is closed last."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass

import torch
import uvicorn
from fastapi import FastAPI

from app.answers.call import Readiness
from app.answers.generating.completer import Completer
from app.answers.generating.generation import TextGenerator
from app.answers.generating.labels import LabelScorer
from app.answers.generating.runs import RunService
from app.answers.measuring.evaluation import Evaluator
from app.answers.measuring.token_report import TokenReporter
from app.answers.prompt_warmer import PromptWarmer
from app.answers.targets import TaskFinder
from app.engine.admission import EngineRequest
from app.engine.async_engine import AsyncEngine
from app.engine.config import EngineConfig
from app.engine.engine import Engine
from app.errors import TuningUnavailable
from app.http.application import build_application
from app.http.dependencies import Serving
from app.http.protection.guard import ApiKeys, Guard
from app.http.protection.protocol import MAX_HEADER_BYTES, DeadlineProtocol
from app.http.tasks.tasks_schema import max_prompt_body_bytes
from app.model.attention import attend_sdpa
from app.model.backbone import Backbone
from app.model.kernels import Replacements
from app.model.loading.catalog.obtain import obtain_model
from app.model.loading.catalog.pull import PullLines
from app.model.threads import PassingThreads, choose_num_threads, on_passing_thread
from app.registry.registry import Registry
from app.registry.store import FileStore
from app.sampling import SamplingParams
from app.settings import Settings
from app.telemetry import Metrics
from app.tuning.job.service import TuningService

logger = logging.getLogger(__name__)

KEEP_ALIVE_S = 5
TUNING_SLICE_S = 0.02
"""Seconds for which tuning takes the device at a time: how much longer a step of the engine may have to wait."""
NUM_TRIAL_TOKENS = 8
"""Of the forward that decides how many threads compute: a step of as many sequences."""
FLUSH_S = 5
"""Seconds that answers get to reach their clients after the last one is complete."""


def create_app(settings: Settings, *, backbone: Backbone | None = None) -> FastAPI:
    """A server, ready to be run by uvicorn. It loads the backbone now and starts the engine with its first event loop.

    Args:
        backbone: one that is loaded already, instead of `settings.model`.

    Raises:
        InvalidInput: a setting that cannot be, named by `param`.
        UnsupportedModel: the backbone cannot be served.
    """
    keys = ApiKeys(settings.read_api_keys())
    with ExitStack() as stack:
        opened = stack.enter_context(open_engine(settings, backbone=backbone))
        tuning = stack.enter_context(open_tuning(settings, opened))
        warmer = PromptWarmer(opened.registry, opened.engine, opened.backbone.fingerprint)
        stack.callback(warmer.close)
        resources = stack.pop_all()
    on_stop = [tuning.stop] if isinstance(tuning, TuningService) else []
    readiness = Readiness(opened.engine, on_stop)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with resources:
            await _start(opened)
            if isinstance(tuning, TuningService):
                tuning.start()
            readiness.is_ready = True
            if settings.warm_prompts:
                warmer.start()
            yield
            readiness.begin_to_stop()

    return build_application(
        opened.backbone,
        opened.registry,
        opened.engine,
        readiness,
        Guard(keys, max_prompt_body_bytes=max_prompt_body_bytes(opened.backbone)),
        Serving(int(time.time()), settings.request_timeout, tuning),
        *make_answers(opened),
        metrics=opened.metrics,
        lifespan=lifespan,
    )


@dataclass(frozen=True)
class OpenEngine:
    """A backbone, its registry, and the engine that computes on it. The engine must be started once."""

    backbone: Backbone
    registry: Registry
    engine: AsyncEngine
    metrics: Metrics


@contextmanager
def open_engine(settings: Settings, *, backbone: Backbone | None = None) -> Iterator[OpenEngine]:
    """What answers on this machine, for a server as for a command. Raises as `create_app` does."""
    metrics = Metrics()
    backbone = backbone or load_backbone(settings)
    if settings.registry is not None and not settings.registry.is_dir():
        logger.warning("there is no registry at %s yet, so there are no tasks", settings.registry)
    with ExitStack() as stack:
        config = size_engine(settings, backbone)
        store = FileStore(settings.registry_folder, settings.tasks_below)
        registry = Registry(store, backbone, max_positions=config.max_positions)
        if settings.watch_interval:
            registry.start_watching(settings.watch_interval)
        stack.callback(registry.close)
        attend = attend_sdpa if settings.attention == "sdpa" else None
        replacements = Replacements() if settings.layers == "torch" else None
        engine = AsyncEngine(Engine(backbone, config, metrics, attend=attend, replacements=replacements))
        stack.callback(engine.close)
        yield OpenEngine(backbone, registry, engine, metrics)


def make_answers(opened: OpenEngine) -> tuple[object, ...]:
    """What routes ask for by class, from the engine up."""
    backbone, registry, engine = opened.backbone, opened.registry, opened.engine
    finder = TaskFinder(backbone, registry)
    texts, labels = TextGenerator(engine), LabelScorer(backbone, engine, opened.metrics)
    evaluator = Evaluator(backbone, registry, engine)
    return (
        finder,
        labels,
        RunService(backbone, texts, labels),
        Completer(backbone, texts, labels),
        evaluator,
        TokenReporter(backbone, registry, finder, evaluator),
    )


@contextmanager
def open_tuning(settings: Settings, opened: OpenEngine) -> Iterator[TuningService | TuningUnavailable]:
    """Uploads and jobs, if the state folder can be had; if not, why: everything else is served all the same."""
    try:
        tuning = TuningService(
            settings.state_folder,
            opened.backbone,
            opened.registry,
            opened.engine.lease,
            slice_s=TUNING_SLICE_S,
            keep_checkpoints=settings.keep_checkpoints,
            metrics=opened.metrics,
        )
    except TuningUnavailable as error:
        logger.warning("%s", error.message)
        yield error
        return
    try:
        yield tuning
    finally:
        tuning.close()


def load_backbone(settings: Settings) -> Backbone:
    """Raises UnsupportedModel, InvalidInput, ModelUnavailable."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
        logger.info("threads: %d (as told)", settings.threads)
    backbone = Backbone.load(
        obtain_model(settings.model, settings.cache_folder, PullLines(), revision=settings.revision),
        revision=settings.revision,
        dtype=settings.dtype,
        device=settings.device,
        quantize=settings.quantize,
        cache=settings.cache_folder,
    )
    if settings.threads is None and backbone.device.type == "cpu":
        choose_threads(backbone)
    return backbone


@torch.no_grad()
def choose_threads(backbone: Backbone) -> None:
    """As many as compute some tokens soonest, for this thread and all that are begun later."""
    tokens = torch.zeros(1, NUM_TRIAL_TOKENS, dtype=torch.int64)
    num_threads, reason = choose_num_threads(lambda: backbone.model(input_ids=tokens, use_cache=False))
    torch.set_num_threads(num_threads)
    logger.info("threads: %d (%s)", num_threads, reason)


def size_engine(settings: Settings, backbone: Backbone) -> EngineConfig:
    """Raises InvalidInput: sizes that do not fit together or into memory."""
    return EngineConfig.sized_for(
        backbone,
        max_model_len=settings.max_model_len,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        block_size=settings.block_size,
        kv_cache_bytes=settings.kv_cache_memory,
        max_waiting_requests=settings.max_waiting_requests,
        max_waiting_tokens=settings.max_waiting_tokens,
        prefix_caching=settings.prefix_caching,
        prefix_store=settings.prefix_store,
        prefix_store_bytes=settings.prefix_store_size,
        prompt_lookup=settings.prompt_lookup,
        tuning_share=settings.tuning_share,
        eager=settings.eager,
    )


async def _start(opened: OpenEngine) -> None:
    """Start the engine and send one small request through it, so that the first caller does not pay for first times."""
    asyncio.get_running_loop().set_default_executor(PassingThreads())
    backbone, engine = opened.backbone, opened.engine
    engine.start()
    began = time.perf_counter()
    params = SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True)
    async for _ in engine.generate(EngineRequest(token_ids=[0], params=params, flow=backbone.name)):
        pass
    warm_s = time.perf_counter() - began
    tasks = await asyncio.to_thread(describe_tasks, opened.registry)
    logger.info("ready: %s on %s, %s, warmed up in %.2f s", backbone.name, backbone.device, tasks, warm_s)


def describe_tasks(registry: Registry) -> str:
    """How many can be used, and how many have versions for other backbones only."""
    tasks = registry.tasks()
    others = [task for task in tasks if task.missing is not None]
    names = ", ".join(sorted({backbone.name for task in others for backbone in task.backbones}))
    foreign = f"; {len(others)} more for other backbones ({names})" if others else ""
    return f"{len(tasks) - len(others)} tasks{foreign}"


class Server(uvicorn.Server):
    """Stops gracefully: while running requests end, new ones are answered with 503, and the exit code is 0."""

    def __init__(
        self, config: uvicorn.Config, readiness: Readiness, engine: AsyncEngine, shutdown_timeout_s: float
    ) -> None:
        super().__init__(config)
        self._readiness = readiness
        self._engine = engine
        self._shutdown_timeout_s = shutdown_timeout_s
        self._draining: asyncio.Task[None] | None = None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's own way raises the signal again after a graceful stop, so that the process would end by it."""
        loop = asyncio.get_running_loop()
        is_main = threading.current_thread() is threading.main_thread()
        for signal_number in (signal.SIGTERM, signal.SIGINT) if is_main else ():
            loop.add_signal_handler(signal_number, self.stop)
        yield

    def stop(self) -> None:
        """Begin to stop; the second time, stop at once."""
        if self._draining is not None:
            self.should_exit = self.force_exit = True
            return
        logger.info("stopping: running requests have %g s", self._shutdown_timeout_s)
        self._draining = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        self._readiness.begin_to_stop()
        await self._engine.drain(self._shutdown_timeout_s)
        self.should_exit = True


def serve(settings: Settings, address: socket.socket) -> None:
    """Run a server until it is asked to stop. Raises InvalidInput: a setting that cannot be.

    Args: address: bound, but not listened on.
    """
    app = on_passing_thread(lambda: create_app(settings))
    config = uvicorn.Config(
        app,
        http=DeadlineProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=FLUSH_S,
    )
    host, port = address.getsockname()[:2]
    logger.info("listening on http://%s:%d", f"[{host}]" if ":" in host else host, port)
    parts = app.state.parts
    Server(config, parts[Readiness], parts[AsyncEngine], settings.shutdown_timeout).run(sockets=[address])
