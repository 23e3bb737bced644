"""How long a served prompt's answer takes: requests one at a time through the engine, as a server computes them."""

from __future__ import annotations

import asyncio
import statistics
import time
from contextlib import aclosing

from app.engine.async_engine import AsyncEngine
from app.engine.config import EngineConfig
from app.engine.engine import Engine
from app.measure.encoding import encode_text_within
from app.measure.label_tree import encode_labels
from app.model.backbone import Backbone
from app.model.layout import continue_prompt
from app.sampling import SamplingParams
from app.task_prompt import TaskPrompt
from app.tuning.plan import TuningPlan

MAX_NUM_SEQS = 16


def median_latency_s(backbone: Backbone, prompt: TaskPrompt | None, plan: TuningPlan, inputs: list[str]) -> float:
    """Median seconds from a text to its label (or to the end of its answer), HTTP not included.

    An untimed request before them pays for the prompt's prefix and for whatever happens only once.
    """
    engine = AsyncEngine(
        Engine(backbone, EngineConfig.sized_for(backbone, max_num_seqs=MAX_NUM_SEQS, prefix_caching=False))
    )
    engine.start()
    try:
        return asyncio.run(_time_all(engine, backbone, prompt, plan, inputs))
    finally:
        engine.close()


async def _time_all(
    engine: AsyncEngine, backbone: Backbone, prompt: TaskPrompt | None, plan: TuningPlan, inputs: list[str]
) -> float:
    label_ids = encode_labels(backbone, plan.template, plan.labels)
    scoring_plan = engine.plan_scoring(label_ids) if label_ids else None
    params = SamplingParams(temperature=0.0, max_tokens=plan.config.max_target_tokens)
    times_s = []
    for text in (inputs[0], *inputs):
        began = time.perf_counter()
        encoded = encode_text_within(backbone, plan.template, text, plan.config.max_input_tokens)
        token_ids = continue_prompt(backbone.tokenizer, prompt, encoded)
        if scoring_plan is not None:
            await engine.score(token_ids, scoring_plan, prompt=prompt)
        else:
            async with aclosing(engine.generate(token_ids, prompt=prompt, params=params)) as deltas:
                async for _ in deltas:
                    pass
        times_s.append(time.perf_counter() - began)
    return statistics.median(times_s[1:])
