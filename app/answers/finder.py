"""TaskFinder: what a name in a request stands for."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from app.answers.ensembles import MAX_ENSEMBLE, AnyTarget, Ensemble
from app.answers.targets import Target
from app.engine.gather import all_of
from app.errors import InvalidInput, NotFound, SoftswapError
from app.registry.reference import JOINT, spell_out

if TYPE_CHECKING:
    from app.model.backbone import Backbone
    from app.registry.registry import Registry
    from app.registry.version import Version
    from app.task_prompt import TaskPrompt

NUM_TRIES = 5


class TaskFinder:
    """Finds versions by name. A request keeps the version it gets here, whatever is published meanwhile."""

    def __init__(self, backbone: Backbone, registry: Registry) -> None:
        self._backbone_name = backbone.name
        self._registry = registry

    async def find(self, name: str, *, param: str = "model") -> AnyTarget:
        """One version, several joined by `+`, or the backbone.

        Raises:
            NotFound, CorruptPrompt, BackboneMismatch: with `param`.
            InvalidInput: an ensemble that cannot be.
        """
        if name == self._backbone_name:
            return Target.of_backbone(name)
        if JOINT not in name:
            return Target.of_version(*await self.find_version(name, param=param))
        names = spell_out(name)
        if len(names) > MAX_ENSEMBLE:
            raise InvalidInput(f"an ensemble has at most {MAX_ENSEMBLE} members", param=param)
        return Ensemble.of(await all_of(self.find_one(each, param=param) for each in names), param=param)

    async def find_one(self, name: str, *, param: str = "model") -> Target:
        """As `find`, of names that mean one version. Raises InvalidInput: the name is an ensemble's."""
        if JOINT in name and name != self._backbone_name:
            raise InvalidInput("an ensemble answers runs, decisions and evaluations, and nothing else", param=param)
        target = await self.find(name, param=param)
        assert isinstance(target, Target)
        return target

    async def find_version(self, name: str, *, param: str = "model") -> tuple[Version, TaskPrompt]:
        """A version with its prompt, read in a thread unless it is in memory. Raises as `find` does."""
        try:
            version = self._registry.resolve(name)
            loaded = self._registry.loaded_prompt(version)
            if loaded is not None:
                return version, loaded
            return await asyncio.to_thread(self._load, name, version)
        except SoftswapError as error:
            error.param = param
            raise

    def _load(self, name: str, version: Version | None) -> tuple[Version, TaskPrompt]:
        """A version can be deleted between its name and its values; then the name means another version already.

        Args: version: what the name was found to mean a moment ago.
        """
        for _ in range(NUM_TRIES - 1):
            version = version or self._registry.resolve(name)
            try:
                return version, self._registry.prompt(version)
            except NotFound:
                version = None
        version = self._registry.resolve(name)
        return version, self._registry.prompt(version)
