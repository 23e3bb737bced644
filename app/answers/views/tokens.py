"""A report on virtual tokens as `/v1/tasks/{task}/tokens` and `softswap tasks show --tokens --json` show it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from app.answers.views.reply import Reply
from app.insight.keys_values import LayerNorms
from app.insight.report import CachedToken, EmbeddedToken, PromptReport, TokenEffects
from app.insight.similarity import PromptDifference


class PromptTokensObject(Reply):
    """What can be seen of a prompt's rows; `note` says what it can and cannot tell."""

    object: Literal["task.tokens"] = "task.tokens"
    model: str
    kind: Literal["embeddings", "kv"]
    note: str
    virtual_tokens: tuple[EmbeddedToken, ...] | tuple[CachedToken, ...] = Field(
        description="The rows in order. `drift` is the distance from the initial value, null if that is not known; "
        "`norm_percentile` the share of the vocabulary's embeddings that are shorter, 0 to 100; `key_norm` and "
        "`value_norm` the mean length over the layers, where 1 is the median of a real text's in that layer."
    )
    clusters: list[list[int]] = Field(description="Virtual tokens every two of which have a cosine of at least 0.5.")
    near_duplicates: list[list[int]] = Field(description="Of at least 0.95: one of each group would probably do.")
    vocabulary_norms: dict[int, float] | None = Field(
        None, description="Of embeddings: percentile to L2 norm of the vocabulary's."
    )
    layers: tuple[LayerNorms, ...] | None = Field(
        None, description="Of keys and values: their lengths by percentile, a real text's and the prompt's."
    )
    difference: PromptDifference | None = Field(
        None,
        description="What changed from another version, `model`. `is_same` says whether both hold the same values; a "
        "row's `distance` and `cosine` are null if the other version has no such row, and `nearest` is its row at the "
        "smallest angle.",
    )
    effects: TokenEffects | None = Field(
        None,
        description="`loss` is the mean negative log-probability of the target: among the labels, or per token of a "
        "text. `without` has for each virtual token the change when it is left out; a loss above 0 in a change says "
        "that the answers are worse.",
    )


def tokens_object(report: PromptReport) -> PromptTokensObject:
    """Dump it without the fields that are not set."""
    groups = {"clusters": report.view.clusters, "near_duplicates": report.view.near_duplicates}
    shown = PromptTokensObject.given_in(report.view) | PromptTokensObject.given_in(report)
    return PromptTokensObject(**shown | groups)
