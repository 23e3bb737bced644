"""TaskFolder: one task's folder in the store, read into a TaskRecord.

Layout: `<task>/<number>/{adapter_config.json, adapter_model.safetensors, initial.safetensors, README.md, task.json}`,
`<task>/aliases.json` and `<task>/evaluations/`.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass

from app.errors import CorruptPrompt, NotFound
from app.registry.aliases import AliasTable
from app.registry.formats.initial_rows import INITIAL_FILE
from app.registry.formats.manifest import MAX_MANIFEST_BYTES, Manifest
from app.registry.formats.peft_checkpoint import CONFIG_FILE, TENSOR_FILE
from app.registry.reference import LIVE, is_number
from app.registry.stores.store import Entry, Store
from app.registry.task_record import OWN_FOLDER, TaskRecord
from app.registry.version import Version

MANIFEST_FILE = "task.json"
ALIASES_FILE = "aliases.json"
CARD_FILE = "README.md"
_DROPPED_FILES = {MANIFEST_FILE, CONFIG_FILE, TENSOR_FILE, "adapter_model.bin"}


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What reading one version's folder gave: a version, or the reason why not."""

    signature: Hashable
    result: Version | str


class TaskFolder:
    """Reads. Who writes holds the store's lock."""

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self.name = name

    @property
    def aliases_key(self) -> str:
        return f"{self.name}/{ALIASES_FILE}"

    def version_key(self, number: int) -> str:
        return f"{self.name}/{number}"

    def stamp(self, entry: Entry | None) -> Hashable:
        """Of the folder's names and of aliases.json, which a person may edit in place. See `_stamp`.

        Args: entry: the store's, of the folder.
        """
        aliases = self._store.entry(self.aliases_key)
        return _stamp([each for each in (entry, aliases) if each])

    def read(self, previous: TaskRecord | None) -> TaskRecord:
        """The folder as it is now; versions whose folder looks as it did are taken from `previous`."""
        stamp = self.stamp(self._store.entry(self.name))
        table, table_fault = self._read_table(previous)
        entries = self._store.entries(self.name)
        folders = _version_folders(entries, () if table is None else table.deleting)
        outcomes = {number: self._read_version(number, entry, previous) for number, entry in folders} | _drop(entries)
        versions = {number: each.result for number, each in outcomes.items() if isinstance(each.result, Version)}
        faults = {number: each.result for number, each in outcomes.items() if isinstance(each.result, str)}
        return TaskRecord(
            name=self.name,
            stamp=stamp,
            table=table or AliasTable(aliases={LIVE: max(versions)} if versions else {}),
            table_fault=table_fault,
            versions=versions,
            faults=faults,
            signatures={number: each.signature for number, each in outcomes.items()},
        )

    def _read_table(self, previous: TaskRecord | None) -> tuple[AliasTable | None, str | None]:
        """The aliases and, where the file cannot be read, why; what was known before then stays in force."""
        try:
            return AliasTable.decode(self._store.read(self.aliases_key)), None
        except NotFound:
            return None, None
        except CorruptPrompt as error:
            return (previous.table if previous else AliasTable()), error.message

    def _read_version(self, number: int, entry: Entry, previous: TaskRecord | None) -> _Outcome:
        """A good version's folder never changes, so its own stamp is enough; another may still be on its way in.

        Damage that happens to a good one is found when its prompt is read.
        """
        if previous and number in previous.versions and previous.signatures[number] == entry.stamp:
            return _Outcome(entry.stamp, previous.versions[number])
        files = self._store.entries(self.version_key(number))
        signature = _stamp([entry, *files.values()])
        if previous and number in previous.faults and previous.signatures.get(number) == signature:
            return _Outcome(signature, previous.faults[number])
        try:
            return _Outcome(entry.stamp, Version.from_manifest(self._read_manifest(number, files)))
        except (CorruptPrompt, NotFound, OSError) as error:
            return _Outcome(signature, str(error))

    def _read_manifest(self, number: int, files: Mapping[str, Entry]) -> Manifest:
        """Raises CorruptPrompt: not all of it is there, or it is another version's."""
        if MANIFEST_FILE not in files:
            raise CorruptPrompt("it has no task.json")
        if files[MANIFEST_FILE].num_bytes > MAX_MANIFEST_BYTES:
            raise CorruptPrompt("its task.json is too large")
        manifest = Manifest.decode(self._store.read(f"{self.version_key(number)}/{MANIFEST_FILE}"))
        if (manifest.task, manifest.number) != (self.name, number):
            raise CorruptPrompt(f"its task.json is that of {manifest.task}@{manifest.number}")
        for name, stored in ((TENSOR_FILE, manifest.tensor), (INITIAL_FILE, manifest.initial)):
            if stored and (name not in files or files[name].num_bytes != stored.num_bytes):
                raise CorruptPrompt(f"its {name} is missing or not complete")
        return manifest


def _version_folders(entries: Mapping[str, Entry], deleting: tuple[int, ...]) -> list[tuple[int, Entry]]:
    """Ascending, without those whose deletion is decided."""
    numbered = {int(name): entry for name, entry in entries.items() if is_number(name) and entry.is_folder}
    return [(number, numbered[number]) for number in sorted(numbered) if number not in deleting]


def _drop(entries: Mapping[str, Entry]) -> dict[int, _Outcome]:
    """Files in the task's own folder that belong into a version's."""
    dropped = [entry for name, entry in entries.items() if name in _DROPPED_FILES]
    return {OWN_FOLDER: _Outcome(_stamp(dropped), "its files are not in a version's folder")} if dropped else {}


def _stamp(entries: Iterable[Entry]) -> Hashable:
    """Equal ones mean that nothing changed. What has not settled equals nothing."""
    chosen = list(entries)
    return frozenset(entry.stamp for entry in chosen) if all(entry.is_settled for entry in chosen) else object()
