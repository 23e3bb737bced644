"""What became known of versions after they were published; they themselves never change.

    <task>/evaluations/<number>-<sha256>.json    figures of one version on the examples with that hash
    <task>/evaluations/<sha256>.jsonl            the examples of a gate

Every file is named after the examples, so that a score can never be taken for one on other examples.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated

from pydantic import Field

from app.errors import CorruptPrompt, GateFailed, InvalidInput, NotFound
from app.registry.aliases import AliasTarget, Gate, numbers_to_compare
from app.registry.formats.json_file import SealedFile, Sha256
from app.registry.store import Store
from app.registry.version import Version

FOLDER = "evaluations"
MAX_EVALUATIONS = 256
"""Of one version."""
MAX_FILE_BYTES = 2**16
MAX_EXAMPLES_BYTES = 64 * 2**20
_FIGURES = re.compile(r"([1-9][0-9]*)-([0-9a-f]{64})\.json")
_EXAMPLES = re.compile(r"([0-9a-f]{64})\.jsonl")
_logger = logging.getLogger(__name__)


class RecordedEvaluation(SealedFile):
    """The figures of a version on some examples.

    Attributes:
        digest: of the prompt that was measured.
        data_sha256: of the examples (`app.measure.dataset.hash_examples`).
        data_name: a person's name for them.
        metrics: name to value.
        created_at: seconds since 1970, UTC.
    """

    file_name = "evaluation"
    digest: Sha256
    data_sha256: Sha256
    data_name: Annotated[str, Field(max_length=1_000)] = ""
    metrics: Annotated[dict[str, float], Field(max_length=64)]
    created_at: Annotated[int, Field(ge=0)] = Field(default_factory=lambda: int(time.time()))


class Evaluations:
    """`Registry.evaluations`. Everything reads or writes the disk; call what writes while `Catalog.writing`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def of_version(self, version: Version) -> list[RecordedEvaluation]:
        """Oldest first. A file that cannot be read is left out: the figures can be measured again."""
        matches = self._matches(version.task, _FIGURES)
        recorded = (self.find(version, match[2]) for match in matches if int(match[1]) == version.number)
        return sorted((each for each in recorded if each), key=lambda each: (each.created_at, each.data_sha256))

    def find(self, version: Version, data_sha256: str) -> RecordedEvaluation | None:
        """What was recorded of it on these examples."""
        key = _figures_key(version.task, version.number, data_sha256)
        try:
            recorded = RecordedEvaluation.decode(self._read(key, MAX_FILE_BYTES))
        except NotFound:
            return None
        except CorruptPrompt as error:
            _logger.warning("%s is not used: %s", key, error.message)
            return None
        is_right = (recorded.digest, recorded.data_sha256) == (version.digest, data_sha256)
        return recorded if is_right else None

    def write(self, task: str, number: int, evaluation: RecordedEvaluation) -> None:
        """Earlier figures on the same examples are replaced. Raises InvalidInput: the version has too many."""
        present = {match[2] for match in self._matches(task, _FIGURES) if int(match[1]) == number}
        if evaluation.data_sha256 not in present and len(present) >= MAX_EVALUATIONS:
            raise InvalidInput(f"a version keeps at most {MAX_EVALUATIONS} evaluations", param="record")
        self._store.replace(_figures_key(task, number, evaluation.data_sha256), evaluation.encode())

    def gate_examples(self, task: str, gate: Gate) -> bytes:
        """What was attached with the gate. Raises CorruptPrompt: it is not there as it was."""
        try:
            content = self._read(_examples_key(task, gate), MAX_EXAMPLES_BYTES)
        except NotFound:
            content = b""
        if hashlib.sha256(content).hexdigest() != gate.data_sha256:
            raise CorruptPrompt("the gate's examples are missing or damaged; attach the gate again")
        return content

    def write_examples(self, task: str, gate: Gate, content: bytes) -> None:
        """Keep a gate's examples; what was damaged on the disk is whole afterwards.

        Raises InvalidInput: they are not the gate's, or too large.
        """
        if hashlib.sha256(content).hexdigest() != gate.data_sha256:
            raise InvalidInput("the examples are not those the gate names", param="gate")
        if len(content) > MAX_EXAMPLES_BYTES:
            raise InvalidInput(f"a gate's examples may have at most {MAX_EXAMPLES_BYTES} bytes", param="gate")
        self._store.replace(_examples_key(task, gate), content)

    def clear(self, task: str, *, numbers: Collection[int], kept_examples: Collection[str]) -> None:
        """Remove the figures of versions that are gone, and examples that no gate uses."""
        gone = [match[0] for match in self._matches(task, _FIGURES) if int(match[1]) in numbers]
        gone += [match[0] for match in self._matches(task, _EXAMPLES) if match[1] not in kept_examples]
        folder = f"{task}/{FOLDER}"
        for name in gone:
            self._store.remove(f"{folder}/{name}")
        if self._has_folder(task) and not self._store.entries(folder):
            self._store.remove(folder)

    def require_passing(
        self,
        versions: Mapping[int, Version],
        before: AliasTarget | None,
        after: AliasTarget,
        gate: Gate | None,
        *,
        evaluations: Sequence[RecordedEvaluation] = (),
    ) -> None:
        """Compare the scores that are recorded. Call it while `Catalog.writing`, so that none can change meanwhile.

        Args:
            versions: the task's, by number.
            before, after: what the alias means now, and what it is to mean, on one backbone.
            gate: the one that counts; None: the move passes.
            evaluations: of a version in `after` that is not published yet.

        Raises GateFailed.
        """
        numbers = numbers_to_compare(before, after)
        if gate is None or not numbers or numbers[0] not in versions:
            return
        unpublished = {each.data_sha256: each for each in evaluations}.get(gate.data_sha256)
        standard = None
        for number in numbers:
            version = versions.get(number)
            known = self.find(version, gate.data_sha256) if version else unpublished
            if known is None or gate.metric not in known.metrics:
                raise GateFailed(f"version {number} has no {gate.metric} on the gate's examples yet", param="version")
            score = known.metrics[gate.metric]
            standard = score if standard is None else standard
            if score < standard - gate.tolerance:
                raise GateFailed(
                    f"version {number} has {gate.metric} {score:.4f} on the gate's examples, and version "
                    f"{numbers[0]}, which it would replace, {standard:.4f}; force moves the alias all the same",
                    param="version",
                )

    def _matches(self, task: str, pattern: re.Pattern[str]) -> list[re.Match[str]]:
        names = self._store.entries(f"{task}/{FOLDER}") if self._has_folder(task) else ()
        return [match for name in names if (match := pattern.fullmatch(name))]

    def _has_folder(self, task: str) -> bool:
        """A link counts as none."""
        entry = self._store.entry(f"{task}/{FOLDER}")
        return entry is not None and entry.is_folder

    def _read(self, key: str, max_bytes: int) -> bytes:
        entry = self._store.entry(key)
        if entry is not None and entry.num_bytes > max_bytes:
            raise CorruptPrompt(f"the file is larger than {max_bytes} bytes")
        return self._store.read(key)


def _figures_key(task: str, number: int, data_sha256: str) -> str:
    return f"{task}/{FOLDER}/{number}-{data_sha256}.json"


def _examples_key(task: str, gate: Gate) -> str:
    return f"{task}/{FOLDER}/{gate.data_sha256}.jsonl"
