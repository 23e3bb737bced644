"""Solution: what a method makes of the examples, with validation as its only judge."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from app.compare.method import Method
from app.compare.setting import Setting
from app.compare.weight_run import TrainableCopy, WeightRun
from app.measure.dataset import Example
from app.measure.evaluation import Evaluation
from app.measure.plain_model import evaluate
from app.measure.served_prompt import ServedPrompt
from app.model.backbone import Backbone
from app.model.layout import TARGET, Template, encode_text
from app.registry.publication import Publication
from app.registry.registry import Registry
from app.registry.store import FileStore
from app.task_prompt import PromptKind, TaskPrompt
from app.tuning.plan import TuningPlan
from app.tuning.run.rows import spread
from app.tuning.run.run import tune_task

PART_GAP = "\n\n"
"""Between the parts of a written prompt."""


@dataclass(frozen=True, kw_only=True)
class BestChoice:
    """What validation chose.

    Attributes:
        validation: what the choice was made by: accuracy if there are labels; if not, the loss of what is tuned and the
            main metric of written prompts.
        num_parameters: trained ones.
        num_tries: candidates among which validation chose.
        chosen: what the chosen one is.
        num_steps: updates of a whole run; 0 if nothing is trained.
        best_step: updates done at the chosen state.
    """

    validation: float
    num_parameters: int
    num_tries: int
    chosen: dict[str, Any]
    num_steps: int = 0
    best_step: int = 0


@dataclass(frozen=True, eq=False, kw_only=True)
class Solution(BestChoice):
    """Attributes:
    backbone: the resident one, which the engine can serve with the prompt, or a copy with other weights.
    prompt: what precedes every text; None for nothing.
    store: writes what is kept of the task into an empty folder.
    """

    backbone: Backbone
    prompt: TaskPrompt | None
    store: Callable[[Path], None]


def solve(backbone: Backbone, setting: Setting, method: Method, seed: int) -> Solution:
    """Args: setting: fitted to the backbone."""
    match method:
        case Method.ZERO_SHOT:
            return _best_written(backbone, setting, ())
        case Method.FEW_SHOT:
            return _best_written(backbone, setting, choose_shots(setting.plan.train, setting.num_shots, seed))
        case Method.PROMPT_TUNING:
            return _best_prompt(backbone, setting.prompt_plan(PromptKind.EMBEDDINGS, seed))
        case Method.PREFIX_TUNING:
            return _best_prompt(backbone, setting.prompt_plan(PromptKind.KV, seed))
        case Method.LORA:
            make = partial(TrainableCopy.lora, backbone, setting.lora_rank, seed)
            return _best_weights(make, setting.plan, setting.lora_learning_rates, seed)
        case Method.FULL:
            return _best_weights(partial(TrainableCopy.full, backbone), setting.plan, setting.full_learning_rates, seed)


def _best_written(backbone: Backbone, setting: Setting, shots: Sequence[Example]) -> Solution:
    plan = setting.plan
    rows = spread(plan.validation, plan.config.max_validation_rows)
    room = setting.max_prompt_tokens(backbone)
    scored = []
    for prompt in written_prompts(backbone, plan.template, setting.instructions, shots, room):
        measured = evaluate_on(backbone, prompt, plan, rows)
        scored.append((measured.metrics[measured.main_metric], prompt))
    value, prompt = max(scored, key=lambda pair: pair[0])
    return Solution(
        backbone=backbone,
        prompt=prompt,
        validation=value,
        num_parameters=0,
        store=lambda folder: _publish(backbone, prompt, plan, folder),
        num_tries=len(scored),
        chosen={"text": prompt.text if prompt else "", "num_tokens": prompt.num_virtual_tokens if prompt else 0},
    )


def _best_prompt(backbone: Backbone, plan: TuningPlan) -> Solution:
    result = tune_task(backbone, plan)
    config = result.config
    return Solution(
        backbone=backbone,
        prompt=result.prompt,
        validation=dict(result.curves[result.member])[result.best_step],
        num_parameters=result.initial.numel(),
        store=lambda folder: _publish(backbone, result.prompt, plan, folder),
        num_tries=len(plan.members),
        chosen={"learning_rate": config.learning_rate, "init": config.init.value, "member_seed": config.seed},
        num_steps=result.num_steps,
        best_step=result.best_step,
    )


def _best_weights(
    make: Callable[[], TrainableCopy], plan: TuningPlan, learning_rates: Sequence[float], seed: int
) -> Solution:
    best: WeightRun | None = None
    for learning_rate in learning_rates:
        run = WeightRun(make(), replace(plan, config=replace(plan.config, learning_rate=learning_rate, seed=seed)))
        run.run()
        if best is None or run.best.score.rank > best.best.score.rank:
            best = run
    assert best is not None
    return Solution(
        backbone=best.trained.backbone,
        prompt=None,
        validation=best.best.score.value,
        num_parameters=best.trained.num_parameters,
        store=best.trained.save,
        num_tries=len(learning_rates),
        chosen={"learning_rate": best.config.learning_rate},
        num_steps=best.num_steps,
        best_step=best.best.step,
    )


def evaluate_on(
    backbone: Backbone, prompt: TaskPrompt | None, plan: TuningPlan, examples: Sequence[Example]
) -> Evaluation:
    """With the plan's template, labels and lengths. Raises as `evaluate` does."""
    served = ServedPrompt(
        prompt,
        plan.served_template,
        plan.labels,
        max_new_tokens=plan.config.max_target_tokens,
        skip_special_tokens=plan.skip_special_tokens,
    )
    return evaluate(backbone, served, examples)


def _publish(backbone: Backbone, prompt: TaskPrompt | None, plan: TuningPlan, folder: Path) -> None:
    """As a version of a task; no prompt needs no file."""
    if prompt is not None:
        publication = Publication(prompt, template=plan.template, labels=plan.labels)
        Registry(FileStore(folder), backbone).publish("task", publication)


def written_prompts(
    backbone: Backbone, template: Template, instructions: Sequence[str], shots: Sequence[Example], max_tokens: int
) -> Iterator[TaskPrompt | None]:
    """Each instruction, and none at all, followed by as many of the examples as fit.

    An instruction that does not fit is left out. None stands for the bare backbone.
    """
    shown = [write_shot(template, example) for example in shots]
    for instruction in dict.fromkeys((*instructions, "")):
        kept = list(shown)
        while len(token_ids := encode_text(backbone.tokenizer, _join(instruction, kept))) > max_tokens and kept:
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


def _join(instruction: str, shots: Sequence[str]) -> str:
    parts = [part for part in (instruction, *shots) if part]
    return PART_GAP.join([*parts, ""]) if shots or instruction else ""
