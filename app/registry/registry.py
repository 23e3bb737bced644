"""Registry: names to versions to prompts, for any number of readers and writers in this and other processes."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final, TypeVar

import torch

from app.errors import CorruptPrompt, InvalidInput, NotFound
from app.model.backbone import Backbone
from app.model.layout import Template
from app.model.loading.catalog.models import NAME_TO_MODEL
from app.registry.adoption import SETTLE_S, Adopter
from app.registry.aliases import Gate, numbers_of, of_backbone, require_target
from app.registry.catalog import Catalog
from app.registry.formats.binding import max_prompt_bytes, require_room, require_same_backbone
from app.registry.formats.manifest import BackboneName
from app.registry.kept.evaluations import Evaluations, RecordedEvaluation
from app.registry.kept.examples import KeptExamples, TunedOn
from app.registry.prompts import PromptCache, PromptReader
from app.registry.publication import Publication
from app.registry.reference import LIVE, Reference, require_alias_name, require_task_name
from app.registry.store import Store
from app.registry.task_record import TaskRecord, version_key
from app.registry.task_view import TaskView
from app.registry.version import Version
from app.task_prompt import TaskPrompt

MAX_CACHE_BYTES = 256 * 2**20
_Read = TypeVar("_Read")

OF_ANOTHER: Final = (
    "cannot be read and may be another backbone's; `softswap tasks rm {name} --registry FOLDER` removes it"
)


class Registry:
    """Tasks, their versions and aliases. Lookups take no lock; `prompt` and everything that writes block on the disk.

    With a backbone, names mean that backbone's versions, and only these are written: registries of several backbones
    may work on one store, each leaving the others' versions and aliases as they are. Without one, names mean what is
    there, and a version's number says which backbone an alias moves on. Everything that writes raises
    RegistryUnavailable if the store cannot be written.

    Args:
        store: where they are kept.
        backbone: what prompts are published for and served with; None for looking, moving aliases and deleting without
            loading a model.
        max_positions: of one sequence, in the engine that serves; None: those of the backbone.
        max_cache_bytes: memory for loaded prompts; None: MAX_CACHE_BYTES, or what two of the largest prompts take.
        settle_s: how long a foreign checkpoint must have been unchanged before it becomes a version.

    Attributes:
        evaluations: what was measured on versions after they were published, and what gates compare.
    """

    def __init__(
        self,
        store: Store,
        backbone: Backbone | None,
        *,
        max_positions: int | None = None,
        max_cache_bytes: int | None = None,
        settle_s: float = SETTLE_S,
    ) -> None:
        self._store = store
        self._backbone = backbone
        self._own = None if backbone is None else BackboneName(fingerprint=backbone.fingerprint, name=backbone.name)
        self._max_positions = max_positions or sys.maxsize
        self._reader = PromptReader(store, backbone)
        largest = 0 if backbone is None else max_prompt_bytes(backbone)
        self._cache = PromptCache(max(MAX_CACHE_BYTES, 2 * largest) if max_cache_bytes is None else max_cache_bytes)
        reserved_name = None if backbone is None else backbone.name
        self._catalog = Catalog(store, Adopter(store, backbone, settle_s=settle_s), reserved_name, self._find_fault)
        self._examples = KeptExamples(store)
        self.evaluations = Evaluations(store)

    def resolve(self, name: str, *, rng: random.Random | None = None) -> Version:
        """`sentiment`, `sentiment@3`, `sentiment@sha256:ab12cd34` or `sentiment@canary` to a version that can be used.

        Args: rng: chooses if an alias is weighted over two versions; None takes the interpreter's own.

        Raises:
            NotFound: no such task, version or alias for the backbone.
            InvalidInput: without a backbone, an alias that means versions for several.
            CorruptPrompt: the version exists but is damaged.
        """
        reference = Reference.parse(name)
        return self.task(reference.task).find(reference, rng)

    def prompt(self, version: Version, *, may_displace: bool = True) -> TaskPrompt:
        """A version's values, from memory or from the store.

        Args: may_displace: whether less recently used prompts may be dropped from memory for it.

        Raises:
            BackboneMismatch: it was made for another backbone.
            CorruptPrompt: what is stored is not what was published.
            NotFound: it was deleted after it was resolved.
            InvalidInput: it leaves no room for a text, or its values overflow in the dtype of the backbone.
        """
        prompt = self.loaded_prompt(version)
        if prompt is None:
            prompt = self._explained(version, self._reader.read)
            self._cache.put(prompt, may_displace=may_displace)
        return prompt

    def loaded_prompt(self, version: Version) -> TaskPrompt | None:
        """A version's values if they are in memory; does not block.

        Raises:
            BackboneMismatch: it was made for another backbone.
            InvalidInput: it leaves no room for a text.
        """
        if self._backbone is not None:
            require_same_backbone(version.backbone_fingerprint, self._backbone, version.backbone_name)
        if record := self._catalog.records.get(version.task):
            record.require_room(version.number)
        return self._cache.get(version.digest)

    def initial(self, version: Version) -> torch.Tensor | None:
        """The rows its tuning started from, float32 on CPU; None if they were not kept. Raises as `prompt` does."""
        return self._explained(version, self._reader.read_initial)

    def examples(self, version: Version) -> TunedOn | None:
        """What it was tuned on, if that was kept. Raises CorruptPrompt."""
        return self._examples.read(version.task, version.provenance)

    def files(self, version: Version, *, with_initial: bool = True) -> dict[str, bytes]:
        """Names to contents of its files, for export: plain PEFT loads them. Raises as `prompt` does.

        Args: with_initial: whether the rows that its tuning started from come along, if they were kept.
        """
        return self._explained(version, partial(self._reader.read_files, with_initial=with_initial))

    def tasks(self) -> list[TaskView]:
        """Those with at least one version, for whatever backbone, by name."""
        records = self._catalog.records
        return [TaskView(records[name], self._own) for name in sorted(records) if records[name].versions]

    def task(self, task: str) -> TaskView:
        """As it is now. Raises NotFound."""
        return TaskView(self._catalog.record(task), self._own)

    def aliased_versions(self) -> Iterator[Version]:
        """Of all tasks and backbones, those that some alias names; a snapshot, in no order."""
        for record in self._catalog.records.values():
            yield from (record.versions[number] for number in record.table.numbers if number in record.versions)

    def versions(self, task: str) -> list[Version]:
        """Ascending, for whatever backbone. Raises NotFound."""
        return list(self._catalog.record(task).versions.values())

    def version(self, task: str, number: int) -> Version:
        """To look at, for whatever backbone. Raises as `resolve` does."""
        return self._catalog.record(task).numbered(number)

    def faults(self) -> dict[str, str]:
        """What is in the registry but cannot be served, to the reason."""
        return self._catalog.faults()

    def publish(
        self,
        task: str,
        publication: Publication,
        *,
        evaluations: Sequence[RecordedEvaluation] = (),
        alias: str | None = LIVE,
        force: bool = False,
        if_match: str | None = None,
    ) -> Version:
        """Make a prompt the next version of a task; it is durable when this returns.

        Args:
            evaluations: measured already; a gated alias needs one on the gate's examples.
            alias: moves to the new version; None moves nothing, and the version must be pinned to be used.
            force: move the alias whatever its gate says.
            if_match: the etag the caller has seen, or "*" for any; None skips the check.

        Raises:
            InvalidInput: a field is wrong; the message names it.
            BackboneMismatch: the prompt is another backbone's.
            Conflict: the task is not in the state `if_match` names.
            GateFailed: it scores lower than what the alias means now, or has no score; nothing changed.
        """
        backbone = self.require_publishable(task, publication, alias)
        with self._catalog.writing(task, if_match, may_be_new=True) as record:
            number = record.last_number + 1
            if alias is not None and not force:
                present = record.table.target(alias, backbone.fingerprint)
                gate = record.table.gate(alias, backbone.fingerprint)
                self.evaluations.require_passing(record.versions, present, number, gate, evaluations=evaluations)
            files = publication.encode(task, number, backbone)
            table = record.table.changed(last_number=number)
            table = table if alias is None else table.with_alias(alias, backbone.fingerprint, number)
            if alias is None:  # first, lest the newest version of a task without aliases be live
                self._catalog.write_table(task, table)
            if publication.examples is not None:
                self._examples.write(task, publication.examples)
            self._store.create(version_key(task, number), files)
            for evaluation in evaluations:
                self.evaluations.write(task, number, evaluation)
            if alias is not None:
                self._catalog.write_table(task, table)
        self._cache.put(publication.prompt)
        return self.resolve(f"{task}@{number}")

    def require_names(self, task: str, alias: str | None) -> Backbone:
        """Check, before work is spent, that a prompt may be published so. Returns its backbone. Raises InvalidInput."""
        require_task_name(task)
        if alias is not None:
            require_alias_name(alias)
        if self._backbone is None:
            raise InvalidInput("publishing needs the backbone the prompt is for", param="model")
        if task == self._backbone.name:
            raise InvalidInput("this is the backbone's own name; choose another", param="task")
        records = self._catalog.records
        is_new = task not in records or not records[task].numbers
        if is_new and (task in NAME_TO_MODEL or any(task in record.backbone_names for record in records.values())):
            raise InvalidInput("this is a model's name, so a server of that model has no such task", param="task")
        return self._backbone

    def require_room(self, num_virtual_tokens: int, template: Template | None, labels: Sequence[str]) -> None:
        """Whether a prompt that is yet to be tuned could be published, by its length. Raises InvalidInput."""
        if self._backbone is not None:
            require_room(
                num_virtual_tokens,
                template,
                labels,
                is_written=False,
                backbone=self._backbone,
                max_positions=self._max_positions,
            )

    def require_publishable(self, task: str, publication: Publication, alias: str | None) -> Backbone:
        """As `require_names`, once there is something to publish. Raises InvalidInput, BackboneMismatch."""
        backbone = self.require_names(task, alias)
        publication.require_answerable(backbone, self._max_positions)
        return backbone

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
    ) -> None:
        """Move an alias, or create it, on the backbone that the target was made for.

        Args:
            target: a version's number, or two numbers of one backbone's versions with positive weights.
            gate: replaces the alias's gate there, for this move too; None keeps the one it has.
            gate_examples: with a gate, the bytes whose sha256 it names.
            force: move whatever the gate says.

        Raises:
            NotFound: no such task, or no such version for the backbone.
            InvalidInput: a wrong name, weights or examples, or a version that leaves no room for a text.
            Conflict: see `publish`.
            GateFailed: a version scores lower than what the alias means now, or has no score yet.
        """
        require_alias_name(alias)
        checked = require_target(target)
        with self._catalog.writing(task, if_match) as record:
            there = TaskView(record, self._own).of_target(checked)
            for number in numbers_of(checked):
                record.require_room(number)
            if not force:
                counting = gate or there.gates.get(alias)
                self.evaluations.require_passing(record.versions, there.aliases.get(alias), checked, counting)
            moved = record.table.with_alias(alias, there.fingerprint, checked, gate)
            if gate is not None:
                self.evaluations.write_examples(task, gate, gate_examples)
            self._catalog.write_table(task, moved)

    def record_evaluation(self, version: Version, evaluation: RecordedEvaluation) -> None:
        """Keep what was measured of a version with it; earlier figures on the same examples are replaced.

        Raises:
            NotFound: it was deleted.
            InvalidInput: it has as many as it may have.
        """
        with self._catalog.writing(version.task) as record:
            if record.numbered(version.number).digest != evaluation.digest:
                raise NotFound(f"{version.id} is another version by now", param="version")
            self.evaluations.write(version.task, version.number, evaluation)

    def delete_alias(self, task: str, alias: str, *, if_match: str | None = None) -> None:
        """Without a backbone, on every one. Raises NotFound, Conflict."""
        with self._catalog.writing(task, if_match) as record:
            if not self._means_something(record.table.aliases, alias):
                raise NotFound("the task has no such alias", param="alias")
            self._catalog.write_table(task, record.table.without_alias(alias, self._fingerprint))

    def delete_gate(self, task: str, alias: str, *, if_match: str | None = None) -> None:
        """The alias stays, and moves freely. Without a backbone, on every one. Raises NotFound, Conflict."""
        with self._catalog.writing(task, if_match) as record:
            if not self._means_something(record.table.gates, alias):
                raise NotFound("the alias has no gate", param="alias")
            self._catalog.write_table(task, record.table.without_gate(alias, self._fingerprint))

    def delete_version(self, task: str, number: int, *, if_match: str | None = None) -> None:
        """Running sequences keep its prompt.

        Raises:
            NotFound: no such version for the backbone.
            InvalidInput: an alias names it; move the alias first, or delete the task. Or it cannot be read and may be
                for another backbone.
            Conflict: see `publish`.
        """
        with self._catalog.writing(task, if_match) as record:
            if number not in record.numbers:
                raise NotFound(f"task {task} has no such version", param="version")
            view = TaskView(record, self._own)
            if number in record.versions:
                view.numbered(number)
            elif self._may_be_others(record):
                raise InvalidInput(f"{task}@{number} {OF_ANOTHER.format(name=f'{task}@{number}')}", param="version")
            if aliases := record.table.aliases_of(number):
                raise InvalidInput(
                    f"{task}@{number} is the version alias {aliases[0]} names; {view.advice_to_free(number)}",
                    param="version",
                )
            self._catalog.write_table(task, record.table_deleting({number}))

    def delete_task(self, task: str, *, if_match: str | None = None) -> None:
        """With all versions and aliases for the backbone; without one, of all. Its numbers are not given out again.

        Raises:
            NotFound: it has no version for the backbone.
            InvalidInput: none can be read, and they may be for another backbone.
            Conflict: see `publish`.
        """
        with self._catalog.writing(task, if_match) as record:
            view = TaskView(record, self._own)
            if view.missing is not None:
                raise NotFound(f"task {task} has {view.missing}", param="task")
            is_all = len(view.own_versions) == len(record.versions) and not self._may_be_others(record)
            numbers = record.numbers if is_all else set(view.own_versions)
            if not numbers:
                raise InvalidInput(f"task {task} {OF_ANOTHER.format(name=task)}", param="task")
            table = record.table_deleting(numbers)
            if numbers == record.numbers:
                table = replace(table, aliases={}, gates={})
            elif self._own is not None:
                table = table.without_backbone(self._own.fingerprint)
            self._catalog.write_table(task, table)

    def refresh(self) -> None:
        """Take in what other processes and people changed. Raises RegistryUnavailable: its folder is gone."""
        self._catalog.refresh()

    def start_watching(self, interval_s: float = 1.0) -> None:
        """Refresh every `interval_s` seconds, in a thread of its own, until `close`."""
        self._catalog.start_watching(interval_s)

    def close(self) -> None:
        self._catalog.close()

    def _may_be_others(self, record: TaskRecord) -> bool:
        """Whether versions that cannot be read may be for another backbone than the registry's own."""
        if self._own is None or record.numbers == set(record.versions):
            return False
        table = record.table
        named = set().union(*table.aliases.values(), *table.gates.values())
        known = {version.backbone_fingerprint for version in record.versions.values()}
        return not {*named, *known} <= {self._own.fingerprint}

    @property
    def _fingerprint(self) -> str | None:
        return None if self._own is None else self._own.fingerprint

    def _means_something(self, name_to_entry: Mapping[str, Mapping[str, object]], alias: str) -> bool:
        entry = name_to_entry.get(alias, {})
        return bool(entry) if self._own is None else of_backbone(entry, self._own.fingerprint) is not None

    def _find_fault(self, version: Version) -> str | None:
        return None if self._backbone is None else version.find_fault(self._backbone, self._max_positions)

    def _explained(self, version: Version, read: Callable[[Version], _Read]) -> _Read:
        """Missing files mean a deletion, or damage if the version is still listed."""
        try:
            return read(version)
        except NotFound as error:
            self._catalog.refresh()
            if self.version(version.task, version.number).digest == version.digest:
                raise CorruptPrompt(f"files of {version.id} are missing") from error
            raise
