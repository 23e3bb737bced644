"""Registry: names to versions to prompts, for any number of readers and writers, in this process and in others."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from app.errors import Conflict, CorruptPrompt, InvalidInput, NotFound
from app.model.layout import Template
from app.registry.adoption import SETTLE_S, Adopter
from app.registry.aliases import AliasTarget, compare_targets, numbers_of, require_target
from app.registry.binding import require_fit, require_same_backbone
from app.registry.catalog import Catalog
from app.registry.evaluations import Evaluations, RecordedEvaluation
from app.registry.gate import Gate
from app.registry.manifest import Manifest
from app.registry.prompt_cache import PromptCache
from app.registry.prompt_reader import PromptReader
from app.registry.publication import encode_version
from app.registry.reference import LIVE, Reference, require_alias_name, require_task_name
from app.registry.store import READ_ONLY_ERRNOS, Store
from app.registry.task_record import TaskRecord
from app.registry.version import TaskSummary, Version
from app.task_prompt import TaskPrompt

if TYPE_CHECKING:
    import torch

    from app.model.backbone import Backbone

MAX_CACHE_BYTES = 256 * 2**20
_NOTHING_MEASURED: Mapping[int, Mapping[str, RecordedEvaluation]] = MappingProxyType({})


class Registry:
    """Tasks, their versions and aliases. Lookups take no lock; `prompt` and everything that writes block on the disk.

    Args:
        store: where they are kept.
        backbone: the one prompts are published for and served with; None for looking at a registry, moving aliases and
            deleting without loading a model.
        max_cache_bytes: memory for prompts that were loaded.
        settle_s: how long a foreign checkpoint must have been at rest before it becomes a version.
    """

    def __init__(
        self,
        store: Store,
        backbone: Backbone | None,
        *,
        max_cache_bytes: int = MAX_CACHE_BYTES,
        settle_s: float = SETTLE_S,
    ) -> None:
        self._store = store
        self._backbone = backbone
        self._reader = PromptReader(store, backbone)
        self._cache = PromptCache(max_cache_bytes)
        self._catalog = Catalog(store, Adopter(store, backbone, settle_s=settle_s))

    def resolve(self, name: str, *, rng: random.Random | None = None) -> Version:
        """`sentiment`, `sentiment@3`, `sentiment@sha256:ab12cd34` or `sentiment@canary` to a version.

        Args: rng: chooses where an alias is weighted over two versions; the interpreter's own when None.

        Raises:
            NotFound: no such task, version or alias.
            CorruptPrompt: the version is there but damaged.
        """
        reference = Reference.parse(name)
        return self._catalog.record(reference.task).find(reference, rng)

    def prompt(self, version: Version) -> TaskPrompt:
        """A version's values, from memory or from the store.

        Raises:
            BackboneMismatch: it was made for another backbone.
            CorruptPrompt: what is stored is not what was published.
            NotFound: it was deleted after it was resolved.
            InvalidInput: its values overflow in the dtype the backbone was loaded with.
        """
        prompt = self.loaded_prompt(version)
        if prompt is None:
            with self._explaining_absence(version):
                prompt = self._reader.read(version)
            self._cache.put(prompt)
        return prompt

    def loaded_prompt(self, version: Version) -> TaskPrompt | None:
        """A version's values if they are in memory; does not block. Raises BackboneMismatch."""
        if self._backbone is not None:
            require_same_backbone(version.backbone_fingerprint, self._backbone)
        return self._cache.get(version.digest)

    def initial(self, version: Version) -> torch.Tensor | None:
        """The rows its tuning started from, float32 on CPU; None where they were not kept. Raises as `prompt` does."""
        with self._explaining_absence(version):
            return self._reader.read_initial(version)

    def manifest(self, version: Version) -> Manifest:
        """All that its task.json says. Raises NotFound, CorruptPrompt."""
        with self._explaining_absence(version):
            return self._reader.read_manifest(version)

    def files(self, version: Version) -> dict[str, bytes]:
        """Names to contents of its files, to export: plain PEFT loads them. Raises as `prompt` does."""
        with self._explaining_absence(version):
            return self._reader.read_files(version)

    def tasks(self) -> list[TaskSummary]:
        """Those with at least one version, by name."""
        records = self._catalog.records
        return [records[name].summary for name in sorted(records) if records[name].versions]

    def task(self, task: str) -> TaskSummary:
        """Raises NotFound."""
        return self._catalog.record(task).summary

    def versions(self, task: str) -> list[Version]:
        """Ascending. Raises NotFound."""
        return list(self._catalog.record(task).versions.values())

    def aliases(self, task: str) -> dict[str, AliasTarget]:
        """Raises NotFound."""
        return dict(self._catalog.record(task).table.aliases)

    def etag(self, task: str) -> str:
        """Names the task's present state, for `if_match`. Raises NotFound."""
        return self._catalog.record(task).etag

    def faults(self) -> dict[str, str]:
        """What lies in the registry and cannot be served, to the reason."""
        return self._catalog.faults()

    def publish(
        self,
        task: str,
        prompt: TaskPrompt,
        *,
        initial: torch.Tensor | None = None,
        template: Template | None = None,
        labels: Sequence[str] = (),
        label_temperature: float | None = None,
        sampling: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
        data_sha256: str | None = None,
        tuning: Mapping[str, Any] | None = None,
        provenance: Mapping[str, Any] | None = None,
        description: str = "",
        evaluations: Sequence[RecordedEvaluation] = (),
        alias: str | None = LIVE,
        force: bool = False,
        if_match: str | None = None,
    ) -> Version:
        """Make a prompt the next version of a task; it is on disk for good when this returns.

        Args:
            initial: the rows tuning started from, of the prompt's shape; kept to show how far it went.
            label_temperature: of the labels' probabilities (`app.tuning.calibration.fit_temperature`).
            sampling: defaults by the names of SamplingParams.
            data_sha256: of the training data.
            tuning: configuration of the tuning run.
            evaluations: what was measured of it already; a gated alias asks for that on the gate's examples.
            alias: moves to the new version; None moves nothing, and the version must be pinned to be used.
            force: move the alias whatever its gate says.
            if_match: the etag the caller has seen, or "*" for any; None does not ask.

        Raises:
            InvalidInput: a field is wrong; the message names it.
            BackboneMismatch: the prompt is another backbone's.
            Conflict: the task is not in the state `if_match` names.
            GateFailed: the prompt scores lower than what the alias means now, or no score says how; nothing changed.
        """
        backbone = self.require_names(task, alias)
        require_fit(prompt, backbone)
        fields = {
            "template": None if template is None else template.text,
            "labels": tuple(labels),
            "label_temperature": label_temperature,
            "sampling": _as_json("sampling", sampling),
            "metrics": _as_json("metrics", metrics),
            "data_sha256": data_sha256,
            "tuning": _as_json("tuning", tuning),
            "provenance": _as_json("provenance", provenance),
            "description": description,
        }
        with self._writing(task, if_match) as record:
            number = record.last_number + 1
            measured = {number: {each.data_sha256: each for each in evaluations}}
            if alias is not None and not force:
                self._require_passing(record, record.table.gates.get(alias), alias, number, measured)
            files = encode_version(task, number, prompt, backbone, fields, initial=initial)
            table = record.table.changed(last_number=number)
            if alias is None:
                self._catalog.write_table(task, table)
                self._create(task, number, files, evaluations)
            else:
                moved = table.with_alias(alias, number)
                self._create(task, number, files, evaluations)
                self._catalog.write_table(task, moved)
        self._cache.put(prompt)
        return self.resolve(f"{task}@{number}")

    def require_names(self, task: str, alias: str | None) -> Backbone:
        """Whether something may be published under them: worth asking before it is made. Returns for which backbone.

        Raises InvalidInput.
        """
        require_task_name(task)
        if alias is not None:
            require_alias_name(alias)
        if self._backbone is None:
            raise InvalidInput("publishing needs the backbone the prompt is for", param="model")
        if task == self._backbone.name:
            raise InvalidInput("this is the backbone's own name; choose another", param="task")
        return self._backbone

    def set_alias(
        self,
        task: str,
        alias: str,
        target: int | Mapping[int, float],
        *,
        gate: Gate | None = None,
        gate_examples: bytes = b"",
        force: bool = False,
        if_match: str | None = None,
    ) -> dict[str, AliasTarget]:
        """Move an alias, or create it. Returns all aliases of the task.

        Args:
            target: a version's number, or two numbers with positive weights.
            gate: the alias's from now on, for this move already; None leaves it the one it has.
            gate_examples: with a gate: the bytes whose sha256 it names.
            force: move whatever the gate says.

        Raises:
            NotFound: no such task or version.
            InvalidInput: no possible name, weights or examples.
            BackboneMismatch: a version is another backbone's.
            Conflict: see `publish`.
            GateFailed: a version scores lower than what the alias means now, or has no score yet (`record`).
        """
        require_alias_name(alias)
        checked = require_target(target)
        with self._writing(task, if_match) as record:
            _require_task(record)
            for number in numbers_of(checked):
                version = record.find(Reference(task, number=number), None)
                if self._backbone is not None:
                    require_same_backbone(version.backbone_fingerprint, self._backbone)
            if not force:
                self._require_passing(record, gate or record.table.gates.get(alias), alias, checked)
            moved = record.table.with_alias(alias, checked, gate)
            if gate is not None:
                Evaluations(self._store, task).write_examples(gate.data_sha256, gate_examples)
            self._catalog.write_table(task, moved)
        return self.aliases(task)

    def gate(self, task: str, alias: str) -> Gate | None:
        """Raises NotFound: no such task."""
        return self._catalog.record(task).table.gates.get(alias)

    def gate_examples(self, task: str, gate: Gate) -> bytes:
        """What was attached with it. Raises CorruptPrompt: it is not there as it was."""
        return Evaluations(self._store, task).examples(gate.data_sha256)

    def delete_gate(self, task: str, alias: str, *, if_match: str | None = None) -> None:
        """The alias stays, and moves freely. Raises NotFound, Conflict."""
        with self._writing(task, if_match) as record:
            _require_task(record)
            if alias not in record.table.gates:
                raise NotFound("the alias has no gate", param="alias")
            self._catalog.write_table(task, record.table.without_gate(alias))

    def record(self, version: Version, evaluation: RecordedEvaluation) -> None:
        """Keep what was measured of a version beside it; figures on the same examples are replaced.

        Raises:
            NotFound: it was deleted.
            InvalidInput: it has as many as it may have.
        """
        with self._writing(version.task, None) as record:
            if record.find(Reference(version.task, number=version.number), None).digest != evaluation.digest:
                raise NotFound(f"{version.id} is another version by now", param="version")
            Evaluations(self._store, version.task).write(version.number, evaluation)

    def evaluations(self, version: Version) -> list[RecordedEvaluation]:
        """What was recorded of it, oldest first."""
        return Evaluations(self._store, version.task).of_version(version)

    def find_evaluation(self, version: Version, data_sha256: str) -> RecordedEvaluation | None:
        """What was recorded of it on these examples."""
        return Evaluations(self._store, version.task).find(version, data_sha256)

    def delete_alias(self, task: str, alias: str, *, if_match: str | None = None) -> None:
        """Raises NotFound, Conflict."""
        with self._writing(task, if_match) as record:
            _require_task(record)
            if alias not in record.table.aliases:
                raise NotFound("the task has no such alias", param="alias")
            self._catalog.write_table(task, record.table.without_alias(alias))

    def delete_version(self, task: str, number: int, *, if_match: str | None = None) -> None:
        """Sequences that run keep its prompt.

        Raises:
            NotFound: no such version.
            InvalidInput: an alias names it; move that first, or delete the task.
            Conflict: see `publish`.
        """
        with self._writing(task, if_match) as record:
            if number not in record.numbers:
                raise NotFound(f"task {task} has no such version", param="version")
            if aliases := record.table.aliases_of(number):
                advice = "move it first" if len(record.numbers) > 1 else "delete the task instead"
                raise InvalidInput(f"{task}@{number} is what alias {aliases[0]} names; {advice}", param="version")
            self._delete(record, {number}, record.table.aliases)

    def delete_task(self, task: str, *, if_match: str | None = None) -> None:
        """All its versions and aliases. Its numbers are not given out again. Raises NotFound, Conflict."""
        with self._writing(task, if_match) as record:
            _require_task(record)
            self._delete(record, record.numbers, {})

    def refresh(self) -> None:
        """Take in what other processes and people changed. Raises NotFound: the registry's folder is gone."""
        self._catalog.refresh()

    def start_watching(self, interval_s: float = 1.0) -> None:
        """Refresh every `interval_s` seconds, in a thread of its own, until `close`."""
        self._catalog.start_watching(interval_s)

    def close(self) -> None:
        self._catalog.close()

    @contextmanager
    def _writing(self, task: str, if_match: str | None) -> Iterator[TaskRecord]:
        require_task_name(task)
        try:
            with self._catalog.writing(task) as record:
                _require_state(record, if_match)
                yield record
        except OSError as error:
            if error.errno in READ_ONLY_ERRNOS:
                raise InvalidInput("the registry's folder cannot be written") from error
            raise

    def _delete(self, record: TaskRecord, numbers: set[int], aliases: Mapping[str, AliasTarget]) -> None:
        decided = record.table.changed(
            aliases=dict(aliases),
            gates={name: gate for name, gate in record.table.gates.items() if name in aliases},
            deleting=tuple(sorted(numbers)),
            last_number=record.last_number,
        )
        self._catalog.write_table(record.name, decided)

    def _create(
        self, task: str, number: int, files: Mapping[str, bytes], evaluations: Sequence[RecordedEvaluation]
    ) -> None:
        self._store.create(f"{task}/{number}", files)
        for evaluation in evaluations:
            Evaluations(self._store, task).write(number, evaluation)

    def _require_passing(
        self,
        record: TaskRecord,
        gate: Gate | None,
        alias: str,
        target: AliasTarget,
        measured: Mapping[int, Mapping[str, RecordedEvaluation]] = _NOTHING_MEASURED,
    ) -> None:
        """Args: measured: of versions that are not published yet, number and examples to figures. Raises GateFailed."""
        comparison = compare_targets(record.table.aliases.get(alias), target)
        if gate is None or comparison is None or comparison.baseline not in record.versions:
            return
        evaluations = Evaluations(self._store, record.name)

        def score_of(number: int) -> float | None:
            if number in measured:
                found = measured[number].get(gate.data_sha256)
            else:
                found = evaluations.find(record.versions[number], gate.data_sha256)
            return None if found is None else found.metrics.get(gate.metric)

        comparison.require(gate, score_of)

    @contextmanager
    def _explaining_absence(self, version: Version) -> Iterator[None]:
        """Files that are not there mean a deletion, or damage where the version is still listed."""
        try:
            yield
        except NotFound as error:
            self._catalog.refresh()
            if self.resolve(version.id).digest == version.digest:
                raise CorruptPrompt(f"files of {version.id} are missing") from error
            raise


def _require_state(record: TaskRecord, if_match: str | None) -> None:
    if if_match is not None and (not record.numbers or if_match not in ("*", record.etag)):
        raise Conflict("the task changed since it was read; read it again", param="if_match")
    if record.table_fault is not None:
        raise CorruptPrompt(f"the aliases of task {record.name} cannot be read: {record.table_fault}")


def _require_task(record: TaskRecord) -> None:
    if not record.numbers:
        raise NotFound(f"there is no task {record.name}", param="task")


def _as_json(name: str, fields: Mapping[str, Any] | None) -> dict[str, Any]:
    """As JSON gives them back: lists for tuples, strings for the keys of `logit_bias`."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(fields or {}), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{name} must hold what JSON can say, and finite numbers", param=name) from error
    return plain
