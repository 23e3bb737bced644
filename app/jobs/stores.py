"""JobStores: everything that one server keeps about its jobs, opened and closed together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from app.jobs.checkpoints import CheckpointStore
from app.jobs.database import Database
from app.jobs.event_log import EventLog
from app.jobs.files import UploadStore
from app.jobs.job_store import JobStore
from app.jobs.notifier import Notifier
from app.jobs.state_folder import StateFolder
from app.telemetry import Metrics


@dataclass(frozen=True)
class JobStores:
    folder: StateFolder
    database: Database
    notifier: Notifier
    events: EventLog
    jobs: JobStore
    checkpoints: CheckpointStore
    files: UploadStore

    @classmethod
    def open(cls, path: Path, metrics: Metrics) -> JobStores:
        """Jobs that a crash or a stop interrupted are queued again.

        Raises TuningUnavailable: another server has the folder, or it cannot be used.
        """
        folder = StateFolder(path)
        try:
            database = Database(folder.database_path)
        except BaseException:
            folder.close()
            raise
        notifier, events = Notifier(), EventLog(database)
        stores = cls(
            folder=folder,
            database=database,
            notifier=notifier,
            events=events,
            jobs=JobStore(database, events, notifier, metrics),
            checkpoints=CheckpointStore(database),
            files=UploadStore(database, folder),
        )
        stores._recover()
        return stores

    def close(self) -> None:
        self.database.close()
        self.folder.close()

    def _recover(self) -> None:
        self.jobs.recover()
        unfinished = {job.id for job in self.jobs.unfinished()}
        self.folder.keep_only(digests=self.files.digests(), job_ids=unfinished)
