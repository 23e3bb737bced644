"""Versions that nothing names: neither an alias, on whatever backbone, nor a tuning job."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

UNFINISHED = ("queued", "running", "paused")


@dataclass(frozen=True)
class NamedByJobs:
    """What tuning jobs name.

    Attributes:
        job_ids: of all jobs there are: a version says which one made it. None if jobs are not known; then every version
            that a job made counts as named.
        versions: the results of jobs.
        backbones: fingerprints of those that all jobs are known for; None: of all. What a job made for another one
            counts as named.
        busy_tasks: what unfinished jobs write to, continue from or distill; all of their versions count as named.
    """

    job_ids: frozenset[str] | None
    versions: frozenset[str] = frozenset()
    busy_tasks: frozenset[str] = frozenset()
    backbones: frozenset[str] | None = None

    @classmethod
    def of(cls, jobs: Iterable[Mapping[str, Any]] | None, backbones: frozenset[str] | None = None) -> NamedByJobs:
        """Args: jobs: as `GET /v1/fine_tuning/jobs` has them; None if they are not known."""
        if jobs is None:
            return cls(None)
        found = list(jobs)
        unfinished = [name for job in found if job["status"] in UNFINISHED for name in _names_of(job)]
        return cls(
            frozenset(job["id"] for job in found),
            frozenset(job["fine_tuned_model"] for job in found if job["fine_tuned_model"]),
            frozenset(name.partition("@")[0] for name in unfinished),
            backbones,
        )

    def has(self, version: Mapping[str, Any]) -> bool:
        """Args: version: as `GET /v1/tasks/{task}/versions` has it."""
        job_id = version["provenance"].get("job")
        is_known = self.backbones is None or version["backbone_fingerprint"] in self.backbones
        is_of_job = job_id is not None and (self.job_ids is None or job_id in self.job_ids or not is_known)
        return is_of_job or version["id"] in self.versions or version["task"] in self.busy_tasks


def _names_of(job: Mapping[str, Any]) -> list[str]:
    teacher = (job["method"].get("distillation") or {}).get("teacher")
    return [job["task"], job["model"], *([teacher] if teacher else [])]


def find_unused(
    task: Mapping[str, Any], named: NamedByJobs, *, num_kept: int, backbones: Collection[str] | None = None
) -> list[dict[str, Any]]:
    """Those of a task's versions that may go, oldest first.

    Args:
        task: as `GET /v1/tasks/{task}` has it, with its `versions`.
        num_kept: as many of the newest versions for each backbone stay.
        backbones: fingerprints of those whose versions may go; None: of all.
    """
    targets = (target for each in task["backbones"] for target in each["aliases"].values())
    aliased = {number for target in targets for number in _numbers_of(target)}
    unused, num_seen = [], dict.fromkeys((version["backbone_fingerprint"] for version in task["versions"]), 0)
    for version in sorted(task["versions"], key=lambda version: -version["number"]):
        backbone = version["backbone_fingerprint"]
        num_seen[backbone] += 1
        may_go = num_seen[backbone] > num_kept and (backbones is None or backbone in backbones)
        if may_go and version["number"] not in aliased and not named.has(version):
            unused.append(dict(version))
    return unused[::-1]


def _numbers_of(target: int | Mapping[Any, float]) -> list[int]:
    return [int(number) for number in target] if isinstance(target, Mapping) else [target]
