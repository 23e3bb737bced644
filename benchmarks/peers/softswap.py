"""softswap's engine, driven without HTTP."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from app.engine.engine import Engine
from app.engine.output.output import Delta, PathScores
from app.sampling import SamplingParams
from app.task_prompt import TaskPrompt
from benchmarks.workloads import Outcome, Request, Workload


class SoftswapPeer:
    """An `Engine`, driven without HTTP."""

    def __init__(self, engine: Engine) -> None:
        self.config = engine.config
        self._engine = engine

    def run(self, workload: Workload) -> Outcome:
        run = self.begin(workload)
        while not run.is_finished:
            run.step()
        return run.outcome

    def warm(self, prompt: TaskPrompt) -> None:
        """As a server does while no request runs."""
        assert self._engine.warm(prompt), "it would be computed by its first request"

    def close(self) -> None:
        self._engine.close()

    def begin(self, workload: Workload) -> SoftswapRun:
        return SoftswapRun(self._engine, workload)


class SoftswapRun:
    """A workload on its way through an engine, which others may interrupt after every step.

    Attributes:
        wall_s, cpu_s: what its own steps took so far.
    """

    def __init__(self, engine: Engine, workload: Workload) -> None:
        self.wall_s = self.cpu_s = 0.0
        self._engine = engine
        with self._timed():
            self._answers = [_Answer(_add(engine, workload, request)) for request in workload.requests]
        self._sequence_id_to_answer = {answer.sequence_id: answer for answer in self._answers}

    @property
    def is_finished(self) -> bool:
        return not self._engine.has_unfinished

    def step(self) -> int:
        """Returns: the number of requests that got something of their answer."""
        with self._timed():
            deltas, scores = self._engine.step(), self._engine.take_scores()
        for sequence_id, delta in deltas:
            self._sequence_id_to_answer[sequence_id].take(delta, self.wall_s)
        for sequence_id, found in scores:
            self._sequence_id_to_answer[sequence_id].take_scores(found, self.wall_s)
        return len(deltas) + len(scores)

    @property
    def outcome(self) -> Outcome:
        return Outcome.of(
            tokens=tuple(tuple(answer.tokens) for answer in self._answers),
            first_token_s=tuple(answer.first_token_s for answer in self._answers),
            num_cached_tokens=sum(answer.num_cached_tokens for answer in self._answers),
        )

    @contextmanager
    def _timed(self) -> Iterator[None]:
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        yield
        self.wall_s += time.perf_counter() - wall_s
        self.cpu_s += time.process_time() - cpu_s


def _add(engine: Engine, workload: Workload, request: Request) -> int:
    prompt, flow = workload.prompt(request), "" if request.task is None else f"task{request.task}"
    if workload.labels:
        targets = {len(request.token_ids) - 1: workload.labels}
        return engine.add(request.token_ids, score_targets=targets, prompt=prompt, flow=flow)
    params = SamplingParams(max_tokens=workload.num_new_tokens, temperature=0.0, ignore_eos=True)
    return engine.add(request.token_ids, prompt=prompt, params=params, flow=flow)


@dataclass
class _Answer:
    sequence_id: int
    tokens: list[int] = field(default_factory=list)
    first_token_s: float = 0.0
    num_cached_tokens: int = 0

    def take(self, delta: Delta, elapsed_s: float) -> None:
        if not self.tokens:
            self.first_token_s = elapsed_s
        self.tokens.extend(delta.token_ids)
        self.num_cached_tokens = max(self.num_cached_tokens, delta.num_cached_tokens)

    def take_scores(self, scores: PathScores, elapsed_s: float) -> None:
        (_, best), _ = max(scores.logprobs.items(), key=lambda pair: pair[1])
        self.tokens.append(best)
        self.first_token_s, self.num_cached_tokens = elapsed_s, scores.num_cached_tokens
