"""EngineModel: answers of the running engine to be measured, next to the requests that it serves."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

from app.answers.batch import ask_each, max_at_once
from app.measure.label_tree import encode_labels
from app.sampling import SamplingParams

if TYPE_CHECKING:
    from app.engine.async_engine import AsyncEngine
    from app.engine.output.scoring import ScoringPlan
    from app.measure.evaluation import Evaluation, Measurement
    from app.measure.served_prompt import ServedPrompt
    from app.model.backbone import Backbone

MAX_SEQUENCES_AT_ONCE = 32
"""Of one evaluation: enough to fill batches, too few to keep other requests of the task waiting for long."""


class EngineModel:
    """For one caller. The plain model (`app.measure.plain_model`) finds the same answers.

    Every method raises InvalidInput: a prompt that leaves no room; and what `AsyncEngine.score` and `generate` raise.

    Args:
        flow: whose fair share the work counts against.
        cache_salt: computed text is shared only with requests of the same salt.
    """

    def __init__(self, engine: AsyncEngine, backbone: Backbone, *, flow: str, cache_salt: str = "") -> None:
        self._engine = engine
        self._backbone = backbone
        self._flow = flow
        self._cache_salt = cache_salt

    async def evaluate(self, asked: Measurement, deadline_s: float) -> Evaluation:
        """Args: deadline_s: seconds from now for the whole of it."""
        if asked.served.labels:
            scores = await self.score(asked.served, asked.inputs, deadline_s)
            return await asyncio.to_thread(asked.judge_scores, scores)
        texts = await self.generate(asked.served, asked.inputs, deadline_s)
        return await asyncio.to_thread(asked.judge_texts, texts)

    async def score(self, served: ServedPrompt, inputs: Sequence[str], deadline_s: float) -> list[list[float]]:
        """log P(label | prompt, text) of every label for every input, natural logarithm."""
        label_ids = await asyncio.to_thread(encode_labels, self._backbone, served.template, served.labels)
        plan = await asyncio.to_thread(self._engine.plan_scoring, label_ids)
        texts = await self._encode(served, inputs, max(map(len, label_ids)))

        async def score(text: Sequence[int], left_s: float) -> list[float]:
            return await self._score_one(served, text, plan, left_s)

        num_sequences = self._engine.num_scored_at_once(plan.num_sequences)
        return await ask_each(texts, score, deadline_s, at_once=self._num_at_once(num_sequences))

    async def generate(self, served: ServedPrompt, inputs: Sequence[str], deadline_s: float) -> list[str]:
        """The likeliest answers, each up to its stop string, blanks trimmed."""
        params = SamplingParams(temperature=0.0, max_tokens=served.max_new_tokens, stop=tuple(served.stop))
        texts = await self._encode(served, inputs, served.max_new_tokens)

        async def generate(text: Sequence[int], left_s: float) -> str:
            deltas = self._engine.generate(
                text,
                prompt=served.prompt,
                params=params,
                cache_salt=self._cache_salt,
                flow=self._flow,
                deadline_s=left_s,
            )
            async with aclosing(deltas):
                written = "".join([delta.text async for delta in deltas])
            return served.cut(written.strip())

        return await ask_each(texts, generate, deadline_s, at_once=self._num_at_once())

    async def score_answers(
        self, served: ServedPrompt, inputs: Sequence[str], answers: Sequence[Sequence[int]], deadline_s: float
    ) -> list[float]:
        """log P(answer | prompt, text) of the one answer to each input. Args: answers: as token ids."""
        texts = await self._encode(served, inputs, max(map(len, answers)))

        async def score(pair: tuple[Sequence[int], Sequence[int]], left_s: float) -> float:
            text, answer = pair
            [score] = await self._score_one(served, text, self._engine.plan_scoring([answer]), left_s)
            return score

        return await ask_each(zip(texts, answers, strict=True), score, deadline_s, at_once=self._num_at_once())

    async def _score_one(
        self, served: ServedPrompt, text: Sequence[int], plan: ScoringPlan, left_s: float
    ) -> list[float]:
        scoring = await self._engine.score(
            text,
            plan,
            prompt=served.prompt,
            cache_salt=self._cache_salt,
            flow=self._flow,
            deadline_s=left_s,
        )
        return scoring.log_likelihoods

    async def _encode(
        self, served: ServedPrompt, inputs: Sequence[str], num_answer_tokens: int
    ) -> list[tuple[int, ...]]:
        """Texts as they continue the prompt; those too long lose their end, as in tuning."""
        room = served.input_room(self._engine.max_positions, num_answer_tokens)
        rows = await asyncio.to_thread(served.encode, self._backbone, inputs, room)
        return [row.text_ids for row in rows]

    def _num_at_once(self, num_sequences: int = 1) -> int:
        """Texts that are with the engine at a time, if each takes `num_sequences` sequences."""
        return max(1, min(max_at_once(self._engine, num_sequences), MAX_SEQUENCES_AT_ONCE // num_sequences))
