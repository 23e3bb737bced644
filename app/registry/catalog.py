"""Catalog: every task's record in memory, kept up to date with the store.

Readers look at an immutable snapshot and take no lock. Whoever changes the store holds `writing`, which excludes other
threads and other processes, and starts from the task's folder as it is on disk.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace

from app.errors import NoSuchTask, RegistryUnavailable, SoftswapError
from app.registry.adoption import Adopter
from app.registry.aliases import AliasTable
from app.registry.kept.evaluations import Evaluations
from app.registry.kept.examples import KeptExamples
from app.registry.reference import is_task_name, require_task_name, suggest_task
from app.registry.store import READ_ONLY_ERRNOS, Entry, Store
from app.registry.task_record import OWN_FOLDER, TaskFolder, TaskRecord, version_key
from app.registry.version import Version

_MAX_WATCHING = 0.05
"""The fraction of its time the watcher may spend looking, which it takes from the engine."""
_logger = logging.getLogger(__name__)


class Catalog:
    """Clears what crashed writers left, and reads everything, before the constructor returns.

    Args:
        reserved_name: what no task can be asked for by; a folder of this name is left alone.
        check: why a version cannot be served here; None if it can.
    """

    def __init__(
        self, store: Store, adopter: Adopter, reserved_name: str | None, check: Callable[[Version], str | None]
    ) -> None:
        self._store = store
        self._adopter = adopter
        self._reserved_name = reserved_name
        self._check = check
        self._name_to_record: Mapping[str, TaskRecord] = {}
        self._seen_faults: Mapping[str, str] = {}
        self._logged_faults: Mapping[str, str] = {}
        self._has_root = False
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._watcher: threading.Thread | None = None
        self._sweep()
        self.refresh()

    @property
    def records(self) -> Mapping[str, TaskRecord]:
        """A snapshot; deleted tasks may be in it, without versions."""
        return self._name_to_record

    def record(self, task: str) -> TaskRecord:
        """Raises NotFound."""
        record = self._name_to_record.get(task)
        if record is None or not record.numbers:
            fault = record.folder_fault if record else None
            raise NoSuchTask(f"there is no task {task}{f': {fault}' if fault else self._suggest(task)}", param="task")
        return record

    def faults(self) -> dict[str, str]:
        """Place to the reason, see `TaskRecord.all_faults`."""
        return dict(fault for record in self._name_to_record.values() for fault in record.all_faults())

    def _suggest(self, task: str) -> str:
        return suggest_task(task, [name for name, record in self._name_to_record.items() if record.versions])

    @contextmanager
    def writing(self, task: str, if_match: str | None = None, *, may_be_new: bool = False) -> Iterator[TaskRecord]:
        """Gives the task's record, empty for a new one, to a caller who may then change its folder.

        Args: if_match: the etag the caller has seen, or "*" for any; None does not ask.

        Raises:
            InvalidInput: no possible name.
            RegistryUnavailable: the store cannot be written, or its folder is gone.
            OSError: a fault of the disk.
            Conflict: the task is not in the state `if_match` names.
            CorruptPrompt: its aliases cannot be read, and a change would lose them.
            NotFound: it has no versions, and may not be new.
        """
        require_task_name(task)
        try:
            with self._lock, self._store.lock(may_make_root=not self._has_root):
                self._reload([task])
                try:
                    record = self._name_to_record.get(task) or TaskRecord(task)
                    record.require_state(if_match, may_be_new=may_be_new)
                    yield record
                finally:
                    self._reload([task])
        except OSError as error:
            if error.errno in READ_ONLY_ERRNOS:
                raise RegistryUnavailable("the registry's folder cannot be written") from error
            raise

    def write_table(self, task: str, table: AliasTable) -> None:
        """To be called while `writing`. Also finishes the deletions the table has decided."""
        key = TaskFolder(self._store, task).aliases_key
        self._store.replace(key, table.encode())
        for number in table.deleting:
            self._store.remove(version_key(task, number))
        used = {gate.data_sha256 for entry in table.gates.values() for gate in entry.values()}
        Evaluations(self._store).clear(task, numbers=table.deleting, kept_examples=used)
        if table.deleting:
            self._clear_examples(task)
            self._store.replace(key, replace(table, deleting=()).encode())

    def _clear_examples(self, task: str) -> None:
        """Those that only deleted versions were tuned on; of a version that cannot be read no one knows."""
        left = TaskFolder(self._store, task).read(self._name_to_record.get(task))
        if not left.faults.keys() - {OWN_FOLDER}:  # a stray file in the task's own folder is no version
            KeptExamples(self._store).clear(task, [version.provenance for version in left.versions.values()])

    def refresh(self) -> None:
        """Take in what other processes and people changed; costs two file statuses a task if nothing did.

        Raises RegistryUnavailable: the registry's folder is gone; what was known stays in service.
        """
        entries = {n: e for n, e in self._store.entries("").items() if (e.is_folder or e.is_link) and is_task_name(n)}
        self._require_root()
        known = self._name_to_record
        changed = [name for name, entry in entries.items() if not self._is_current(known.get(name), entry)]
        gone = known.keys() - entries.keys()
        if changed or gone:
            with self._lock, self._store.lock(may_make_root=False):
                self._reload([*changed, *gone])
        self._log_faults()

    def start_watching(self, interval_s: float) -> None:
        """Refresh every `interval_s` seconds, less often if that takes long, in a thread of its own, until `close`."""
        self._watcher = threading.Thread(target=self._watch, args=(interval_s,), name="registry", daemon=True)
        self._watcher.start()

    def close(self) -> None:
        self._stop.set()
        if self._watcher is not None:
            self._watcher.join()
            self._watcher = None

    def _watch(self, interval_s: float) -> None:
        last_error, duration_s = "", 0.0
        while not self._stop.wait(max(interval_s, duration_s / _MAX_WATCHING)):
            started = time.monotonic()
            try:
                self.refresh()
                last_error = ""
            except (OSError, SoftswapError) as error:
                if str(error) != last_error:
                    _logger.warning("cannot read the registry; what is known stays in service: %s", error)
                last_error = str(error)
            duration_s = time.monotonic() - started

    def _sweep(self) -> None:
        try:
            with self._store.lock(may_make_root=False):
                num_leftovers = self._store.sweep()
        except OSError as error:
            _logger.warning("cannot clear what crashed writers left: %s", error)
            return
        if num_leftovers:
            _logger.info("cleared %d leftovers of crashed writers", num_leftovers)

    def _is_current(self, record: TaskRecord | None, entry: Entry) -> bool:
        if record is None or not record.is_settled:
            return False
        return record.stamp == TaskFolder(self._store, record.task).stamp(entry)

    def _require_root(self) -> None:
        """Raises RegistryUnavailable: its folder is gone. Before the first write it may be missing."""
        had_root = self._has_root  # read first: another thread's first write may make the folder while this one looks
        if self._store.entry("") is not None:
            self._has_root = True
        elif had_root:
            raise RegistryUnavailable("the registry's folder is gone; put it back, or restart to begin a new one")

    def _reload(self, tasks: Iterable[str]) -> None:
        """To be called under both locks. Raises RegistryUnavailable: the folder is gone; what was read may be wrong."""
        name_to_record = {**self._name_to_record, **{task: self._read(task) for task in tasks}}
        self._require_root()
        self._name_to_record = {name: record for name, record in name_to_record.items() if record is not None}

    def _read(self, task: str) -> TaskRecord | None:
        """A folder that cannot be read leaves what was known of it, and the other tasks, in service."""
        known = self._name_to_record.get(task)
        try:
            return self._read_folder(task, known) if self._store.entry(task) else None
        except OSError as error:
            return replace(known or TaskRecord(task), stamp=None, table_fault=str(error))

    def _read_folder(self, task: str, known: TaskRecord | None) -> TaskRecord:
        folder = TaskFolder(self._store, task)
        record = folder.read(known)
        if task == self._reserved_name:
            return record.set_aside("this is the backbone's own name, which asks it without a task; rename the folder")
        if record.table.deleting and record.table_fault is None:
            with suppress(OSError):  # a registry that cannot be written is still served, without the deleted version
                self.write_table(task, record.table)
                record = folder.read(record)
        reasons = self._adopter.adopt(record)
        if None in reasons.values():
            record = folder.read(record)
        checked = {number: self._check(version) for number, version in record.versions.items()}
        return replace(
            record,
            faults={number: reasons.get(number) or fault for number, fault in record.faults.items()},
            unservable={number: reason for number, reason in checked.items() if reason},
        )

    def _log_faults(self) -> None:
        """Once each, and only what was there at the last refresh too: files on their way in are no news."""
        faults = self.faults()
        lasting = {place: reason for place, reason in faults.items() if self._seen_faults.get(place) == reason}
        for place, reason in lasting.items():
            if self._logged_faults.get(place) != reason:
                _logger.warning("%s is not served: %s", place, reason)
        self._seen_faults, self._logged_faults = faults, lasting
