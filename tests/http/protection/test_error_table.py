from __future__ import annotations

import inspect

import pytest
from pydantic import TypeAdapter, ValidationError

from app import errors
from app.answers.generating.labels import LabelChances
from app.http.openai.completions import CompletionRequest
from app.http.protection.error_table import ERROR_TO_STATUS, MAX_MESSAGE_CHARS, Failure
from app.http.protection.validation import explain
from app.http.tasks.runs import MixedRunRequest
from app.http.tasks.tasks_schema import AliasRequest
from app.http.tuning.fine_tuning_schema import JobRequest

TREE = [each for _, each in inspect.getmembers(errors, inspect.isclass) if issubclass(each, errors.SoftswapError)]


def _make(kind: type[errors.SoftswapError]) -> errors.SoftswapError:
    extra = {"retry_after_s": 1.2} if kind is errors.Overloaded else {}
    return kind("words", **extra)


@pytest.mark.parametrize("kind", TREE)
def test_every_error_of_the_tree_has_a_status(kind: type[errors.SoftswapError]) -> None:
    failure = Failure.of(_make(kind))
    assert failure.status == next(ERROR_TO_STATUS[each] for each in kind.__mro__ if each in ERROR_TO_STATUS)
    assert failure.body["error"]["code"] == kind.code
    assert failure.response().headers["content-type"] == "application/json"


def test_a_full_queue_says_when_to_come_back() -> None:
    assert Failure.of(errors.Overloaded("full", retry_after_s=1.2)).response().headers["retry-after"] == "2"


def test_an_unexpected_error_reveals_nothing_of_itself() -> None:
    failure = Failure.of(ValueError("a secret"))
    assert failure.status == 500
    assert "secret" not in str(failure.body)


def _explain(schema: object, value: object) -> Failure:
    adapter: TypeAdapter[object] = TypeAdapter(schema)
    with pytest.raises(ValidationError) as caught:
        adapter.validate_python(value)
    return explain([{**problem, "loc": ("body", *problem["loc"])} for problem in caught.value.errors()], value)


REQUEST = {"model": "raw", "prompt": "x"}


@pytest.mark.parametrize(
    ("schema", "value", "param", "message"),
    [
        (CompletionRequest, {}, "model", "is required"),
        (CompletionRequest, {**REQUEST, "n": 9}, "n", "at most 8"),
        (CompletionRequest, {**REQUEST, "n": "2"}, "n", "an integer"),
        (CompletionRequest, {**REQUEST, "n": 2.0}, "n", "an integer"),
        (CompletionRequest, {**REQUEST, "stop": ["a", ""]}, "stop.1", "1 or more characters"),
        (CompletionRequest, {**REQUEST, "prompt": [1, -1]}, "prompt.1", "at least 0"),
        (CompletionRequest, {**REQUEST, "prompt": 5}, "prompt", "prompt must be a string or a list"),
        (CompletionRequest, {**REQUEST, "prompt": [True]}, "prompt.0", "must be a string, an integer or a list"),
        (CompletionRequest, {**REQUEST, "stop": 5}, "stop", "stop must be a string or a list"),
        (CompletionRequest, {**REQUEST, "logit_bias": {"x": 1.0}}, "logit_bias", "must be a token's id, as a string"),
        (AliasRequest, {"weights": {"x": 1.0, "2": 1.0}}, "weights", "must be a version's number, as a string"),
        (JobRequest, {"model": "m", "training_file": "f", "suffix": "A b"}, "suffix", "must have 1 to 63 of a-z 0-9"),
        (CompletionRequest, {**REQUEST, "prompt": [[1], []]}, "prompt.1", "1 or more entries"),
        (CompletionRequest, {**REQUEST, "temperature": float("nan")}, "temperature", "finite"),
        (CompletionRequest, {**REQUEST, "stream_options": {"x": 1}}, "stream_options.x", "not a field"),
        (CompletionRequest, {**REQUEST, "best_of": 1}, "best_of", "not supported"),
        (MixedRunRequest, [{"task": "a", "input": "x"}, {"task": 1, "input": "x"}], "items.1.task", "a string"),
        (MixedRunRequest, [{"task": "a"}], "items.0.input", "is required"),
    ],
)
def test_an_explanation_names_the_field_and_its_bound(schema: object, value: object, param: str, message: str) -> None:
    failure = _explain(schema, value)
    assert (failure.status, failure.param.split(".[key]")[0]) == (400, param) or param in failure.param
    assert message in failure.message


def test_a_hostile_field_name_is_escaped_and_cut() -> None:
    failure = _explain(CompletionRequest, {**REQUEST, "\x1b[31m\r\n" + "é" * 500: 1})
    shown = failure.body["error"]
    assert shown["message"].isascii()
    assert shown["message"].isprintable()
    assert len(shown["message"]) <= MAX_MESSAGE_CHARS


def test_label_chances_are_normalised_and_keep_their_mass() -> None:
    chances = LabelChances.from_log_likelihoods([-1.0, -2.0])
    assert sum(chances.probabilities) == pytest.approx(1)
    assert chances.mass == pytest.approx(0.3678794 + 0.1353353)
    assert chances.best == 0
    tiny = LabelChances.from_log_likelihoods([-2000.0, -2001.0])
    assert tiny.probabilities[0] == pytest.approx(0.7310586)
    assert LabelChances.from_log_likelihoods([float("-inf")] * 2).mass == 0
