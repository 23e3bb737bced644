"""The rows of a run: a plan's examples as token ids, cut so that a prompt fits before them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from app.errors import InvalidInput
from app.measure.dataset import Example
from app.measure.encoding import EncodedExample, encode_examples
from app.model.backbone import Backbone
from app.tuning.plan import WRITTEN_METRICS, TuningPlan

MAX_WRITTEN_ROWS = 200
"""An answer is written token by token, which takes several times as long as judging a given one."""


@dataclass(frozen=True, eq=False)
class RunRows:
    """Attributes:
    train: what is learned from.
    validation: what the best state is chosen by, at most `max_validation_rows` of them, and at most MAX_WRITTEN_ROWS
        if their answers must be written.
    """

    train: list[EncodedExample]
    validation: list[EncodedExample]

    @classmethod
    def of(cls, backbone: Backbone, plan: TuningPlan) -> RunRows:
        """Raises InvalidInput: a target is too long, or a prompt leaves no room for text."""
        max_rows = plan.config.max_validation_rows
        if plan.metric in WRITTEN_METRICS:
            max_rows = min(max_rows, MAX_WRITTEN_ROWS)
        validation = spread(plan.validation, max_rows)
        return cls(_encode(backbone, plan, plan.train), _encode(backbone, plan, validation))


def spread(examples: Sequence[Example], num: int) -> list[Example]:
    """At most `num` examples at equal distances: files are often sorted by label."""
    if len(examples) <= num:
        return list(examples)
    return [examples[i * len(examples) // num] for i in range(num)]


def _encode(backbone: Backbone, plan: TuningPlan, examples: Sequence[Example]) -> list[EncodedExample]:
    config = plan.config
    room = backbone.max_model_len - max(member.num_virtual_tokens for member in plan.members) - config.max_target_tokens
    if room < 1:
        raise InvalidInput(
            f"num_virtual_tokens and max_target_tokens leave no room in {backbone.max_model_len} positions",
            param="num_virtual_tokens",
        )
    return encode_examples(
        backbone,
        plan.template,
        examples,
        max_input_tokens=min(room, config.max_input_tokens or room),
        max_target_tokens=config.max_target_tokens,
    )
