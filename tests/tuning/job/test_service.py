"""Jobs from their creation to their end, with pauses, stops and everything that can break in between."""

from __future__ import annotations

import errno
import itertools
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from app.engine.threads.device_lease import Slices
from app.errors import (
    CorruptState,
    Draining,
    InvalidInput,
    NoSuchFile,
    NoSuchJob,
    OutOfMemory,
    Overloaded,
    TuningUnavailable,
)
from app.jobs import job_store
from app.jobs.job import Job, JobError, JobStatus, Order
from app.jobs.work import Candidate
from app.measure.dataset import Example, pack_examples
from app.measure.evaluation import Evaluation, Measurement
from app.measure.plain_model import PlainModel
from app.measure.promote import GateRequest
from app.registry.kept.evaluations import RecordedEvaluation
from app.tuning.job.service import TuningService
from app.tuning.job.work import TuningWork
from tests.support.tuning_jobs import (
    DATA,
    Gate,
    all_events,
    allow_until,
    curve,
    make_spec,
    open_registry,
    open_service,
    wait_for,
    wait_until,
    warnings_of,
)

Reopen = Callable[..., TuningService]


@pytest.fixture
def reopen(tmp_path: Path) -> Iterator[Reopen]:
    """Opens services on one folder, one after another, and closes what the test leaves open."""
    opened: list[TuningService] = []

    def open_next(*arguments: object, **options: object) -> TuningService:
        if opened:
            opened[-1].close()
        opened.append(open_service(tmp_path, *arguments, **options))
        return opened[-1]

    yield open_next
    if opened:
        opened[-1].close()


def test_a_job_publishes_its_result_and_its_checkpoints(reopen: Reopen, tmp_path: Path) -> None:
    service = reopen()
    job = service.create_job(make_spec(service))
    assert (job.status, job.version) == (JobStatus.QUEUED, None)
    service.start()
    done = wait_for(service, job, JobStatus.SUCCEEDED)
    registry = open_registry(tmp_path)
    assert registry.resolve("likes").id == done.version
    assert (done.step, done.num_steps, done.error) == (12, 12, None)
    assert done.finished_at is not None
    checkpoints = service.checkpoints.of(job.id)
    steps = [checkpoint.step for checkpoint in checkpoints]
    assert len(steps) >= 2
    assert steps == sorted(set(steps))
    for checkpoint in checkpoints:
        version = registry.resolve(checkpoint.version)
        assert registry.prompt(version).num_virtual_tokens == 2
        assert version.provenance["job"] == job.id
    assert service.jobs.get(job.id) == done


@pytest.mark.parametrize(
    "changes",
    [
        {"hyperparameters": {"num_virtual_tokens": 60}},
        {"search": {"nums_virtual_tokens": [2, 60]}},
        {"teacher_text": "Be kind.", "hyperparameters": {"num_virtual_tokens": 61}},
    ],
)
def test_a_job_whose_prompt_would_leave_no_room_is_refused_before_it_is_queued(
    reopen: Reopen, changes: dict[str, object]
) -> None:
    service = reopen(max_positions=64)
    with pytest.raises(InvalidInput, match="max_model_len is 64") as refused:
        service.create_job(make_spec(service, **changes))
    assert refused.value.param == "num_virtual_tokens"
    assert service.jobs.unfinished() == []
    service.create_job(make_spec(service, teacher_text="Be kind.", hyperparameters={"num_virtual_tokens": 60}))


def test_jobs_run_one_at_a_time_in_the_order_of_their_creation(reopen: Reopen) -> None:
    service = reopen()
    jobs = [service.create_job(make_spec(service, task=name)) for name in ("one", "two", "three")]
    service.start()
    ends = [wait_for(service, job, JobStatus.SUCCEEDED) for job in jobs]
    assert [job.finished_at for job in ends] == sorted(job.finished_at for job in ends)
    firsts = [all_events(service, job)[1].created_at for job in jobs]
    assert firsts == sorted(firsts)


def test_a_paused_job_continues_as_if_it_had_never_stopped(reopen: Reopen) -> None:
    gate = Gate()
    service = reopen(gate)
    spec = make_spec(service)
    job = service.create_job(spec)
    service.start()
    allow_until(gate, lambda: service.jobs.get(job.id).step >= 3)
    assert service.give(job.id, Order.PAUSE).status is JobStatus.PAUSED
    gate.open()
    other = service.create_job(make_spec(service, task="other"))
    wait_for(service, other, JobStatus.SUCCEEDED)
    assert service.give(job.id, Order.PAUSE).status is JobStatus.PAUSED
    assert 0 < service.jobs.get(job.id).step < 12
    assert service.give(job.id, Order.RESUME).status in (JobStatus.QUEUED, JobStatus.RUNNING)
    wait_for(service, job, JobStatus.SUCCEEDED)
    assert curve(service, job) == curve(service, other)
    assert service.jobs.get(job.id).num_runs == 2


def test_a_cancelled_job_ends_within_a_slice_and_its_checkpoints_stay(reopen: Reopen, tmp_path: Path) -> None:
    gate = Gate()
    service = reopen(gate)
    job = service.create_job(make_spec(service))
    service.start()
    allow_until(gate, lambda: bool(service.checkpoints.of(job.id)))
    assert service.give(job.id, Order.CANCEL).status is JobStatus.CANCELLED
    before = gate.num_slices
    gate.open()
    wait_until(lambda: not list((tmp_path / "prompts/.state/runs").iterdir()))
    assert gate.num_slices <= before + 2
    assert service.jobs.get(job.id).status is JobStatus.CANCELLED
    [checkpoint] = service.checkpoints.of(job.id)
    assert open_registry(tmp_path).resolve(checkpoint.version)


@pytest.mark.parametrize(
    ("status", "order", "becomes"),
    [
        ("queued", "cancel", "cancelled"),
        ("queued", "pause", "paused"),
        ("queued", "resume", "queued"),
        ("paused", "cancel", "cancelled"),
        ("paused", "pause", "paused"),
        ("paused", "resume", "queued"),
        ("running", "cancel", "cancelled"),
        ("running", "pause", "paused"),
        ("running", "resume", "running"),
        ("cancelled", "cancel", "cancelled"),
        ("cancelled", "pause", None),
        ("cancelled", "resume", None),
        ("failed", "cancel", None),
        ("failed", "pause", None),
        ("failed", "resume", None),
        ("succeeded", "cancel", None),
        ("succeeded", "pause", None),
        ("succeeded", "resume", None),
    ],
)
def test_an_order_means_the_same_whenever_it_comes(status: str, order: str, becomes: str | None) -> None:
    if becomes is None:
        with pytest.raises(InvalidInput, match="so it cannot be"):
            Order(order).apply(JobStatus(status))
    else:
        assert Order(order).apply(JobStatus(status)) == becomes


def test_a_stopping_server_saves_its_job_and_the_next_one_finishes_it(reopen: Reopen) -> None:
    gate = Gate()
    service = reopen(gate, save_every_s=3600)
    job = service.create_job(make_spec(service))
    service.start()
    allow_until(gate, lambda: gate.num_slices == 9)
    service.stop()
    gate.open()
    after = reopen()
    stopped = after.jobs.get(job.id)
    assert stopped.status is JobStatus.QUEUED
    assert stopped.step > 0
    after.start()
    wait_for(after, job, JobStatus.SUCCEEDED)
    other = after.create_job(make_spec(after, task="other"))
    wait_for(after, other, JobStatus.SUCCEEDED)
    assert curve(after, job) == curve(after, other)


@pytest.mark.parametrize("fault", [Draining("stopping"), OutOfMemory("not even one row fits"), RuntimeError("oops")])
def test_a_job_whose_device_fails_says_so_and_the_next_one_runs(reopen: Reopen, fault: Exception) -> None:
    gate = Gate()
    service = reopen(gate)
    job = service.create_job(make_spec(service))
    service.start()
    allow_until(gate, lambda: gate.num_slices == 5)
    gate.fault = fault
    gate.open()
    if isinstance(fault, Draining):
        wait_for(service, job, JobStatus.QUEUED)
        return
    failed = wait_for(service, job, JobStatus.FAILED)
    assert failed.error is not None
    assert failed.error.code == getattr(fault, "code", "internal_error")
    assert "oops" not in failed.error.message
    gate.fault = None
    wait_for(service, service.create_job(make_spec(service)), JobStatus.SUCCEEDED)


def test_a_run_that_diverges_fails_and_leaves_what_was_good(reopen: Reopen, monkeypatch: pytest.MonkeyPatch) -> None:
    from app.tuning.run.trainer import Trainer

    real = Trainer.update

    def diverging(self: Trainer, rows: object, step: int, num_steps: int):
        losses = yield from real(self, rows, step, num_steps)
        return {} if step >= 8 else losses

    monkeypatch.setattr(Trainer, "update", diverging)
    service = reopen()
    service.start()
    failed = wait_for(service, service.create_job(make_spec(service)), JobStatus.FAILED)
    assert failed.error is not None
    assert failed.error.code == "numerical_error"
    assert failed.version is None
    assert service.checkpoints.of(failed.id)


def test_damaged_files_and_states_fail_the_job_and_not_the_server(reopen: Reopen, tmp_path: Path) -> None:
    gate = Gate()
    service = reopen(gate)
    first = service.create_job(make_spec(service))
    service.start()
    allow_until(gate, lambda: service.jobs.get(first.id).step >= 2)
    service.stop()
    gate.open()
    service.close()
    state = tmp_path / "prompts/.state"
    [saved] = (state / "runs").iterdir()
    saved.write_bytes(saved.read_bytes()[:-1] + b"x")
    service = reopen()
    content = service.files.add("other.jsonl", DATA + b"\n" + DATA)
    second = service.create_job(make_spec(service, training_file=content.id))
    (state / "files" / content.digest).write_bytes(b"damaged")
    third = service.create_job(make_spec(service))
    service.start()
    for job, word in ((first, "saved state"), (second, "content")):
        failed = wait_for(service, job, JobStatus.FAILED)
        assert failed.error is not None
        assert (failed.error.code, word in failed.error.message) == ("corrupt_state", True)
    wait_for(service, third, JobStatus.SUCCEEDED)


def test_what_a_job_needs_is_checked_when_it_is_created(reopen: Reopen) -> None:
    service = reopen()
    with pytest.raises(NoSuchFile):
        service.create_job(make_spec(service, training_file="file-none"))
    with pytest.raises(InvalidInput, match=r"likes\.jsonl, line 2: the target is none of the 2 labels"):
        service.create_job(make_spec(service, labels=("no", "maybe")))
    with pytest.raises(InvalidInput, match="template"):
        service.create_job(make_spec(service, template="{input}"))
    spec = make_spec(service)
    service.stores.folder.remove_file(service.files.get(spec.training_file).digest)
    with pytest.raises(CorruptState):
        service.create_job(spec)
    assert service.jobs.page(None, 10) == ([], False)


def test_the_queue_and_the_number_of_jobs_are_bounded(reopen: Reopen, monkeypatch: pytest.MonkeyPatch) -> None:
    service = reopen()
    spec = make_spec(service)
    monkeypatch.setattr(job_store, "MAX_UNFINISHED_JOBS", 2)
    monkeypatch.setattr(job_store, "MAX_JOBS", 3)
    first = service.create_job(spec)
    service.create_job(spec)
    with pytest.raises(Overloaded):
        service.create_job(spec)
    service.give(first.id, Order.CANCEL)
    service.create_job(spec)
    with pytest.raises(InvalidInput, match="keeps 3 jobs"):
        service.create_job(spec)
    with pytest.raises(InvalidInput, match="not ended"):
        service.jobs.delete(service.jobs.page(None, 1)[0][0].id)
    service.jobs.delete(first.id)
    with pytest.raises(NoSuchJob):
        service.jobs.get(first.id)


def test_a_file_is_parsed_once_from_a_jobs_creation_to_its_end_and_again_after_a_restart(reopen: Reopen) -> None:
    num_loads = []

    def count(service: TuningService) -> TuningService:
        load = service.files.load
        service.files.load = lambda *arguments, **options: (num_loads.append(1), load(*arguments, **options))[1]
        return service

    service = count(reopen())
    service.start()
    wait_for(service, service.create_job(make_spec(service)), JobStatus.SUCCEEDED)
    assert len(num_loads) == 1
    service = count(reopen())
    job = service.create_job(make_spec(service))
    service = count(reopen())
    service.start()
    wait_for(service, job, JobStatus.SUCCEEDED)
    assert len(num_loads) == 3


def test_a_file_that_a_job_needs_cannot_go(reopen: Reopen) -> None:
    service = reopen()
    job = service.create_job(make_spec(service))
    with pytest.raises(InvalidInput, match="needs this file"):
        service.delete_file(job.spec["training_file"])
    service.give(job.id, Order.CANCEL)
    service.delete_file(job.spec["training_file"])


def test_a_folder_has_one_service_at_a_time(reopen: Reopen, tmp_path: Path) -> None:
    service = reopen()
    with pytest.raises(TuningUnavailable, match="another server"):
        open_service(tmp_path)
    service.close()
    reopen()


def test_a_damaged_database_is_said_and_the_registry_is_untouched(reopen: Reopen, tmp_path: Path) -> None:
    service = reopen()
    service.start()
    wait_for(service, service.create_job(make_spec(service)), JobStatus.SUCCEEDED)
    service.close()
    (tmp_path / "prompts/.state/jobs.sqlite3").write_bytes(b"no database" * 1000)
    with pytest.raises(TuningUnavailable, match="start afresh"):
        open_service(tmp_path)
    assert open_registry(tmp_path).resolve("likes")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_version_published_before_a_crash_is_found_again(reopen: Reopen, tmp_path: Path) -> None:
    """The crash comes between the publication and its entry in the database."""
    service = reopen()
    job = service.create_job(make_spec(service))
    real = service.jobs.succeed
    service.jobs.succeed = lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt)
    service.start()
    wait_until(lambda: not service.runner.is_alive)
    service.jobs.succeed = real
    published = [version.id for version in open_registry(tmp_path).versions("likes")]
    after = reopen()
    after.start()
    done = wait_for(after, job, JobStatus.SUCCEEDED)
    assert done.version == published[-1]
    assert [version.id for version in open_registry(tmp_path).versions("likes")] == published


def test_each_member_of_a_population_has_its_curve(reopen: Reopen) -> None:
    service = reopen()
    service.start()
    job = service.create_job(make_spec(service, search={"learning_rates": [0.01, 0.1], "seeds": [0, 1], "num_cuts": 0}))
    wait_for(service, job, JobStatus.SUCCEEDED)
    assert {member for _, member, _ in curve(service, job)} == {-1, 0, 1, 2, 3}


def test_a_result_that_its_aliass_gate_refuses_is_there_and_not_live(reopen: Reopen, tmp_path: Path) -> None:
    service = reopen()
    service.start()
    first = wait_for(service, service.create_job(make_spec(service)), JobStatus.SUCCEEDED)
    registry = service.registry
    live = registry.resolve("likes")
    examples = [Example(f"good {n}", "no") for n in range(4)] + [Example(f"bad {n}", "yes") for n in range(4)]
    gate = GateRequest(examples).make_gate(live.labels)
    perfect = RecordedEvaluation(digest=live.digest, data_sha256=gate.data_sha256, metrics={"accuracy": 1.0})
    registry.record_evaluation(live, perfect)
    registry.set_alias("likes", "live", live.number, gate=gate, gate_examples=pack_examples(examples))
    second = wait_for(service, service.create_job(make_spec(service)), JobStatus.SUCCEEDED)
    assert second.version != first.version
    assert registry.resolve("likes").id == first.version
    [warning] = warnings_of(service, second)
    assert warning.startswith("live stays where it is: version")
    assert registry.evaluations.find(registry.resolve(second.version), gate.data_sha256) is not None


def test_nothing_comes_of_a_job_after_it_was_cancelled_and_forgotten(
    reopen: Reopen, caplog: pytest.LogCaptureFixture
) -> None:
    def forget_before_it_publishes(work: Callable[[], object]) -> object:
        done = work()
        match done:
            case (_, Candidate()) if service.jobs.unfinished():
                service.give(job.id, Order.CANCEL)
                service.jobs.delete(job.id)
        return done

    service = reopen(forget_before_it_publishes)
    job = service.create_job(make_spec(service))
    service.start()
    wait_until(lambda: not service.jobs.unfinished())
    service.runner.close()
    assert service.checkpoints.of(job.id) == []
    assert service.registry.tasks() == []
    service.jobs.fail(job.id, JobError("internal_error", "too late"))
    assert not caplog.records


@pytest.mark.parametrize("order", [Order.CANCEL, Order.PAUSE, None])
def test_a_job_is_called_off_while_its_result_is_measured_for_a_gate(reopen: Reopen, order: Order | None) -> None:
    service = reopen()
    service.start()
    first = wait_for(service, service.create_job(make_spec(service)), JobStatus.SUCCEEDED)
    lease = Gate()
    service = reopen(lease)
    registry = service.registry
    live = registry.resolve("likes")
    examples = [Example(f"good {n}", "no") for n in range(400)]
    gate = GateRequest(examples).make_gate(live.labels)
    registry.set_alias("likes", "live", live.number, gate=gate, gate_examples=pack_examples(examples))
    service.start()
    job = service.create_job(make_spec(service))
    allow_until(lease, lambda: sum("result_step" in each.provenance for each in registry.versions("likes")) == 2)
    num_slices = lease.num_slices
    if order is None:
        service.stop()
        lease.open()
        wait_until(lambda: not service.runner.is_alive)
    else:
        service.give(job.id, order)
        other = service.create_job(make_spec(service))
        lease.allow(1)
        wait_until(lambda: service.jobs.get(other.id).status is JobStatus.RUNNING)
    expected = {Order.CANCEL: JobStatus.CANCELLED, Order.PAUSE: JobStatus.PAUSED, None: JobStatus.QUEUED}[order]
    assert service.jobs.get(job.id).status is expected
    assert lease.num_slices <= num_slices + 1
    assert registry.evaluations.find(live, gate.data_sha256) is None
    assert registry.resolve("likes").id == first.version
    lease.open()


class Disk:
    """Breaks what is written while it `is_full`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fault: Exception | None = None) -> None:
        self._monkeypatch = monkeypatch
        self._fault = fault or OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.is_full = True
        self.num_faults = 0

    def spoil(self, owner: object, name: str, *, first: int = 0) -> None:
        """A method, from its `first` call on."""
        real, num_calls = getattr(owner, name), itertools.count()

        def write(*arguments: object, **options: object) -> object:
            if self.is_full and next(num_calls) >= first:
                self.num_faults += 1
                raise self._fault
            return real(*arguments, **options)

        self._monkeypatch.setattr(owner, name, write)


TABLES_FULL = OperationalError("INSERT", {}, sqlite3.OperationalError("database or disk is full"))
PLACES = {
    "a checkpoint is published": (lambda service: service.registry._store, "create", 0, None),
    "the result is published": (lambda _: TuningWork, "publish_result", 0, None),
    "a read-only folder": (lambda service: service.registry._store, "replace", 0, OSError(errno.EROFS, "")),
    "the state is saved": (lambda service: service.stores.folder, "save_run", 3, None),
    "the figures are kept": (lambda service: service.stores.folder, "put_file", 0, None),
    "events are recorded": (lambda service: service.jobs, "record", 3, TABLES_FULL),
    "a checkpoint is entered": (lambda service: service.checkpoints, "add", 1, TABLES_FULL),
    "the end is entered": (lambda service: service.jobs, "succeed", 0, TABLES_FULL),
    "the file is read": (
        lambda service: service.stores.folder,
        "read_file",
        0,
        OSError(errno.EIO, os.strerror(errno.EIO)),
    ),
}


@pytest.mark.parametrize(("find_owner", "name", "first", "fault"), PLACES.values(), ids=PLACES.keys())
def test_a_job_outlives_a_disk_that_fails_for_a_while(
    reopen: Reopen,
    monkeypatch: pytest.MonkeyPatch,
    find_owner: Callable[[TuningService], object],
    name: str,
    first: int,
    fault: Exception | None,
) -> None:
    before = reopen()
    job = before.create_job(make_spec(before))
    service = reopen(retry_s=0.01)
    disk = Disk(monkeypatch, fault)
    disk.spoil(find_owner(service), name, first=first)
    service.start()
    wait_until(lambda: disk.num_faults >= 3)
    assert not service.jobs.get(job.id).status.is_final
    disk.is_full = False
    done = wait_for(service, job, JobStatus.SUCCEEDED)
    warnings = warnings_of(service, job)
    assert [text.rpartition(" in ")[2] for text in warnings[:3]] == ["0.01 seconds", "0.02 seconds", "0.04 seconds"]
    reasons = {
        errno.ENOSPC: "the server's disk failed (No space left on device)",
        errno.EIO: "the server's disk failed (Input/output error)",
        errno.EROFS: "the registry's folder cannot be written",
        None: "the server's job database could not be written",
    }
    reason = reasons[getattr(disk._fault, "errno", None)]
    assert all(text.startswith(f"Job queued again: {reason}; it is tried again") for text in warnings)
    other = wait_for(service, service.create_job(make_spec(service, task="other")), JobStatus.SUCCEEDED)
    assert curve(service, done) == curve(service, other)
    steps = [each.step for each in service.checkpoints.of(job.id)]
    assert steps == [each.step for each in service.checkpoints.of(other.id)]
    registry = service.registry
    assert len(registry.versions("likes")) == len(registry.versions("other"))


@pytest.mark.parametrize("order", [Order.CANCEL, Order.PAUSE])
def test_a_job_that_waits_for_the_disk_obeys_and_lets_others_go_first(
    reopen: Reopen, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, order: Order
) -> None:
    service = reopen(retry_s=3600.0)
    disk = Disk(monkeypatch)
    disk.spoil(service.registry._store, "create", first=1)
    job = service.create_job(make_spec(service))
    service.start()
    wait_until(lambda: disk.num_faults == 1)
    wait_for(service, job, JobStatus.QUEUED)
    disk.is_full = False
    wait_for(service, service.create_job(make_spec(service, task="other")), JobStatus.SUCCEEDED)
    assert service.jobs.get(job.id).status is JobStatus.QUEUED
    runs = tmp_path / "prompts/.state/runs"
    wait_until(lambda: [path.name for path in runs.iterdir()] == [job.id])  # the other's goes once its end is written
    service.give(job.id, order)
    if order is Order.CANCEL:
        wait_until(lambda: not list(runs.iterdir()))
        assert service.jobs.get(job.id).status is JobStatus.CANCELLED
        return
    wait_until(lambda: not service.runner.has_retries)
    assert service.jobs.get(job.id).status is JobStatus.PAUSED
    service.give(job.id, Order.RESUME)
    wait_for(service, job, JobStatus.SUCCEEDED)


def test_an_end_that_could_not_be_written_is_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = open_service(tmp_path)
    job = service.create_job(make_spec(service))

    def count_ended() -> float:
        name = "softswap_tuning_jobs_total"
        return service.jobs._metrics.registry.get_sample_value(name, {"status": JobStatus.CANCELLED}) or 0

    def fail(*_: object) -> None:
        raise OSError("the disk is full")

    with monkeypatch.context() as full:
        full.setattr(service.jobs, "_note", fail)
        with pytest.raises(OSError, match="full"):
            service.jobs.give(job.id, Order.CANCEL)
    assert count_ended() == 0
    assert service.jobs.get(job.id).status is JobStatus.QUEUED
    service.jobs.give(job.id, Order.CANCEL)
    assert count_ended() == 1
    service.close()


@pytest.mark.parametrize("is_told", [False, True])
def test_a_job_that_does_worse_than_the_live_version_moves_the_alias_only_if_told(
    reopen: Reopen, tmp_path: Path, is_told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The live version's answers are said to be right, all of them; the new one's are measured as they are."""
    service = reopen()
    service.start()
    wait_for(service, service.create_job(make_spec(service)), JobStatus.SUCCEEDED)
    [live] = [version.number for version in open_registry(tmp_path).versions("likes")][-1:]
    digest = open_registry(tmp_path).resolve("likes").digest
    plain = PlainModel.evaluate

    def evaluate(self: PlainModel, asked: Measurement) -> Slices[Evaluation]:
        if asked.served.prompt.digest == digest:
            return Evaluation.of_labels(asked.targets, asked.served.labels, asked.targets)
        return (yield from plain(self, asked))

    monkeypatch.setattr(PlainModel, "evaluate", evaluate)
    spec = make_spec(service, promote=is_told, hyperparameters={"max_steps": 1}, search={"learning_rates": [1e-6]})
    job = wait_for(service, service.create_job(spec), JobStatus.SUCCEEDED)
    last, before = all_events(service, job)[-1], all_events(service, job)[-2]
    new = int(job.version.partition("@")[2])
    assert open_registry(tmp_path).resolve("likes").number == (new if is_told else live)
    if is_told:
        assert f"live moves from likes@{live} to likes@{new}: likes@{new} has accuracy" in last.message
    else:
        assert before.level == "warn"
        assert before.message.startswith(f"live stays at likes@{live}: likes@{new} has accuracy ")
        assert "and likes@" in before.message


@pytest.fixture
def improving(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every update of a run of 12 is better than the one before it, and a moment to look for a checkpoint."""
    steps = itertools.count(1)
    monkeypatch.setattr("app.jobs.attempt.NUM_CHECKPOINT_MOMENTS", 12)

    def find(self: TuningWork, published_step: int) -> Candidate | None:
        leader = self.run.population.leader
        prompt = leader.best_prompt(self.backbone)
        return Candidate(self.run.step, "accuracy", next(steps) / 100, None, prompt) if self.run.step else None

    monkeypatch.setattr(TuningWork, "find_candidate", find)


def checkpoints_of(service: TuningService, job: Job, folder: Path) -> tuple[list[int], set[int]]:
    """Steps that the job lists, and numbers of the versions that the registry has of the task."""
    listed = service.checkpoints.of(job.id)
    registry = open_registry(folder)
    numbers = {version.number for version in registry.versions("likes")}
    assert {registry.resolve(each.version).number for each in listed} <= numbers
    return [each.step for each in listed], numbers


@pytest.mark.parametrize(("asked", "num_kept"), [(None, 5), (2, 2), (1000, 12)])
def test_the_newest_checkpoints_stay_and_the_others_leave_list_and_registry(
    reopen: Reopen, tmp_path: Path, improving: None, asked: int | None, num_kept: int
) -> None:
    service = reopen()
    service.start()
    job = wait_for(service, service.create_job(make_spec(service, keep_checkpoints=asked)), JobStatus.SUCCEEDED)
    steps, numbers = checkpoints_of(service, job, tmp_path)
    assert steps == list(range(1, 13))[-num_kept:]
    assert len(numbers) == num_kept + 1  # and the result
    assert open_registry(tmp_path).resolve("likes").id == job.version


def test_a_checkpoint_that_an_alias_or_another_job_names_stays(reopen: Reopen, tmp_path: Path, improving: None) -> None:
    gate = Gate()
    service = reopen(gate, keep_checkpoints=1)
    service.start()
    job = service.create_job(make_spec(service))
    allow_until(gate, lambda: len(service.checkpoints.of(job.id)) == 1)
    [first] = service.checkpoints.of(job.id)
    service.registry.set_alias("likes", "canary", int(first.version.partition("@")[2]))
    allow_until(gate, lambda: len(service.checkpoints.of(job.id)) == 2)
    second = service.checkpoints.of(job.id)[-1]
    other = service.create_job(
        make_spec(service, task="other", init_version=second.version, search={"inits": ["prompt"]})
    )
    gate.open()
    wait_for(service, job, JobStatus.SUCCEEDED)
    steps, _ = checkpoints_of(service, job, tmp_path)
    assert steps == [first.step, second.step, 12]
    wait_for(service, other, JobStatus.SUCCEEDED)


def test_a_checkpoint_deleted_by_hand_is_no_obstacle(reopen: Reopen, tmp_path: Path, improving: None) -> None:
    gate = Gate()
    service = reopen(gate, keep_checkpoints=2)
    service.start()
    job = service.create_job(make_spec(service))
    allow_until(gate, lambda: len(service.checkpoints.of(job.id)) == 2)
    first = service.checkpoints.of(job.id)[0]
    service.registry.delete_version("likes", int(first.version.partition("@")[2]))
    gate.open()
    wait_for(service, job, JobStatus.SUCCEEDED)
    assert checkpoints_of(service, job, tmp_path)[0] == [11, 12]


def test_a_run_that_is_repeated_publishes_no_checkpoint_that_was_removed(
    reopen: Reopen, tmp_path: Path, improving: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is saved before the disk fails after the seventh update; then the run starts over."""
    published: list[int] = []
    publish = TuningWork.publish_checkpoint

    def note(self: TuningWork, candidate: Candidate) -> str:
        published.append(candidate.step)
        return publish(self, candidate)

    monkeypatch.setattr(TuningWork, "publish_checkpoint", note)
    gate = Gate()
    service = reopen(gate, save_every_s=3600, keep_checkpoints=2)
    job = service.create_job(make_spec(service))
    service.start()
    allow_until(gate, lambda: len(published) >= 7)
    gate.fault = OSError(errno.EIO, "the disk failed")
    gate.open()
    wait_until(lambda: service.runner.has_retries)
    before, _ = checkpoints_of(service, job, tmp_path)
    assert published == list(range(1, before[-1] + 1))
    published.clear()
    service = reopen(save_every_s=3600, keep_checkpoints=2)
    service.start()
    wait_for(service, job, JobStatus.SUCCEEDED)
    assert min(published) >= before[0] > 1
    assert checkpoints_of(service, job, tmp_path)[0] == [11, 12]
