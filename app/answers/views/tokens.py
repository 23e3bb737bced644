"""A report on virtual tokens as `/v1/tasks/{task}/tokens` and `softswap tasks show --tokens --json` show it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

from pydantic import Field

from app.answers.views.reply import Reply
from app.insight.report import PromptReport
from app.task_prompt import PromptKind


class NearTokenObject(Reply):
    """A token of the vocabulary near a virtual token."""

    token_id: int
    token: str
    cosine: float
    distance: float


class VirtualTokenObject(Reply):
    """One row of a prompt. Of embeddings it has percentile and near tokens, of keys and values their lengths."""

    index: int
    norm: float
    drift: float | None = Field(description="Distance from the initial value; null when that is not known.")
    drift_cosine: float | None
    norm_percentile: float | None = Field(
        None, description="Share of the vocabulary's embeddings that are shorter, 0 to 100."
    )
    by_cosine: list[NearTokenObject] | None = None
    by_distance: list[NearTokenObject] | None = None
    key_norm: float | None = Field(
        None, description="Mean length of its keys over the layers; 1 is the median of a real text's in that layer."
    )
    value_norm: float | None = Field(None, description="Of its values, likewise.")


class LayerNormsObject(Reply):
    """Lengths of a layer's keys and values, by percentile: a real text's and the prompt's."""

    layer: int
    text_keys: dict[str, float]
    text_values: dict[str, float]
    keys: dict[str, float]
    values: dict[str, float]


class RowDifferenceObject(Reply):
    """One row compared with another version's; `distance` and `cosine` are null where that has no such row."""

    index: int
    distance: float | None
    cosine: float | None
    nearest: int = Field(description="The other version's row at the smallest angle.")
    nearest_cosine: float


class DifferenceObject(Reply):
    """What changed from another version."""

    model: str
    num_virtual_tokens: int
    is_same: bool = Field(description="Whether both hold the same values.")
    rows: list[RowDifferenceObject]


class EffectObject(Reply):
    """`loss` is the mean negative log-probability of the target: among the labels, or per token of a text."""

    loss: float
    accuracy: float | None


class MadeOfTokensObject(Reply):
    """What changes when each row is replaced by its nearest token of the vocabulary."""

    nearest_by: Literal["cosine", "distance"]
    tokens: list[str]
    effect: EffectObject


class EffectsObject(Reply):
    """What virtual tokens do. A loss above 0 in a change says that the answers are worse without the token."""

    num_examples: int
    data_sha256: str
    present: EffectObject = Field(description="The prompt as it is.")
    without: list[EffectObject] = Field(description="For each virtual token the change when it is left out.")
    made_of_tokens: list[MadeOfTokensObject] = Field(description="Empty for keys and values.")


class PromptTokensObject(Reply):
    """What can be seen of a prompt's rows; `note` says what it can and cannot tell."""

    object: Literal["task.tokens"] = "task.tokens"
    model: str
    kind: Literal["embeddings", "kv"]
    note: str
    virtual_tokens: list[VirtualTokenObject]
    clusters: list[list[int]] = Field(description="Virtual tokens every two of which have a cosine of at least 0.5.")
    near_duplicates: list[list[int]] = Field(description="Of at least 0.95: one of each group would probably do.")
    vocabulary_norms: dict[str, float] | None = Field(
        None, description="Of embeddings: percentile to L2 norm of the vocabulary's."
    )
    layers: list[LayerNormsObject] | None = Field(None, description="Of keys and values.")
    difference: DifferenceObject | None = None
    effects: EffectsObject | None = None


def tokens_object(report: PromptReport) -> PromptTokensObject:
    """Dump it without the fields that are not set."""
    view = report.view
    fields: dict[str, Any] = {
        "model": report.model,
        "kind": view.kind.value,
        "note": view.note,
        "virtual_tokens": [asdict(token) for token in view.virtual_tokens],
        "clusters": view.clusters,
        "near_duplicates": view.near_duplicates,
    }
    if view.kind is PromptKind.KV:
        fields["layers"] = [_with_text_keys(asdict(layer)) for layer in view.layers]
    else:
        fields["vocabulary_norms"] = _by_percentile(view.vocabulary_norms)
    if report.difference is not None:
        fields["difference"] = {"model": report.compared, **asdict(report.difference)}
    if report.effects is not None:
        fields["effects"] = asdict(report.effects)
    return PromptTokensObject.model_validate(fields)


def _with_text_keys(layer: dict[str, Any]) -> dict[str, Any]:
    return {name: _by_percentile(value) if isinstance(value, dict) else value for name, value in layer.items()}


def _by_percentile(norms: dict[int, float]) -> dict[str, float]:
    return {str(percentile): norm for percentile, norm in norms.items()}
