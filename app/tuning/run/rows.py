"""The rows of a run: a plan's examples as token ids, cut so that a prompt fits before them; which share a forward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import TypeVar

from app.errors import InvalidInput
from app.measure.dataset import Example
from app.measure.encoding import EncodedExample, encode_examples, encode_targets, has_special_tokens
from app.model.backbone import Backbone
from app.tuning.plan import WRITTEN_METRICS, TuningPlan

MAX_WRITTEN_ROWS = 200
"""An answer is written token by token, which takes several times as long as judging a given one."""

Item = TypeVar("Item")
SPARE_LENGTHS = 2
"""Longest targets that a written answer has room for."""
TRIAL_SIZES = tuple(2**power for power in range(6, 17))
"""Sizes, in tokens, of the chunks that are timed."""


@dataclass(frozen=True, eq=False)
class RunRows:
    """Attributes:
    train: what is learned from.
    validation: what the best state is chosen by, at most `max_validation_rows` of them, and at most MAX_WRITTEN_ROWS
        if their answers must be written.
    max_text_tokens: of a text; longer ones lost their end.
    """

    train: list[EncodedExample]
    validation: list[EncodedExample]
    max_text_tokens: int

    @property
    def mean_tokens(self) -> float:
        """Of a row to learn from."""
        return sum(row.num_tokens for row in self.train) / len(self.train)

    @classmethod
    def of(cls, backbone: Backbone, plan: TuningPlan) -> RunRows:
        """Args: plan: fitted to the backbone.

        Raises InvalidInput: a target is too long, or a prompt leaves no room for text.
        """
        max_rows = plan.config.max_validation_rows
        if plan.metric in WRITTEN_METRICS:
            max_rows = min(max_rows, MAX_WRITTEN_ROWS)
        room = _room_for_text(backbone, plan)
        train, validation = (
            encode_rows(backbone, plan, examples) for examples in (plan.train, spread(plan.validation, max_rows))
        )
        return cls(train, validation, min(room, plan.served_template.max_input_tokens or room))

    @property
    def num_cut(self) -> int:
        """Texts that lost their end."""
        return sum(row.num_lost > 0 for row in (*self.train, *self.validation))

    def say_what_is_cut(self) -> str | None:
        """How many texts lost how much, and what to do about it; None if all are whole."""
        rows = [*self.train, *self.validation]
        losses = [row.num_lost for row in rows if row.num_lost]
        if not losses:
            return None
        return (
            f"{len(losses)} of {len(rows)} texts are longer than {self.max_text_tokens} tokens and lose their end, "
            f"{int(median(losses))} tokens in the median and up to {max(losses)}; fewer virtual tokens, a shorter "
            "template, a smaller max_target_tokens or a larger max_input_tokens leave more room, where they are what "
            "takes it"
        )


def fit_to_targets(backbone: Backbone, plan: TuningPlan) -> TuningPlan:
    """With as much room for answers as they need: labels are known, and texts get twice the longest target there is.

    Never more than `max_target_tokens`. Special tokens stay in the answers if they are part of a target.

    Raises InvalidInput: a target has a token that the backbone does not embed.
    """
    given = (*plan.train, *plan.validation)
    examples = [Example("", label) for label in plan.labels] if plan.labels else given
    target_to_ids = encode_targets(backbone, plan.template, examples)
    longest = max(map(len, target_to_ids.values()))
    num_tokens = longest if plan.labels else SPARE_LENGTHS * longest
    config = replace(plan.config, max_target_tokens=min(plan.config.max_target_tokens, num_tokens))
    return replace(plan, config=config, skip_special_tokens=not has_special_tokens(backbone, target_to_ids))


def spread(examples: Sequence[Item], num: int) -> list[Item]:
    """At most `num` examples at equal distances: files are often sorted by label."""
    if len(examples) <= num:
        return list(examples)
    return [examples[i * len(examples) // num] for i in range(num)]


def encode_rows(
    backbone: Backbone, plan: TuningPlan, examples: Sequence[Example], num_virtual_tokens: int | None = None
) -> list[EncodedExample]:
    """Args:
        plan: fitted to the backbone.
        num_virtual_tokens: of the prompt before them; None: of the longest that the plan tunes.

    Raises as `RunRows.of`.
    """
    return encode_examples(
        backbone,
        plan.served_template,
        examples,
        max_input_tokens=_room_for_text(backbone, plan, num_virtual_tokens),
        max_target_tokens=plan.config.max_target_tokens,
    )


def _room_for_text(backbone: Backbone, plan: TuningPlan, num_virtual_tokens: int | None = None) -> int:
    """Tokens of a text after the prompt and before the longest answer."""
    if num_virtual_tokens is None:
        num_virtual_tokens = max(member.num_virtual_tokens for member in plan.members)
    room = backbone.max_model_len - num_virtual_tokens - plan.config.max_target_tokens
    if room < 1:
        raise InvalidInput(
            f"num_virtual_tokens and max_target_tokens leave no room in {backbone.max_model_len} positions",
            param="num_virtual_tokens",
        )
    return room


@dataclass
class Chunk:
    """Rows of one forward.

    Attributes:
        rows: what is put in.
        places: of each row: its index among all rows, and the prompt it belongs to.
    """

    rows: list[EncodedExample] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)

    @property
    def prompt_index(self) -> list[int]:
        return [prompt for _, prompt in self.places]


class Chunker:
    """Cuts (rows x prompts) into chunks, bounded in rows and, once `max_tokens` is known, in tokens with padding.

    Args:
        max_rows: rows of a chunk, all prompts counted.
        num_extra_tokens: that each row costs in addition to its own.
        max_tokens: of a chunk; a row that is longer has one of its own.
    """

    def __init__(self, *, max_rows: int, num_extra_tokens: int, max_tokens: int | None = None) -> None:
        self.max_rows = max_rows
        self.max_tokens = max_tokens
        self._num_extra_tokens = num_extra_tokens

    def chunks(self, rows: Sequence[EncodedExample], num_prompts: int) -> Iterator[Chunk]:
        """Every row with every prompt once; rows of similar length together, the longest first."""
        return self._cut(rows, num_prompts, self.max_tokens)

    def trial_chunks(self, rows: Sequence[EncodedExample], num_prompts: int) -> list[Chunk]:
        """Chunks of the longest rows, each twice as large as the last, as far as `max_rows` allows."""
        chunks = [next(self._cut(rows, num_prompts, size)) for size in TRIAL_SIZES]
        return [chunk for i, chunk in enumerate(chunks) if i == 0 or len(chunk.rows) > len(chunks[i - 1].rows)]

    def num_tokens(self, chunk: Chunk) -> int:
        """Without padding."""
        return sum(row.num_tokens + self._num_extra_tokens for row in chunk.rows)

    def num_padded_tokens(self, chunk: Chunk) -> int:
        """Padding included, as `max_tokens` bounds it."""
        return len(chunk.rows) * max(row.num_tokens + self._num_extra_tokens for row in chunk.rows)

    def num_rows_within(self, rows: Sequence[EncodedExample]) -> int:
        """How many of these rows a forward may have, whichever they are."""
        if self.max_tokens is None:
            return self.max_rows
        longest = max(row.num_tokens + self._num_extra_tokens for row in rows)
        return max(1, min(self.max_rows, self.max_tokens // longest))

    def halve(self) -> None:
        self.max_rows = max(1, self.max_rows // 2)
        if self.max_tokens is not None:
            self.max_tokens = max(1, self.max_tokens // 2)

    def as_dict(self) -> dict[str, int | None]:
        return {"max_rows": self.max_rows, "max_tokens": self.max_tokens}

    def restore(self, values: Mapping[str, int | None]) -> None:
        assert values["max_rows"] is not None
        self.max_rows, self.max_tokens = values["max_rows"], values["max_tokens"]

    def _cut(self, rows: Sequence[EncodedExample], num_prompts: int, max_tokens: int | None) -> Iterator[Chunk]:
        order = sorted(range(len(rows)), key=lambda i: (-rows[i].num_tokens, i))
        chunk, longest = Chunk(), 0
        for i in order:
            for prompt in range(num_prompts):
                num_tokens = (len(chunk.rows) + 1) * max(longest, rows[i].num_tokens + self._num_extra_tokens)
                is_full = len(chunk.rows) >= self.max_rows or (max_tokens is not None and num_tokens > max_tokens)
                if chunk.rows and is_full:
                    yield chunk
                    chunk, longest = Chunk(), 0
                chunk.rows.append(rows[i])
                chunk.places.append((i, prompt))
                longest = max(longest, rows[i].num_tokens + self._num_extra_tokens)
        if chunk.rows:
            yield chunk
