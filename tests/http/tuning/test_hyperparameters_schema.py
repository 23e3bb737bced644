"""A hyperparameter is declared once: its field of a job's request and its option follow."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from pydantic import ValidationError
from typer.testing import CliRunner

from app.cli.options import takes_hyperparameters
from app.http.tuning.fine_tuning_schema import OFFERED, PromptTuningHyperparameters, SupervisedHyperparameters
from app.tuning.config import AXES, HYPERPARAMETERS, TuneConfig

DOCS = Path(__file__).parents[3] / "docs" / "http.md"


def test_every_declaration_has_its_field_and_the_page_says_so() -> None:
    page = DOCS.read_text()
    assert list(PromptTuningHyperparameters.model_fields) == [each.job_name for each in OFFERED]
    assert [name for name in PromptTuningHyperparameters.model_fields if f"`{name}`" not in page] == []
    assert list(SupervisedHyperparameters.model_fields) == ["batch_size", "n_epochs", "learning_rate_multiplier"]


@pytest.mark.parametrize("each", [each for each in OFFERED if each.high is not None], ids=lambda each: each.name)
def test_a_field_has_the_bounds_of_its_declaration(each) -> None:
    def accepts(value: float) -> bool:
        try:
            PromptTuningHyperparameters(**{each.job_name: value})
        except ValidationError:
            return False
        return True

    high = each.type(each.job_high or each.high)
    assert (accepts(high), accepts(high + 1)) == (True, False)
    assert accepts(each.type(each.low)) is not each.is_positive
    assert not accepts(each.type(each.low - 1))


def test_what_a_search_varies_takes_lists_and_nothing_else_does() -> None:
    values = {each.job_name: 1 if each.is_positive else getattr(TuneConfig(), each.name) for each in HYPERPARAMETERS}
    several = {axis.job_name: [str(values[axis.job_name]) if axis.choices else values[axis.job_name]] for axis in AXES}
    assert len(PromptTuningHyperparameters(**several).model_dump(exclude_none=True)) == len(AXES) == 5
    for each in HYPERPARAMETERS:
        if each.is_offered and each.axis is None:
            with pytest.raises(ValidationError):
                PromptTuningHyperparameters(**{each.job_name: [values[each.job_name]]})


def test_a_command_gets_what_its_options_say_and_a_list_as_a_tuple() -> None:
    got = {}
    app = typer.Typer()

    @app.command()
    @takes_hyperparameters(without=("metric",))
    def command(*, asked: dict) -> None:
        got.update(asked)

    flags = ["--learning-rate", "0.1, 0.2", "--seed", "0", "--patience", "0", "--balance", "--epochs", "1"]
    assert CliRunner().invoke(app, flags).exit_code == 0
    assert got == {"learning_rate": (0.1, 0.2), "seed": (0,), "patience": 0, "balance": True, "num_epochs": 1.0}
    assert CliRunner().invoke(app, ["--metric", "loss"]).exit_code == 2
