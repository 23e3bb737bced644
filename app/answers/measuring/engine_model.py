"""EngineModel: answers of the running engine to be measured, next to the requests that it serves."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace

from app.answers.call import Call
from app.engine.admission import EngineRequest, ScoringPlan
from app.engine.async_engine import AsyncEngine
from app.engine.gather import all_of
from app.measure.evaluation import Evaluation, Measurement
from app.measure.label_tree import encode_labels
from app.measure.served_prompt import ServedPrompt
from app.model.backbone import Backbone
from app.sampling import SamplingParams

MAX_SEQUENCES_AT_ONCE = 32
"""Of one evaluation: enough to fill batches, too few to keep other requests of the task waiting for long."""


class EngineModel:
    """For one call. The plain model (`app.measure.plain_model`) finds the same answers.

    Every method raises InvalidInput: the prompt leaves no room for a text; and what `AsyncEngine.score` and `generate`
    raise.

    Args: flow: whose fair share the work counts against.
    """

    def __init__(self, engine: AsyncEngine, backbone: Backbone, *, flow: str, call: Call) -> None:
        self._engine = engine
        self._backbone = backbone
        self._flow = flow
        self._call = call

    async def evaluate(self, asked: Measurement) -> Evaluation:
        if asked.served.labels:
            scores = await self.score(asked.served, asked.inputs)
            return await asyncio.to_thread(asked.evaluate_scores, scores)
        texts = await self.generate(asked.served, asked.inputs)
        return await asyncio.to_thread(asked.evaluate_texts, texts)

    async def score(self, served: ServedPrompt, inputs: Sequence[str]) -> list[list[float]]:
        """log P(label | prompt, text) of every label for every input, natural logarithm."""
        label_ids = await asyncio.to_thread(encode_labels, self._backbone, served.template, served.labels)
        plan = await asyncio.to_thread(self._engine.plan_scoring, label_ids)
        texts = await self._encode(served, inputs, max(map(len, label_ids)))
        num_sequences = self._engine.num_scored_at_once(plan.num_sequences)
        scores = (self._score_after(served, text, plan) for text in texts)
        return await all_of(scores, at_once=self._num_at_once(num_sequences))

    async def generate(self, served: ServedPrompt, inputs: Sequence[str]) -> list[str]:
        """The likeliest answers, each up to its stop string, blanks trimmed."""
        params = SamplingParams(temperature=0.0, max_tokens=served.max_new_tokens, stop=tuple(served.stop))
        texts = await self._encode(served, inputs, served.max_new_tokens)
        answers = (self._generate_after(served, text, params) for text in texts)
        return await all_of(answers, at_once=self._num_at_once())

    async def score_answers(
        self, served: ServedPrompt, inputs: Sequence[str], answers: Sequence[Sequence[int]]
    ) -> list[float]:
        """log P(answer | prompt, text), natural logarithm. Args: answers: ids of the one answer to each input."""
        texts = await self._encode(served, inputs, max(map(len, answers)))
        plans = (self._engine.plan_scoring([answer]) for answer in answers)
        scores = (self._score_after(served, text, plan) for text, plan in zip(texts, plans, strict=True))
        return [score for [score] in await all_of(scores, at_once=self._num_at_once())]

    async def _score_after(self, served: ServedPrompt, text: Sequence[int], plan: ScoringPlan) -> list[float]:
        request = self._request(served, text)
        return (await self._engine.score(request, plan, deadline_s=self._call.left_s)).log_likelihoods

    async def _generate_after(self, served: ServedPrompt, text: Sequence[int], params: SamplingParams) -> str:
        request = replace(self._request(served, text), params=params)
        deltas = self._engine.generate(request, deadline_s=self._call.left_s)
        async with aclosing(deltas):
            written = "".join([delta.text async for delta in deltas])
        return served.cut(written.strip())

    def _request(self, served: ServedPrompt, text: Sequence[int]) -> EngineRequest:
        return EngineRequest(token_ids=text, prompt=served.prompt, cache_salt=self._call.cache_salt, flow=self._flow)

    async def _encode(
        self, served: ServedPrompt, inputs: Sequence[str], num_answer_tokens: int
    ) -> list[tuple[int, ...]]:
        """Texts as they continue the prompt; those that are too long lose their end, as in tuning."""
        room = served.input_room(self._engine.max_positions, num_answer_tokens)
        rows = await asyncio.to_thread(served.encode, self._backbone, inputs, room)
        return [row.text_ids for row in rows]

    def _num_at_once(self, num_sequences: int = 1) -> int:
        """Texts that the engine gets at a time, if each takes `num_sequences` sequences."""
        return max(1, min(self._engine.num_at_once(num_sequences), MAX_SEQUENCES_AT_ONCE // num_sequences))
