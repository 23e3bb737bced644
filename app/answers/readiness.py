"""Services: what the routes work with, made once by `main.create_app`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from app.answers.generating.labels import LabelBook
from app.answers.measuring.evaluation import Evaluator
from app.answers.measuring.promote import Promoter
from app.errors import Draining, EngineDead, TuningUnavailable

if TYPE_CHECKING:
    from app.engine.async_engine import AsyncEngine
    from app.http.protection.auth import ApiKeys
    from app.model.backbone import Backbone
    from app.registry.registry import Registry
    from app.telemetry import Metrics
    from app.tuning.job.service import TuningService

MAX_HEARTBEAT_AGE_S = 60.0


@dataclass
class Services:
    """Attributes:
    default_timeout_s: deadline of a request that names none.
    is_ready: set once the first request would be served.
    is_draining: set when the server begins to stop; never taken back.
    tuning: None where this server does not tune; `tuning_fault` says why.
    """

    backbone: Backbone
    registry: Registry
    engine: AsyncEngine
    metrics: Metrics
    keys: ApiKeys
    default_timeout_s: float
    created_at: int
    is_ready: bool = False
    is_draining: bool = False
    tuning: TuningService | None = None
    tuning_fault: str = "this server does not tune"
    labels: LabelBook = field(init=False)
    evaluator: Evaluator = field(init=False)
    promoter: Promoter = field(init=False)

    def __post_init__(self) -> None:
        self.labels = LabelBook(self.backbone, self.engine.plan_scoring)
        self.evaluator = Evaluator(self.backbone, self.engine, self.check_accepting)
        self.promoter = Promoter(self.registry, self.evaluator)

    @property
    def system_fingerprint(self) -> str:
        return f"fp_{self.backbone.fingerprint[:12]}"

    def require_tuning(self) -> TuningService:
        """Raises TuningUnavailable."""
        if self.tuning is None:
            raise TuningUnavailable(self.tuning_fault)
        return self.tuning

    def begin_to_stop(self) -> None:
        """Take no new requests; let the present job save itself, and whoever follows jobs go."""
        self.is_draining = True
        if self.tuning is not None:
            self.tuning.stop()

    def check_alive(self) -> None:
        """Raises EngineDead when the engine thread ended or makes no progress."""
        if not self.engine.is_alive:
            raise EngineDead("The engine thread ended; restart the server")
        if self.engine.heartbeat_age_s > MAX_HEARTBEAT_AGE_S:
            raise EngineDead(f"The engine thread has not answered for {MAX_HEARTBEAT_AGE_S:g} seconds")

    def check_accepting(self) -> None:
        """Raises Draining while the server starts or stops, EngineDead as `check_alive` does."""
        if self.is_draining:
            raise Draining("The server is stopping; send the request to another one")
        if not self.is_ready:
            raise Draining("The server is starting; try again in a moment")
        self.check_alive()
