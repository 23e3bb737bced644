"""JobStores: everything that one server keeps about its jobs, opened and closed together."""

from __future__ import annotations

from pathlib import Path

from app.jobs.checkpoints import CheckpointStore
from app.jobs.database import Database
from app.jobs.event_log import EventLog
from app.jobs.files import UploadStore
from app.jobs.job_store import JobStore
from app.jobs.notifier import Notifier
from app.jobs.state_folder import StateFolder
from app.telemetry import Metrics


class JobStores:
    """Opening them queues jobs again that a crash or a stop interrupted."""

    def __init__(self, path: Path, metrics: Metrics) -> None:
        """Raises TuningUnavailable: another server has the folder, or it cannot be used."""
        self.folder = StateFolder(path)
        try:
            self.database = Database(self.folder.database_path)
        except BaseException:
            self.folder.close()
            raise
        self.notifier, self.events = Notifier(), EventLog(self.database)
        self.jobs = JobStore(self.database, self.events, self.notifier, metrics)
        self.checkpoints = CheckpointStore(self.database)
        self.files = UploadStore(self.database, self.folder)
        self.jobs.recover()
        unfinished = {job.id for job in self.jobs.unfinished()}
        self.folder.keep_only(digests=self.files.digests(), job_ids=unfinished)

    def close(self) -> None:
        self.database.close()
        self.folder.close()
