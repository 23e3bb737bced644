"""A process that forks writers and kills them; test_crash.py talks to it in JSON lines.

Started once, because importing torch takes seconds and a kill takes milliseconds. Commands on standard input:
    {"root": DIR, "num_operations": 2.7}                           SIGKILL a writer after about that many
    {"root": DIR, "prepare": [...], "script": [...], "die_at": K}  run "prepare", then "script" up to, and without, its
                                                                   K-th system call that changes the disk; "below":
                                                                   DIR of tasks that are only read
Each answers with one line: {"acknowledged": [[operation, task, number, digest], ...], "status": exit code}.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import torch

from app.errors import SoftswapError
from app.model.backbone import Backbone
from app.registry.aliases import Gate
from app.registry.kept.evaluations import RecordedEvaluation
from app.registry.publication import Publication
from app.registry.registry import Registry
from app.registry.store import FileStore
from tests.support.models import tiny_backbone
from tests.support.prompts import random_prompt

EXAMPLES = b'["a", "b"]\n'
GATE = Gate(hashlib.sha256(EXAMPLES).hexdigest(), "accuracy")
DISK_CALLS = ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir")


def act(registry: Registry, backbone: Backbone, operation: str, task: str, seed: int) -> list[Any]:
    """Do one operation and return what it promised."""
    if operation == "publish":
        version = registry.publish(task, Publication(random_prompt(backbone, 3, seed=seed)))
        return [operation, task, version.number, version.digest]
    if operation == "publish aside":
        version = registry.publish(task, Publication(random_prompt(backbone, 3, seed=seed)), alias=None)
        return [operation, task, version.number, version.digest]
    if operation == "publish onto a gated alias":
        prompt = random_prompt(backbone, 3, seed=seed)
        measured = RecordedEvaluation(digest=prompt.digest, data_sha256=GATE.data_sha256, metrics={"accuracy": 1.0})
        version = registry.publish(task, Publication(prompt), evaluations=[measured])
        return ["publish", task, version.number, version.digest]
    if operation == "attach a gate":
        live = registry.resolve(task)
        measured = RecordedEvaluation(digest=live.digest, data_sha256=GATE.data_sha256, metrics={"accuracy": 0.5})
        registry.record_evaluation(live, measured)
        registry.set_alias(task, "live", live.number, gate=GATE, gate_examples=EXAMPLES)
        return ["roll back", task, live.number, ""]
    if operation == "roll back":
        number = min(version.number for version in registry.versions(task))
        registry.set_alias(task, "live", number)
        return [operation, task, number, ""]
    if operation == "delete version":
        live = registry.task(task).aliases["live"]
        number = min(version.number for version in registry.versions(task) if version.number != live)
        registry.delete_version(task, number)
        return [operation, task, number, ""]
    registry.delete_task(task)
    return [operation, task, 0, ""]


def write_for_ever(root: Path, backbone: Backbone, acknowledge: Callable[[list[Any]], None], seed: int) -> None:
    rng = random.Random(seed)
    registry = Registry(FileStore(root), backbone)
    operations = ["publish"] * 5 + ["publish aside", "roll back", "delete version", "delete version", "delete task"]
    for turn in itertools.count():
        try:
            acknowledge(act(registry, backbone, rng.choice(operations), rng.choice("ab"), seed * 1_000_003 + turn))
        except (SoftswapError, KeyError, ValueError):
            continue  # the operation made no sense in this state


def run_script(
    root: Path, backbone: Backbone, acknowledge: Callable[[list[Any]], None], command: dict[str, Any]
) -> None:
    below = Path(command["below"]) if "below" in command else None
    registry = Registry(FileStore(root, below), backbone)
    for seed, (operation, task) in enumerate(command["prepare"]):
        acknowledge(act(registry, backbone, operation, task, seed))
    die_at_call(command["die_at"])
    for seed, (operation, task) in enumerate(command["script"], start=100):
        acknowledge(act(registry, backbone, operation, task, seed))


def die_at_call(number: int) -> None:
    counter = itertools.count(1)

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if next(counter) == number:
                os._exit(9)
            return real(*args, **kwargs)

        return call

    for name in DISK_CALLS:
        setattr(os, name, dying(getattr(os, name)))


def write(root: Path, backbone: Backbone, pipe: int, command: dict[str, Any], serial: int) -> None:
    """The writer's life, from fork to exit."""

    def acknowledge(promise: list[Any]) -> None:
        os.write(pipe, (json.dumps(promise) + "\n").encode())

    try:
        if "script" in command:
            run_script(root, backbone, acknowledge, command)
        else:
            os.write(pipe, b"\n")
            write_for_ever(root, backbone, acknowledge, serial)
    except BaseException as error:
        os.write(2, f"writer failed: {error!r}\n".encode())
        os._exit(3)
    os._exit(0)


def run_writer(command: dict[str, Any], backbone: Backbone, serial: int) -> dict[str, Any]:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        write(Path(command["root"]), backbone, writer, command, serial)
    os.close(writer)
    with os.fdopen(reader) as lines:
        first = [] if "script" in command else kill_in_time(pid, lines, command["num_operations"])
        acknowledged = [json.loads(line) for line in [*first, *lines]]
    _, status = os.waitpid(pid, 0)
    return {"acknowledged": acknowledged, "status": os.waitstatus_to_exitcode(status)}


def kill_in_time(pid: int, lines: TextIO, num_operations: float) -> list[str]:
    """Kill the writer after `num_operations`, of which the fraction is a share of the time that one of them takes."""
    lines.readline()
    started = time.perf_counter()
    whole = int(num_operations)
    seen = [lines.readline() for _ in range(whole)]
    time.sleep((num_operations - whole) * (time.perf_counter() - started) / max(1, whole))
    os.kill(pid, signal.SIGKILL)
    return seen


def main() -> None:
    torch.set_num_threads(1)
    backbone = tiny_backbone()
    print(json.dumps({"is_ready": True}), flush=True)
    for serial, line in enumerate(sys.stdin):
        print(json.dumps(run_writer(json.loads(line), backbone, serial)), flush=True)


if __name__ == "__main__":
    main()
