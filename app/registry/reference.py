"""Reference: how a caller names a version: `task`, `task@3`, `task@canary` or `task@sha256:ab12cd34`."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from difflib import get_close_matches

from app.errors import InvalidInput, NoSuchTask, NotFound

LIVE = "live"
JOINT = "+"
"""Joins the members of an ensemble."""
MAX_ENSEMBLE = 8
MAX_SUGGESTED_FROM = 256
_TASK = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_ALIAS = re.compile(r"[a-z][a-z0-9._-]{0,62}")
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")
_DIGEST = re.compile(r"sha256:([0-9a-f]{8,64})")


@dataclass(frozen=True, slots=True)
class Reference:
    """Exactly one of `number`, `digest` (the first hexadecimal digits) and `alias` is set."""

    task: str
    number: int | None = None
    digest: str | None = None
    alias: str | None = None

    @classmethod
    def parse(cls, name: str) -> Reference:
        """Raises NotFound: no task, version or alias can have that name."""
        task, at, selector = name.partition("@")
        if not _TASK.fullmatch(task):
            raise NoSuchTask("there is no such task: names have 1 to 63 of a-z 0-9 . _ -", param="task")
        if not at:
            return cls(task, alias=LIVE)
        if _NUMBER.fullmatch(selector):
            return cls(task, number=int(selector))
        if match := _DIGEST.fullmatch(selector):
            return cls(task, digest=match[1])
        if _ALIAS.fullmatch(selector):
            return cls(task, alias=selector)
        raise NotFound(f"task {task} has no such version or alias", param="version")


def is_task_name(name: str) -> bool:
    return _TASK.fullmatch(name) is not None


def is_alias_name(name: str) -> bool:
    return _ALIAS.fullmatch(name) is not None


def is_number(name: str) -> bool:
    """Whether a folder of this name can hold a version."""
    return _NUMBER.fullmatch(name) is not None


def name_together(names: Iterable[str]) -> str:
    """One name for pinned versions: `sentiment@3+4+tone@2`, in which 4 belongs to the task named before it."""
    parts: list[str] = []
    task_before = None
    for name in names:
        task, _, number = name.partition("@")
        parts.append(number if task == task_before and is_number(number) else name)
        task_before = task
    return JOINT.join(parts)


def spell_out(name: str) -> list[str]:
    """Each member's own name, from the name `name_together` or a caller gives an ensemble."""
    names: list[str] = []
    task = ""
    for part in name.split(JOINT):
        full = f"{task}@{part}" if names and is_number(part) else part
        task = full.partition("@")[0]
        names.append(full)
    return names


def suggest_task(task: str, present: Collection[str]) -> str:
    """What follows in a refusal: a name that exists and is nearly the same, if there are few enough to look at."""
    near = get_close_matches(task, present, n=1) if len(present) <= MAX_SUGGESTED_FROM else []
    return f"; is it {near[0]}?" if near else ""


def require_task_name(name: str) -> None:
    if not is_task_name(name):
        raise InvalidInput("a task's name has 1 to 63 of a-z 0-9 . _ - and begins with a letter or digit", param="task")


def require_alias_name(name: str) -> None:
    if not is_alias_name(name):
        raise InvalidInput("an alias has 1 to 63 of a-z 0-9 . _ - and begins with a letter", param="alias")
