"""Admission: whether a sequence could run at all. Asked at the door, so that nothing inside has to ask again."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from app.engine.config import EngineConfig
from app.errors import BackboneMismatch, InvalidInput
from app.model.backbone import Backbone
from app.sampling import SamplingParams
from app.task_prompt import TaskPrompt

NOTHING_MORE = SamplingParams(temperature=0.0, max_tokens=0)


class Admission:
    """Reads nothing that changes, so any thread may ask."""

    def __init__(self, backbone: Backbone, config: EngineConfig) -> None:
        self._backbone = backbone
        self._config = config

    def check(
        self, token_ids: Sequence[int], prompt: TaskPrompt | None, params: SamplingParams, num_shared_tokens: int = 0
    ) -> None:
        """Whether such a sequence could run on an idle engine. Raises InvalidInput, BackboneMismatch."""
        if not token_ids:
            raise InvalidInput("the text is empty and the backbone has no beginning-of-sequence token", param="prompt")
        if not 0 <= num_shared_tokens < len(token_ids):
            raise InvalidInput("the shared tokens must leave a token of the text", param="num_shared_tokens")
        self._check_ids("prompt", token_ids)
        self._check_ids("logit_bias", params.logit_bias)
        self._check_ids("logprob_token_ids", params.logprob_token_ids)
        if prompt is not None:
            self._check_prompt(prompt)
        self._check_length(len(token_ids), prompt, params)

    def check_scoring(
        self, token_ids: Sequence[int], continuations: Sequence[Sequence[int]], prompt: TaskPrompt | None
    ) -> None:
        """Whether such continuations could be scored on an idle engine. Raises InvalidInput, BackboneMismatch."""
        if not continuations or not all(continuations):
            raise InvalidInput("a continuation to score has no tokens", param="labels")
        for continuation in continuations:
            self._check_ids("labels", continuation)
        self.check(token_ids, prompt, NOTHING_MORE)
        # the last id of a continuation need not be put in to know how likely it is
        self._check_length(len(token_ids) + max(map(len, continuations)) - 1, prompt, NOTHING_MORE)

    def _check_ids(self, name: str, ids: Collection[int]) -> None:
        if ids and not 0 <= min(ids) <= max(ids) < self._backbone.vocab_size:
            raise InvalidInput(f"{name} must name ids between 0 and {self._backbone.vocab_size - 1}", param=name)

    def _check_prompt(self, prompt: TaskPrompt) -> None:
        if prompt.backbone_fingerprint != self._backbone.fingerprint:
            raise BackboneMismatch(
                f"the prompt was made for backbone {prompt.backbone_fingerprint[:12]}, "
                f"this server holds {self._backbone.fingerprint[:12]}",
                param="model",
            )
        widths = {"embeddings": self._backbone.hidden_size, "kv": self._backbone.kv_row_size}
        self._check_ids("model", prompt.token_ids)
        if prompt.rows is not None and prompt.rows.shape[1] != widths[prompt.kind]:
            raise InvalidInput(f"the prompt's rows must have {widths[prompt.kind]} values", param="model")

    def _check_length(self, num_tokens: int, prompt: TaskPrompt | None, params: SamplingParams) -> None:
        num_virtual = prompt.num_virtual_tokens if prompt else 0
        total = num_virtual + num_tokens + params.max_tokens
        if total > self._config.max_model_len:
            raise InvalidInput(
                f"{num_virtual} virtual tokens, {num_tokens} text tokens and {params.max_tokens} new tokens are more "
                f"than the {self._config.max_model_len} positions there are; shorten the text or lower max_tokens",
                param="max_tokens" if num_virtual + num_tokens < self._config.max_model_len else "prompt",
            )
