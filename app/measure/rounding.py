"""Rounding: a tuned prompt is published in bfloat16, in half the room, unless that changes an answer."""

from __future__ import annotations

from collections.abc import Callable

import torch

from app.engine.threads.device_lease import Slices
from app.errors import InvalidInput
from app.measure.evaluation import Evaluation
from app.task_prompt import TaskPrompt

Ask = Callable[[TaskPrompt], Slices[Evaluation]]


def evaluate_rounded(prompt: TaskPrompt, ask: Ask) -> Slices[tuple[TaskPrompt, Evaluation]]:
    """What to publish, and its own evaluation: the prompt's values in bfloat16 if each answer stays, else as they are.

    Twice as long as one evaluation; once for a text, and for values that bfloat16 holds already or cannot hold.

    Args: ask: the evaluation of a prompt, always on the same examples.
    """
    exact = yield from ask(prompt)
    try:
        rounded = prompt.rounded(torch.bfloat16)
    except InvalidInput:  # a value is too large
        return prompt, exact
    if rounded.digest == prompt.digest:
        return prompt, exact
    measured = yield from ask(rounded)
    return (rounded, measured) if measured.predictions == exact.predictions else (prompt, exact)
