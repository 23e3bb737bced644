"""`/v1/tasks/{task}/tokens`: what can be seen of a prompt's virtual tokens, and measured of them."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from app.http.fields import Reply
from app.http.tasks.evaluation_schema import ONE_SOURCE, ExampleSource


class TokensRequest(ExampleSource):
    """Examples to measure on what each virtual token does."""

    model_config = ConfigDict(
        json_schema_extra={
            **ONE_SOURCE,
            "examples": [
                {
                    "examples": [
                        {"input": "a gorgeous, witty film", "target": "positive"},
                        {"input": "dull and long", "target": "negative"},
                    ]
                }
            ],
        }
    )


class NearToken(Reply):
    """A token of the vocabulary near a virtual token."""

    token_id: int
    token: str
    cosine: float
    distance: float


class VirtualToken(Reply):
    """One row of a prompt. Of embeddings it has percentile and near tokens, of keys and values their lengths."""

    index: int
    norm: float
    drift: float | None = Field(description="Distance from the initial value; null when that is not known.")
    drift_cosine: float | None
    norm_percentile: float | None = Field(
        None, description="Share of the vocabulary's embeddings that are shorter, 0 to 100."
    )
    by_cosine: list[NearToken] | None = None
    by_distance: list[NearToken] | None = None
    key_norm: float | None = Field(
        None, description="Mean length of its keys over the layers; 1 is the median of a real text's in that layer."
    )
    value_norm: float | None = Field(None, description="Of its values, likewise.")


class LayerNorms(Reply):
    """Lengths of a layer's keys and values, by percentile: a real text's and the prompt's."""

    layer: int
    text_keys: dict[str, float]
    text_values: dict[str, float]
    keys: dict[str, float]
    values: dict[str, float]


class RowDifference(Reply):
    """One row beside another version's; `distance` and `cosine` are null where that has no such row."""

    index: int
    distance: float | None
    cosine: float | None
    nearest: int = Field(description="The other version's row at the smallest angle.")
    nearest_cosine: float


class Difference(Reply):
    """What changed from another version."""

    model: str
    num_virtual_tokens: int
    is_same: bool = Field(description="Whether both hold the same values.")
    rows: list[RowDifference]


class Effect(Reply):
    """`loss` is the mean negative log-probability of the target: among the labels, or per token of a text."""

    loss: float
    accuracy: float | None


class MadeOfTokens(Reply):
    """What changes when each row is replaced by its nearest token of the vocabulary."""

    nearest_by: Literal["cosine", "distance"]
    tokens: list[str]
    effect: Effect


class Effects(Reply):
    """What virtual tokens do. A loss above 0 in a change says that the answers are worse without the token."""

    num_examples: int
    data_sha256: str
    present: Effect = Field(description="The prompt as it is.")
    without: list[Effect] = Field(description="For each virtual token the change when it is left out.")
    made_of_tokens: list[MadeOfTokens] = Field(description="Empty for keys and values.")


class PromptTokens(Reply):
    """What can be seen of a prompt's rows; `note` says what it can and cannot tell."""

    object: Literal["task.tokens"] = "task.tokens"
    model: str
    kind: Literal["embeddings", "kv"]
    note: str
    virtual_tokens: list[VirtualToken]
    clusters: list[list[int]] = Field(description="Virtual tokens every two of which have a cosine of at least 0.5.")
    near_duplicates: list[list[int]] = Field(description="Of at least 0.95: one of each group would probably do.")
    vocabulary_norms: dict[str, float] | None = Field(
        None, description="Of embeddings: percentile to L2 norm of the vocabulary's."
    )
    layers: list[LayerNorms] | None = Field(None, description="Of keys and values.")
    difference: Difference | None = None
    effects: Effects | None = None
