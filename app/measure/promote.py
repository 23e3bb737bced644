"""Promotion: measure what an alias's gate asks for, then move the alias, or publish with it.

`promote` and `publish` are generators. They do everything that reads and writes the registry, and may block on its
disk; they yield each Measurement they need and are sent its Evaluation. So one text serves a program that measures with
the plain model (`run_with`), a job in turns on a shared device, and the server, which measures with its engine and
must not block (`Evaluator.promote`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

from app.errors import InvalidInput, NotFound
from app.measure import metrics
from app.measure.dataset import Example, hash_examples, pack_examples, unpack_examples
from app.measure.evaluation import Evaluation, Measurement
from app.measure.served_prompt import ServedPrompt
from app.registry.aliases import AliasTarget, Gate, main_number, numbers_of, numbers_to_compare
from app.registry.publication import Publication
from app.registry.registry import Registry
from app.registry.version import Version

Result = TypeVar("Result")
Promotion: TypeAlias = Generator[Measurement, Evaluation | None, Result]


@dataclass(frozen=True)
class GateRequest:
    """A gate to attach to an alias.

    Attributes:
        examples: every version that the alias moves to is compared on them with the one it means.
        metric: None takes the task's main one.
        tolerance: how much lower a version may score, 0 to 1.
    """

    examples: Sequence[Example]
    metric: str | None = None
    tolerance: float = 0.0

    def make_gate(self, labels: Sequence[str]) -> Gate:
        """Args: labels: of the task. Raises InvalidInput: such a task has no such metric."""
        possible = metrics.names_of(labels, [example.target for example in self.examples])
        chosen = self.metric or possible[0]
        if chosen not in possible:
            raise InvalidInput(f"the metric must be one of {', '.join(possible)} on these examples", param="metric")
        return Gate(hash_examples(self.examples), chosen, self.tolerance)


def promote(
    registry: Registry,
    task: str,
    alias: str,
    target: AliasTarget,
    *,
    gate: GateRequest | None = None,
    force: bool = False,
    if_match: str | None = None,
) -> Promotion[None]:
    """`Registry.set_alias`, once the versions that the alias's gate compares are measured.

    Args: gate: the alias's from now on; every version that the alias is to mean must be able to answer its examples.

    Raises GateFailed, and what `set_alias` raises; what was measured by then is kept.
    """
    attached, examples = None, b""
    if gate is not None:
        labels = registry.resolve(f"{task}@{main_number(target)}").labels
        attached, examples = gate.make_gate(labels), pack_examples(gate.examples)
        yield from _score(registry, task, attached, numbers_of(target), gate.examples)
    if not force:
        yield from score_move(registry, task, alias, target, gate=attached, examples=gate.examples if gate else ())
    registry.set_alias(task, alias, target, gate=attached, gate_examples=examples, force=force, if_match=if_match)


def publish(
    registry: Registry,
    task: str,
    publication: Publication,
    *,
    alias: str | None,
    force: bool = False,
    if_match: str | None = None,
) -> Promotion[Version]:
    """`Registry.publish`, once the publication is measured on the examples of the alias's gate.

    Raises GateFailed, and what `Registry.publish` raises; then nothing is published.
    """
    registry.require_publishable(task, publication, alias)
    evaluations = []
    gate = None if alias is None or force else find_gate(registry, task, alias)
    if gate is not None and alias is not None:
        examples = unpack_examples(registry.evaluations.gate_examples(task, gate))
        present = registry.task(task).aliases.get(alias)
        if present is not None:
            yield from _score(registry, task, gate, [main_number(present)], examples)
        measured = yield Measurement(ServedPrompt.of(publication.prompt, publication), examples)
        assert measured is not None
        evaluations = [measured.record(publication.prompt.digest, gate.data_sha256)]
    return registry.publish(task, publication, alias=alias, force=force, evaluations=evaluations, if_match=if_match)


def score_move(
    registry: Registry,
    task: str,
    alias: str,
    target: AliasTarget,
    *,
    gate: Gate | None = None,
    examples: Sequence[Example] = (),
) -> Promotion[None]:
    """Measure and record what the gate will compare when the alias moves.

    Args:
        gate: what the move is held to; None takes the alias's own, and if it has none nothing is measured.
        examples: the gate's, if they are at hand.
    """
    there = registry.task(task).of_target(target)
    gate = gate or there.gates.get(alias)
    if gate is None:
        return
    numbers = numbers_to_compare(there.aliases.get(alias), target)
    yield from _score(registry, task, gate, numbers, examples)


def find_gate(registry: Registry, task: str, alias: str) -> Gate | None:
    """Of an alias on the registry's backbone; None also for a task that does not exist yet."""
    try:
        return registry.task(task).gates.get(alias)
    except NotFound:
        return None


def _score(
    registry: Registry, task: str, gate: Gate, numbers: Collection[int], examples: Sequence[Example]
) -> Promotion[None]:
    """Measure and record those of the versions that have no score on the gate's examples yet."""
    for version in registry.versions(task):
        if version.number not in numbers or registry.evaluations.find(version, gate.data_sha256) is not None:
            continue
        examples = examples or unpack_examples(registry.evaluations.gate_examples(task, gate))
        measured = yield Measurement(ServedPrompt.of(registry.prompt(version), version), examples)
        assert measured is not None
        registry.record_evaluation(version, measured.record(version.digest, gate.data_sha256))


@dataclass(frozen=True)
class Promoted(Generic[Result]):
    """The end of a promotion."""

    result: Result


def advance(promotion: Promotion[Result], measured: Evaluation | InvalidInput | None) -> Measurement | Promoted[Result]:
    """Up to the next measurement, or the end.

    Args: measured: what the last call asked for, or why it cannot be measured; None at first.
    """
    try:
        return promotion.throw(measured) if isinstance(measured, InvalidInput) else promotion.send(measured)
    except StopIteration as end:  # must not leave: a thread's future cannot carry it
        return Promoted(end.value)


def run_with(measure: Callable[[Measurement], Evaluation], promotion: Promotion[Result]) -> Result:
    """What a promotion returns. Args: measure: called only if a gate asks for a score that is not known."""

    def answer(asked: Measurement) -> Evaluation | InvalidInput:
        try:
            return measure(asked)
        except InvalidInput as error:
            return error

    step = advance(promotion, None)
    while isinstance(step, Measurement):
        step = advance(promotion, answer(step))
    return step.result
