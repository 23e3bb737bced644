"""Where versions are pruned: in a folder on this machine, or on a running server."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from app.cli.jobs import ROUTE
from app.cli.places.remote_server import RemoteServer
from app.cli.pruning.unused import NamedByJobs, find_unused

if TYPE_CHECKING:
    from app.registry.registry import Registry
    from app.settings import Settings


class FolderVersions:
    """Versions of a registry's folder, and the jobs of the state folder. Demo tasks that are not the user's stay."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def find_unused(self, names: Sequence[str], num_kept: int) -> list[dict[str, Any]]:
        """As of now. Args: names: of tasks; none of them means all. Raises NotFound, TuningUnavailable."""
        from app.answers.views import TaskObject, VersionObject
        from app.jobs.state_folder import read_backbones

        named = NamedByJobs.of(self._jobs(), read_backbones(self._settings.state_folder))
        self._registry.refresh()
        views = [self._registry.task(name) for name in names] if names else self._registry.tasks()
        unused = []
        for view in views:
            if (self._settings.registry_folder / view.task).is_dir():
                versions = [VersionObject.model_validate(each).model_dump() for each in view.versions.values()]
                task = {**TaskObject.model_validate(view).model_dump(), "versions": versions}
                unused += find_unused(task, named, num_kept=num_kept)
        return unused

    def remove(self, version: dict[str, Any]) -> None:
        """Raises SoftswapError: it is named by now, or gone."""
        self._registry.delete_version(version["task"], version["number"])

    def _jobs(self) -> Iterable[dict[str, Any]] | None:
        """As a server lists them; None if there is no state folder."""
        from app.jobs.database import jobs, read_rows_apart
        from app.jobs.state_folder import DATABASE_FILE

        path = self._settings.state_folder / DATABASE_FILE
        if not path.exists():
            return None
        return [
            {"id": row["id"], "status": row["status"], "fine_tuned_model": row["version"]}
            | {name: row["spec"][name] for name in ("task", "model", "method")}
            for row in read_rows_apart(path, jobs.c.id, jobs.c.status, jobs.c.version, jobs.c.spec)
        ]

    @cached_property
    def _registry(self) -> Registry:
        from app.cli.places.folder_registry import open_folder

        return open_folder(self._settings)


class ServerVersions:
    """Versions that a server has for its own backbone, and its jobs."""

    def __init__(self, server: RemoteServer) -> None:
        self._server = server

    def find_unused(self, names: Sequence[str], num_kept: int) -> list[dict[str, Any]]:
        """As of now. Args: names: of tasks; none of them means all. Raises SoftswapError."""
        named = NamedByJobs.of(self._server.pages(ROUTE))
        own = {self._server.call("GET", "/v1/server")["backbone"]["fingerprint"]}
        tasks = names or [task["id"] for task in self._server.tasks()]
        shown = (self._server.show(task, "") for task in tasks)
        return [each for task in shown for each in find_unused(task, named, num_kept=num_kept, backbones=own)]

    def remove(self, version: dict[str, Any]) -> None:
        """Raises SoftswapError: it is named by now, or gone."""
        self._server.remove(version["task"], str(version["number"]))
