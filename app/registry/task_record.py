"""TaskRecord: what the registry knows of one task; TaskFolder reads it from the task's folder in the store.

Layout: `<task>/<number>/{adapter_config.json, adapter_model.safetensors, initial.safetensors, README.md, task.json}`,
`<task>/aliases.json` and `<task>/evaluations/`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from app.errors import Conflict, CorruptPrompt, InvalidInput, NoSuchTask, NotFound, RegistryUnavailable
from app.registry.aliases import ALIASES_FILE, AliasTable
from app.registry.formats.manifest import MANIFEST_FILE, MAX_MANIFEST_BYTES, Manifest
from app.registry.formats.peft_checkpoint import CONFIG_FILE, TENSOR_FILE
from app.registry.publication import VERSION_FILES
from app.registry.reference import LIVE, is_number
from app.registry.store import LINK_ADVICE, Entry, Store
from app.registry.version import Version

OWN_FOLDER = 0
"""Takes the place of a version's number for files that lie directly in the task's folder."""
_DROPPED_FILES = {MANIFEST_FILE, CONFIG_FILE, TENSOR_FILE, "adapter_model.bin"}
_Outcome: TypeAlias = tuple[Hashable, Version | str]
"""What reading one version's folder gave: its signature, and a version or the reason why not."""


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """A task's folder as it was last read; empty if it has none yet. Immutable, so that readers need no lock.

    Attributes:
        stamp: of the folder, taken before it was read; a different one means that it must be read again.
        folder_fault: why nothing in the folder is looked at; None if it is.
        table: its aliases. Without an aliases.json the newest version for each backbone is live.
        table_fault: why aliases.json cannot be read; None if it can be, or is missing.
        versions: number to version, ascending.
        faults: number to the reason why the version is not served.
        unservable: the same of versions that are whole, but too long for the server that looks.
        signatures: number to what its folder looked like when it was read, faulty ones included.
    """

    task: str
    stamp: Hashable = None
    folder_fault: str | None = None
    table: AliasTable = field(default_factory=AliasTable)
    table_fault: str | None = None
    versions: Mapping[int, Version] = field(default_factory=dict)
    faults: Mapping[int, str] = field(default_factory=dict)
    unservable: Mapping[int, str] = field(default_factory=dict)
    signatures: Mapping[int, Hashable] = field(default_factory=dict)

    @property
    def numbers(self) -> set[int]:
        """Of all versions, including those that cannot be served."""
        return {*self.versions, *self.faults} - {OWN_FOLDER}

    @property
    def backbone_names(self) -> set[str]:
        """Of those that it has versions for."""
        return {version.backbone_name for version in self.versions.values()}

    @property
    def last_number(self) -> int:
        """The highest number that was ever given to a version of this task."""
        return max([self.table.last_number, *self.signatures])

    @property
    def is_settled(self) -> bool:
        """False while files may still be on their way in."""
        has_fault = bool(self.faults) or self.table_fault is not None or self.folder_fault is not None
        return not has_fault and self.table.numbers <= self.versions.keys()

    @property
    def etag(self) -> str:
        """For `if_match`; changes with every version and alias that comes, goes or moves."""
        versions = ",".join(f"{number}:{version.digest}" for number, version in self.versions.items())
        state = f"{self.table.revision}|{versions}|{sorted(self.table.aliases.items())}"
        return hashlib.sha256(state.encode()).hexdigest()[:16]

    def all_faults(self) -> Iterator[tuple[str, str]]:
        """Place to the reason: `task/number`, `task/aliases.json`, or `task` for the folder and files dropped there."""
        if self.folder_fault is not None:
            yield self.task, self.folder_fault
        if self.table_fault is not None:
            yield f"{self.task}/{ALIASES_FILE}", self.table_fault
        for number, reason in {**self.faults, **self.unservable}.items():
            yield version_key(self.task, number), reason

    def set_aside(self, fault: str) -> TaskRecord:
        """The record of a folder that is not looked at if anything in it could be a version."""
        return TaskRecord(self.task, self.stamp, folder_fault=fault if self.signatures else self.folder_fault)

    def numbered(self, number: int) -> Version:
        """Whatever backbone it was made for. Raises NotFound. CorruptPrompt: there is one, but it cannot be served."""
        if number in self.versions:
            return self.versions[number]
        if number in self.faults:
            raise CorruptPrompt(f"{self.task}@{number} cannot be served: {self.faults[number]}")
        raise NotFound(f"task {self.task} has no version {number}", param="version")

    def require_room(self, number: int) -> None:
        """Raises InvalidInput: the version is too long for the server that looks."""
        if number in self.unservable:
            raise InvalidInput(f"{self.task}@{number} cannot be served: {self.unservable[number]}", param="version")

    def table_deleting(self, numbers: set[int]) -> AliasTable:
        """The table with the deletion of these versions decided."""
        return self.table.changed(deleting=tuple(sorted(numbers)), last_number=self.last_number)

    def require_state(self, if_match: str | None, *, may_be_new: bool) -> None:
        """Args: see `Catalog.writing`. Raises RegistryUnavailable, Conflict, CorruptPrompt, NotFound."""
        if self.folder_fault is not None:
            raise RegistryUnavailable(f"task {self.task} cannot be changed: {self.folder_fault}", param="task")
        if if_match is not None and (not self.numbers or if_match not in ("*", self.etag)):
            raise Conflict("the task changed since it was read; read it again", param="if_match")
        if self.table_fault is not None:
            raise CorruptPrompt(f"the aliases of task {self.task} cannot be read: {self.table_fault}")
        if not self.numbers and not may_be_new:
            raise NoSuchTask(f"there is no task {self.task}", param="task")


class TaskFolder:
    """Reads. Whoever writes holds the store's lock."""

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self.name = name
        self.aliases_key = f"{name}/{ALIASES_FILE}"

    def stamp(self, entry: Entry | None) -> Hashable:
        """Of the folder's names and of aliases.json, which a person may edit in place. See `_stamp`.

        Args: entry: the store's, of the folder.
        """
        aliases = self._store.entry(self.aliases_key)
        return _stamp([each for each in (entry, aliases) if each])

    def read(self, previous: TaskRecord | None) -> TaskRecord:
        """The folder as it is now; versions whose folder looks as it did are taken from `previous`."""
        entry = self._store.entry(self.name)
        stamp = self.stamp(entry)
        if entry is not None and entry.is_link:
            return TaskRecord(self.name, stamp, folder_fault=f"the folder {LINK_ADVICE}")
        content = self._read_aliases()  # first: what it names is published by then
        outcomes = self._read_versions(previous)
        found = {number: result for number, (_, result) in outcomes.items() if isinstance(result, Version)}
        table, table_fault = _decode_table(content, found, previous)
        present = {number: each for number, each in outcomes.items() if number not in table.deleting}
        return TaskRecord(
            task=self.name,
            stamp=stamp,
            table=table,
            table_fault=table_fault,
            versions={number: version for number, version in found.items() if number in present},
            faults={number: result for number, (_, result) in present.items() if isinstance(result, str)},
            signatures={number: signature for number, (signature, _) in present.items()},
        )

    def _read_aliases(self) -> bytes | CorruptPrompt | None:
        """The file's content, or why it cannot be read; None if there is none."""
        try:
            return self._store.read(self.aliases_key)
        except NotFound:
            return None
        except CorruptPrompt as error:
            return error

    def _read_versions(self, previous: TaskRecord | None) -> dict[int, _Outcome]:
        """Ascending, with those whose deletion is decided; last, files that belong in a version's folder."""
        entries = self._store.entries(self.name)
        folders = {name: entry for name, entry in entries.items() if entry.is_folder or entry.is_link}
        numbered = {int(name): entry for name, entry in folders.items() if is_number(name)}
        outcomes = {number: self._read_version(number, numbered[number], previous) for number in sorted(numbered)}
        if dropped := [entry for name, entry in entries.items() if name in _DROPPED_FILES]:
            outcomes[OWN_FOLDER] = (_stamp(dropped), "its files are not in a version's folder")
        return outcomes

    def _read_version(self, number: int, entry: Entry, previous: TaskRecord | None) -> _Outcome:
        """A good version's folder never changes, so its own stamp is enough; another may still be on its way in.

        Damage to a version that was good is found when its prompt is read.
        """
        if previous and number in previous.versions and previous.signatures[number] == entry.stamp:
            return entry.stamp, previous.versions[number]
        if entry.is_link:
            return entry.stamp, f"the folder {LINK_ADVICE}"
        files = self._store.entries(version_key(self.name, number))
        signature = _stamp([entry, *files.values()])
        if previous and number in previous.faults and previous.signatures.get(number) == signature:
            return signature, previous.faults[number]
        try:
            return entry.stamp, Version.from_manifest(self._read_manifest(number, files))
        except (CorruptPrompt, NotFound, OSError) as error:
            return signature, str(error)

    def _read_manifest(self, number: int, files: Mapping[str, Entry]) -> Manifest:
        """Raises CorruptPrompt: not all of it is there, or it is another version's."""
        require_no_link(files)
        if MANIFEST_FILE not in files:
            raise CorruptPrompt("it has no task.json")
        if files[MANIFEST_FILE].num_bytes > MAX_MANIFEST_BYTES:
            raise CorruptPrompt("its task.json is too large")
        manifest = Manifest.decode(self._store.read(f"{version_key(self.name, number)}/{MANIFEST_FILE}"))
        if (manifest.task, manifest.number) != (self.name, number):
            raise CorruptPrompt(f"its task.json is that of {manifest.task}@{manifest.number}")
        for name, stored in manifest.tensor_files.items():
            if name not in files or files[name].num_bytes != stored.num_bytes:
                raise CorruptPrompt(f"its {name} is missing or not complete")
        return manifest


def _decode_table(
    content: bytes | CorruptPrompt | None, versions: Mapping[int, Version], previous: TaskRecord | None
) -> tuple[AliasTable, str | None]:
    """The aliases and, if the file cannot be read, why; what was known until then stays in force."""
    number_to_backbone = {number: version.backbone_fingerprint for number, version in versions.items()}
    if content is None:
        return AliasTable.of_newest(LIVE, number_to_backbone), None
    try:
        if isinstance(content, CorruptPrompt):
            raise content
        return AliasTable.decode(content, number_to_backbone), None
    except CorruptPrompt as error:
        return (previous.table if previous else AliasTable()), error.message


def version_key(task: str, number: int) -> str:
    return task if number == OWN_FOLDER else f"{task}/{number}"


def require_no_link(files: Mapping[str, Entry]) -> None:
    """Args: files: of a folder. Raises CorruptPrompt: one that a version has is a link."""
    if link := next((name for name in VERSION_FILES if name in files and files[name].is_link), None):
        raise CorruptPrompt(f"{link} {LINK_ADVICE}")


def _stamp(entries: Iterable[Entry]) -> Hashable:
    """Equal ones mean that nothing changed. What has not settled equals nothing."""
    chosen = list(entries)
    return frozenset(entry.stamp for entry in chosen) if all(entry.is_settled for entry in chosen) else object()
