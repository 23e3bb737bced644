"""`/v1/tasks/{task}/evaluate`: how well a version does on examples whose answers are known."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic.config import JsonDict

from app.answers.measuring.evaluation import MAX_EXAMPLES
from app.http.fields import MAX_ID_CHARS, Reply, Strict, Text
from app.http.tasks.runs_schema import CombineField

MAX_EXAMPLES_BODY_BYTES: Final = 4 * 2**20


class ExampleItem(Strict):
    """What stands in the template's `{input}`, and the answer expected at `{target}`."""

    input: Text
    target: Annotated[Text, Field(min_length=1)]


ONE_SOURCE: JsonDict = {"oneOf": [{"required": ["examples"]}, {"required": ["file"]}]}


class ExampleSource(Strict):
    """Examples in the request, or uploaded before."""

    model_config = ConfigDict(json_schema_extra=ONE_SOURCE)

    examples: Annotated[list[ExampleItem], Field(min_length=1, max_length=MAX_EXAMPLES)] | None = None
    file: Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS)] | None = Field(
        None, description="Id of an upload (`/v1/files`) with the examples."
    )

    @model_validator(mode="after")
    def _check_one(self) -> ExampleSource:
        if (self.examples is None) == (self.file is None):
            raise ValueError("needs either examples or file")
        return self


class EvaluateRequest(ExampleSource):
    """Examples that the task was not tuned on."""

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

    record: bool | None = Field(None, description="Keep the figures with the version, at most 256 sets of them.")
    data_name: Annotated[str, Field(max_length=256)] | None = Field(
        None, description="What people call the examples, with `record`; of a file its name without it."
    )
    combine: CombineField = None
    with_predictions: bool | None = Field(None, description="Answer with the prediction of each example, in order.")


class LabelScore(Reply):
    """How one label fares; precision and recall are 0 where there is nothing to divide by."""

    label: str
    precision: float
    recall: float
    f1: float
    num_examples: int = Field(description="Whose target it is.")


class ConfidenceBin(Reply):
    """The examples whose likeliest label has a probability in (low, high]."""

    low: float
    high: float
    num_examples: int
    confidence: float = Field(description="Mean probability of the likeliest label.")
    accuracy: float


class Calibration(Reply):
    """What the probabilities are worth. Their expected calibration error is `metrics.ece`."""

    temperature: float = Field(description="The version's, by which these probabilities are made.")
    bins: list[ConfidenceBin] = Field(description="Those that hold examples, of 15 of equal width.")


class Evaluation(Reply):
    """The figures. `labels`, `confusion` and `calibration` are there for labelled tasks; a vote is not calibrated."""

    object: Literal["task.evaluation"] = "task.evaluation"
    model: str = Field(description="The version that was evaluated; of an ensemble all members.")
    data_sha256: str = Field(description="Of the examples, whatever form they came in.")
    main_metric: str
    metrics: dict[str, float]
    labels: list[LabelScore] | None = None
    confusion: list[list[int]] | None = Field(None, description="Counts, targets by predictions, in `labels`' order.")
    calibration: Calibration | None = None
    predictions: list[str] | None = None
