"""Sequence and Prefix: tokens at consecutive positions, their blocks, and how far they are computed.

There are no prefill and decode modes: a segment has tokens that are not computed yet, and the scheduler lets
`num_computed_tokens` catch up with `num_tokens` (vLLM v1's formulation).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from collections.abc import Sequence as Ids
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from app.sampling import SamplingParams
    from app.task_prompt import TaskPrompt


class FinishReason(StrEnum):
    """Why a sequence ended. Every sequence ends exactly once, with one of these."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    DEADLINE = "deadline"
    ERROR = "error"


@dataclass(eq=False, kw_only=True)
class Segment(ABC):
    """Tokens that may continue a prefix, their parent.

    Attributes:
        parent: the prefix this continues.
        block_table: blocks from position 0 on; the parent's full blocks stand first and are shared.
        num_computed_tokens: tokens, the parent's included, whose keys and values are in the blocks.
        cache_salt: texts are shared among segments of the same salt only.
        block_keys: content keys of the full blocks of text, as far as they were asked for (`block_keys`).
    """

    parent: Prefix | None = None
    block_table: list[int] = field(default_factory=list)
    num_computed_tokens: int = 0
    cache_salt: str = ""
    block_keys: list[bytes] = field(default_factory=list)

    @property
    def num_parent_tokens(self) -> int:
        return self.parent.num_tokens if self.parent else 0

    @property
    @abstractmethod
    def num_tokens(self) -> int:
        """All tokens from position 0 on, the parent's included."""

    @property
    @abstractmethod
    def text_ids(self) -> Ids[int]:
        """Ids of the text from the task prompt's end on, the parent's text included, as far as they are known."""

    @property
    @abstractmethod
    def num_virtual_tokens(self) -> int:
        """Tokens before the text: those of the task prompt."""

    @property
    def num_reusable_tokens(self) -> int:
        """Tokens from position 0 on that need not be computed if the cache holds them."""
        return self.num_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        return self.num_tokens - self.num_computed_tokens

    @property
    def is_computed(self) -> bool:
        return self.num_uncomputed_tokens == 0


@dataclass(eq=False, kw_only=True)
class Prefix(Segment):
    """Keys and values that many sequences share: a task prompt's, or a text several siblings begin with.

    Attributes:
        key: content digest; two prefixes with the same key are the same prefix.
        content: the task prompt whose rows these are, or the token ids of a text.
        num_own_tokens: rows or ids in `content`.
        rows: keys and values that are put in place without a forward; None once they are, or if there are none.
        num_users: segments that hold on to it.
        is_kept: stays in memory without users until the room is needed.
    """

    key: str
    content: TaskPrompt | tuple[int, ...]
    num_own_tokens: int
    is_kept: bool = True
    rows: torch.Tensor | None = None
    num_users: int = 0

    @property
    def is_stored(self) -> bool:
        """Whether its keys and values, if it was given any, were computed before."""
        return isinstance(self.content, tuple) or self.content.kind != "kv"

    @property
    def is_loadable(self) -> bool:
        return self.rows is not None

    @property
    def num_tokens(self) -> int:
        return self.num_parent_tokens + self.num_own_tokens

    @property
    def text_ids(self) -> tuple[int, ...]:
        return self.content if isinstance(self.content, tuple) else ()

    @property
    def num_virtual_tokens(self) -> int:
        return self.num_tokens - len(self.text_ids)


@dataclass(eq=False, kw_only=True)
class Sequence(Segment):
    """One request inside the engine.

    Attributes:
        token_ids: the request's text, then what was generated.
        num_prompt_tokens: how many of `token_ids` came with the request.
        prompt: the task prompt before the text, if any.
        num_shared_tokens: leading text tokens computed once for all siblings that begin with them.
        flow: whose fair share the tokens count against (Sheng et al. 2024 call it the client).
        score_targets: instead of generating: index of a text token to the ids whose log-probability after it is wanted.
        deadline_s: monotonic time at which the sequence ends, or None.
        num_pending: tokens that were chosen on the device and that the host does not know yet. They follow
            `token_ids`, and count as tokens wherever tokens are counted, but not as generated.
        pending_row: which of its step's chosen tokens the last of them is.
        spec_token_ids: ids that may come next (`Speculation`), computed in the same step as the last known one.
    """

    sequence_id: int
    token_ids: list[int]
    num_prompt_tokens: int
    params: SamplingParams
    seed: int
    prompt: TaskPrompt | None = None
    num_shared_tokens: int = 0
    flow: str = ""
    score_targets: Mapping[int, tuple[int, ...]] | None = None
    arrival_s: float = 0.0
    deadline_s: float | None = None
    first_scheduled_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None
    num_preemptions: int = 0
    num_reported_logprobs: int = 0
    num_cached_tokens: int = 0
    num_pending: int = 0
    pending_row: int | None = None
    spec_token_ids: list[int] = field(default_factory=list)

    @property
    def num_virtual_tokens(self) -> int:
        return self.prompt.num_virtual_tokens if self.prompt else 0

    @property
    def num_tokens(self) -> int:
        return self.num_virtual_tokens + len(self.token_ids) + self.num_pending + len(self.spec_token_ids)

    @property
    def text_ids(self) -> list[int]:
        """Those that are known, and what is proposed to follow them."""
        return [*self.token_ids, *self.spec_token_ids] if self.spec_token_ids else self.token_ids

    @property
    def num_reusable_tokens(self) -> int:
        """All before the first token whose logits are wanted."""
        first = len(self.token_ids) + self.num_pending - 1
        if self.score_targets is not None:
            first = min(self.score_targets)
        elif self.num_wanted_logits:
            first = self.num_reported_logprobs
        return self.num_virtual_tokens + first

    @property
    def has_all_tokens(self) -> bool:
        """Whether the last token was chosen, known or not."""
        return self.num_generated_tokens + self.num_pending >= self.params.max_tokens

    @property
    def is_held(self) -> bool:
        """Whether nothing is computed before the tokens that are not known yet: one is the last, or penalties ask."""
        return self.num_pending > 0 and (self.has_all_tokens or self.params.has_penalties)

    @property
    def num_generated_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def is_decoding(self) -> bool:
        """Whether one token is all that is to be computed before the next can be chosen."""
        return self.num_uncomputed_tokens == 1 + len(self.spec_token_ids) and (
            self.parent is None or self.parent.is_computed
        )

    @property
    def num_wanted_logits(self) -> int:
        """Text tokens whose logits are still wanted for more than choosing the next token."""
        if self.score_targets is not None:
            return len(self.score_targets)
        if self.params.prompt_logprobs is None:
            return 0
        return max(0, self.num_prompt_tokens - 1 - self.num_reported_logprobs)

    def append(self, token_id: int) -> None:
        """A token that was chosen is known now."""
        self.token_ids.append(token_id)
        self.num_pending -= 1
        self.spec_token_ids = []
