"""PromptWarmer: computes prompts that are likely to be asked for next while no request runs."""

from __future__ import annotations

import logging
import threading

from app.engine.async_engine import AsyncEngine
from app.errors import NotFound, RegistryUnavailable, SoftswapError
from app.model.threads import on_passing_thread
from app.registry.registry import Registry
from app.registry.version import Version

logger = logging.getLogger(__name__)

INTERVAL_S = 2.0
"""Between two looks at the registry, which take about 6 ms each with 10,000 tasks."""
REST_S = 0.5
"""After requests had the device, before asking whether it is free again."""


class PromptWarmer:
    """Call `start` once; from then on a thread keeps every version that an alias names warm, if there is room.

    The engine decides which prompts are worth it and where their keys and values are kept (`Warmer`).

    Args:
        backbone_fingerprint: versions for other backbones are skipped.
    """

    def __init__(self, registry: Registry, engine: AsyncEngine, backbone_fingerprint: str) -> None:
        self._registry, self._engine = registry, engine
        self._backbone_fingerprint = backbone_fingerprint
        self._failed: set[str] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prompt-warmer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End the thread. May be called without `start`, and twice."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            num_warmed = self._sweep()
            if num_warmed:
                logger.info("%d prompts were computed ahead of requests", num_warmed)
            self._stop.wait(INTERVAL_S)

    def _sweep(self) -> int:
        """Warm what is wanted, as far as room and requests allow. Returns how many were newly warmed."""
        num_warmed = 0
        for version in filter(self._is_wanted, self._registry.aliased_versions()):
            while not self._engine.is_idle and not self._stop.is_set():
                self._stop.wait(REST_S)
            if self._stop.is_set() or not self._warm(version):
                break
            num_warmed += 1
        return num_warmed

    def _is_wanted(self, version: Version) -> bool:
        is_possible = version.backbone_fingerprint == self._backbone_fingerprint and version.digest not in self._failed
        return is_possible and self._engine.wants_warm(version.digest, version.kind, version.num_virtual_tokens)

    def _warm(self, version: Version) -> bool:
        """False if it has to wait. One that fails is logged, and not tried again before a request asks for it."""
        try:
            prompt = on_passing_thread(lambda: self._registry.prompt(version, may_displace=False))
            return self._engine.warm(prompt)
        except NotFound:  # deleted meanwhile
            return True
        except RegistryUnavailable:  # it may come back
            return False
        except SoftswapError as error:
            logger.warning("%s cannot be computed ahead: %s", version.id, error.message)
        except Exception:
            logger.exception("%s cannot be computed ahead", version.id)
        self._failed.add(version.digest)
        return True
