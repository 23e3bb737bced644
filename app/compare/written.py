"""Prompts written by hand, with and without examples."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence

from app.measure.dataset import Example
from app.model.backbone import Backbone
from app.model.layout import TARGET, Template, encode_text
from app.task_prompt import TaskPrompt

PART_GAP = "\n\n"


def written_prompts(
    backbone: Backbone, template: Template, instructions: Sequence[str], shots: Sequence[Example], max_tokens: int
) -> Iterator[TaskPrompt | None]:
    """Each instruction, and none at all, followed by as many of the examples as fit.

    An instruction that does not fit is left out. None stands for the bare backbone.
    """
    shown = [write_shot(template, example) for example in shots]
    for instruction in dict.fromkeys((*instructions, "")):
        kept = list(shown)
        while (token_ids := _encode(backbone, instruction, kept)) and len(token_ids) > max_tokens and kept:
            kept.pop()
        text = _join(instruction, kept)
        if not text:
            yield None
        elif len(token_ids) <= max_tokens:
            yield TaskPrompt.from_text(text, token_ids, backbone.fingerprint)


def write_shot(template: Template, example: Example) -> str:
    """An example as it would read in a text of the task."""
    blank = " " if template.text.endswith(f" {TARGET}") else ""
    return f"{template.render(example.input)}{blank}{example.target}"


def choose_shots(examples: Sequence[Example], num: int, seed: int) -> list[Example]:
    """Examples that show as many different targets as possible, none of them much longer than most."""
    order = random.Random(seed).sample(range(len(examples)), min(len(examples), 2000))  # noqa: S311, no secret
    longest = sorted(len(examples[i].input) for i in order)[len(order) * 3 // 4]
    target_to_examples: defaultdict[str, list[Example]] = defaultdict(list)
    for i in order:
        if len(examples[i].input) <= longest:
            target_to_examples[examples[i].target].append(examples[i])
    shots: list[Example] = []
    while len(shots) < num and any(target_to_examples.values()):
        shots += [group.pop() for group in target_to_examples.values() if group]
    return shots[:num]


def _encode(backbone: Backbone, instruction: str, shots: Sequence[str]) -> list[int]:
    return encode_text(backbone.tokenizer, _join(instruction, shots))


def _join(instruction: str, shots: Sequence[str]) -> str:
    parts = [part for part in (instruction, *shots) if part]
    return PART_GAP.join([*parts, ""]) if shots or instruction else ""
