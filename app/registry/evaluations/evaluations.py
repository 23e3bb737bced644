"""Evaluations: what became known of a registry's versions after they were published."""

from __future__ import annotations

from app.errors import NotFound
from app.registry.catalog import Catalog
from app.registry.evaluations.evaluation_folder import EvaluationFolder, RecordedEvaluation
from app.registry.reference import Reference
from app.registry.stores.store import Store
from app.registry.version import Version


class Evaluations:
    """`Registry.evaluations`. Everything reads or writes the disk."""

    def __init__(self, store: Store, catalog: Catalog) -> None:
        self._store = store
        self._catalog = catalog

    def record(self, version: Version, evaluation: RecordedEvaluation) -> None:
        """Keep what was measured of a version beside it; figures on the same examples are replaced.

        Raises:
            NotFound: it was deleted.
            InvalidInput: it has as many as it may have.
        """
        with self._catalog.writing(version.task) as record:
            if record.find(Reference(version.task, number=version.number), None).digest != evaluation.digest:
                raise NotFound(f"{version.id} is another version by now", param="version")
            EvaluationFolder(self._store, version.task).write(version.number, evaluation)

    def of_version(self, version: Version) -> list[RecordedEvaluation]:
        """What was recorded of it, oldest first."""
        return EvaluationFolder(self._store, version.task).of_version(version)

    def find(self, version: Version, data_sha256: str) -> RecordedEvaluation | None:
        """What was recorded of it on these examples."""
        return EvaluationFolder(self._store, version.task).find(version, data_sha256)
