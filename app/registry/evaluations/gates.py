"""Gates: the gates of a registry's aliases, and the question they ask when an alias moves."""

from __future__ import annotations

from collections.abc import Sequence

from app.errors import NotFound
from app.registry.aliases import AliasTarget, compare_targets
from app.registry.catalog import Catalog
from app.registry.evaluations.evaluation_folder import EvaluationFolder, RecordedEvaluation
from app.registry.evaluations.gate import Gate
from app.registry.stores.store import Store
from app.registry.task_record import TaskRecord


class Gates:
    """`Registry.gates`. One is attached with `Registry.set_alias`, together with the move it counts for."""

    def __init__(self, store: Store, catalog: Catalog) -> None:
        self._store = store
        self._catalog = catalog

    def find(self, task: str, alias: str) -> Gate | None:
        """Raises NotFound: no such task."""
        return self._catalog.record(task).table.gates.get(alias)

    def examples(self, task: str, gate: Gate) -> bytes:
        """What was attached with it. Raises CorruptPrompt: it is not there as it was."""
        return EvaluationFolder(self._store, task).examples(gate.data_sha256)

    def delete(self, task: str, alias: str, *, if_match: str | None = None) -> None:
        """The alias stays, and moves freely. Raises NotFound, Conflict."""
        with self._catalog.writing(task, if_match) as record:
            record.require_versions()
            if alias not in record.table.gates:
                raise NotFound("the alias has no gate", param="alias")
            self._catalog.write_table(task, record.table.without_gate(alias))

    def keep_examples(self, task: str, gate: Gate, content: bytes) -> None:
        """Call it while `writing`, before the table names the gate. Raises InvalidInput: they are not the gate's."""
        EvaluationFolder(self._store, task).write_examples(gate.data_sha256, content)

    def require_passing(
        self,
        record: TaskRecord,
        alias: str,
        target: AliasTarget,
        *,
        gate: Gate | None = None,
        evaluations: Sequence[RecordedEvaluation] = (),
    ) -> None:
        """Call it while `writing`.

        Args:
            gate: the one that counts; the alias's own when None, and a move that has none passes.
            evaluations: of a version in the target that is not published yet.

        Raises GateFailed.
        """
        asked = gate or record.table.gates.get(alias)
        comparison = compare_targets(record.table.aliases.get(alias), target)
        if asked is None or comparison is None or comparison.baseline not in record.versions:
            return
        unpublished = {each.data_sha256: each for each in evaluations}
        folder = EvaluationFolder(self._store, record.name)

        def score_of(number: int) -> float | None:
            version = record.versions.get(number)
            known = folder.find(version, asked.data_sha256) if version else unpublished.get(asked.data_sha256)
            return None if known is None else known.metrics.get(asked.metric)

        comparison.require(asked, score_of)
