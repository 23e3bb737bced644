"""What an engine is asked for, requests and plans of scoring, and whether it could run at all.

Admission is asked once, at the door; what it answers travels with the request.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from app.engine.config import EngineConfig
from app.errors import BackboneMismatch, InvalidInput
from app.model.backbone import Backbone
from app.sampling import SamplingParams
from app.task_prompt import TaskPrompt

Continuation = tuple[int, ...]

NOTHING_MORE = SamplingParams(temperature=0.0, max_tokens=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """One sequence that is asked for; once admitted, one that fits an idle engine.

    Attributes:
        token_ids: the text, beginning-of-sequence id included if the backbone has one.
        num_shared_tokens: leading tokens that siblings begin with too; computed once for all of them.
        cache_salt: computed text is shared with requests of the same salt only.
        flow: whose fair share the tokens count against; also the metrics' label.
        score_targets: instead of generating: index of a text token to the ids wanted after it.
    """

    token_ids: Sequence[int]
    prompt: TaskPrompt | None = None
    params: SamplingParams = NOTHING_MORE
    num_shared_tokens: int = 0
    cache_salt: str = ""
    flow: str = ""
    score_targets: Mapping[int, tuple[int, ...]] | None = None

    @property
    def num_virtual_tokens(self) -> int:
        return self.prompt.num_virtual_tokens if self.prompt else 0

    def num_blocks(self, block_size: int) -> int:
        """Blocks that it and its prefixes take when it has filled its positions."""
        num_shared = self.num_virtual_tokens + self.num_shared_tokens if self.num_shared_tokens else 0
        prefix_ends = [end for end in (self.num_virtual_tokens, num_shared) if end]
        num_positions = self.num_virtual_tokens + len(self.token_ids) + self.params.max_tokens
        spans = zip([0, *prefix_ends], [*prefix_ends, num_positions], strict=True)
        return sum(-(-end // block_size) - start // block_size for start, end in spans)


@dataclass(frozen=True, slots=True)
class ScoringPath:
    """Ids to put after the text, and the ids whose log-probabilities are wanted at each place.

    Attributes:
        token_ids: a beginning that some continuations share.
        targets: number of ids of this path, from its start, to the ids wanted after them.
    """

    token_ids: Continuation
    targets: dict[int, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class ScoringPlan:
    """Paths that together visit every node of the continuations' prefix tree once.

    A path ends one id before its continuations do, since the last id need not be put in to know how likely it is:
    labels of one token each need a single path of no ids at all.
    """

    continuations: tuple[Continuation, ...]
    paths: tuple[ScoringPath, ...]

    @classmethod
    def of(cls, continuations: Iterable[Sequence[int]]) -> ScoringPlan:
        """Args: continuations: ids of each, none of them empty."""
        wanted = tuple(tuple(continuation) for continuation in continuations)
        node_to_next: dict[Continuation, dict[int, None]] = {}
        for continuation in wanted:
            for i, token_id in enumerate(continuation):
                node_to_next.setdefault(continuation[:i], {})[token_id] = None
        inner = {node[:i] for node in node_to_next for i in range(len(node))}
        visited: set[Continuation] = set()
        paths = []
        for leaf in (node for node in node_to_next if node not in inner):
            nodes = [leaf[:i] for i in range(len(leaf) + 1)]
            targets = {len(node): tuple(node_to_next[node]) for node in nodes if node not in visited}
            visited.update(nodes)
            paths.append(ScoringPath(leaf, targets))
        return cls(wanted, tuple(paths))

    @property
    def num_sequences(self) -> int:
        """Sequences of the engine that scoring all continuations of one text takes."""
        return len(self.paths)

    def sum(self, scores: Iterable[Mapping[tuple[int, int], float]], *, start: int = 0) -> list[float]:
        """The log-probability of each continuation.

        Args:
            scores: for each path, (index of a text token, id after it) to log-probability.
            start: index of the text's last token, after which the paths stand.
        """
        node_to_score = {
            (path.token_ids[: index - start], token_id): value
            for path, found in zip(self.paths, scores, strict=True)
            for (index, token_id), value in found.items()
        }
        return [
            sum(node_to_score[each[:i], token_id] for i, token_id in enumerate(each)) for each in self.continuations
        ]


@dataclass(frozen=True, slots=True)
class Scoring:
    """What scoring continuations of one text gave.

    Attributes:
        log_likelihoods: of each continuation, natural logarithm.
        num_cached_tokens: of the prompt and the text, that did not have to be computed.
    """

    log_likelihoods: list[float]
    num_cached_tokens: int


class Admission:
    """Reads nothing that changes, so any thread may ask."""

    def __init__(self, backbone: Backbone, config: EngineConfig) -> None:
        self._backbone = backbone
        self._config = config
        self._num_usable_blocks = config.num_blocks - 1  # all but the null block

    def admit(self, request: EngineRequest) -> EngineRequest:
        """The request, if it could run on an idle engine. Raises InvalidInput, BackboneMismatch."""
        self._check_text(request)
        self._check_length(request, len(request.token_ids))
        if request.params.prompt_logprobs is not None:  # siblings would not compute its rows of logits
            request = replace(request, num_shared_tokens=0)
        return self._require_blocks(request)

    def plan_scoring(self, continuations: Iterable[Sequence[int]]) -> ScoringPlan:
        """How these continuations are scored after any text. Raises InvalidInput."""
        plan = ScoringPlan.of(continuations)
        if not plan.continuations or not all(plan.continuations):
            raise InvalidInput("a continuation to score has no tokens", param="labels")
        for continuation in plan.continuations:
            self._check_ids("labels", continuation)
        return plan

    def admit_scoring(self, text: EngineRequest, plan: ScoringPlan) -> list[EngineRequest]:
        """One request for each path of the plan after the text. Raises InvalidInput, BackboneMismatch."""
        self._check_text(text)
        self._check_length(text, len(text.token_ids) + max(len(path.token_ids) for path in plan.paths))
        last = len(text.token_ids) - 1
        return [
            self._require_blocks(
                replace(
                    text,
                    token_ids=(*text.token_ids, *path.token_ids),
                    num_shared_tokens=last if plan.num_sequences > 1 else 0,
                    score_targets={last + place: ids for place, ids in path.targets.items()},
                )
            )
            for path in plan.paths
        ]

    def _require_blocks(self, request: EngineRequest) -> EngineRequest:
        if request.num_blocks(self._config.block_size) > self._num_usable_blocks:
            raise InvalidInput("the sequence does not fit into the KV cache; lower max_tokens", param="max_tokens")
        assert all(index >= request.num_shared_tokens for index in request.score_targets or ()), "a row lost to others"
        return request

    def _check_text(self, request: EngineRequest) -> None:
        if not request.token_ids:
            raise InvalidInput("the text is empty and the backbone has no beginning-of-sequence token", param="prompt")
        if not 0 <= request.num_shared_tokens < len(request.token_ids):
            raise InvalidInput("the shared tokens must leave a token of the text", param="num_shared_tokens")
        self._check_ids("prompt", request.token_ids)
        self._check_ids("logit_bias", request.params.logit_bias)
        self._check_ids("logprob_token_ids", request.params.logprob_token_ids)
        if request.prompt is not None:
            self._check_prompt(request.prompt)

    def _check_ids(self, name: str, ids: Collection[int]) -> None:
        self._backbone.require_embedded(ids, name, param=name)

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

    def _check_length(self, request: EngineRequest, num_tokens: int) -> None:
        num_virtual, max_tokens = request.num_virtual_tokens, request.params.max_tokens
        room = self._config.max_model_len - num_virtual
        if num_tokens > room:
            message = f"the text has {num_tokens} tokens, and there is room for {room} after the prompt's {num_virtual}"
            raise InvalidInput(message, param="prompt")
        total = num_virtual + num_tokens + max_tokens
        if total > self._config.max_model_len:
            raise InvalidInput(
                f"{num_virtual} virtual tokens, {num_tokens} text tokens and {max_tokens} new tokens are more "
                f"than the {self._config.max_model_len} positions there are; shorten the text or lower max_tokens",
                param="max_tokens" if num_virtual + num_tokens < self._config.max_model_len else "prompt",
            )
