"""The registry against a dictionary: any order of operations, restarts, leftovers and hand-made changes."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from app.errors import Conflict, InvalidInput, NotFound
from app.registry.aliases import AliasTable
from app.registry.publication import Publication
from app.registry.registry import Registry
from app.registry.store import FileStore
from app.task_prompt import TaskPrompt
from tests.support.models import tiny_backbone
from tests.support.prompts import random_prompt, write_checkpoint

# The release asks for more: SOFTSWAP_NUM_EXAMPLES=1000 pytest tests/registry/test_registry_stateful.py
NUM_EXAMPLES = int(os.environ.get("SOFTSWAP_NUM_EXAMPLES", "25"))
TASKS = st.sampled_from(["a", "b", "c"])
ALIASES = st.sampled_from(["live", "canary"])
NUMBERS = st.integers(1, 6)
PROMPTS = [random_prompt(tiny_backbone(), 2, seed=seed) for seed in range(4)]
Target = int | dict[int, float]


class RegistryMachine(RuleBasedStateMachine):
    """`versions` and `aliases` are what the registry must hold; the next number is one above `highest`."""

    @initialize()
    def start(self) -> None:
        self.memory = TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
        self.root = Path(self.memory.name) / "prompts"
        self.versions: dict[str, dict[int, TaskPrompt]] = {}
        self.aliases: dict[str, dict[str, Target]] = {}
        self.highest: dict[str, int] = {}
        self.seen_etags: dict[str, str] = {}
        self.restart()

    def teardown(self) -> None:
        if hasattr(self, "memory"):
            self.memory.cleanup()

    @rule()
    def restart(self) -> None:
        self.registry = Registry(FileStore(self.root), tiny_backbone(), settle_s=0)

    @rule(task=TASKS, prompt=st.sampled_from(PROMPTS), alias=st.none() | ALIASES)
    def publish(self, task: str, prompt: TaskPrompt, alias: str | None) -> None:
        version = self.registry.publish(task, Publication(prompt), alias=alias)
        assert version.number == self.highest.get(task, 0) + 1
        self._add(task, version.number, prompt)
        if alias is not None:
            self.aliases[task][alias] = version.number

    @rule(task=TASKS, alias=ALIASES, number=NUMBERS)
    def move(self, task: str, alias: str, number: int) -> None:
        if number in self.versions.get(task, {}):
            self.registry.set_alias(task, alias, number)
            self.aliases[task][alias] = number
        else:
            self._refused(NotFound, lambda: self.registry.set_alias(task, alias, number))

    @rule(task=TASKS, alias=ALIASES, numbers=st.lists(NUMBERS, min_size=2, max_size=2, unique=True))
    def move_to_weights(self, task: str, alias: str, numbers: list[int]) -> None:
        weights = dict.fromkeys(numbers, 0.5)
        if set(numbers) <= self.versions.get(task, {}).keys():
            self.registry.set_alias(task, alias, weights)
            self.aliases[task][alias] = weights
        else:
            self._refused(NotFound, lambda: self.registry.set_alias(task, alias, weights))

    @rule(task=TASKS, alias=ALIASES)
    def delete_alias(self, task: str, alias: str) -> None:
        if alias in self.aliases.get(task, {}):
            self.registry.delete_alias(task, alias)
            del self.aliases[task][alias]
        else:
            self._refused(NotFound, lambda: self.registry.delete_alias(task, alias))

    @rule(task=TASKS, number=NUMBERS)
    def delete_version(self, task: str, number: int) -> None:
        versions = self.versions.get(task, {})
        is_named = any(number in _numbers(target) for target in self.aliases.get(task, {}).values())
        if number not in versions:
            self._refused(NotFound, lambda: self.registry.delete_version(task, number))
        elif is_named:
            self._refused(InvalidInput, lambda: self.registry.delete_version(task, number))
        else:
            self.registry.delete_version(task, number)
            self._remove(task, number)

    @rule(task=TASKS)
    def delete_task(self, task: str) -> None:
        if self.versions.get(task):
            self.registry.delete_task(task)
            for number in list(self.versions[task]):
                self._remove(task, number)
        else:
            self._refused(NotFound, lambda: self.registry.delete_task(task))

    @rule(task=TASKS)
    def remember(self, task: str) -> None:
        if self.versions.get(task):
            self.seen_etags[task] = self.registry.task(task).etag

    @rule(task=TASKS, prompt=st.sampled_from(PROMPTS))
    def publish_if_unchanged(self, task: str, prompt: TaskPrompt) -> None:
        if task not in self.seen_etags:
            return
        is_unchanged = bool(self.versions.get(task)) and self.registry.task(task).etag == self.seen_etags[task]
        if is_unchanged:
            version = self.registry.publish(task, Publication(prompt), if_match=self.seen_etags[task])
            self._add(task, version.number, prompt)
            self.aliases[task]["live"] = version.number
        else:
            self._refused(
                Conflict, lambda: self.registry.publish(task, Publication(prompt), if_match=self.seen_etags[task])
            )

    @rule(task=TASKS, seed=st.integers(0, 2**16))
    def leave_what_a_crash_leaves(self, task: str, seed: int) -> None:
        """A temporary folder, half written; then the process starts again."""
        rng = random.Random(seed)
        for folder in (self.root, self.root / task):
            if folder.is_dir():
                half = folder / f".tmp-{rng.getrandbits(64):x}"
                half.mkdir()
                (half / "adapter_model.safetensors").write_bytes(rng.randbytes(40))
        self.restart()
        assert not [path for path in self.root.rglob(".*") if path.name != ".lock"]

    @rule(task=TASKS)
    def crash_within_a_deletion(self, task: str) -> None:
        """The decision is written, the folder is still there."""
        if not self.versions.get(task):
            return
        path = self.root / task / "aliases.json"
        deleting = tuple(sorted(self.versions[task]))
        table = AliasTable.decode(path.read_bytes(), {})
        path.write_bytes(table.changed(aliases={}, deleting=deleting, last_number=self.highest[task]).encode())
        for number in deleting:
            self._remove(task, number)
        self.restart()
        assert sorted(each.name for each in (self.root / task).iterdir()) == ["aliases.json"]

    @rule(task=TASKS, prompt=st.sampled_from(PROMPTS))
    def drop_a_checkpoint(self, task: str, prompt: TaskPrompt) -> None:
        """Into the folder of a task that has an aliases.json, so that no alias moves."""
        if self.versions.get(task):
            write_checkpoint(self.root / task, prompt, tiny_backbone())
            self.registry.refresh()
            self._add(task, self.highest[task] + 1, prompt)

    @rule(task=TASKS)
    def take_a_version_away(self, task: str) -> None:
        """One that no alias names, by hand."""
        named = {number for target in self.aliases.get(task, {}).values() for number in _numbers(target)}
        # the highest number is written down only if a version was published after it
        free = sorted(self.versions.get(task, {}).keys() - named)[:-1]
        if free:
            shutil.rmtree(self.root / task / str(free[0]))
            self.registry.refresh()
            self._remove(task, free[0])

    @rule()
    def look_from_another_process(self) -> None:
        self._compare(Registry(FileStore(self.root), None))

    @invariant()
    def the_registry_is_the_dictionary(self) -> None:
        if hasattr(self, "registry"):
            self._compare(self.registry)

    def _compare(self, registry: Registry) -> None:
        expected = {task for task, versions in self.versions.items() if versions}
        assert {summary.task for summary in registry.tasks()} == expected
        assert registry.faults() == {}
        for task in expected:
            digests = {version.number: registry.prompt(version).digest for version in registry.versions(task)}
            assert digests == {number: prompt.digest for number, prompt in self.versions[task].items()}
            assert registry.task(task).aliases == self.aliases[task]
            for alias, target in self.aliases[task].items():
                assert registry.resolve(f"{task}@{alias}").number in _numbers(target)

    def _add(self, task: str, number: int, prompt: TaskPrompt) -> None:
        self.versions.setdefault(task, {})[number] = prompt
        self.aliases.setdefault(task, {})
        self.highest[task] = number

    def _remove(self, task: str, number: int) -> None:
        del self.versions[task][number]
        if not self.versions[task]:
            self.aliases[task] = {}

    def _refused(self, kind: type[Exception], operation: object) -> None:
        try:
            operation()  # type: ignore[operator]
        except kind:
            return
        raise AssertionError(f"not refused as {kind.__name__}")


def _numbers(target: Target) -> set[int]:
    return set(target) if isinstance(target, dict) else {target}


TestRegistryMachine = RegistryMachine.TestCase
TestRegistryMachine.settings = settings(max_examples=NUM_EXAMPLES, stateful_step_count=30, deadline=None)
