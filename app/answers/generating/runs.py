"""RunService: a task applied to inputs, as its template and labels say."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from app.answers.call import Call
from app.answers.generating.generation import Ask, TextGenerator, finish_reason_of
from app.answers.generating.labels import LabelScorer
from app.answers.targets import AnyTarget, Combine, Target, choose_text
from app.answers.views import Reply
from app.engine.async_engine import all_of
from app.errors import InvalidInput
from app.model.backbone import Backbone

DEFAULT_MAX_TOKENS = 64
GREEDY = {"temperature": 0.0}


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of an answer. `num_prompt` counts the task prompt's virtual tokens as well as the text's."""

    num_prompt: int = 0
    num_completion: int = 0
    num_cached: int = 0

    @classmethod
    def total(cls, usages: Sequence[Usage]) -> Usage:
        return cls(
            sum(usage.num_prompt for usage in usages),
            sum(usage.num_completion for usage in usages),
            sum(usage.num_cached for usage in usages),
        )


@dataclass(frozen=True)
class Run:
    """One input to one task. `param` is the input's name in an error; `combine` belongs to an ensemble."""

    target: AnyTarget
    text: str
    param: str
    combine: Combine | None = None


class MemberObject(Reply):
    """What one member of an ensemble says by itself: its label with its probability, or its text."""

    model: str
    label: str | None = None
    probability: float | None = None
    text: str | None = None


class RunObject(Reply):
    """What the task says about one input: a label for a task with labels, a text for one that generates.

    As HTTP and `softswap run --json` show it, without the fields that are not set.
    """

    model: str = Field(description="The version that answered, such as `sentiment@3`; of an ensemble all members.")
    label: str | None = Field(None, description="The likeliest label.")
    probabilities: dict[str, float] | None = Field(None, description="Of every label, likeliest first; they sum to 1.")
    label_mass: float | None = Field(
        None, description="The model's whole belief in the labels before normalizing: a small one is a warning."
    )
    text: str | None = Field(None, description="The generated text, without blanks at its ends.")
    finish_reason: Literal["stop", "length"] | None = None
    members: list[MemberObject] | None = Field(None, description="Of an ensemble, in the order of its name.")


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run gave, and what it took."""

    answer: RunObject
    usage: Usage


@dataclass(frozen=True, slots=True)
class RunPiece:
    """A piece of a streamed text; the last one is empty, and has the reason and the usage."""

    text: str
    finish_reason: Literal["stop", "length"] | None = None
    usage: Usage | None = None


class RunService:
    """Answers runs with a text generator and a label scorer."""

    def __init__(self, backbone: Backbone, texts: TextGenerator, labels: LabelScorer) -> None:
        self._tokenizer = backbone.tokenizer
        self._texts = texts
        self._labels = labels

    async def run_all(self, runs: Sequence[Run], given: dict[str, Any], call: Call) -> list[RunResult]:
        """All inputs in one batch, whatever their tasks; results in order.

        Args:
            given: sampling parameters of the request, for tasks that generate.

        Raises:
            SoftswapError: the first one; if an input is at fault, `param` names it.
        """
        if len(runs) == 1:
            return [await self._run(runs[0], given, call)]
        targets = {id(run.target): run.target for run in runs}.values()
        at_once = self._labels.num_at_once(max(map(self._num_sequences, targets)))
        return await all_of((self._run(run, given, call) for run in runs), at_once=at_once)

    def _num_sequences(self, target: AnyTarget) -> int:
        """Of the engine, at a time, for one input."""
        return self._labels.num_sequences(target) if target.labels else len(target.members)

    async def stream(self, run: Run, given: dict[str, Any], call: Call) -> AsyncGenerator[RunPiece, None]:
        """The text of one run piece by piece, without blanks at its beginning. Raises InvalidInput."""
        if run.target.is_ensemble:
            raise InvalidInput("an ensemble answers once all of its members have; leave stream out", param="stream")
        if run.target.labels:
            raise InvalidInput(f"{run.target.flow} answers with a label, which cannot be streamed", param="stream")
        [target] = run.target.members
        ask = await self._ask(target, run.text, given)
        num_generated, num_cached, has_text = 0, 0, False
        async with aclosing(self._texts.stream(target, [ask], call)) as deltas:
            async for _, delta in deltas:
                num_generated += len(delta.token_ids)
                num_cached = max(num_cached, delta.num_cached_tokens)
                text = delta.text if has_text else delta.text.lstrip()
                has_text = has_text or bool(text)
                if text:
                    yield RunPiece(text)
                if delta.finish_reason is not None:
                    usage = Usage(len(ask.token_ids) + target.num_virtual_tokens, num_generated, num_cached)
                    yield RunPiece("", finish_reason_of(delta.finish_reason), usage)

    async def _run(self, run: Run, given: dict[str, Any], call: Call) -> RunResult:
        try:
            if run.target.labels:
                return await self._choose_label(run, given, call)
            return await self._write_text(run, given, call)
        except InvalidInput as error:
            if error.param not in given:
                error.param = run.param
            raise

    async def _choose_label(self, run: Run, given: dict[str, Any], call: Call) -> RunResult:
        target = run.target
        if given:
            name = next(iter(given))
            raise InvalidInput(f"{target.flow} answers with a label and samples nothing; leave {name} out", param=name)
        labels = target.labels
        scores = await self._labels.score(target, run.text, call, combine=run.combine)
        chances = scores.chances.probabilities
        ranked = sorted(range(len(labels)), key=lambda place: (-chances[place], place != scores.best))
        answer = RunObject(
            model=target.model_id,
            label=labels[scores.best],
            probabilities={labels[place]: chances[place] for place in ranked},
            label_mass=scores.chances.mass,
        )
        if target.is_ensemble:
            answer.members = [
                MemberObject(model=member.model_id, label=labels[each.best], probability=each.probabilities[each.best])
                for member, each in zip(target.members, scores.members, strict=True)
            ]
        return RunResult(answer, Usage(scores.num_prompt, 0, scores.num_cached))

    async def _write_text(self, run: Run, given: dict[str, Any], call: Call) -> RunResult:
        """What a version writes; of an ensemble what most members write, as the first of them writes it."""
        found = await all_of(self._generate(each, run.text, given, call) for each in run.target.members)
        if len(found) == 1:
            return found[0]
        members = [MemberObject(model=each.answer.model, text=each.answer.text) for each in found]
        answer = found[choose_text([member.text or "" for member in members])].answer
        answer.model, answer.members = run.target.model_id, members
        return RunResult(answer, Usage.total([each.usage for each in found]))

    async def _generate(self, target: Target, text: str, given: dict[str, Any], call: Call) -> RunResult:
        ask = await self._ask(target, text, given)
        [choice] = await self._texts.collect(target, [ask], call)
        num_prompt = len(ask.token_ids) + target.num_virtual_tokens
        answer = RunObject(
            model=target.model_id, text=choice.text.strip(), finish_reason=finish_reason_of(choice.finish_reason)
        )
        return RunResult(answer, Usage(num_prompt, len(choice.token_ids), choice.num_cached_tokens))

    async def _ask(self, target: Target, text: str, given: dict[str, Any]) -> Ask:
        token_ids = await target.encode(self._tokenizer, text)
        defaults = {} if "temperature" in target.sampling else GREEDY
        params = self._texts.make_params(
            target, {**defaults, **given}, num_tokens=len(token_ids), default_max_tokens=DEFAULT_MAX_TOKENS
        )
        return Ask(token_ids, params)
